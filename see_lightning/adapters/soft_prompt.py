r"""Soft prompts: trainable embeddings of virtual tokens before every row (Lester et al., EMNLP 2021, arXiv 2104.08691).

Letters: B rows, P virtual tokens, H size of an embedding, W width of the MLP.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from see_lightning.adapters.prefix import VirtualTokens
from see_lightning.inference.kv_cache import KVCache


def random_tokens(model: PreTrainedModel | PeftModel, number: int, weights_seed: int) -> Tensor:
    """The embeddings of random tokens of the vocabulary, (P, H): with these a soft prompt begins.

    Args:
        model: a causal language model of Hugging Face's.
        number: P.
        weights_seed: they depend on nothing else.
    """
    table = model.get_input_embeddings()
    draw = torch.Generator().manual_seed(weights_seed)
    with torch.no_grad():
        words_PH: Tensor = table(torch.randint(len(table.weight), (number,), generator=draw).to(table.weight.device))
    return words_PH


def read_embeddings(model: nn.Module, embeddings_BPH: Tensor) -> KVCache:
    """The model's keys and values of the embeddings of virtual tokens, with gradients."""
    read = model(
        inputs_embeds=embeddings_BPH.to(next(model.parameters()).dtype),
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    layers = [(layer.keys, layer.values) for layer in read.layers]
    return KVCache(layers, torch.ones(embeddings_BPH.shape[:2], dtype=torch.bool, device=embeddings_BPH.device))


class ResidualMlp(nn.Module):
    r"""$p + W_2 \max(0, W_1 p + b_1) + b_2$ for each embedding $p$: a prompt in another parametrisation.

    Args:
        size: of an embedding, H.
        width: of the hidden layer, W.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)

    def forward(self, prompt_PH: Tensor) -> Tensor:
        """The embeddings that the model gets, (P, H)."""
        added_PH: Tensor = self.up(self.down(prompt_PH).relu())
        return prompt_PH + added_PH


class SoftPrompt(VirtualTokens):
    """The trained embeddings of a task before the frozen ones of earlier tasks.

    The model reads them once for a batch, and its keys and values of them begin every row. In a causal language model this
    equals their concatenation with the embeddings of the row's tokens.

    Args:
        frozen_PH: embeddings of earlier tasks, which are not trained; may have no row.
        own_PH: the first value of the embeddings that are trained; copied, in fp32. None: nothing is trained.
        mlp: through which the trained embeddings are passed.
    """

    frozen_PH: Tensor

    def __init__(self, frozen_PH: Tensor, own_PH: Tensor | None = None, mlp: ResidualMlp | None = None) -> None:
        super().__init__()
        self.register_buffer("frozen_PH", frozen_PH.detach())
        self.own_PH = None if own_PH is None else nn.Parameter(own_PH.detach().float().clone())
        self.mlp = mlp

    def learned(self) -> Tensor:
        """The trained embeddings behind the MLP, (P, H), with gradients; without a row if nothing is trained."""
        if self.own_PH is None:
            return self.frozen_PH[:0]
        return self.own_PH if self.mlp is None else self.mlp(self.own_PH)

    def prompt(self) -> Tensor:
        """All embeddings, the trained ones first, (P, H)."""
        return torch.cat([self.learned(), self.frozen_PH])

    def start(self, model: nn.Module, rows: int) -> KVCache:
        """The model's keys and values of the embeddings, as a KV cache."""
        return read_embeddings(model, self.prompt()[None]).repeat(rows)

    def key_values(self, model: PreTrainedModel) -> Tensor:
        """The keys and values of each virtual token at every layer, one row a token, as PEFT stores a prefix; in fp32.

        Args:
            model: a causal language model; read without dropout.
        """
        training = model.training
        try:
            with torch.no_grad():
                layers = self.start(model.eval(), rows=1).layers
        finally:
            model.train(training)
        sides = torch.cat([side for pair in layers for side in pair])  # keys and values of each layer; heads; tokens
        return sides.permute(2, 0, 1, 3).flatten(1).float()

    def weights(self) -> Iterator[Tensor]:
        """The embeddings and the weights of the MLP."""
        yield from self.parameters()
        yield self.frozen_PH


class RowPrompts(VirtualTokens):
    """Virtual tokens of each row's own, such as prompts that were chosen for it.

    Args:
        prompts_BPH: their embeddings; gradients reach them.
    """

    def __init__(self, prompts_BPH: Tensor) -> None:
        super().__init__()
        self.prompts_BPH = prompts_BPH

    def start(self, model: nn.Module, rows: int) -> KVCache:
        """The model's keys and values of each row's embeddings, as a KV cache.

        Raises:
            ValueError: there are other rows than these.
        """
        if rows != len(self.prompts_BPH):
            raise ValueError(f"there are prompts for {len(self.prompts_BPH)} rows, and {rows} rows.")
        return read_embeddings(model, self.prompts_BPH)

    def weights(self) -> Iterator[Tensor]:
        """The embeddings."""
        yield self.prompts_BPH
