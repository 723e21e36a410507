"""Experts: named LoRA adapters around one frozen base model, kept in the order in which they were added.

PEFT makes and stores them. Which adapter acts is chosen here for each row: an adapter adds its low-rank update to a layer's
output, so one batch may hold rows of several experts and of the base model.

Letters: B rows, S tokens, E experts, L labels, V vocabulary.
"""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from see_lightning.adapters.activated import check_activated, check_header
from see_lightning.adapters.adapted_model import AdaptedModel, Apply
from see_lightning.adapters.lora import parallel_update, update
from see_lightning.adapters.prefix import VirtualTokens
from see_lightning.adapters.protocols import AdapterDelta, CompositeAdapter
from see_lightning.adapters.weight_cache import sha256
from see_lightning.adapters.whole_layers import WholeLayers
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.inference.decoder import BatchDecoder, Decoded, RowState
from see_lightning.inference.forward import extend, logits_at, prefill_common_prefix
from see_lightning.inference.kv_cache import NO_PREFIX, CommonPrefix, KVCache
from see_lightning.inference.prefix_cache import PrefillCache, PromptCache
from see_lightning.inference.self_test import choose_reading
from see_lightning.models.sharding import in_step
from see_lightning.tasks.batches import IGNORED, Batch, left_pad

#: An adapter's name, a composite, or None for the base model; or one name for each row of a batch.
Adapter = str | AdapterDelta | None
Adapters = Adapter | Sequence[str | None]


