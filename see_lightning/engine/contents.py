"""The inputs of a run besides its settings, as digests: rows of data, the base model's files, the user's files.

Inputs are compared by content: the same rows in another folder are the same experiment, and other rows in the same folder
are another one.
"""

import hashlib
import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.identity import reader_switched_on, with_values
from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import RunConfig
from see_lightning.config.search_path import CONF
from see_lightning.data.checks import BadRow
from see_lightning.data.example import Example, joined
from see_lightning.data.reader import Reader, validation_part
from see_lightning.engine.user_files import source_digest, source_files
from see_lightning.errors import DataError
from see_lightning.models.digest import files_digest, model_files, weights_of
from see_lightning.tasks.task import Benchmark

MODEL = "model.name"
#: Readers of a user's own files; no benchmark has a version of these.
OF_USERS = ("see_lightning.data.jsonl.JsonlReader", "see_lightning.data.hub.HubReader")
ROWS = "rows.json"  # in a run directory: the digests of its rows

Rows = dict[str, dict[str, list[str]]]


@dataclass(frozen=True, slots=True)
class Contents:
    """The present content of all inputs that the settings of a run name.

    Args:
        digests: input -> sha256: of a task's rows (``task NAME``), of the base model's files (``MODEL``), of a user's file
            (``method.general_source``); None if it cannot be read.
        places: input -> its path as given, and with links resolved; or a model's name and revision.
        rows: task -> ``train``, ``test`` -> a short digest of each row's prompt and answer.
        missing: input -> why it could not be read.
        files: file of the base model -> sha256.
    """

    digests: dict[str, str | None] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def noted(self) -> dict[str, Any]:
        """The part that a run's ledger keeps."""
        return {"digests": self.digests, "places": self.places, "files": self.files}


def task_name(task: str) -> str:
    """The name of the input that is a task's rows."""
    return f"task {task}"


def read_contents(cfg: DictConfig, config: RunConfig) -> Contents:
    """Read and digest all inputs that a configuration names.

    Raises:
        ConfigError: the benchmark's settings do not fit its reader.
    """
    found = Contents()
    benchmark: Benchmark = instantiate(cfg.benchmark)
    benchmark.check_names({*config.order.tasks, *shipped_names(cfg.benchmark)})
    reader = benchmark.reader
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for task in config.order.tasks:
        name = task_name(task)
        found.digests[name] = None
        found.places[name] = sorted({place for path in _folders(settings["benchmark"], task) for place in places(path)})
        try:
            found.digests[name], found.rows[task] = rows_digest(reader, task, valid=config.valid_size > 0)
        except (DataError, OSError) as error:
            found.missing[name] = _reason(error)
    for name, source in source_files(settings).items():
        found.places[name], found.digests[name] = places(source), None
        try:
            found.digests[name] = source_digest(Path(source))
        except OSError as error:
            found.missing[name] = _reason(error)
    found.places[MODEL] = model_places(settings["model"])
    read_model(found, config)
    if MODEL in found.missing and config.model.source == "hub":  # a removed folder looks like a Hub id
        found.places[MODEL] = sorted({*found.places[MODEL], *places(config.model.name)})
    return found


def shipped_names(benchmark: DictConfig) -> set[str]:
    """All tasks that the files of ``conf`` name for this benchmark's reader; none for a reader of the user's own files."""
    if benchmark.reader["_target_"] in OF_USERS:
        return set()
    files: list[Any] = [OmegaConf.load(path) for path in (CONF / "benchmark").glob("*.yaml")]
    return {str(task) for file in files for task in file.get("tasks") or ()}


def read_model(found: Contents, config: RunConfig) -> None:
    """Add the digests of the base model's files to contents, if they are on this machine."""
    files = model_files(config.model, config.paths.cache_folder())
    # The other files of a packaged model are fixed by the package's version.
    named = weights_of(files or {}) if config.model.source == "package" else files
    found.digests[MODEL] = files_digest(named) if named else None
    found.files.update(files or {})
    if not files:
        found.missing[MODEL] = f"{config.model.name} is not on this machine"


