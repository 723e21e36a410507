"""Numbers, shares and time spans in readable form."""

import math
from collections.abc import Mapping


def number(value: object, digits: int = 2) -> str:
    """A readable value: thousands separated, `digits` decimals, an en dash for None.

    >>> number(12345), number(81.234), number(-3.5), number(None), number([1200, 3])
    ('12,345', '81.23', '−3.50', '–', '1,200, 3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}".replace("-", "−")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(number(item, digits) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item, digits)}" for key, item in value.items())
    return str(value)


def percent(share: float | bool | None) -> str:
    """A share in 0..1 as a percentage.

    >>> percent(0.9876), percent(None), percent(True)
    ('98.8 %', '–', '100.0 %')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """A readable time span.

    >>> duration(41.23), duration(192), duration(3725), duration(None)
    ('41.2 s', '3 min 12 s', '1 h 02 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
