"""Likelihood of the reference answers under a finished run: of each, under the adapter that answers its query.

Letters: K tokens of an answer, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.adapters.answer_logits import prefix_tokens, token_nlls
from see_lightning.errors import Refusal
from see_lightning.evaluation.routing import BASE
from see_lightning.methods.method import Method
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The likelihood of one reference answer.

    Args:
        id: of the query.
        expert: that answered it, as in its record.
        nll: negative log-likelihood of the tokens that count, in nats.
        tokens: their number; the token that ends the answer counts.
    """

    id: str
    expert: str | None
    nll: float
    tokens: int


def perplexity(answers: Iterable[tuple[float, int]]) -> float:
    r"""$\exp(\sum_a \mathrm{nll}_a / \sum_a \mathrm{tokens}_a)$: every token weighs the same, so long answers weigh more.

    Args:
        answers: negative log-likelihood in nats, and number of tokens; at least one answer.

    >>> round(perplexity([(3 * math.log(2), 3), (math.log(16), 1)]), 6)  # (3 ln 2 + 4 ln 2) / 4 nats a token
    3.363586
    """
    nlls, tokens = zip(*answers, strict=True)
    return math.exp(math.fsum(nlls) / sum(tokens))


def adapter_of(expert: str | None, names: Sequence[str]) -> str | None:
    """The name of the adapter that gave an answer; None is the base model.

    Args:
        expert: as in the record; None if the method has no experts.
        names: of all adapters.

    >>> adapter_of("base", ["qa"]), adapter_of("qa", ["sum", "qa"]), adapter_of(None, ["shared"])
    (None, 'qa', 'shared')
    """
    if expert == BASE:
        return None
    if expert is None and len(names) != 1:
        raise Refusal(
            f"the run's answers do not name the adapter that gave them, and it has the adapters"
            f" {', '.join(names) or '(none)'}; exactly one is needed."
        )
    return names[0] if expert is None else expert


def likelihoods(method: Method, task: Task, records: Sequence[Mapping[str, Any]], *, rows: int) -> list[Likelihood]:
    """The likelihood of the reference answer to each of a task's test queries, in the order of the test split.

    An answer follows the expert's positive indicator and a blank, if it has one; their tokens do not count. Under a router
    that mixes experts it is the likelihood under the mixture that answers the query.

    Args:
        method: after the last task, in evaluation mode.
        task: with its test queries.
        records: of the run's answers, which name the expert of each query.
        rows: queries in a batch.
    """
    experts = {record["id"]: record["expert"] for record in records}
    template, names = method.template, method.pool.names
    queries = query_batch(task.test, template, max_new_tokens=1, rows=rows)
    routes = [adapter_of(experts[example.id], names) for example in task.test]
    adapters, found = method.router.adapters(queries, routes), {}
    for adapter in dict.fromkeys(adapters):
        examples = [example for example, one in zip(task.test, adapters, strict=True) if one == adapter]
        accept_ids = method.accept_prefix_of(adapter)
        targets = [template.target_ids(accept_ids + example.target) for example in examples]
        prompts = [template.prompt_ids(example) for example in examples]
        opening_ids = template.target_ids(accept_ids)[:-1] if accept_ids else []
        nlls = token_nlls(method.pool, adapter, prompts, targets, rows=rows)
        for example, target, nll in zip(examples, targets, nlls, strict=True):
            given = prefix_tokens(target, opening_ids)
            counted = nll[given:].double()
            nats = round(float(counted.sum()), 6)
            found[example.id] = Likelihood(example.id, experts[example.id], nats, len(counted))
    return [found[example.id] for example in task.test]
