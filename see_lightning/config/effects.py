"""Settings without effect: one that was typed but has no effect under the other settings is refused, or reported in a note.

Defaults and the files of ``conf`` may set values that have no effect, since one experiment serves several methods.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.checks import TRAIN
from see_lightning.config.identity import method_name
from see_lightning.config.instantiate import target_of
from see_lightning.config.schema import PARAPHRASED
from see_lightning.errors import ConfigError


@dataclass(frozen=True)
class Effect:
    """The condition under which some settings have an effect.

    Args:
        settings: patterns of their dotted names.
        acts: whether they have an effect under a composed configuration.
        why: reason given to the user where they have none; ``{value}`` is the typed value, ``{method}`` the method.
        soft: a note instead of a refusal, since people set it in commands for all methods.
    """

    settings: tuple[str, ...]
    acts: Callable[[DictConfig], bool]
    why: str
    soft: bool = False


GENERAL = ("general_negatives", "other_instructions", "ood_examples")  # settings of a method that use general_source


def _schedule(cfg: DictConfig) -> str:
    """When a method trains, which its class declares; the class is imported where a setting that needs it was typed."""
    traits = getattr(target_of(cfg.method), "traits", None)  # what is no method is refused when a run begins
    return getattr(traits, "schedule", "sequential")


def _trains(cfg: DictConfig) -> bool:
    traits = getattr(target_of(cfg.method), "traits", None)
    return _schedule(cfg) != "frozen" and getattr(traits, "trains", True)


def _epochs(cfg: DictConfig) -> list[int]:
    """Passes over the training rows, those of single tasks too."""
    own = (one.get("epochs") for one in (cfg.order.experts or {}).values() if isinstance(one, DictConfig))
    return [cfg.optim.epochs, *filter(None, own)]


def _has_rank(cfg: DictConfig) -> bool:
    """Whether LoRA adapters are trained, not whole layers."""
    traits = getattr(target_of(cfg.method), "traits", None)
    return not (cfg.adapter.full or getattr(traits, "weights", "lora") == "full")


def _on(name: str) -> Callable[[DictConfig], bool]:
    """Whether a method has a setting that is not off."""
    return lambda cfg: cfg.method.get(name) not in (None, 0, "none", [])


def uses_thresholds(cfg: DictConfig) -> bool:
    """Whether experts accept queries by their verdicts, with the method's thresholds, as under SEE's own router."""
    return cfg.router is None or getattr(target_of(cfg.router), "uses_thresholds", False)


def _rehearses(cfg: DictConfig) -> bool:
    return "ratio" in cfg.method


def _keeps_rows(cfg: DictConfig) -> bool:
    """Whether a method that rehearses has a share of past rows to do so."""
    return float(cfg.method.get("ratio", 1)) > 0


def _has_default(name: str) -> Callable[[DictConfig], bool]:
    """Whether some task of the order takes a setting from the benchmark's ``default``."""
    return lambda cfg: any(name not in (cfg.benchmark.tasks.get(task) or {}) for task in cfg.order.tasks)


def _uses(place: str, *parts: str) -> Callable[[DictConfig], bool]:
    """Whether one of these parts of the configuration refers to a path setting, such as ``${paths.data}``."""
    return lambda cfg: any(f"${{{place}}}" in OmegaConf.to_yaml(cfg[part]) for part in parts if cfg.get(part))