def ood_digests(cfg: DictConfig) -> dict[str, str | None]:
    """sha256 over the test rows of each ``ood`` task, by name; None where they cannot be read."""
    found: dict[str, str | None] = {}
    for source in cfg.ood.sources.values() if cfg.get("ood") else ():
        try:
            reader: Reader = instantiate(source).reader
            names = [task for task in reader.tasks() if not cfg.ood.tasks or task in cfg.ood.tasks]
        except (DataError, OSError):
            continue
        for task in names:
            try:
                found[task], _ = rows_digest(reader, task, ("test",))
            except (DataError, OSError):
                found[task] = None
    return found


def ood_queries(ood: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the resolved setting ``ood`` that its queries depend on: without paths, variants and paraphrases."""
    sources = {
        name: with_values(source, {".".join(keys): None for keys, _ in _place_settings(source)} | {"paraphrases": None})
        for name, source in ood["sources"].items()
    }
    for source in sources.values():
        for reader in (source["reader"], *source["reader"].get("readers", {}).values()):
            reader_switched_on(reader)
    rest = {name: value for name, value in ood.items() if name != "variants"}
    return {**rest, "sources": sources, "dir": None}


def rows_digest(
    reader: Reader, task: str, halves: Sequence[str] = ("train", "test"), *, valid: bool = False
) -> tuple[str, dict[str, list[str]]]:
    """sha256 over the rows of a task, and a short digest of each row.

    Args:
        reader: reads the rows.
        task: name of the task.
        halves: the parts that count.
        valid: whether the validation split counts too, if there is one.

    Raises:
        DataError: the rows cannot be read.
    """
    parts = reader.parts(task)
    whole, short = hashlib.sha256(), {}
    part = validation_part(parts) if valid else None
    for half in (*halves, *([part] if part else [])):
        short[half] = [_row(row, whole) for row in parts[half].rows]
        whole.update(b"\x1d")
    return whole.hexdigest(), short


def _row(row: Example | BadRow, whole: Any) -> str:
    if isinstance(row, BadRow):
        texts: tuple[str, ...] = (row.reason,)
    else:
        more = [one for one in fields(row) if one.compare and one.name not in ("id", "prompt", "target", "task")]
        eval_sets = [getattr(row, one.name) for one in more if getattr(row, one.name) != _default(one)]
        texts = (row.id, row.prompt, row.target, *map(repr, eval_sets))
    whole.update(joined(texts).encode(errors="surrogatepass") + b"\x1e")
    return hashlib.sha256(joined(texts[1:] or texts).encode(errors="surrogatepass")).hexdigest()[:12]


def _default(one: Any) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error).splitlines()[0].partition(". ")[0].rstrip(".")  # without the advice behind it


def is_folder(name: str) -> bool:
    """Whether the name of a model or data set is a path, and no id on the Hub."""
    return name.startswith((os.sep, ".", "~")) or Path(name).exists()


def model_places(model: Mapping[str, Any]) -> list[str]:
    """A configured model's paths, see ``places``, or its name with its revision."""
    name, revision = model["name"], model.get("revision")
    if model["source"] == "hub" and is_folder(name):
        return places(name)
    return [f"{name}@{revision}" if revision else name]


def places(path: str) -> list[str]:
    """An absolute path as given, and with links resolved: if a link is changed, the first stays the same."""
    plain = os.path.abspath(os.path.expanduser(path))
    return sorted({plain, os.path.realpath(plain)})


def _folders(benchmark: Mapping[str, Any], task: str) -> list[str]:
    """The paths from which a resolved benchmark reads a task."""
    return [value for _, value in _place_settings(benchmark, task)]


def _place_settings(benchmark: Mapping[str, Any], *tasks: str) -> Iterator[tuple[list[str], Any]]:
    """Settings of a benchmark's reader that are paths of data: their keys below ``benchmark``, and their values."""
    yield from _reader_places(["reader"], benchmark["reader"], *tasks)


def _reader_places(at: list[str], reader: Mapping[str, Any], *tasks: str) -> Iterator[tuple[list[str], Any]]:
    """The settings of a reader, or of the readers that it combines, that are paths of data."""
    for source, one in reader.get("readers", {}).items():
        yield from _reader_places([*at, "readers", source], one, *tasks)
    datasets = reader.get("datasets")
    for task, source in datasets.items() if isinstance(datasets, Mapping) else ():
        path = source.get("path") if isinstance(source, Mapping) else None
        # In a ledger's settings a digest replaces a folder.
        if path and (task in tasks or not tasks) and (not isinstance(path, str) or is_folder(path)):
            yield [*at, "datasets", task, "path"], path
    for name, annotation in _annotations(reader["_target_"]).items():
        if isinstance(reader.get(name), str | Mapping) and (annotation is Path or Path in get_args(annotation)):
            yield [*at, name], reader[name]


def _annotations(reader: str) -> dict[str, Any]:
    """The annotations of a reader's arguments; empty for a reader of the user's that is not imported, which is left so."""
    module, _, name = reader.rpartition(".")
    if reader.startswith("see_lightning."):
        with suppress(ImportError):
            import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type):
        return {}
    with suppress(ValueError, TypeError, NameError):
        return {key: one.annotation for key, one in inspect.signature(found, eval_str=True).parameters.items()}
    return {}


