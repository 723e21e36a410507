"""Forward passes with a KV cache: prefill, continuation, and trees of tokens.

No token is processed twice: a common prefix of prompts is prefilled once, and branches (the indicators that an expert may
begin with, or several experts' first tokens) run in one pass with an attention mask, in which each token sees only its own
ancestors.

Letters: B rows, K columns of a cache, R columns of a pass, T tokens of a tree, H heads, D size of a head, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from see_lightning.inference.kv_cache import CommonPrefix, KVCache, Tree
from see_lightning.tasks.batches import left_pad

# Tokens that a common prefix must save before a separate prefill is worth one more forward pass.
WORTH_SHARING = 128
# The kinds of passes that a model may have to do row by row: over a KV cache, and over training batches.
READING, TRAINING = "reading", "training"


def extend(
    model: nn.Module,
    read: KVCache | None,
    prompts: Sequence[Sequence[int]],
    *,
    tree: Tree | None = None,
    keep: Sequence[int] = (-1,),
) -> tuple[Tensor, KVCache]:
    """Extend a KV cache by each row's own tokens and then by a tree that all rows share.

    A model whose results for rows depend on the batch (``one_by_one``) processes every row and every branch by itself.

    Args:
        model: a causal language model with Hugging Face's interface.
        read: KV cache of the rows; None starts an empty one.
        prompts: each row's own tokens; all may be empty if there is a tree.
        tree: branching tokens that follow every row.
        keep: columns whose logits are returned, as negative numbers from the end.

    Returns:
        Logits (B, len(keep), V), and the extended KV cache. Its mask is False on the tree's tokens: the caller selects the
        branch to continue.
    """
    tree = tree or Tree()
    if READING in one_by_one(model):
        return _read_one_by_one(model, read, prompts, tree, keep)
    device, rows = next(model.parameters()).device, len(prompts)
    width = max(map(len, prompts))
    ids_BR = left_pad(prompts, 0, width).to(device) if width else torch.zeros(rows, 0, dtype=torch.long, device=device)
    own_BR = left_pad([[1] * len(p) for p in prompts], 0, width).to(device).bool() if width else ids_BR.bool()
    past_BK = own_BR.new_zeros(rows, 0) if read is None else read.mask_BK
    before_B1 = past_BK.sum(dim=1, keepdim=True)
    position_BR = (before_B1 + own_BR.cumsum(dim=1) - 1).clamp(min=0)
    mask_BK = torch.cat([past_BK, own_BR], dim=1)
    attention = mask_BK.long()
    if tree.ids:
        sees_TT = tree.sees_TT.to(device)
        ids_BR = torch.cat([ids_BR, torch.tensor(tree.ids, device=device).expand(rows, -1)], dim=1)
        depth_T = sees_TT.sum(dim=1) - 1
        position_BR = torch.cat([position_BR, mask_BK.sum(dim=1, keepdim=True) + depth_T], dim=1)
        attention = _mask(past_BK, own_BR, sees_TT, next(model.parameters()).dtype)
    out = model(
        input_ids=ids_BR,
        attention_mask=attention,
        position_ids=position_BR,
        past_key_values=None if read is None else read.cache(),
        use_cache=True,
        logits_to_keep=torch.tensor([ids_BR.shape[1] + k for k in keep], device=device),
    )
    layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    return out.logits, KVCache(layers, pad(mask_BK, (0, len(tree))))


@contextmanager
def head_on(model: PreTrainedModel | PeftModel, chosen_BS: Tensor) -> Iterator[None]:
    """Run the vocabulary head on some positions only: its logits are then (1, chosen, V), row by row.

    The head takes a fifth of a small model's forward pass, and only a few positions of a training batch need it. Positions
    are selected at its input, so anything that a model does to its logits still happens.

    Args:
        model: a causal language model with Hugging Face's interface.
        chosen_BS: True where logits are needed.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0][chosen_BS][None],))
    try:
        yield
    finally:
        hook.remove()


