"""Builds the test queries beside a run's own: foreign tasks, and variants of the run's own queries and of foreign ones."""

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import DictConfig

from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import PARAPHRASED, VARIANTS, RunConfig
from see_lightning.data.general import BUILT_IN
from see_lightning.engine.build import indicator_tokens, plain_tasks, read_tasks, with_notices
from see_lightning.engine.contents import shipped_names
from see_lightning.engine.ledger import OOD, OOD_INPUT_ONLY
from see_lightning.errors import ConfigError, DataError, listed, nearest
from see_lightning.methods.instruction_variants import MODEL, read_rewordings
from see_lightning.tasks.prompts import PromptTemplate, checked_header
from see_lightning.tasks.selection import content
from see_lightning.tasks.task import Benchmark, Task
from see_lightning.tasks.variants import definition, variant_of


def build_ood(cfg: DictConfig, config: RunConfig, template: PromptTemplate) -> dict[str, list[Task]]:
    """The out-of-distribution tasks of ``ood`` by eval set; they have test queries and no training rows.

    Returns:
        ``ood``, the tasks as they stand; ``ood_input_only``, those with a definition without it, if it is asked for.

    Raises:
        DataError: a row cannot be used, or too many were skipped.
        ConfigError: a task is unknown, two sources have it, the run trains on it, or no task has such a variant.
    """
    if config.ood is None:
        return {}
    benchmarks: dict[str, Benchmark] = {name: instantiate(source) for name, source in cfg.ood.sources.items()}
    for name, benchmark in benchmarks.items():
        benchmark.check_names(shipped_names(cfg.ood.sources[name]), f"ood.sources.{name}")
    readers = {name: benchmark.reader for name, benchmark in benchmarks.items()}
    found = [(task, name) for name, reader in readers.items() for task in reader.tasks()]
    names = [task for task, _ in found]
    for task in config.ood.tasks or ():
        if task not in names:
            raise ConfigError(f"ood.tasks names {task!r}.{nearest(task, names)} There are: {listed(names)}.")
    taken = {*config.order.tasks, *config.order.learned()}
    ood_tasks: list[Task] = []
    whole: list[Task] = []
    for name, source in cfg.ood.sources.items():
        wanted = [task for task, of in found if of == name and (not config.ood.tasks or task in config.ood.tasks)]
        for task in wanted:
            if task in taken:
                raise ConfigError(
                    f"ood has a task {task!r} that the order or another source has too. Name the tasks to evaluate in"
                    f" ood.tasks=[...]; there are {listed(names)}."
                )
            taken.add(task)
        try:
            read = read_tasks(source, wanted, config, template, None, None, trained_on=False)
        except DataError as error:
            raise DataError(f"ood, {name}: {error}") from error
        most = config.ood.max_new_tokens
        limited = [
            replace(
                task,
                test=task.test[: config.ood.size],
                max_new_tokens=min(task.max_new_tokens, most or task.max_new_tokens),
            )
            for task in read
        ]
        whole += limited
        ood_tasks += [
            with_notices(replace(task, train=()), template, f"ood.sources.{name}", "ood.max_new_tokens")
            for task in limited
        ]
    if not config.ood.variants:
        return {OOD: ood_tasks}
    return _with_ood_variants(ood_tasks, whole, config, template)


def _with_ood_variants(
    ood_tasks: list[Task], whole: Sequence[Task], config: RunConfig, template: PromptTemplate
) -> dict[str, list[Task]]:
    """The ood tasks, with a notice on those without a definition, and the others without their definitions.

    Args:
        ood_tasks: as they stand.
        whole: the same tasks with their training rows.
        config: of the run.
        template: counts tokens.
    """
    bare = [task.name for task in whole if not definition(task.train or task.test).strip()]
    if len(bare) == len(whole):
        raise ConfigError(
            f"ood.variants=[input_only]: none of the ood tasks has a definition, a beginning of all its prompts that a blank"
            f" line or a line break ends: {listed(bare)}. Leave ood.variants out, or choose other tasks."
        )
    room = indicator_tokens(config, template)
    alone = [
        variant_of(task, "input_only", {}, template, room, "ood.variants") for task in whole if task.name not in bare
    ]
    if config.adapter.activated:
        alone = [checked_header(task, template) for task in alone]
    for place, task in enumerate(ood_tasks):
        if task.name in bare:
            notice = (
                f"{task.name}: its prompts have no definition in common, so ood.variants=[input_only] leaves it out"
            )
            ood_tasks[place] = replace(task, notices=(*task.notices, notice))
    return {OOD: ood_tasks, OOD_INPUT_ONLY: alone}


def build_variants(
    cfg: DictConfig, config: RunConfig, template: PromptTemplate, tasks: Sequence[Task]
) -> dict[str, list[Task]]:
    """For each of ``variants``, the run's tasks with their test queries reworded.

    Args:
        cfg: composed.
        config: its typed form.
        template: counts tokens.
        tasks: of the run, from ``build_tasks``.

    Raises:
        DataError: a prompt does not end in the header that activated experts need.
        ConfigError: a task has no such variant, or the run trains on a paraphrase of it.
    """
    if not config.variants:
        return {}
    benchmark: Benchmark = instantiate(cfg.benchmark)
    if config.order.stream == "blurry":  # among rows of others, a task's prompts have no definition in common
        tasks = plain_tasks(cfg, config, template)
    texts = {name: benchmark.paraphrases.get(task, ()) for name, task in config.order.learned().items()}
    if {*PARAPHRASED} & {*config.variants}:
        _check_unseen(cfg, benchmark, config.order.tasks)
    room = indicator_tokens(config, template)
    found = {
        name: [variant_of(task, name, texts, template, room) for task in tasks]
        for name in VARIANTS
        if name in config.variants
    }
    if config.adapter.activated:
        return {name: [checked_header(task, template) for task in some] for name, some in found.items()}
    return found


def _check_unseen(cfg: DictConfig, benchmark: Benchmark, tasks: Sequence[str]) -> None:
    """Refuse paraphrases that the run's own file of rewordings has: these variants are for wordings that were not learned."""
    source = cfg.method.get("rewordings")
    if "reworded" not in (cfg.method.get("instruction_variants") or ()) or source in (BUILT_IN, MODEL):
        return
    rewordings = read_rewordings(source)
    for task in tasks:
        learned = [content(text).lower() for text in rewordings.get(task, ())]
        for place, text in enumerate(benchmark.paraphrases.get(task, ())):
            if any(content(text).lower() in one for one in learned):
                raise ConfigError(
                    f"method.rewordings={source} has the paraphrase of {task} that variants=[{PARAPHRASED[place]}] evaluates,"
                    f" so it would not be an unseen wording. Leave it out of the file, or set another"
                    f" benchmark.paraphrases.{task}."
                )
