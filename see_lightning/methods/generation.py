"""The part of a method that generates answers under one adapter."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from see_lightning.data.example import Example
from see_lightning.inference.answer_rows import answer_row
from see_lightning.inference.decoder import BatchDecoder, Decoded, DecoderShare, decode_all
from see_lightning.inference.kv_cache import NO_PREFIX, CommonPrefix
from see_lightning.methods.routed import RoutedMethod
from see_lightning.routing.expert_prefill import MIN_MARGIN
from see_lightning.tasks.batches import Queries


class Generation(RoutedMethod):
    """Generates answers under one adapter of the pool, or under the base model."""

    def eos_ids(self) -> Collection[int]:
        """Token ids that end an answer: the tokenizer's and those of the model's generation config."""
        configured = self.pool.model.generation_config.eos_token_id
        more = configured if isinstance(configured, list) else [configured]
        return {self.template.tokenizer.eos_token_id, *(token for token in more if token is not None)}

    def generate(self, adapter: str | None, queries: Queries, forced_prefix: Sequence[int] = ()) -> list[Decoded]:
        """Answers under one adapter; costs are added to ``counts``.

        Args:
            adapter: an adapter's name; None is the base model.
            queries: the batch.
            forced_prefix: token ids with which each answer is forced to begin; they are neither returned nor counted.
        """
        decoder = self.new_decoder()
        done = decode_all(self.generating(adapter, queries, decoder, forced_prefix), decoder)
        return [done[row] for row in range(len(queries))]

    def new_decoder(self) -> BatchDecoder[Any]:
        """A decoder without rows, for answers of this method."""
        return BatchDecoder(self.pool.use_adapter, self.eos_ids())

    def generating(
        self, adapter: str | None, queries: Queries, decoder: BatchDecoder[Any], forced_prefix: Sequence[int] = ()
    ) -> Iterator[dict[int, Decoded]]:
        """Answers under one adapter, in a decoder that others may share; see ``answering``."""
        share: DecoderShare[int] = DecoderShare(decoder)
        start: CommonPrefix = NO_PREFIX
        group = None
        text = partial(self.text_behind, forced_prefix)
        for rows in queries.chunks(range(len(queries))):
            share.decode_until(queries.rows - len(rows))
            if queries.groups[rows[0]] != group:
                start, group = self.pool.prefill_prefix(adapter, queries.same_group(rows[0])), queries.groups[rows[0]]
            logits_BV, read = self.pool.prefill(adapter, [queries.prompts[row] for row in rows], start)
            begun = [answer_row(queries, row, row, adapter, text, forced_prefix) for row in rows]
            share.start(logits_BV, read, begun)
        self.counts["prefills"] += len(queries)
        self.counts["generations"] += len(queries)
        for ended in share.ending(len(queries)):
            for row, one in ended.items():
                done = self._alone_if_close(adapter, queries, row, one, forced_prefix)
                ended[row] = replace(done, ids=done.ids[len(forced_prefix) :])
                self.counts["new_tokens"] += len(ended[row].ids)
            yield ended

    def accept_ids(self, adapter: str | None) -> list[int]:
        """The tokens with which an adapter's answer is forced to begin."""
        # The blank behind the indicator may be one token with the start of the answer.
        accept_word = self.accept_prefix_of(adapter).rstrip(" ")
        return self.template.target_ids(accept_word)[:-1] if accept_word else []

    def text_behind(self, forced_prefix: Sequence[int], ids: list[int]) -> str:
        """The text of an answer's tokens; one blank separates a forced indicator from it, others belong to the answer."""
        text = self.template.text(ids)
        return text.removeprefix(" ") if forced_prefix else text

    def _alone_if_close(
        self, adapter: str | None, queries: Queries, row: int, decoded: Decoded, forced_prefix: Sequence[int]
    ) -> Decoded:
        """The answer that a query gets in a batch of its own, generated again if another row may have changed it."""
        plain = adapter is None and not forced_prefix
        if (
            decoded.margin >= MIN_MARGIN
            or self.pool.is_exact()
            or not (plain or (queries.exact and decoded.in_company))
        ):
            return decoded
        self.counts["prefills"] += 1
        state = answer_row(queries, row, row, adapter, partial(self.text_behind, forced_prefix), forced_prefix)
        return self.pool.answer_alone(queries.prompts[row], state, self.eos_ids())

    def base_generate(self, query: str | Example, max_new_tokens: int) -> str:
        """The base model's answer by ``generate`` of transformers, as a reference."""
        ids = torch.tensor([self.template.prompt_ids(query)], device=self.pool.device())
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(self.eos_ids()), pad_token_id=0
        )
        with self.pool.use_adapter(None) as model:
            assert isinstance(model, PeftModel | PreTrainedModel)
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        new = [token for token in out[0, ids.shape[1] :].tolist() if token not in self.eos_ids()]
        return self.template.text(new)
