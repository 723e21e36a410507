"""Adds to the site the documents of the repository's root, and a page of the API for each package of the code."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README", "RESULTS", "LEADERBOARD", "CONTRIBUTING", "PAPERS", "SECURITY", "LOG", "CHANGELOG")
PACKAGES = sorted(path.parent.name for path in ROOT.glob("see_lightning/*/__init__.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API into the navigation."""
    config.nav = [*(config.nav or []), {"API": ["api/index.md", *(f"api/{name}.md" for name in PACKAGES)]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds; README.md is the front page."""
    for name in DOCUMENTS:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](results)", "](results.md)")
        page = "index" if name == "README" else name
        files.append(File.generated(config, f"{page}.md", content=_front_page(text)))
    for picture in (ROOT / "results").glob("*.svg"):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    listed = "\n".join(f"- [`see_lightning.{name}`]({name}.md)" for name in PACKAGES)
    text = f"# API\n\n::: see_lightning.load_ensemble\n\n## Packages\n\n{listed}\n"
    files.append(File.generated(config, "api/index.md", content=text))
    for name in PACKAGES:
        modules = sorted(path.stem for path in (ROOT / "see_lightning" / name).glob("[!_]*.py"))
        blocks = "\n\n".join(f"::: see_lightning.{name}.{module}" for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=f"# see_lightning.{name}\n\n{blocks}\n"))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to documents of the root at their pages."""
    return _front_page(re.sub(r"\]\(\.\./(\w+\.md)", r"](\1", markdown))


def _front_page(text: str) -> str:
    return text.replace("](README.md", "](index.md")