def place_values(results: Mapping[str, Any]) -> set[str]:
    """The values of a run's settings that are paths of its data, its model or its files.

    Args:
        results: content of ``results.json``.
    """
    config = results["config"]
    settings = [ood for ood in (config.get("ood"), (results.get("ood") or {}).get("asked")) if ood]
    sources = [config["benchmark"], *(source for ood in settings for source in ood["sources"].values())]
    found = [value for source in sources if "reader" in source for _, value in _place_settings(source)]
    found += [ood.get("dir") for ood in settings]
    found += source_files(config).values()
    # For a setting that was a path when the run started, the run key has a digest.
    for name in results.get("contents", {}).get("in_key", {}):
        value = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found.append(value)
    if config["model"]["source"] == "hub" and is_folder(config["model"]["name"]):
        found.append(config["model"]["name"])
    return {value for value in found if isinstance(value, str)}


def placed(kept: Mapping[str, Any], digests: Mapping[str, str | None], *, everything: bool = False) -> dict[str, Any]:
    """Values that replace settings in the run key: for the paths of a user's own files, digests of their content.

    Data with a benchmark's version, and models of the Hub, stay in the key by name.

    Args:
        kept: the settings of ``numbers_config``.
        digests: of ``Contents``.
        everything: whether to add all digests, of named inputs too.

    Returns:
        Dotted setting -> value.
    """
    found: dict[str, Any] = {"contents": dict(digests)} if everything else {}
    tasks = kept["order"]["tasks"]
    reader = kept["benchmark"]["reader"]
    own = any(one["_target_"] in OF_USERS for one in (reader, *reader.get("readers", {}).values()))
    for keys, value in _place_settings(kept["benchmark"], *tasks):
        if own or not value.startswith("<data>"):
            of = [keys[-2]] if "datasets" in keys else tasks
            found[".".join(["benchmark", *keys])] = {task: digests.get(task_name(task)) for task in of}
    found |= {name: digests.get(name) for name in source_files(kept)}
    if kept["model"]["source"] == "hub" and is_folder(kept["model"]["name"]):
        found[MODEL] = digests.get(MODEL)
    return found


def without_places(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, in the form of ``about.numbers`` in a ledger, without paths."""
    tasks = kept["order"]["tasks"]
    nowhere = {".".join(["benchmark", *keys]): None for keys, _ in _place_settings(kept["benchmark"], *tasks)}
    result = with_values(kept, nowhere)
    result.pop("contents", None)
    datasets = result["benchmark"]["reader"].get("datasets")
    if isinstance(datasets, dict):  # data sets of other tasks are not used
        result["benchmark"]["reader"]["datasets"] = {task: datasets[task] for task in datasets if task in tasks}
    if result["model"]["source"] == "hub":
        result["model"] |= {"name": None, "revision": None}
    return with_values(result, dict.fromkeys(source_files(result)))


def changed_rows(before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> str:
    """The difference between the rows of a task then and now, in words.

    >>> changed_rows({"train": ["a", "b"], "test": ["x"]}, {"train": ["b", "c", "d"], "test": ["x"]})
    'train: 2 rows added, 1 removed'
    >>> changed_rows({"train": ["a", "b"], "test": ["x"]}, {"train": ["b", "a"], "test": ["x"]})
    'train: the same rows in another order'
    """
    changes = []
    for half, rows in now.items():
        ours, theirs = Counter(rows), Counter(before.get(half, ()))
        more, fewer = (ours - theirs).total(), (theirs - ours).total()
        if more or fewer:
            changes.append(f"{half}: {more} rows added, {fewer} removed")
        elif list(before.get(half, ())) != list(rows):
            changes.append(f"{half}: the same rows in another order")
    return "; ".join(changes) or "the ids of its rows"
