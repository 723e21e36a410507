"""The site of docs/ is built without a warning: every link and anchor leads somewhere, and every docstring is shown."""

import os
import re
import subprocess
import sys

import pytest

from see_lightning.config.search_path import CONF

ROOT = CONF.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built_and_loads_nothing_from_a_server(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "RESULTS.html", "api/methods.html"} <= pages
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        assert not re.findall(
            r"<(?:script|img)[^>]* src=\"https?://|<link[^>]*stylesheet[^>]*href=\"https?://", text
        ), page


def test_the_api_has_the_docstrings(site):
    assert "load_ensemble" in (site / "api/index.html").read_text(encoding="utf-8")
    assert "training_examples" in (site / "api/methods.html").read_text(encoding="utf-8")


def test_the_readme_is_short_and_names_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    linked = set(re.findall(r"\]\(docs/(\w+)\.md", readme))
    assert linked == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_the_page_of_methods_has_a_row_for_each():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml"))


def anchors(text: str) -> set[str]:
    return {
        re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line[:1] == "#"
    }


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name)
def test_links_of_a_document_lead_somewhere_in_the_repository(path):
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([\w./-]*?)(?:#([\w-]+))?\)", text):
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), (target, anchor)
