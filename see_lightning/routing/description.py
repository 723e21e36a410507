"""The base model is asked which task's description fits the query (Adaptive Minds, arXiv 2510.15416).

The question is a multiple choice whose last option is that none fits. The option's label with the largest likelihood as the
answer is chosen, so the answer needs no parsing.

Letters: K tokens of a label, V vocabulary.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from see_lightning.adapters.answer_logits import answer_logits
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError, listed, nearest
from see_lightning.models.architecture import longest_text
from see_lightning.routing.router import Routed, Router
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.variants import definition

DESCRIPTION = "description"  # tensor of a task's state: the text as UTF-8
NONE = "None of these tasks."
LONGEST = 160  # characters of a prompt that describes its task


def labels(options: int) -> list[str]:
    """Labels of options: letters, or from 27 on numbers of one width, so that no label begins as another one.

    >>> labels(3), labels(27)[8:10]
    (['A', 'B', 'C'], ['09', '10'])
    """
    if options <= len(string.ascii_uppercase):
        return list(string.ascii_uppercase[:options])
    return [f"{number:0{len(str(options))}d}" for number in range(1, options + 1)]


def first_sentence(text: str) -> str:
    r"""A text up to the end of its first sentence, in one line.

    >>> first_sentence("Given a review,\nname its mood. Write one word.")
    'Given a review, name its mood.'
    """
    line = " ".join(text.split())
    found = re.match(r".+?[.!?](?=\s|$)", line)
    return found[0] if found else line


def describe(task: str, prompts: Sequence[str]) -> str:
    r"""The first sentence of the definition with which a task's prompts begin; without a definition its first prompt.

    >>> describe("sums", ["Add the numbers.\n\n1 and 2", "Add the numbers.\n\n3 and 4"])
    'Add the numbers.'
    >>> describe("sums", ["1 + 2", "3 + 4"])
    "Requests such as '1 + 2'"
    """
    common = definition([Example(str(number), prompt, "", task) for number, prompt in enumerate(prompts)])
    return first_sentence(common) or f"Requests such as {' '.join(prompts[0].split())[:LONGEST]!r}"


def question(descriptions: Sequence[str], query: str) -> str:
    r"""The multiple choice that the base model answers with a label.

    >>> print(question(["Add numbers."], "1 and 2"))
    Which task does the request below belong to?
    <BLANKLINE>
    A. Add numbers.
    B. None of these tasks.
    <BLANKLINE>
    Request:
    1 and 2
    <BLANKLINE>
    Answer with A or B alone.
    """
    options = [*descriptions, NONE]
    names = labels(len(options))
    listed = "\n".join(f"{label}. {text}" for label, text in zip(names, options, strict=True))
    allowed = f"{', '.join(names[:-1])} or {names[-1]}"
    return (
        f"Which task does the request below belong to?\n\n{listed}\n\nRequest:\n{query}\n\nAnswer with {allowed} alone."
    )


class QueryText:
    """The text of queries from their prompts, whose beginning and end a template adds.

    Args:
        template: how a query is put to the model.
    """

    def __init__(self, template: PromptTemplate) -> None:
        self.template = template
        one, other = (template.prompt_ids(query) for query in ("Query one.", "another?"))
        self.before, self.behind = _common(one, other), _common(one[::-1], other[::-1])

    def ids(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of the query alone."""
        return list(prompt[self.before : len(prompt) - self.behind])

    def text(self, ids: Sequence[int]) -> str:
        """The text of a query's tokens, without outer blanks."""
        return self.template.text(list(ids)).strip()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Description(Router):
    """The expert of the task whose description the base model chooses; the base model where it chooses none.

    A query that is too long for the question is cut at its end.

    Args:
        method: whose queries are routed.
        descriptions: by task, its description. By default the first sentence of the definition that its training prompts
            share, and without a definition its first training prompt.
    """

    takes_conversations = False

    def __init__(self, method: Routed, *, descriptions: Mapping[str, str] | None = None) -> None:
        super().__init__(method)
        self.descriptions = descriptions or {}
        self.query_text = QueryText(method.template)
        self._chosen: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}

    @classmethod
    def check_tasks(cls, settings: Mapping[str, Any], tasks: Sequence[str]) -> None:
        """Refuse descriptions of other tasks.

        Raises:
            ConfigError: a description is of a task that the run does not have, or there is no text for each task.
        """
        given = settings.get("descriptions") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"router.descriptions is {{task: text, ...}}; got {given!r}.")
        for task in given:
            if task not in tasks:
                raise ConfigError(
                    f"router.descriptions has a text for {task!r}, which is no task of this run.{nearest(task, tasks)} There"
                    f" are: {listed(tasks)}."
                )

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the task's description."""
        texts = [self.query_text.text(self.query_text.ids(prompt)) for prompt in prompts]
        text = self.descriptions.get(task) or describe(task, texts)
        self.kept[task] = {DESCRIPTION: torch.tensor(list(text.encode()), dtype=torch.uint8)}

    def route(self, queries: Queries) -> list[str | None]:
        """The task whose label is the most likely answer; None for the last option, of equal ones the oldest task."""
        if not self.kept:
            return [None] * len(queries)
        names = [*self.kept, None]
        described = tuple(bytes(kept[DESCRIPTION].tolist()).decode() for kept in self.kept.values())
        self.method.counts["prefills"] += len(queries)
        return [names[self._choose(described, tuple(prompt))] for prompt in queries.prompts]

    def _choose(self, descriptions: tuple[str, ...], prompt: tuple[int, ...]) -> int:
        """The place of the chosen option; computed once in a process."""
        key = descriptions, prompt
        if key not in self._chosen:
            self._chosen[key] = int(self.log_likelihoods(descriptions, prompt).argmax())
        return self._chosen[key]

    @torch.no_grad()
    def log_likelihoods(self, descriptions: Sequence[str], prompt: Sequence[int]) -> Tensor:
        """Log-likelihood of each option's label, in nats, that of none last; a label may have several tokens.

        Args:
            descriptions: of the tasks.
            prompt: of the query, as ids.
        """
        pool, template = self.method.pool, self.method.template
        rows = [template.target_ids(label)[:-1] for label in labels(len(descriptions) + 1)]
        logits_1V, read = pool.prefill(None, [self._ask(descriptions, prompt, max(map(len, rows)))])
        found = answer_logits(pool, None, logits_1V.expand(len(rows), -1), read.repeat(len(rows)), rows)
        each = []
        for row, logits_KV in zip(rows, found, strict=True):
            label_K1 = torch.tensor(row, device=logits_KV.device)[:, None]
            each.append(logits_KV.log_softmax(dim=-1).gather(1, label_K1).sum())
        return torch.stack(each)

    def _ask(self, descriptions: Sequence[str], prompt: Sequence[int], room: int) -> list[int]:
        """The question as ids, with the query cut such that ``room`` tokens are left in the model's context."""
        template, query = self.method.template, self.query_text.ids(prompt)
        longest = longest_text(self.method.pool.model.config) or template.max_length
        while True:
            ids = template.prompt_ids(question(descriptions, self.query_text.text(query)))
            over = len(ids) + room - longest
            if over <= 0:
                return ids
            if not query:
                raise ConfigError(
                    f"router=description asks the base model about {len(descriptions)} tasks in {len(ids)} tokens, of at"
                    f" most {longest}; give shorter router.descriptions, or another router."
                )
            query = query[: max(0, len(query) - over)]
