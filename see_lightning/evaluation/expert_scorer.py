"""Scores and generates under each adapter of a method: who would answer, how likely answers are, and what is generated.

An adapter is an expert or the adapted model, by its name in the pool, or the base model (None). Every query is processed by
itself, so its result does not depend on other queries.

Letters: B rows, K tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from see_lightning.adapters.answer_logits import answer_logits, prefix_tokens
from see_lightning.errors import ConfigError
from see_lightning.inference.decoder import BatchDecoder, RowState
from see_lightning.methods.method import Method
from see_lightning.models.architecture import longest_text
from see_lightning.tasks.batches import cut
from see_lightning.tasks.datamodule import WINDOW, query_batch

ANSWERS_PER_BATCH = 16  # answers to one query in one batch
PATIENCE = 128  # most tokens of a verdict, which may have blanks before it; most verdicts take one pass


@dataclass(frozen=True, slots=True)
class Score:
    """The likelihood of an answer under one adapter.

    Args:
        log_likelihood: sum of its tokens' log-probabilities, in nats.
        is_greedy: whether each of them is the most probable one.
    """

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens after a prompt.

    Args:
        given: processed, but not scored.
        scored: after the given ones.
    """

    given: Sequence[int]
    scored: Sequence[int]


class ExpertScorer:
    """Routes, scores and generates with the adapters of a trained method.

    Args:
        method: trained.
        rows: queries routed in one batch.
    """

    def __init__(self, method: Method, rows: int) -> None:
        self.method, self.rows = method.eval(), rows
        self.pool, self.template = method.pool, method.template
        #: The base model's longest input, in tokens.
        self.longest = longest_text(self.pool.model.config) or self.template.max_length

    @torch.inference_mode()
    def choose(self, queries: Sequence[str]) -> list[str | None]:
        """The adapter that would answer each query; no answer is generated.

        Raises:
            ConfigError: a query is too long.
        """
        for query in queries:
            self._prompt(query, 1)
        adapters: list[str | None] = []
        for window in cut(queries, WINDOW * self.rows):
            batch = query_batch(window, self.template, max_new_tokens=PATIENCE, rows=self.rows)
            adapters += self.method.router.adapters(batch, self.method.route(batch))
        return adapters

    def score(self, adapter: str | None, query: str, answers: Sequence[str]) -> list[Score]:
        """The likelihood of each answer, behind the positive indicator if an expert answers.

        An answer has the form that it has in training: right behind the prompt, or one blank behind the indicator. Its
        leading blanks are removed, unless the prompt is plain running text (``plain``) and no indicator follows it.

        Raises:
            ConfigError: a query is too long.
        """
        word = self._word(adapter)
        keep_blanks = self.template.style == "plain" and not word
        accept_ids = self._ids(word)
        continuations = []
        for answer in answers:
            ids = self._ids(word + (answer if keep_blanks else answer.lstrip(" ")))
            given = prefix_tokens(ids, accept_ids)
            continuations.append(Continuation(ids[:given], ids[given:]))
        room = max((len(c.given) + len(c.scored) for c in continuations), default=0)
        return self.score_ids(adapter, self._prompt(query, room), continuations)

    @torch.inference_mode()
    def score_ids(self, adapter: str | None, prompt: list[int], continuations: Sequence[Continuation]) -> list[Score]:
        """The likelihood of continuations of one prompt, which is prefilled once.

        Args:
            adapter: the active adapter; None is the base model.
            prompt: token ids, at least one.
            continuations: each with given and scored tokens.
        """
        logits_BV, read = self.pool.prefill(adapter, [prompt])
        scores = []
        for chunk in cut(continuations, ANSWERS_PER_BATCH):
            rows, size = [[*one.given, *one.scored] for one in chunk], len(chunk)
            found = answer_logits(self.pool, adapter, logits_BV.expand(size, -1), read.repeat(size), rows)
            for one, logits_KV in zip(chunk, found, strict=True):
                scored_K = torch.tensor(one.scored, dtype=torch.long, device=logits_KV.device)
                logits_KV = logits_KV[len(one.given) :]
                nll = float(cross_entropy(logits_KV, scored_K, reduction="sum"))
                scores.append(Score(-nll, bool((logits_KV.argmax(dim=-1) == scored_K).all())))
        return scores

    @torch.inference_mode()
    def write(self, adapter: str | None, query: str, *, max_new_tokens: int, until: Sequence[str] = ()) -> str:
        """A greedy answer under an adapter; an expert's begins with the positive indicator, which is removed.

        Args:
            adapter: the active adapter; None is the base model.
            query: the user's text.
            max_new_tokens: longest answer; it also ends at the base model's longest input.
            until: stop texts; the answer ends before the first of them.

        Raises:
            ConfigError: a query is too long.
        """
        accept_ids = self._ids(self._word(adapter).rstrip(" "))
        prompt = self._prompt(query, len(accept_ids) + 1)
        limit = min(len(accept_ids) + max_new_tokens, self.longest - len(prompt))
        stops = [text for text in until if text]
        special = self.template.tokenizer.get_added_vocab()  # decoded text does not contain these
        ends = {*self.method.eos_ids(), *(special[text] for text in stops if text in special)}

        def is_over(ids: list[int]) -> bool:
            text = self.template.text(ids[len(accept_ids) :])
            return any(stop in text for stop in stops)

        decoder: BatchDecoder[int] = BatchDecoder(self.pool.use_adapter, ends)
        logits_BV, read = self.pool.prefill(adapter, [prompt])
        decoder.start(logits_BV, read, [RowState(0, adapter, list(accept_ids), limit, is_over)])
        decoder.decode_until(0)
        text = self.template.text(decoder.done[0].ids[len(accept_ids) :])
        text = text.removeprefix(" ") if accept_ids else text
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]

    def _word(self, adapter: str | None) -> str:
        return str(self.method.accept_prefix_of(adapter))

    def _ids(self, text: str) -> list[int]:
        return self.template.target_ids(text)[:-1] if text else []

    def _prompt(self, query: str, room: int) -> list[int]:
        # An empty text has no tokens if the tokenizer adds none.
        prompt = self.template.prompt_ids(query) or [self.template.tokenizer.eos_token_id]
        if len(prompt) + room > self.longest:
            raise ConfigError(
                f"a query has {len(prompt)} tokens and its answer at least {room}, more than the {self.longest} that the base"
                f" model reads; put fewer examples before it, or leave its task out: {query[:60]!r}"
            )
        return prompt
