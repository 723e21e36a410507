"""Experts: named LoRA adapters around one frozen base model, kept in order of birth.

PEFT makes and stores them. Who speaks is decided here, row by row: adding an expert's low-rank update to a layer's output
is all that an adapter does, so one batch may hold rows of several experts and of the base model.

Letters: B rows, S tokens, E experts, L labels, V vocabulary.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from see_lightning.adapters.adapted_model import AdaptedModel, Apply
from see_lightning.adapters.lora import update
from see_lightning.adapters.protocols import AdapterDelta, CompositeAdapter
from see_lightning.adapters.weight_cache import sha256
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.inference.decoder import BatchDecoder, Decoded, RowState
from see_lightning.inference.forward import extend, logits_at, prefill_common_prefix
from see_lightning.inference.kv_cache import KVCache
from see_lightning.inference.prefix_cache import PrefillCache, PromptCache
from see_lightning.inference.self_test import choose_reading
from see_lightning.models.sharding import in_step
from see_lightning.tasks.batches import IGNORED, Batch, left_pad


def check_activated(adapter: AdapterConfig, header_ids: Sequence[int]) -> None:
    """Refuse activated experts where prompts do not end alike.

    Args:
        adapter: whether they are activated.
        header_ids: tokens that end every prompt.
    """
    if adapter.activated and not header_ids:
        raise ConfigError(
            "adapter.activated needs prompts that end alike, where the experts begin to act; model.prompt=plain and a chat"
            " template without an assistant header end with the query. Choose model.prompt=chat or alpaca, or adapter=lora."
        )


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
        #: Who can speak, in order of birth.
        self.names: list[str] = []
        self.composites: dict[str, CompositeAdapter] = {}
        #: What the base model has read for activated experts: half the memory for training, half for test queries.
        self.prompt_cache, self.prefill_cache = PromptCache(adapter.cache_gb / 2), PrefillCache(adapter.cache_gb / 2)
        self._learner = ""

    def choose_reading(self) -> str | None:
        """Try out, before there is any expert, how the base model can be read; see ``self_test``."""
        assert isinstance(self.model, PreTrainedModel)
        return choose_reading(self.model, self.base_id)

    # ------------------------------------------------------------------------------------------ birth and training

    def add_expert(self, name: str, weights_seed: int) -> None:
        """Add a new expert, make it the active one and the only one that can be trained.

        Args:
            name: unique in the pool.
            weights_seed: draws its first weights, so they do not hang on what was drawn before.
        """
        if name in self.names:
            raise ConfigError(f"there is an expert named {name!r} already; experts are {', '.join(self.names)}.")
        self.add_adapter(name, weights_seed)
        self.names.append(name)
        self.train_only(name)

    def register(self, name: str, composite: CompositeAdapter) -> None:
        """Let a voice speak under a name, or another one in its place.

        Args:
            name: as of an expert.
            composite: over adapters that the pool holds.
        """
        if name not in self.names:
            self.names.append(name)
        self.composites[name] = composite
        self.cache.forget(("digest", name))

    def train_only(self, name: str, adapter: str | None = None) -> None:
        """Make an expert the one that speaks in ``forward``, the only trainable one, and switch dropout on.

        Args:
            name: who speaks.
            adapter: the one to be trained, if it has another name.
        """
        self.cache.clear()  # above all the stacks of sets of experts that are not used together any more
        self._learner = name
        self._train_adapter(adapter or name)
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
            return self._label_logits(input_ids_BS, attention_mask_BS, labels_BS, bool(self.header_ids))

    def logits(self, batch: Batch, adapter: str | AdapterDelta | None = None, *, grad: bool = False) -> Tensor:
        """Logits of the positions that predict a label, (L, V), under any adapter: a teacher's, for distillation.

        They are those of ``forward`` without dropout; which adapter is trained, and how, stays as it is.

        Args:
            batch: prompts with answers.
            adapter: an expert's name, or a composite without a name; None is the base model.
            grad: whether gradients are kept, and reach an expert's own weights where these require them.
        """
        acting = self.use_adapter(adapter)
        if grad and isinstance(adapter, str):
            acting = self._with(self._learning(adapter))
        from_header = bool(self.header_ids) and adapter is not None
        with torch.set_grad_enabled(grad), self._evaluating(), acting:
            return self._label_logits(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS, from_header)

    def _label_logits(self, ids_BS: Tensor, mask_BS: Tensor, labels_BS: Tensor, from_header: bool) -> Tensor:
        read = None
        if from_header:
            read, ids_BS, mask_BS, labels_BS = self._before_header(ids_BS, mask_BS, labels_BS)
        # Position s predicts label s + 1.
        wanted_BS = nn.functional.pad(labels_BS[:, 1:] != IGNORED, (0, 1))
        return logits_at(self.model, ids_BS, mask_BS, wanted_BS, read)

    def _before_header(
        self, ids_BS: Tensor, mask_BS: Tensor, labels_BS: Tensor
    ) -> tuple[KVCache, Tensor, Tensor, Tensor]:
        """What the base model reads of each row, and the rest: ids, mask and labels from the header on."""
        header = len(self.header_ids)
        context, rest, labels = [], [], []
        for ids, mask, answer in zip(ids_BS.tolist(), mask_BS.sum(1).tolist(), labels_BS.tolist(), strict=True):
            row = ids[len(ids) - mask :]
            start = len(row) - sum(label != IGNORED for label in answer) - header
            self.check_header(row[start : start + header])
            context.append(row[:start])
            rest.append(row[start:])
            labels.append(answer[len(answer) - len(rest[-1]) :])
        device = ids_BS.device
        # Which prompts are not kept, and so are read now, differs from rank to rank.
        with torch.no_grad(), self._base_in_training() as model, in_step(model):
            read = self.prompt_cache.batch(model, context)
        return (
            read,
            left_pad(rest, 0).to(device),
            left_pad([[1] * len(row) for row in rest], 0).to(device),
            left_pad(labels, IGNORED).to(device),
        )

    def check_header(self, ids: Sequence[int]) -> None:
        """Refuse a prompt that does not end in the tokens from which on activated experts act."""
        if list(ids) != self.header_ids:
            raise ConfigError(
                f"a prompt ends in the tokens {list(ids)} instead of {self.header_ids}, from which on the experts act;"
                f" it was cut, or the tokenizer joined its end with what stands before. Use adapter=lora for such prompts."
            )

    def keep_prompts(self, groups: Sequence[Sequence[Sequence[int]]]) -> None:
        """Let the base model read prompts that activated experts are about to be trained on.

        Args:
            groups: prompts, header included, that begin alike.
        """
        if self.header_ids:
            header = len(self.header_ids)
            with torch.no_grad(), self._base_in_training() as model:
                for group in groups:
                    self.prompt_cache.fill(model, [prompt[: len(prompt) - header] for prompt in group])

    @contextmanager
    def _base_in_training(self) -> Iterator[nn.Module]:
        """The base model while an adapter is being trained."""
        with self._evaluating(), self.use_adapter(None) as model:
            yield model

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, the base model's and the adapters'."""
        pool, model = self.training, self.model.training
        self.eval()
        try:
            yield
        finally:
            self.train(pool)
            self.model.train(model)

    # ------------------------------------------------------------------------------------------ speaking

    def use_adapter(
        self, adapters: str | AdapterDelta | Sequence[str | None] | None
    ) -> AbstractContextManager[nn.Module]:
        """The model with an expert, frozen; or with an expert for each row of the batch.

        Args:
            adapters: an expert's name, None for the base model; a list has one for each row. Or a voice without a name.
        """
        if isinstance(adapters, AdapterDelta):
            return self._with(lambda layer, x, y: y + adapters.add(layer, x))
        rows = [adapters] if adapters is None or isinstance(adapters, str) else list(adapters)
        places: dict[str, list[int]] = {}
        for row, name in enumerate(rows):
            if name is not None:
                places.setdefault(name, []).append(row)
        self._known(places)
        if not places:
            return self._with(None)
        if len(places) == 1 and len(next(iter(places.values()))) == len(rows):
            (one,) = places
            return self._with(lambda layer, x, y: y + self._update(layer, one, x))
        index = {name: torch.tensor(place, device=self.device()) for name, place in places.items()}

        def mixed(layer: str, x: Tensor, y: Tensor) -> Tensor:
            for name, rows_b in index.items():
                y = y.index_add(0, rows_b, self._update(layer, name, x[rows_b]))
            return y

        return self._with(mixed)

    def parallel_adapters(self, names: Sequence[str]) -> AbstractContextManager[nn.Module]:
        """The model with each row's tokens dealt to experts in equal parts, the first part to the first of them."""
        self._known(names)
        key = tuple(names)

        def stack(layer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            pairs = [self._pair(layer, name, dtype) for name in key]
            return torch.stack([a.T for a, _ in pairs]), torch.stack([b.T for _, b in pairs])

        def in_parallel(layer: str, x: Tensor, y: Tensor) -> Tensor:
            # I, O: sizes of the layer's input and output, R: rank
            down_EIR, up_ERO = self.cache.get(
                (layer, key, y.dtype), partial(self.weights_of, key, [layer]), partial(stack, layer, y.dtype)
            )
            rows, tokens, experts = *x.shape[:2], len(key)
            parts = x.view(rows, experts, tokens // experts, -1).transpose(0, 1).reshape(experts, -1, x.shape[-1])
            added = (parts @ down_EIR) @ up_ERO
            return y + added.view(experts, rows, tokens // experts, -1).transpose(0, 1).reshape(y.shape)

        return self._with(in_parallel)

    def _learning(self, name: str) -> Apply:
        """How an expert acts while it is trained."""
        if name in self.composites:
            return self.composites[name].learn
        return lambda layer, x, y: update(
            y, x, *self.pair(layer, name), scale=self.scale(layer, name), drop=self.dropout()
        )

    def _update(self, layer: str, name: str, x: Tensor) -> Tensor:
        if name in self.composites:
            return self.composites[name].add(layer, x)
        down_RI, up_OR = self._pair(layer, name, x.dtype)
        return linear(linear(x, down_RI), up_OR)

    def _pair(self, layer: str, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """An expert's two matrices at a layer, the scale within the second, in the type the model computes in."""

        def make() -> tuple[Tensor, Tensor]:
            a, b = self.pair(layer, name)
            return a.detach().to(dtype), (b.detach() * self.scale(layer, name)).to(dtype)

        return self.cache.get((layer, name, dtype), partial(self.pair, layer, name), make)

    def _known(self, names: Sequence[str] | dict[str, list[int]]) -> None:
        for name in names:
            if name not in self.names:
                raise KeyError(f"no expert named {name!r}; experts are {', '.join(self.names) or '(none)'}")

    def digest(self, name: str | None) -> str:
        """sha256 of an expert's weights; the base model's is that of its name."""
        if name is None:
            return hashlib.sha256(f"{self.base_id}@{self.revision}".encode()).hexdigest()
        composite = self.composites.get(name)
        adapters = composite.adapters if composite else (name,)
        own = partial(self.weights_of, adapters)
        content = composite.weights if composite else own
        return self.cache.get(("digest", name), own if adapters else content, lambda: sha256(content()))

    def answer_alone(self, prompt: list[int], limit: int, eos_ids: Collection[int]) -> Decoded:
        """The base model's greedy answer to a prompt in a batch of its own, as transformers' ``generate`` gives it."""
        logits_1V, read = self.prefill(None, [prompt], (0, None))
        decoder: BatchDecoder[int] = BatchDecoder(self.use_adapter, eos_ids)
        decoder.start(logits_1V, read, [RowState(0, None, [], limit)])
        decoder.decode_until(0)
        return decoder.done[0]

    # ------------------------------------------------------------------------------------------ reading as an expert

    def prefill_prefix(self, name: str | None, prompts: Sequence[list[int]]) -> tuple[int, KVCache | None]:
        """Let a voice read what all prompts begin with; see ``prefill_common_prefix``."""
        header = len(self.header_ids)
        with self.use_adapter(None if header else name) as model:
            return prefill_common_prefix(model, [prompt[: len(prompt) - header] for prompt in prompts])

    def prefill(
        self, name: str | AdapterDelta | None, prompts: Sequence[list[int]], start: tuple[int, KVCache | None]
    ) -> tuple[Tensor, KVCache]:
        """Let one expert read prompts: the logits (B, V) of its first token, and what was read.

        Args:
            name: of the expert, or a voice without a name; None is the base model.
            prompts: as ids, the header included.
            start: what they begin with, as ``prefill_prefix`` gives it for this voice.
        """
        tokens, read = start
        read = None if read is None else read.repeat(len(prompts))
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