def logits_at(
    model: PreTrainedModel | PeftModel, ids_BS: Tensor, mask_BS: Tensor, wanted_BS: Tensor, read: KVCache | None = None
) -> Tensor:
    """Logits (L, V) of some positions of a batch, row by row, with gradients; no KV cache is returned.

    Args:
        model: a causal language model with Hugging Face's interface.
        ids_BS: tokens, padded on the left.
        mask_BS: 1 on tokens.
        wanted_BS: True where logits are needed.
        read: KV cache of the tokens before; None if there are none.
    """
    alone = (READING if read else TRAINING) in one_by_one(model)
    if alone and len(ids_BS) > 1:
        rows = []
        for row, length in enumerate(mask_BS.sum(dim=1).tolist()):
            ids_1S, mask_1S, wanted_1S = (part[row : row + 1, -length:] for part in (ids_BS, mask_BS, wanted_BS))
            rows.append(logits_at(model, ids_1S, mask_1S, wanted_1S, read and read.select([row])))
        return torch.cat(rows)
    whole_BK = mask_BS if read is None else torch.cat([read.mask_BK.long(), mask_BS], dim=1)
    positions = {} if alone else {"position_ids": (whole_BK.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BS.shape[1] :]}
    with head_on(model, wanted_BS):
        logits: Tensor = model(
            input_ids=ids_BS,
            attention_mask=whole_BK,
            past_key_values=None if read is None else read.cache(),
            use_cache=False,
            **positions,
        ).logits[0]
    return logits


def one_by_one(model: nn.Module) -> frozenset[str]:
    """The kinds of passes that a model does row by row: ``READING``, ``TRAINING``, both or neither; see ``self_test``."""
    kinds: frozenset[str] = getattr(model, "one_by_one", frozenset())
    return kinds


def _read_one_by_one(
    model: nn.Module, read: KVCache | None, prompts: Sequence[Sequence[int]], tree: Tree, keep: Sequence[int]
) -> tuple[Tensor, KVCache]:
    """``extend`` in passes over a single row without padding; the result has the columns of a padded batch."""
    width, wanted = max(map(len, prompts)), max(1, -min(keep) - len(tree))
    rows = [
        _read_row(model, None if read is None else read.select([row]), prompt, tree, wanted)
        for row, prompt in enumerate(prompts)
    ]
    none_KV = next(logits_KV for logits_KV, _ in rows if logits_KV is not None)[:0]
    longest = wanted + len(tree)
    logits_BKV = torch.stack(
        [
            pad(logits_KV, (0, 0, longest - len(logits_KV), 0))
            for logits_KV in (none_KV if row_KV is None else row_KV for row_KV, _ in rows)
        ]
    )
    own_BR = torch.tensor([[n >= width - len(prompt) for n in range(width)] for prompt in prompts], dtype=torch.bool)
    mask_BK = pad(own_BR.to(logits_BKV.device), (0, len(tree)))
    layers = []
    for number, before in enumerate(rows[0][1] if read is None else read.layers):
        pair = []
        for side in (0, 1):
            # Shorter rows are padded on the left.
            padded = [
                pad(new[number][side], (0, 0, mask_BK.shape[1] - new[number][side].shape[2], 0)) for _, new in rows
            ]
            pair.append(torch.cat([*([] if read is None else [before[side]]), torch.cat(padded)], dim=2))
        layers.append((pair[0], pair[1]))
    return logits_BKV[:, list(keep)], KVCache(
        layers, mask_BK if read is None else torch.cat([read.mask_BK, mask_BK], dim=1)
    )


