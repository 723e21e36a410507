"""Tests on a few tokens whether a model computes the same logits in batches, over caches and in branches as for a row alone.

``extend`` and training need a model that uses ``position_ids`` and attention masks as given. A model that derives positions
from columns (ALiBi, as in MPT) computes wrong logits without an error; another rejects a four-dimensional mask (Bloom).
Testing finds both, also in models that no list of names would know.

Letters: B rows, S tokens, K columns kept, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from see_lightning.errors import ConfigError
from see_lightning.inference.forward import READING, TRAINING, extend, logits_at
from see_lightning.inference.kv_cache import Tree
from see_lightning.models.architecture import OTHERS
from see_lightning.tasks.batches import left_pad

#: Tokens of the branch that lies between a token and its predecessor: with few, a wrong position hardly shows.
GAP = 32
CHECKED = 4  # tokens whose logits are compared
#: Largest accepted difference of logits, as a share of their spread. bf16 rounds at 2^-8 of a number, and errors add up.
TOLERATED = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@torch.no_grad()  # not inference_mode: weights that FSDP gathers in it could not be used in training
def choose_reading(model: PreTrainedModel, name: str) -> str | None:
    """Set the model's ``one_by_one`` to the kinds of passes whose logits for a row depend on the batch.

    Args:
        model: in evaluation mode, without adapters.
        name: of the model in messages.

    Returns:
        A notice for the user, or None if the model needs no row by row passes.

    Raises:
        ConfigError: the model's logits over a KV cache are wrong even row by row.
    """
    model.one_by_one = frozenset()
    failed = dict(_differing(model))
    if not failed:
        return None
    model.one_by_one = frozenset(failed)
    still_failing = dict(_differing(model)) or _own_positions(model)
    if still_failing:
        raise ConfigError(
            f"model.name={name} ({type(model).__name__}) cannot be used, not even one by one:"
            f" {next(iter(still_failing.values()))}. {OTHERS}"
        )
    does = " and ".join(
        {READING: "queries are processed", TRAINING: "examples are trained on"}[kind] for kind in failed
    )
    return f"{name}: {next(iter(failed.values()))}; so {does} one by one, which is exact and slower"


def _differing(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Each kind of pass whose logits differ from those of a row alone, with a description of the difference."""
    for kind, check, together in (
        (READING, _reading, "batches, caches and branches"),
        (TRAINING, _training, "padded batches"),
    ):
        try:
            worst = check(model)
        except Exception as error:  # of any type: it comes from the model's own code
            message = next(iter(str(error).strip().splitlines()), "")
            yield kind, f"it does not support {together} ({type(error).__name__}: {message[:100]})"
            continue
        if not worst <= TOLERATED[next(model.parameters()).dtype]:
            yield (
                kind,
                f"its logits in {together} are not those of single rows (they differ by {worst:.0%} of their spread)",
            )


def _own_positions(model: PreTrainedModel) -> dict[str, str]:
    """Whether a model's default positions differ from those of ``generate``, which start at 0; empty if they do not."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    ids = _tokens(model, GAP)
    positions_1S = torch.arange(GAP, device=next(model.parameters()).device)[None]
    difference = _difference(_plain(model, ids, position_ids=positions_1S), _plain(model, ids))
    fault = "its default positions are not those that it generates with"
    return {READING: fault} if difference > TOLERATED[next(model.parameters()).dtype] else {}


def _reading(model: PreTrainedModel) -> float:
    """Largest difference between ``extend`` and plain passes: for a batch, its continuation, branches, and after a branch."""
    long, short, aside = (_tokens(model, length) for length in (2 * GAP, GAP + 8, GAP))
    branch, more = _tokens(model, 5), _tokens(model, 6)
    tree = Tree((*aside, *branch), (*range(-1, GAP - 1), -1, *range(GAP, GAP + len(branch) - 1)))
    keep = range(-CHECKED, 0)
    rows = [[long[:GAP], long[GAP : GAP + 5], long[GAP + 5 :]], [short[:6], short[6:-1], short[-1:]]]
    prefill_BKV, read = extend(model, None, [row[0] for row in rows], keep=keep)
    continued_BKV, read = extend(model, read, [row[1] for row in rows], keep=keep)
    branched_BKV, read = extend(model, read, [row[2] for row in rows], tree=tree, keep=keep)
    mask_BK = read.mask_BK.clone()
    mask_BK[:, -len(branch) :] = True
    after_branch_BKV, _ = extend(model, read.select([0, 1], mask_BK), [more] * 2, keep=keep)
    cases = [
        (logits_BKV[place], [*chain(*[*row, branch, more][:parts])])
        for place, row in enumerate(rows)
        for logits_BKV, parts in ((prefill_BKV, 1), (continued_BKV, 2), (branched_BKV, 4), (after_branch_BKV, 5))
    ]
    return max(_difference(logits_KV, _plain(model, ids)) for logits_KV, ids in cases)


def _training(model: PreTrainedModel) -> float:
    """Largest difference between a padded batch without a cache and plain passes."""
    rows = [_tokens(model, 2 * GAP), _tokens(model, 2 * CHECKED)]
    mask_BS = left_pad([[1] * len(row) for row in rows], 0)
    wanted_BS = torch.zeros_like(mask_BS, dtype=torch.bool)
    wanted_BS[:, -CHECKED:] = True
    device = next(model.parameters()).device
    logits_LV = logits_at(model, left_pad(rows, 0).to(device), mask_BS.to(device), wanted_BS.to(device))
    parts = logits_LV[:CHECKED], logits_LV[CHECKED:]
    return max(_difference(part, _plain(model, row)) for part, row in zip(parts, rows, strict=True))


def _plain(model: PreTrainedModel, ids: Sequence[int], **more: Tensor) -> Tensor:
    """The logits (K, V) of a row's last tokens, from one pass over the row alone."""
    logits_BSV: Tensor = model(
        input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), **more
    ).logits
    return logits_BSV[0, -CHECKED:]


def _difference(logits_KV: Tensor, plain_KV: Tensor) -> float:
    """The difference of logits as a share of their spread: the median over tokens.

    Wrong positions change all tokens. A single token may change because of rounding, where a mixture-of-experts model routes
    it to another expert; the median ignores it.
    """
    logits_KV, plain_KV = logits_KV.float(), plain_KV.float()
    share_K = (logits_KV - plain_KV).norm(dim=-1) / (plain_KV - plain_KV.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(share_K.median())


def _tokens(model: PreTrainedModel, length: int) -> list[int]:
    """Random tokens from the last seven eighths of the vocabulary: special tokens mostly come first."""
    last = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(length)
    return torch.randint(last // 8, last, (length,), generator=draw).tolist()