EFFECTS = (
    Effect(("model.name",), lambda cfg: cfg.model.source == "hub", "the weights of this model have another source, and"
           " {value} would not be loaded; write model=hub model.name={value}"),
    Effect(
        ("model.system_prompt",),
        lambda cfg: cfg.model.prompt in ("chat", "llama2"),
        "only model.prompt=chat and llama2 have a system prompt",
    ),
    Effect(("adapter.*", "optim.*"), _trains, "method={method} trains nothing and has no adapter"),
    Effect(("adapter", "optim"), _trains, "method={method} trains nothing and has no adapter", soft=True),
    Effect(("valid_size",), _trains, "method={method} trains nothing"),
    Effect(("optim.early_stopping",), lambda cfg: max(_epochs(cfg)) > 1, "a task is trained for one epoch, so there is no"
           " other to keep; write optim.epochs=N too"),
    Effect(("optim.lr",), lambda cfg: "lr" not in cfg.method, "method={method} has a learning rate of its own, method.lr",
           soft=True),
    Effect(("adapter.rank", "adapter.alpha", "adapter.dropout"), _has_rank, "layers are trained whole, without LoRA; choose a"
           " method that trains LoRA adapters, and adapter=lora"),
    Effect(("adapter.quantization",), _has_rank, "layers are trained whole, and only LoRA adapters are quantised; choose"
           " adapter=lora"),
    Effect(("model.gradient_checkpointing",), lambda cfg: not cfg.adapter.activated, "activated experts act over KV"
           " caches, and such passes are not computed again", soft=True),
    Effect(("adapter.cache_gb",), lambda cfg: cfg.adapter.activated, "only activated experts cache the base model's prefill;"
           " write adapter=activated_lora"),
    Effect(("ratio",), _rehearses, "method={method} rehearses nothing", soft=True),
    Effect(("method.reference_batch", "method.memory_strength"), lambda cfg: float(cfg.method.get("ratio", 1)) > 0, "nothing"
           " is rehearsed by method={method} with this ratio"),
    Effect(("data.resample",), lambda cfg: "resample" in cfg.method and _keeps_rows(cfg), "method={method} does not sample"
           " past rows in one of these ways, or none with this ratio"),
    Effect(("method.max_instructions", "method.clusters", "method.logit_weight", "method.answer_weight",
            "method.replay_batch", "method.demonstrations", "method.texts_per_row", "method.max_new_tokens"),
           _keeps_rows, "nothing is rehearsed with this ratio"),
    Effect(("method.logits_per_token", "method.distance"),
           lambda cfg: _keeps_rows(cfg) and bool(cfg.method.get("logit_weight", 1)), "no logits are compared with this"
           " ratio and method.logit_weight"),
    Effect(("indicators.*",), lambda cfg: "indicators" in cfg.method, "method={method} writes no indicators"),
    Effect(("method.general_source",),
           lambda cfg: any(_on(name)(cfg) for name in GENERAL) or not any(name in cfg.method for name in GENERAL)
           or "ood_examples" in (cfg.router or {}),
           "no general instructions are taken; write method.general_negatives=N too"),
    Effect(("method.wordings_per_example",), _on("instruction_variants"), "all examples keep their wording; write"
           " method.instruction_variants=[as_is,reworded,none] too"),
    Effect(("method.rewordings",), lambda cfg: "reworded" in (cfg.method.get("instruction_variants") or ()), "no definition"
           " is reworded in training; write method.instruction_variants=[as_is,reworded,none] too"),
    Effect(("*.min_negatives", "*.max_negatives"), lambda cfg: bool("min_negatives" in cfg.method and cfg.method.ratio),
           "method={method} trains no negatives of past tasks with this ratio"),
    Effect(("method.target_recall", "method.ood_examples"), _on("calibrate_on"), "no threshold is set; write"
           " method.calibrate_on=N too"),
    Effect(("method.margin",),
           lambda cfg: cfg.method.get("calibrate_on") == TRAIN or (_on("calibrate_on")(cfg) and _on("ood_examples")(cfg)),
           "a threshold uses own examples alone; write method.calibrate_on=N method.ood_examples=N or"
           " method.calibrate_on=train"),
    Effect(("method.target_recall", "method.ood_examples", "method.margin"),
           lambda cfg: uses_thresholds(cfg) or cfg.method.get("reuse") == "accept", "the router that was"
           " chosen uses no thresholds of the method; leave out router, or write router=walk", soft=True),
    Effect(("method.second_chance",), uses_thresholds, "the router that was chosen does not ask experts until one accepts;"
           " leave out router, or write router=propose"),
    Effect(("method.reject_above",), lambda cfg: cfg.router is None or "reject_above" in cfg.router, "the router that was"
           " chosen rejects nothing; write router=density router.reject_above={value}", soft=True),
    Effect(("method.balance",), lambda cfg: int(cfg.method.get("experts", 2)) > 1, "there is one expert, which gets all"
           " tokens; write method.experts=N too"),
    Effect(("method.diversify",), lambda cfg: not cfg.method.get("diversify") or cfg.method.top_k < cfg.method.prompts,
           "each row begins with all prompts of the pool; write method.top_k=N, fewer than method.prompts"),
    Effect(("method.strength",), lambda cfg: bool(cfg.method.get("ratio", 1)), "nothing is stored by method={method} with"
           " this ratio"),
    Effect(("method.features", "method.ridge", "method.layer", "method.wordings"), lambda cfg: cfg.router is None,
           "the router that was chosen takes the place of the method's own; leave out router"),
    Effect(("data.calibrate_on",), lambda cfg: "calibrate_on" in cfg.method, "method={method} has no thresholds"),
    Effect(("method.probe",), _on("warm_start"), "no expert begins from another; write method.warm_start=loss or knn too"),
    Effect(("method.reuse_share", "method.reuse_gain"), lambda cfg: cfg.method.get("reuse") == "accept", "a new expert is"
           " trained for every task; write method.reuse=accept too"),
    Effect(("method.temperature",), lambda cfg: cfg.method.get("strength", 1) != 0, "with method.strength=0 nothing is"
           " distilled"),
    Effect(("method.writing", "method.top_k"), lambda cfg: cfg.method.get("gamma", 1) != 0, "no past row is written with"
           " method.gamma=0"),
    Effect(("method.old_per_new",), lambda cfg: float(cfg.method.get("ratio", 1)) > 0, "nothing is stored with this ratio"),
    Effect(("method.follow",), lambda cfg: cfg.method.get("teacher") != "base", "the base model is the teacher, and follows"
           " nothing; write method.teacher=average"),
    Effect(("method.consistency",), lambda cfg: _rehearses(cfg) and float(cfg.method.ratio) > 0, "nothing is rehearsed with"
           " this ratio"),
    Effect(("method.score_lr",), _on("score_share"), "no step trains scores; write method.score_share=SHARE too"),
    Effect(("order.visits",), lambda cfg: cfg.order.stream == "recurring", "no task comes back; write"
           " order.stream=recurring too"),
    Effect(("order.share",), lambda cfg: cfg.order.stream == "blurry", "no task has rows of another; write"
           " order.stream=blurry too"),
    Effect(("ood.*",), lambda cfg: bool(cfg.ood and cfg.ood.sources), "no foreign tasks are chosen; write ood=NAME too,"
           " such as ood=natural_instructions"),
    Effect(("ood.dir",), _uses("ood.dir", "ood"), "none of these ood tasks lie there; write ood=folder ood.dir={value}"),
    Effect(("evaluate.url", "evaluate.check", "evaluate.tolerance", "evaluate.text_tolerance"),
           lambda cfg: cfg.evaluate.engine == "vllm", "this process answers test queries; write evaluate.engine=vllm too"),
    Effect(("ood.every",), lambda cfg: _schedule(cfg) == "sequential", "method={method} is tested once"),
    Effect(("benchmark.paraphrases*",), lambda cfg: bool({*PARAPHRASED} & {*cfg.variants}), "they are"
           " evaluated with variants=[paraphrased] alone"),
    Effect(("benchmark.default.score",), _has_default("score"), "each of these tasks has a score of its own: write"
           " benchmark.tasks.TASK.score={value}"),
    Effect(("benchmark.default.max_new_tokens",), _has_default("max_new_tokens"), "each of these tasks has a limit of"
           " its own: write benchmark.tasks.TASK.max_new_tokens={value}"),
    Effect(("logger.project", "logger.entity", "logger.name", "logger.group", "logger.tags"),
           lambda cfg: cfg.logger.get("mode") != "disabled", "logger.mode=disabled sends nothing"),
    Effect(("trainer.*val*", "trainer.*test*"), lambda cfg: False, "a run trains and answers; Lightning's validation and test"
           " take no part in it. valid_size=N has a validation loss after each epoch"),
    Effect(("paths.data",), _uses("paths.data", "benchmark", "ood"), "none of these tasks are read from there", soft=True),
)  # fmt: skip


