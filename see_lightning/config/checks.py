"""Checks of single settings, for the typed groups and for the constructors of methods."""

from collections.abc import Iterable

from see_lightning.errors import ConfigError, nearest

TRAIN = "train"  # value of calibrate_on: thresholds are set on the training rows


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of the allowed words."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}; got {value!r}.{nearest(value, allowed)}")


def check_tokens(key: str, value: object) -> None:
    """Refuse a number of tokens that is neither ``auto`` nor a whole number from 1 on."""
    if value != "auto" and (type(value) is not int or value < 1):
        raise ConfigError(f"{key} is a whole number from 1 on, or auto; got {value!r}.")


def within(key: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside ``low..high``; None means unset and passes."""
    if value is not None and not (low <= value <= high and value < float("inf")):
        limit = (
            f"at least {low:g}, and finite"
            if value == float("inf")
            else f"at least {low:g}"
            if high == float("inf")
            else f"between {low:g} and {high:g}"
        )
        raise ConfigError(f"{key} must be {limit}; got {f'{value:g}' if isinstance(value, float) else value}.")


def above_zero(key: str, value: float, high: float = float("inf")) -> None:
    """Refuse a number that is not above 0 and at most ``high``."""
    within(key, value, 0, high)
    if value == 0:
        raise ConfigError(f"{key} must be above 0; got {value:g}.")


def check_ratio(key: str, ratio: float) -> None:
    """Refuse a share outside 0..1."""
    if not isinstance(ratio, int | float) or not 0.0 <= ratio <= 1.0:
        raise ConfigError(
            f"{key} is the share of past examples that is rehearsed, between 0 and 1; got {ratio}. For 10 % write 0.1."
        )


def check_calibrate_on(key: str, value: int | str) -> None:
    """Refuse a value that is neither a number of rows nor ``train``."""
    if value != TRAIN and not (isinstance(value, int) and value >= 0):
        raise ConfigError(f"{key} must be a number of rows to hold out, at least 0, or {TRAIN}; got {value!r}.")
