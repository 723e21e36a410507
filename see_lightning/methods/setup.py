"""What every method is given, and what every method declares about itself."""

from dataclasses import dataclass
from typing import Literal

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import OptimConfig
from see_lightning.routing.none import NoRouter
from see_lightning.routing.router import Router
from see_lightning.tasks.prompts import PromptTemplate


@dataclass(frozen=True)
class Setup:
    """What a run gives a method beside the method's own settings.

    Args:
        pool: the base model and its adapters.
        template: how a query is put to the model.
        optim: how one task is trained.
        seed: the run's seed.
        rank: number of this process, from 0.
        ranks: number of processes that train the method together.
    """

    pool: ExpertPool
    template: PromptTemplate
    optim: OptimConfig
    seed: int
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Traits:
    """Properties of a method that the engine reads from its class, before a model is loaded.

    Args:
        schedule: ``sequential``: a stage for each task; ``joint``: one stage on all tasks; ``frozen``: no training.
        has_experts: answers name the expert that gave them, so routing is judged.
        router: that of a run which names none. A method takes every router whose ``needs`` it has.
        shardable: works while each rank holds only parts of the base model; false if it reads or moves the base's weights.
        peft_loadable: an expert's folder, loaded by PEFT alone, gives the same answers.
        learns_refusals: past examples are trained on as queries to refuse, so experts give verdicts.
        may_reuse: a task may be given an earlier expert (``Method.assign``); then nothing is trained on it.
        after_training: names of the method's settings that no trained weight depends on. A run that differs from a finished
            one in these alone takes over its experts, and only repeats ``end_task``, with the state that the task before
            left. A subclass inherits these names: it declares its own if one of them changes what it trains.
    """

    schedule: Literal["sequential", "joint", "frozen"] = "sequential"
    has_experts: bool = False
    router: type[Router] = NoRouter
    shardable: bool = True
    peft_loadable: bool = True
    learns_refusals: bool = False
    may_reuse: bool = False
    after_training: frozenset[str] = frozenset()
