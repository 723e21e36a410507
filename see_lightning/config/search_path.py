"""Hydra's search path: the project's configurations, in a clone or an installed package, the user's, and the schema."""

import sys
from collections.abc import Iterable
from pathlib import Path

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from see_lightning.config.conf_files import FileConfigSource
from see_lightning.config.schema import RunConfig

PACKAGE = Path(__file__).parents[1]
#: The project's configurations: a folder of the package where it is installed, the root's in a clone.
CONF = (PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent) / "conf"
#: The command that runs an experiment; a clone has run.py.
PROGRAM = ("see-lightning", "run") if CONF.parent == PACKAGE else ("python", "run.py")


def own_conf() -> list[Path]:
    """``conf`` in the working directory, unless it is the project's: it may hold further options of any group."""
    folder = Path("conf").absolute()
    return [folder] if folder.is_dir() and not folder.samefile(CONF) else []


def options(group: str = "*") -> list[Path]:
    """The files of a group's options, or of all groups': the project's own, then the user's."""
    return [path for folder in (CONF, *own_conf()) for path in sorted(folder.glob(f"{group}/*.yaml"))]


def is_group(name: str) -> bool:
    """Whether a name is a config group, which has files as options."""
    return any((folder / name).is_dir() for folder in (CONF, *own_conf()))


class OwnConf(SearchPathPlugin):
    """Adds ``own_conf`` to Hydra's search path, after the project's own folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the user's folders; Hydra calls this."""
        for folder in own_conf():
            search_path.append("see_lightning, working directory", f"file://{folder}")


def register_own_conf(given: Iterable[str | Path | None] = ()) -> None:
    """Add ``own_conf`` to Hydra's search path, and print a note on user files hidden by the project's of that name.

    Args:
        given: further folders on the search path, such as that of ``--config-dir``.
    """
    if OwnConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(OwnConf)
    for folder in (*own_conf(), *(Path(folder) for folder in given if folder)):
        hidden = [
            str(path.relative_to(folder))
            for path in sorted(folder.glob("*/*.yaml"))
            if (there := CONF / path.relative_to(folder)).exists() and there.read_bytes() != path.read_bytes()
        ]
        if hidden:
            names = f"{', '.join(hidden[:3])}{' and others' if len(hidden) > 3 else ''}"
            print(
                f"note: {folder} has {names}, as see_lightning has; its own are read. Give yours other names.",
                file=sys.stderr,
            )


def register() -> None:
    """Register with Hydra: the schema, by its name in ``conf/run.yaml``; a file reader for encodings; ``if_equal``.

    ``${if_equal:A,B,VALUE}`` is VALUE if A is B, else null: a revision belongs to the model it was pinned for alone.
    """
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    OmegaConf.register_new_resolver("if_equal", lambda one, other, value: value if one == other else None, replace=True)