class ExpertPool(AdaptedModel):
    """The base model and its experts.

    Args:
        base: a frozen causal language model.
        adapter: rank, scale, dropout and targets of every expert, and whether they are activated ones.
        base_id: the base model's name in the experts' files.
        revision: its revision there.
        header_ids: for activated experts: the tokens that end every prompt, from which on they act.
        place: where PEFT finds the base model: a folder, or its name on the hub; ``base_id`` by default.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        adapter: AdapterConfig,
        base_id: str,
        revision: str | None = None,
        header_ids: Sequence[int] = (),
        *,
        place: str | None = None,
    ) -> None:
        super().__init__(base, adapter)
        self.base_id, self.revision, self.place = base_id, revision, place or base_id
        check_activated(adapter, header_ids)
        self.header_ids = list(header_ids) if adapter.activated else []
        #: Names of experts and composites, in the order in which they were added.
        self.names: list[str] = []
        self.composites: dict[str, CompositeAdapter] = {}
        self.whole = nn.ModuleList()  # copies of layers, with ``adapter.full``
        #: KV caches of the base model for activated experts: half the memory for training, half for test queries.
        self.prompt_cache, self.prefill_cache = PromptCache(adapter.cache_gb / 2), PrefillCache(adapter.cache_gb / 2)
        self._learner = ""

    def choose_reading(self) -> str | None:
        """Test, before any expert is added, which forward passes the base model supports; see ``self_test``."""
        return choose_reading(cast("PreTrainedModel", self.model), self.base_id)

    # ------------------------------------------------------------------------------------------ adding and training experts

    def add_expert(self, name: str, weights_seed: int) -> None:
        """Add a new expert, make it the active one and the only one that can be trained.

        With ``adapter.full`` it has copies of the adapted layers in place of a LoRA adapter.

        Args:
            name: unique in the pool.
            weights_seed: seed of its initial weights, which depend on nothing else.
        """
        if name in self.names:
            raise ConfigError(f"there is an expert named {name!r} already; experts are {', '.join(self.names)}.")
        if self.adapter.full:
            self.whole.append(layers := WholeLayers(self.layers))
            self.register(name, layers)
        else:
            self.add_adapter(name, weights_seed)
            self.names.append(name)
        self.train_only(name)

    def register(self, name: str, composite: CompositeAdapter, *, is_expert: bool = True) -> None:
        """Register a composite adapter under a name, or replace the one of that name.

        Args:
            name: used like an expert's.
            composite: of adapters of this pool, or a prefix.
            is_expert: whether it is listed in ``names``; a mixture of the experts there is not.
        """
        self._prefix_of(composite)
        if is_expert and name not in self.names:
            self.names.append(name)
        self.composites[name] = composite
        self.cache.forget(("digest", name))

    def train_only(self, name: str, adapter: str | None = None) -> None:
        """Make an expert the active one of ``forward`` and the only trainable one, and switch dropout on.

        Args:
            name: of the expert or composite.
            adapter: whose weights are trained, if it has another name. Of a composite without adapters, its own are.
        """
        self.cache.clear()  # stacked weights of experts that are not used together any more take the most memory
        self._learner = name
        self._prefix_of(name)
        own = self.composites.get(name)
        for one in self.composites.values():
            if isinstance(one, VirtualTokens | WholeLayers):
                one.requires_grad_(one is own)
        self._train_adapter(adapter if own is not None and not own.adapters else adapter or name)
        self.model.train()

    def forward(self, input_ids_BS: Tensor, attention_mask_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Logits of the positions that predict a label, (L, V), row by row.

        The vocabulary head runs on these positions alone. Activated experts run from the header on, over what the base
        model read before it.

        Args:
            input_ids_BS: tokens, padded on the left.
            attention_mask_BS: 1 on tokens.
            labels_BS: the answer's tokens at the right edge, ``IGNORED`` elsewhere.
        """
        with self._with(self._learning(self._learner)):
            return self._label_logits(self._learner, input_ids_BS, attention_mask_BS, labels_BS)

    def logits(self, batch: Batch, adapter: Adapter = None, *, grad: bool = False) -> Tensor:
        """Logits of the positions that predict a label, (L, V), under any adapter: a teacher's, for distillation.

        Without dropout. The trained adapter stays the same.

        Args:
            batch: prompts with answers.
            adapter: an expert's or adapter's name, or a composite without a name; None is the base model.
            grad: whether gradients are kept, and reach an expert's own weights where these require them.
        """
        acting = self.use_adapter(adapter)
        if grad and isinstance(adapter, str):
            acting = self._with(self._learning(adapter))
        with torch.set_grad_enabled(grad), self.evaluating(), acting:
            return self._label_logits(adapter, batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS)

    def _label_logits(self, adapter: Adapter, ids_BS: Tensor, mask_BS: Tensor, labels_BS: Tensor) -> Tensor:
        read = self._start(adapter, len(ids_BS))
        if self.header_ids and adapter is not None:
            read, ids_BS, mask_BS, labels_BS = self._before_header(ids_BS, mask_BS, labels_BS)
        # Position s predicts label s + 1.
        wanted_BS = nn.functional.pad(labels_BS[:, 1:] != IGNORED, (0, 1))
        return logits_at(self.model, ids_BS, mask_BS, wanted_BS, read)

    def _before_header(
        self, ids_BS: Tensor, mask_BS: Tensor, labels_BS: Tensor
    ) -> tuple[KVCache, Tensor, Tensor, Tensor]:
        """The base model's KV cache of each row up to the header; ids, mask and labels from the header on."""
        header = len(self.header_ids)
        context, rest, labels = [], [], []
        for ids, mask, answer in zip(ids_BS.tolist(), mask_BS.sum(1).tolist(), labels_BS.tolist(), strict=True):
            row = ids[len(ids) - mask :]
            start = len(row) - sum(label != IGNORED for label in answer) - header
            check_header(row[start : start + header], self.header_ids)
            context.append(row[:start])
            rest.append(row[start:])
            labels.append(answer[len(answer) - len(rest[-1]) :])
        device = ids_BS.device
        # Ranks differ in which prompts are cached and which need a forward pass now.
        with torch.no_grad(), self.evaluating(), self.use_adapter(None) as model, in_step(model):
            read = self.prompt_cache.batch(model, context)
        ones = [[1] * len(row) for row in rest]
        return read, left_pad(rest, 0).to(device), left_pad(ones, 0).to(device), left_pad(labels, IGNORED).to(device)

    def keep_prompts(self, groups: Sequence[Sequence[Sequence[int]]]) -> None:
        """Prefill the prompts that activated experts are about to be trained on, with the base model.

        Args:
            groups: prompts, header included, with a common prefix.
        """
        if self.header_ids:
            header = len(self.header_ids)
            with torch.no_grad(), self.evaluating(), self.use_adapter(None) as model:
                for group in groups:
                    self.prompt_cache.fill(model, [prompt[: len(prompt) - header] for prompt in group])

    # ------------------------------------------------------------------------------------------ which adapter acts

    def use_adapter(self, adapters: Adapters) -> AbstractContextManager[nn.Module]:
        """The model with a frozen adapter, or with one for each row of the batch.

        Args:
            adapters: an expert's name, None for the base model, a list with one of these for each row, or a composite.
        """
        if isinstance(adapters, AdapterDelta):
            prefix = self._prefix_of(adapters) is not None
            return self._with(None if prefix else lambda layer, x, y: y + adapters.add(layer, x), prefix)
        rows = [adapters] if adapters is None or isinstance(adapters, str) else list(adapters)
        places: dict[str, list[int]] = {}
        prefix = False
        for row, name in enumerate(rows):
            if self._prefix_of(name):
                prefix = True  # its keys and values are in the KV cache, and its layers are the base model's
            elif name is not None:
                places.setdefault(name, []).append(row)
        self._known(places)
        if not places:
            return self._with(None, prefix)
        if len(places) == 1 and len(next(iter(places.values()))) == len(rows):
            (one,) = places
            return self._with(lambda layer, x, y: y + self.update_of(layer, one, x))
        index = {name: torch.tensor(place, device=self.device()) for name, place in places.items()}

        def mixed(layer: str, x: Tensor, y: Tensor) -> Tensor:
            for name, rows_b in index.items():
                y = y.index_add(0, rows_b, self.update_of(layer, name, x[rows_b]))
            return y

        return self._with(mixed, prefix)

    def _prefix_of(self, adapter: Adapter) -> VirtualTokens | None:
        """The prefix of that name, or the adapter itself if it is one; a prefix that does not fit is refused."""
        one = self.composites.get(adapter) if isinstance(adapter, str) else adapter
        if not isinstance(one, VirtualTokens):
            return None
        one.check(self.model, self.header_ids)
        return one

    def _start(self, adapter: Adapter, rows: int) -> KVCache | None:
        """The KV cache that rows begin with under an adapter; None if it is empty, as under all but a prefix."""
        prefix = self._prefix_of(adapter)
        return None if prefix is None else prefix.start(self.model, rows)

    def _of_pass(self) -> list[tuple[Any, Any]]:
        return [(one, one.of_pass) for one in self.composites.values() if hasattr(one, "of_pass")]

    def parallel_adapters(self, names: Sequence[str], tokens: int) -> AbstractContextManager[nn.Module]:
        """The model with each row's tokens in parts of a size, one for each expert, which acts on its part, in order."""
        self._known(names)
        key = tuple(names)

        def stack(layer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            pairs = [self._pair(layer, name, dtype) for name in key]
            return torch.stack([a.T for a, _ in pairs]), torch.stack([b.T for _, b in pairs])

        def in_parallel(layer: str, x: Tensor, y: Tensor) -> Tensor:
            weights = self.cache.get(
                (layer, key, y.dtype), partial(self.weights_of, key, [layer]), partial(stack, layer, y.dtype)
            )
            return y + parallel_update(x, *weights, tokens).reshape(y.shape)

        return self._with(in_parallel)

    def _learning(self, name: str) -> Apply:
        """The update of an expert in training, with dropout and gradients."""
        if name in self.composites:
            return self.composites[name].learn
        return lambda layer, x, y: update(
            y, x, *self.pair(layer, name), scale=self.scale(layer, name), drop=self.dropout()
        )

    def learning(self) -> AbstractContextManager[nn.Module]:
        """The model with the expert in training, for passes of one's own."""
        return self._with(self._learning(self._learner))

    def update_of(self, layer: str, name: str, x: Tensor) -> Tensor:
        """The update of a layer's output by a frozen expert, (..., O), for the layer's input, (..., I)."""
        if name in self.composites:
            return self.composites[name].add(layer, x)
        down_RI, up_OR = self._pair(layer, name, x.dtype)
        return linear(linear(x, down_RI), up_OR)

    def _pair(self, layer: str, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B times the scale, (O, R), of an expert at a layer, in the dtype of the forward pass."""

        def make() -> tuple[Tensor, Tensor]:
            a, b = self.pair(layer, name)
            return a.detach().to(dtype), (b.detach() * self.scale(layer, name)).to(dtype)

        return self.cache.get((layer, name, dtype), partial(self.pair, layer, name), make)

    def _known(self, names: Sequence[str] | dict[str, list[int]]) -> None:
        for name in names:
            if name not in self.names and name not in self.composites and not self.has_adapter(name):
                raise KeyError(f"no expert named {name!r}; experts are {', '.join(self.names) or '(none)'}")

    def digest(self, name: str | None) -> str:
        """sha256 of an expert's weights; the base model's is that of its name."""
        if name is None:
            return hashlib.sha256(f"{self.base_id}@{self.revision}".encode()).hexdigest()
        composite = self.composites.get(name)
        own = partial(self.weights_of, adapters := composite.adapters if composite else (name,))
        content = composite.weights if composite else own
        return self.cache.get(("digest", name), own if adapters else content, lambda: sha256(content()))

    def answer_alone(self, prompt: list[int], row: RowState[Any], eos_ids: Collection[int]) -> Decoded:
        """The answer to a prompt in a batch of its own; the base model's greedy one is that of transformers' ``generate``."""
        logits_1V, read = self.prefill(row.adapter, [prompt])
        decoder: BatchDecoder[Any] = BatchDecoder(self.use_adapter, eos_ids)
        decoder.start(logits_1V, read, [row])
        decoder.decode_until(0)
        return decoder.done[row.key]

    # ------------------------------------------------------------------------------------------ prefill

    def prefill_prefix(self, name: str | None, prompts: Sequence[list[int]]) -> CommonPrefix:
        """Prefill the prefix that all prompts share, under one adapter; see ``prefill_common_prefix``."""
        header = len(self.header_ids)
        with self.use_adapter(None if header else name) as model:
            own = [prompt[: len(prompt) - header] for prompt in prompts]
            return prefill_common_prefix(model, own, self._start(name, rows=1))

    def prefill(
        self, name: Adapter, prompts: Sequence[list[int]], start: CommonPrefix = NO_PREFIX
    ) -> tuple[Tensor, KVCache]:
        """Prefill prompts under one adapter: the logits (B, V) of the first answer token, and the KV cache.

        Args:
            name: an expert's name, or a composite; None is the base model.
            prompts: token ids, the header included.
            start: the prompts' common prefix, from ``prefill_prefix`` with the same name.
        """
        tokens, read = start
        read = self._start(name, len(prompts)) if read is None else read.repeat(len(prompts))
        header = len(self.header_ids) if name is not None else 0
        own = [prompt[tokens : len(prompt) - header] for prompt in prompts]
        if not header:
            with self.use_adapter(name) as model:
                logits_BKV, read = extend(model, read, own)
        else:
            with self.use_adapter(None) as model:
                _, read = extend(model, read, own)
            with self.use_adapter(name) as model:
                logits_BKV, read = extend(model, read, [self.header_ids] * len(prompts))
        return logits_BKV[:, -1], read