def _read_row(
    model: nn.Module, past: KVCache | None, prompt: Sequence[int], tree: Tree, wanted: int
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]]]:
    """One row: logits (K, V) of at most ``wanted`` of its own last tokens and of the tree's, and all new keys and values.

    The logits are None for a row without new tokens.
    """
    logits, entries, trunk = [], [], past
    if prompt:
        logits_KV, trunk = _pass(model, past, prompt, wanted)
        logits.append(logits_KV)
        entries.append([(k[:, :, -len(prompt) :], v[:, :, -len(prompt) :]) for k, v in trunk.layers])
    caches: list[KVCache | None] = []  # after each token of the tree
    for token, parent in zip(tree.ids, tree.parents, strict=True):
        logits_1V, after = _pass(model, caches[parent] if parent >= 0 else trunk, [token], 1)
        caches.append(after)
        logits.append(logits_1V)
        entries.append([(k[:, :, -1:], v[:, :, -1:]) for k, v in after.layers])
    if not entries:
        assert past is not None, "a row begins with a token of its own"
        return None, [(k[:, :, :0], v[:, :, :0]) for k, v in past.layers]
    new = [
        (torch.cat([part[0] for part in parts], dim=2), torch.cat([part[1] for part in parts], dim=2))
        for parts in zip(*entries, strict=True)
    ]
    return torch.cat(logits), new


def _pass(model: nn.Module, past: KVCache | None, ids: Sequence[int], wanted: int) -> tuple[Tensor, KVCache]:
    """One row's next tokens: logits (K, V) of at most the last ``wanted`` of them, and the extended KV cache."""
    device = next(model.parameters()).device
    mask_1K = torch.ones(1, len(ids) + (0 if past is None else past.mask_BK.shape[1]), dtype=torch.bool, device=device)
    out = model(
        input_ids=torch.tensor([list(ids)], device=device),
        attention_mask=mask_1K.long(),
        past_key_values=None if past is None else past.cache(),
        use_cache=True,
        logits_to_keep=min(wanted, len(ids)),
    )
    return out.logits[0], KVCache([(layer.keys, layer.values) for layer in out.past_key_values.layers], mask_1K)


def _mask(past_BK: Tensor, own_BR: Tensor, sees_TT: Tensor, dtype: torch.dtype) -> Tensor:
    """The attention mask of the new tokens, (B, 1, R + T, K + R + T), to be added to the scores."""
    rows, own, branches = *own_BR.shape, len(sees_TT)
    causal_RR = torch.ones(own, own, dtype=torch.bool, device=own_BR.device).tril()
    text_BRK = torch.cat(
        [
            past_BK[:, None].expand(-1, own, -1),
            causal_RR & own_BR[:, None],
            own_BR.new_zeros(rows, own, branches),
        ],
        dim=2,
    )
    tree_BTK = torch.cat(
        [torch.cat([past_BK, own_BR], dim=1)[:, None].expand(-1, branches, -1), sees_TT.expand(rows, -1, -1)], dim=2
    )
    seen = torch.cat([text_BRK, tree_BTK], dim=1)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix of prompts in tokens; at least one token of each prompt is left out of it.

    >>> common_start([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    2
    """
    first, last = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # the others lie between these two in lexicographic order, so they share their common prefix
    longest = min(map(len, prompts)) - 1
    return next((n for n in range(longest) if first[n] != last[n]), max(0, longest))


def prefill_common_prefix(
    model: nn.Module, prompts: Sequence[Sequence[int]], read: KVCache | None = None
) -> CommonPrefix:
    """Prefill the common prefix of prompts once, if that saves more than it costs.

    Args:
        model: a causal language model with Hugging Face's interface.
        prompts: token ids.
        read: KV cache of one row that stands before the prompts; None if there is none.

    Returns:
        The prefix; of no tokens and with ``read`` if a separate pass is not worth it.
    """
    tokens = common_start(prompts)
    if tokens * (len(prompts) - 1) < WORTH_SHARING:
        return CommonPrefix(0, read)
    return CommonPrefix(tokens, extend(model, read, [prompts[0][:tokens]])[1])
