"""The body of a query: its text without the instruction before it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from see_lightning.tasks.chat import QUERY
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.variants import BLANK_LINE

# No body: nothing, or one or two words with a colon, such as "Answer:", which all rows may share.
MARK = re.compile(r"(\S+( \S+)?:)?")


def query_of(template: PromptTemplate, prompt_ids: Sequence[int]) -> str:
    """The query in a prompt, as far as the tokenizer gives texts back unchanged.

    Args:
        template: that made the prompt.
        prompt_ids: of the prompt.
    """
    before, _, behind = template.text(template.prompt_ids(QUERY)).partition(QUERY)
    return template.text(list(prompt_ids)).removeprefix(before).removesuffix(behind)


def body_of(query: str) -> str:
    r"""The text behind a query's first blank line; the whole query if there is none, or a mark for the answer alone.

    >>> body_of("Add.\n\n12 and 3"), body_of("12 and 3"), body_of("12 and 3?\n\nAnswer:")
    ('12 and 3', '12 and 3', '12 and 3?\n\nAnswer:')
    """
    body = query.partition(BLANK_LINE)[2]
    return query if MARK.fullmatch(body.strip()) else body


def has_definition(query: str) -> bool:
    r"""Whether a query has a text before its first blank line and one behind it.

    >>> has_definition("Add.\n\n12 and 3"), has_definition("12 and 3"), has_definition("12 and 3?\n\nAnswer:")
    (True, False, False)
    """
    definition, _, body = query.partition(BLANK_LINE)
    return bool(definition.strip()) and not MARK.fullmatch(body.strip())


def without_opening(queries: Sequence[str]) -> set[str]:
    r"""The queries that are the one before them without the definition that these have in common.

    >>> sorted(without_opening(["Add.\n\n1\n\nand 2", "1\n\nand 2", "Add.\n\n3", "3"]))
    ['1\n\nand 2', '3']
    >>> without_opening(["no definition", "another query"])
    set()
    """
    pairs = [(whole, short) for whole, short in pairwise(queries) if short and short != whole]
    openings = Counter(whole.removesuffix(short) for whole, short in pairs if whole.endswith(short))
    if not openings:
        return set()
    opening, _ = openings.most_common(1)[0]
    return {query.removeprefix(opening) for query in queries if query.startswith(opening)}.intersection(queries)


def body_ids(template: PromptTemplate, prompt_ids: Sequence[int]) -> list[int]:
    """The ids of a prompt with the query's body alone.

    Args:
        template: that made the prompt.
        prompt_ids: of the prompt.
    """
    return template.prompt_ids(body_of(query_of(template, prompt_ids)))
