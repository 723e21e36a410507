"""A method's voices put to texts of others: who would answer, how probable an answer is, and what would be written.

A voice is an expert or the adapted model, by its name in the pool, or the base model (None). Each query is read by itself,
so what is computed for it does not hang on what else is asked.

Letters: B rows, K tokens of an answer, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.adapters.pool import ExpertPool
from see_lightning.errors import ConfigError
from see_lightning.inference.decoder import BatchDecoder, RowState
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import KVCache
from see_lightning.methods.method import Method
from see_lightning.models.architecture import longest_text
from see_lightning.tasks.batches import cut
from see_lightning.tasks.datamodule import WINDOW, query_batch

ANSWERS_PER_BATCH = 16  # answers to one query that are read in one batch
PATIENCE = 128  # most tokens that an expert may take to its verdict, when blanks stand before it; most take one pass


@dataclass(frozen=True, slots=True)
class Score:
    """How a voice takes to an answer.

    Args:
        log_likelihood: sum of its tokens' log-probabilities, in nats.
        is_greedy: whether each of them is the most probable one.
    """

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens behind a prompt.

    Args:
        given: read, but not scored.
        scored: behind these.
    """

    given: Sequence[int]
    scored: Sequence[int]


def answer_logits(
    pool: ExpertPool, adapter: str | None, logits_BV: Tensor, read: KVCache, rows: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """The logits that predict each token of some answers, read behind prompts; for each answer (K, V), in fp32.

    Args:
        pool: of the voice.
        adapter: an expert's name; None is the base model.
        logits_BV: behind each prompt.
        read: the prompts.
        rows: each prompt's answer, K tokens.
    """
    width = max(map(len, rows)) - 1  # the last token predicts nothing that counts, so it is not read
    rest_BKV = logits_BV[:, None][:, :0]
    if width > 0:
        with pool.use_adapter(adapter) as model:
            rest_BKV, _ = extend(model, read, [list(row[:-1]) for row in rows], keep=range(-width, 0))
    for place, row in enumerate(rows):
        # Rows end at the right edge; what stands before a shorter one is left out.
        yield torch.cat([logits_BV[place, None], rest_BKV[place, max(width, 0) + 1 - len(row) :]])[: len(row)].float()


def given_tokens(ids: Sequence[int], accept_ids: Sequence[int]) -> int:
    """How many of an answer's tokens say nothing but its opening.

    The blank behind an indicator may be one token with the answer's beginning; then that token is the answer's.

    Args:
        ids: of opening and answer.
        accept_ids: tokens of the opening alone.

    >>> given_tokens([7, 8, 5, 6], [7, 8, 9])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, accept_ids, strict=False)))


class ExpertScorer:
    """What a method's voices say to any query.

    Args:
        method: with everything it learned.
        rows: queries walked together.
    """

    def __init__(self, method: Method, rows: int) -> None:
        self.method, self.rows = method.eval(), rows
        self.pool, self.template = method.pool, method.template
        #: Most tokens that the base model reads.
        self.longest = longest_text(self.pool.model.config) or self.template.max_length

    @torch.inference_mode()
    def choose(self, queries: Sequence[str]) -> list[str | None]:
        """Who would answer each query; nothing is answered.

        Raises:
            ConfigError: a query is too long.
        """
        for query in queries:
            self._prompt(query, 1)
        adapters: list[str | None] = []
        for window in cut(queries, WINDOW * self.rows):
            batch = query_batch(window, self.template, max_new_tokens=PATIENCE, rows=self.rows)
            adapters += self.method.route(batch)
        return adapters

    def score(self, adapter: str | None, query: str, answers: Sequence[str]) -> list[Score]:
        """How probable each answer is, behind the words with which the voice accepts.

        An answer stands as in training: right behind the prompt, or one blank behind the expert's word. Blanks that it
        begins with are those of running text and go, unless the prompt is running text itself (``plain``) and ends there.

        Raises:
            ConfigError: a query is too long.
        """
        word = self._word(adapter)
        keep_blanks = self.template.style == "plain" and not word
        accept_ids = self._ids(word)
        continuations = []
        for answer in answers:
            ids = self._ids(word + (answer if keep_blanks else answer.lstrip(" ")))
            given = given_tokens(ids, accept_ids)
            continuations.append(Continuation(ids[:given], ids[given:]))
        room = max((len(c.given) + len(c.scored) for c in continuations), default=0)
        return self.score_ids(adapter, self._prompt(query, room), continuations)

    @torch.inference_mode()
    def score_ids(self, adapter: str | None, prompt: list[int], continuations: Sequence[Continuation]) -> list[Score]:
        """How probable tokens are behind others; the prompt is read once for all.

        Args:
            adapter: who reads.
            prompt: tokens, at least one.
            continuations: what follows.
        """
        logits_BV, read = self.pool.prefill(adapter, [prompt], (0, None))
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
        """What a voice answers, greedily; an expert after the word with which it accepts.

        Args:
            adapter: who writes.
            query: what is asked.
            max_new_tokens: longest answer; it also ends where the base model can read no more.
            until: texts before the first of which the answer ends.

        Raises:
            ConfigError: a query is too long.
        """
        accept_ids = self._ids(self._word(adapter).rstrip(" "))
        prompt = self._prompt(query, len(accept_ids) + 1)
        limit = min(len(accept_ids) + max_new_tokens, self.longest - len(prompt))
        stops = [text for text in until if text]
        special = self.template.tokenizer.get_added_vocab()  # such tokens do not show in a text
        ends = {*self.method.eos_ids(), *(special[text] for text in stops if text in special)}

        def is_over(_: int, ids: list[int]) -> bool:
            text = self.template.text(ids[len(accept_ids) :])
            return any(stop in text for stop in stops)

        decoder: BatchDecoder[int] = BatchDecoder(self.pool.use_adapter, ends, is_over)
        logits_BV, read = self.pool.prefill(adapter, [prompt], (0, None))
        decoder.start(logits_BV, read, [RowState(0, adapter, list(accept_ids), limit)])
        decoder.decode_until(0)
        text = self.template.text(decoder.done[0].ids[len(accept_ids) :])
        text = text.removeprefix(" ") if accept_ids else text
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]

    def _word(self, adapter: str | None) -> str:
        return "" if adapter is None else self.method.accept_prefix

    def _ids(self, text: str) -> list[int]:
        return self.template.target_ids(text)[:-1] if text else []

    def _prompt(self, query: str, room: int) -> list[int]:
        # Nothing at all, put to a tokenizer without a first token, leaves nothing to read.
        prompt = self.template.prompt_ids(query) or [self.template.tokenizer.eos_token_id]
        if len(prompt) + room > self.longest:
            raise ConfigError(
                f"a query has {len(prompt)} tokens and its answer at least {room}, more than the {self.longest} that the base"
                f" model reads; put fewer examples before it, or leave its task out: {query[:60]!r}"
            )
        return prompt
