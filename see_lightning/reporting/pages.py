"""Templates of the HTML pages."""

from pathlib import Path
from typing import TYPE_CHECKING

from see_lightning.reporting.words import number

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str) -> "Template":
    """The template of a page, from the folder ``templates``; an undefined name in it is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(name)
