"""Where the expert of a task comes from, if it is not trained as all others are: the setting ``order.experts``."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from see_lightning.config.checks import within
from see_lightning.errors import ConfigError, listed, nearest

NONE = "none"
#: Training settings that one task may have of its own, and their least values.
LEAST = {"lr": 0.0, "epochs": 1, "seed": 0}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a task's expert comes from.

    Args:
        folder: a PEFT folder, whose adapter becomes the expert; None imports nothing.
        training: ``lr``, ``epochs`` and ``seed`` of its training, in place of the run's; empty if it is not trained.
    """

    folder: str | None = None
    training: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_none(self) -> bool:
        """Whether the task has no expert."""
        return self.folder is None and not self.training


def read_origins(experts: Mapping[str, Any] | None, tasks: Collection[str]) -> dict[str, Origin]:
    """The values of ``order.experts`` by task.

    Args:
        experts: by task: ``none``, a PEFT folder, or a mapping with ``lr``, ``epochs`` or ``seed``; None is empty.
        tasks: of the order.

    Raises:
        ConfigError: a task is not in the order, or a value has another form.

    >>> read_origins({"qa": "none", "sa": {"epochs": 5}}, ["qa", "sa"])["sa"].training
    {'epochs': 5}
    """
    if not isinstance(experts, Mapping | None):
        raise ConfigError(f"order.experts must be a mapping, such as {{TASK: none}}; got {experts!r}.")
    found = {}
    for task, value in (experts or {}).items():
        name = f"order.experts.{task}"
        if task not in tasks:
            raise ConfigError(f"{name}: there is no task {task!r} in order.tasks.{nearest(task, tasks)}")
        if value == NONE:
            found[task] = Origin()
        elif isinstance(value, str) and value:
            found[task] = Origin(folder=value)
        elif isinstance(value, Mapping) and value:
            found[task] = Origin(training=dict(value))
            for key, number in value.items():
                if key not in LEAST:
                    raise ConfigError(f"{name} has no setting {key!r}; a task's own ones are {listed(LEAST)}.")
                if isinstance(number, bool) or not isinstance(number, int if key != "lr" else int | float):
                    raise ConfigError(
                        f"{name}.{key} must be a {'number' if key == 'lr' else 'whole number'}; got {number!r}."
                    )
                within(f"{name}.{key}", number, LEAST[key])
                if not number and key == "lr":
                    raise ConfigError(f"{name}.lr=0 trains nothing; give one above 0, or {name}=none.")
        else:
            raise ConfigError(
                f"{name} must be none, a PEFT folder, or settings such as {{epochs: 5, seed: 1}}; got {value!r}."
            )
    if found and len(found) == len(tasks) and all(one.is_none for one in found.values()):
        raise ConfigError("order.experts leaves no task an expert; method=base answers with the base model alone.")
    return found
