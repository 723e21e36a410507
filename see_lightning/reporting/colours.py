"""The style of each method in figures: a colour, marker, line and hatch, the same in every figure."""

import colorsys
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from see_lightning.config.search_path import CONF

#: Okabe and Ito's colours, which readers with colour-vision deficiency can distinguish, and some that fit them.
FIRST = {
    "base": "#999999",
    "seqft": "#e69f00",
    "replay": "#56b4e9",
    "mtl": "#009e73",
    "stl": "#cc79a7",
    "see": "#0072b2",
    "moses": "#d55e00",
    "exssnet": "#b8a900",
    "sema": "#222222",
    "moram": "#7f3c8d",
}
#: Each is the colour of a grid farthest from those before it in OKLab, for normal, red-blind and green-blind vision.
FURTHER = (
    "#3c5a00", "#d200ff", "#000096", "#0000ff", "#00e1a5", "#b4002d", "#ff96ff", "#ffa5a5",
    "#5a005a", "#e100a5", "#004b5a", "#4b87ff", "#780000", "#966969", "#7800d2", "#00e100",
    "#ff1e69", "#ff4be1", "#697800", "#a569d2", "#004ba5", "#1e3c00", "#0096b4", "#ff7869",
    "#2d6969", "#694bff", "#00c35a", "#87004b", "#c387ff", "#5a0f96", "#b40fc3", "#78d2e1",
    "#b4d269", "#784b3c", "#00a500", "#d20069", "#0f2d5a", "#e1001e", "#b4b487", "#96874b",
)  # fmt: skip
PALETTE = (*FIRST.values(), *FURTHER)
#: Marker, line and hatch differ as well, since forty colours are too many to distinguish.
MARKS = (("s", "--", "///"), ("^", "-.", "..."), ("D", ":", "xxx"), ("v", (0, (5, 1)), "\\\\\\"))


@dataclass(frozen=True)
class Style:
    """The look of a method in figures.

    Args:
        colour: ``#rrggbb``.
        marker: of points.
        line: matplotlib's style of the line between points.
        hatch: of areas; empty for a plain one.
    """

    colour: str
    marker: str = "o"
    line: str | tuple[int, tuple[int, ...]] = "-"
    hatch: str = ""


def style_of(method: str) -> Style:
    """The style of a method, which depends only on its name and on the configured methods.

    The colour of a method without a configuration depends on its name alone.

    >>> style_of("see")
    Style(colour='#0072b2', marker='o', line='-', hatch='')
    """
    if method in FIRST:
        return Style(FIRST[method])
    digest = _digest(method)
    marks = MARKS[digest % len(MARKS)]
    if method in _known():
        return Style(_known()[method], *marks)
    hue, light, strength = (digest >> 8) % 3600, (digest >> 24) % 300, (digest >> 40) % 300
    parts = colorsys.hls_to_rgb(hue / 3600, 0.3 + light / 1000, 0.55 + strength / 1000)
    return Style("#" + "".join(f"{round(255 * part):02x}" for part in parts), *marks)


def styles(methods: Sequence[str]) -> list[Style]:
    """A style for each group by its method; the groups of one method range from a light shade to its own colour.

    Args:
        methods: of the groups, in their order.

    >>> [style.colour for style in styles(["see", "mtl", "see"])]
    ['#99c7e0', '#009e73', '#0072b2']
    """
    found = []
    for place, method in enumerate(methods):
        later, total = methods[place + 1 :].count(method), methods.count(method)
        white = 0.6 * later / (total - 1) if total > 1 else 0.0
        own = style_of(method)
        parts = [round(part + white * (255 - part)) for part in parts_of(own.colour)]
        found.append(replace(own, colour="#" + "".join(f"{part:02x}" for part in parts)))
    return found


def parts_of(colour: str) -> list[int]:
    """Red, green and blue of a colour, in 0..255."""
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


@cache
def _known() -> dict[str, str]:
    return assigned(path.stem for path in (CONF / "method").glob("*.yaml"))


def assigned(methods: Iterable[str]) -> dict[str, str]:
    """A different colour of `FURTHER` for each method that is not in `FIRST`, while there are any.

    A method gets the colour at the hash of its name, or the next free one; so a new method rarely changes another's.
    """
    found: dict[str, str] = {}
    for method in sorted({*methods} - {*FIRST})[: len(FURTHER)]:
        start = _digest(method) % len(FURTHER)
        found[method] = next(c for c in (*FURTHER[start:], *FURTHER[:start]) if c not in found.values())
    return found


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
