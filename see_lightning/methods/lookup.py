"""The class that the settings of a method name."""

from collections.abc import Mapping
from typing import Any

from see_lightning.config.instantiate import target_of
from see_lightning.errors import ConfigError
from see_lightning.methods.method import Method


def method_class(settings: Mapping[str, Any]) -> type[Method]:
    """The class of a method, for what it declares.

    Args:
        settings: of the method, with ``_target_``.

    Raises:
        ConfigError: it cannot be imported, or is no method.
    """
    found = target_of(settings)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(
            f"method._target_={settings['_target_']} is no method: it must be a subclass of {Method.__module__}.Method."
        )
    return found