#: General settings from which a method's own setting takes its value; if both are typed, the method's own counts.
OWN = {
    "ratio": "method.ratio",
    "data.resample": "method.resample",
    "data.min_negatives": "method.min_negatives",
    "data.max_negatives": "method.max_negatives",
    "data.calibrate_on": "method.calibrate_on",
    "method.task_id": "router",
}


@dataclass(frozen=True)
class Idle:
    """A typed setting without effect: its override, the message about it, and whether it is a note instead of a refusal."""

    override: str
    message: str
    soft: bool


def idle(cfg: DictConfig, typed: Iterable[str]) -> Iterator[Idle]:
    """The typed settings that have no effect, except values that switch something off.

    Args:
        cfg: composed.
        typed: overrides, as Hydra took them.
    """
    typed = list(typed)
    names = {override.lstrip("+").partition("=")[0] for override in typed}
    for override in typed:
        name, _, value = override.lstrip("+").partition("=")
        if (own := OWN.get(name)) in names:
            yield Idle(override, f"{name} has no effect here: {own}, which was typed too, takes its place.", soft=False)
            continue
        if name.startswith("~") or OmegaConf.select(cfg, name, default=value) in (None, 0, False, "none", "off", ""):
            continue
        for effect in EFFECTS:
            if any(fnmatch(name, pattern) for pattern in effect.settings) and not effect.acts(cfg):
                why = effect.why.format(value=value, method=method_name(cfg))
                yield Idle(override, f"{name} has no effect here: {why}.", effect.soft)
                break


def check_effects(cfg: DictConfig, typed: Iterable[str], *, several: bool) -> tuple[list[str], list[str]]:
    """Refuse a typed setting without effect.

    Args:
        cfg: composed and checked.
        typed: overrides, as Hydra took them.
        several: whether the command, or a sweep, has several jobs; then a setting without effect in one is not refused.

    Returns:
        The overrides that repeat this job alone, and the notes to print.

    Raises:
        ConfigError: a setting was typed that has no effect.
    """
    typed = list(typed)
    without_effect = list(idle(cfg, typed))
    hard = [setting for setting in without_effect if not setting.soft]
    if hard and not several:
        raise ConfigError(hard[0].message)
    dropped = {setting.override for setting in hard}
    kept = [override for override in typed if override not in dropped]
    return kept, [setting.message for setting in without_effect]
