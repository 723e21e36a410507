"""The beginning of a model card: what the Hugging Face Hub reads, a title, and a table of facts."""

import json
from collections.abc import Iterable, Sequence


def card_head(title: str, base: str, library: str, tags: Sequence[str], rows: Iterable[tuple[str, str]]) -> str:
    """The head of ``README.md`` beside weights.

    Args:
        title: of the page.
        base: name or folder of the base model.
        library: that loads the weights, ``peft`` or ``transformers``.
        tags: for the Hub.
        rows: names of facts and their values.
    """
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    front = [f"base_model: {json.dumps(base)}", f"library_name: {library}", "pipeline_tag: text-generation"]
    listed = ", ".join(tag if tag.isidentifier() else json.dumps(tag) for tag in tags)
    return "\n".join(["---", *front, f"tags: [{listed}]", "---", f"\n# {title}\n", f"| | |\n| --- | --- |\n{table}\n"])
