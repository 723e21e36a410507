"""Older spellings of options, which stay accepted; ``conf/old_names.yaml`` lists them."""

from see_lightning.config.search_path import CONF
from see_lightning.files.text import read_text


def current_name(verb: str, name: str) -> str:
    """The present spelling of an option.

    Args:
        verb: of the table.
        name: as typed; returned unchanged unless it is an older spelling.
    """
    import yaml  # late: almost no command has an unknown option

    names: dict[str, dict[str, str]] = yaml.safe_load(read_text(CONF / "old_names.yaml"))
    return names.get(verb, {}).get(name, name)
