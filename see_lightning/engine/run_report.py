"""The report page of a finished run, with everything that was measured on it since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.engine.answers_page import ANSWERS
from see_lightning.engine.measured import ROUTE, is_current
from see_lightning.files.run_files import read_file
from see_lightning.reporting.answers.files import INDEX
from see_lightning.reporting.report.page import render_html

REPORT, STUDY = "report.html", "study.json"


def run_report(run_dir: Path, results: Mapping[str, Any], *, with_answers: bool | None = None) -> str:
    """Render the page.

    Args:
        run_dir: of the run; its study and its comparison of routers are shown if they are there, the latter unless the run
            has changed since.
        results: content of ``results.json``, which may not be written yet.
        with_answers: whether it links to the page of answers beside it; by default if the run's directory has that page.

    Raises:
        LedgerError: one of these files is damaged.
    """
    found = {name: read_file(run_dir / name) for name in (STUDY, ROUTE) if (run_dir / name).exists()}
    routers = found.get(ROUTE)
    if routers and not is_current(run_dir / ROUTE, routers["belongs_to"]):
        routers = None
    if with_answers is None:
        with_answers = (run_dir / ANSWERS / INDEX).exists()
    return render_html(results, found.get(STUDY), routers, answers=f"{ANSWERS}/{INDEX}" if with_answers else "")
