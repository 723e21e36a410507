"""Tables in Markdown: heads and texts are escaped, so that no text of a run is read as a part of the table or as a mark."""

import re
from collections.abc import Iterable, Sequence

from see_lightning.files.text import visible


def markdown_table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table in Markdown; the heads are plain texts, and the cells Markdown already.

    >>> print(markdown_table(["a", "b|c"], [["1", "2"]]), end="")
    | a | b\|c |
    | --- | --- |
    | 1 | 2 |
    """
    heads = [escaped(head) for head in heads]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escaped(text: str) -> str:
    r"""A text escaped for Markdown, in one line.

    >>> print(escaped("a_b | <!-- end -->"))
    a_b \| &lt;!-- end --&gt;
    """
    shown = re.sub(r"([\\`*\[\]|])", r"\\\1", visible(" ".join(text.split())))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_code(text: str) -> str:
    r"""A text as code in a table's cell; the start of a comment in it is broken, since it might be read as a mark.

    >>> print(as_code("seed=1"), as_code("a`b|c"), as_code("<!-- end -->"))
    `seed=1` ``a`b\|c`` `<! -- end -->`
    """
    shown = visible(" ".join(text.split())).replace("|", "\\|").replace("<!--", "<! --")
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    blank = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{blank}{shown}{blank}{ticks}"
