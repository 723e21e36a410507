"""Arguments that every method gets, and traits that every method declares."""

from dataclasses import dataclass
from typing import Literal

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import OptimConfig
from see_lightning.routing.none import NoRouter
from see_lightning.routing.router import Router
from see_lightning.tasks.prompts import PromptTemplate


@dataclass(frozen=True)
class Setup:
    """A method's arguments in addition to its own settings.

    Args:
        pool: the base model and its adapters.
        template: turns a query into a prompt.
        optim: settings of the optimizer.
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
        trains: a stage trains weights. False with ``sequential``: a task is only kept by ``end_task``, for later answers.
        has_experts: answers name their expert, so routing is evaluated.
        adds_updates: experts add an update to the outputs of layers, as LoRA does; false for prompts and prefixes.
        router: the default router. A method accepts every router whose ``needs`` it has.
        shardable: works while each rank holds only parts of the base model; false if it reads or moves the base's weights.
        takes_activated: works with experts that act from the end of a prompt on (``adapter=activated_lora``).
        weights: what it trains. ``lora``: LoRA adapters alone; ``any``: whole layers too, with ``adapter=full``; ``full``:
            whole layers, also without ``adapter=full``.
        one_lora: every task trains the same LoRA adapter further, and nothing else, so ``optim.migu`` can be added.
        peft_loadable: PEFT alone loads an expert's folder and gives the same answers.
        learns_refusals: past examples are negatives, so experts give verdicts.
        may_reuse: an earlier expert may be assigned to a task (``Method.assign``), which is then not trained.
        trains_apart: no expert's training depends on another expert, so each can be left out, imported or trained again by
            itself (``order.experts``).
        trains_as: the method, as a dotted class name, whose finished stages it takes over, since it trains the same weights.
        takes_conversations: answers rows with earlier turns or a system prompt of their own. False if it stores or rewrites
            queries as single texts.
        after_training: names of the method's settings that no trained weight depends on. A run that differs from a finished
            one in these alone takes over its experts, and only repeats ``end_task``, with the state that the task before
            left. A subclass inherits these names: it declares its own if one of them changes what it trains.
    """

    schedule: Literal["sequential", "joint", "frozen"] = "sequential"
    trains: bool = True
    has_experts: bool = False
    adds_updates: bool = True
    router: type[Router] = NoRouter
    shardable: bool = True
    takes_activated: bool = True
    weights: Literal["lora", "any", "full"] = "lora"
    one_lora: bool = False
    peft_loadable: bool = True
    learns_refusals: bool = False
    may_reuse: bool = False
    trains_apart: bool = False
    trains_as: str | None = None
    takes_conversations: bool = True
    after_training: frozenset[str] = frozenset()
