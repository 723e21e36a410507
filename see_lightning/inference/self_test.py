"""Whether a model reads batches, caches and branches as it reads a row alone: tried on a few tokens, not looked up by name.

``extend`` and training rely on a model that takes its positions from ``position_ids`` and its masks as they are given.
One that counts columns instead (ALiBi, as in MPT) is wrong in silence; another refuses a mask in four dimensions (Bloom).

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

#: Columns that part a token from what it follows where positions are not those of columns: few would hardly show.
GAP = 32
CHECKED = 4  # tokens whose logits are compared
#: Most that logits may differ, as a share of how far they are spread; a step of bf16 is 2^-8 of a number, and steps add up.
TOLERATED = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@torch.no_grad()  # what FSDP gathers in inference mode could not take part in training
def choose_reading(model: PreTrainedModel, name: str) -> str | None:
    """Let a model read or be trained row by row where rows together would be read otherwise than apart.

    Args:
        model: in evaluation mode, without adapters.
        name: how messages call it.

    Returns:
        What to tell, or None where all is as usual.

    Raises:
        ConfigError: it cannot be read in pieces even so.
    """
    model.one_by_one = frozenset()
    failed = dict(_differing(model))
    if not failed:
        return None
    model.one_by_one = frozenset(failed)
    still = dict(_differing(model)) or _own_way(model)
    if still:
        raise ConfigError(
            f"model.name={name} ({type(model).__name__}) cannot be used, not even one by one: {next(iter(still.values()))}."
            f" {OTHERS}"
        )
    does = " and ".join({READING: "queries are read", TRAINING: "examples are trained on"}[kind] for kind in failed)
    return f"{name}: {next(iter(failed.values()))}; so {does} one by one, which is exact and slower"


def _differing(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """What a model does otherwise than with a row alone, and how that shows."""
    for kind, check, together in (
        (READING, _reading, "batches, caches and branches"),
        (TRAINING, _training, "padded batches"),
    ):
        try:
            worst = check(model)
        except Exception as error:  # of whatever kind: the model's own code tells that it was not made for this
            told = next(iter(str(error).strip().splitlines()), "")
            yield kind, f"it does not take {together} ({type(error).__name__}: {told[:100]})"
            continue
        if not worst <= TOLERATED[next(model.parameters()).dtype]:
            yield (
                kind,
                f"it reads otherwise in {together} than row by row (logits differ by {worst:.0%} of their spread)",
            )


def _own_way(model: PreTrainedModel) -> dict[str, str]:
    """How a model's ``generate`` differs from its plain pass, if it does: it counts positions from 0, the model otherwise."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    ids = _tokens(model, GAP)
    positions_1S = torch.arange(GAP, device=next(model.parameters()).device)[None]
    apart = _apart(_plain(model, ids, position_ids=positions_1S), _plain(model, ids))
    told = "it counts positions otherwise by itself than where it generates"
    return {READING: told} if apart > TOLERATED[next(model.parameters()).dtype] else {}


def _reading(model: PreTrainedModel) -> float:
    """By how much ``extend`` differs from plain passes, at worst: a batch, on from it, branches, and on behind one."""
    long, short, aside = (_tokens(model, length) for length in (2 * GAP, GAP + 8, GAP))
    branch, more = _tokens(model, 5), _tokens(model, 6)
    tree = Tree((*aside, *branch), (*range(-1, GAP - 1), -1, *range(GAP, GAP + len(branch) - 1)))
    keep = range(-CHECKED, 0)
    rows = [[long[:GAP], long[GAP : GAP + 5], long[GAP + 5 :]], [short[:6], short[6:-1], short[-1:]]]
    begun_BKV, read = extend(model, None, [row[0] for row in rows], keep=keep)
    further_BKV, read = extend(model, read, [row[1] for row in rows], keep=keep)
    branched_BKV, read = extend(model, read, [row[2] for row in rows], tree=tree, keep=keep)
    mask_BK = read.mask_BK.clone()
    mask_BK[:, -len(branch) :] = True
    behind_BKV, _ = extend(model, read.select([0, 1], mask_BK), [more] * 2, keep=keep)
    found = [
        (logits_BKV[place], [*chain(*[*row, branch, more][:parts])])
        for place, row in enumerate(rows)
        for logits_BKV, parts in ((begun_BKV, 1), (further_BKV, 2), (branched_BKV, 4), (behind_BKV, 5))
    ]
    return max(_apart(logits_KV, _plain(model, ids)) for logits_KV, ids in found)


def _training(model: PreTrainedModel) -> float:
    """By how much a padded batch without a cache differs from plain passes, at worst."""
    rows = [_tokens(model, 2 * GAP), _tokens(model, 2 * CHECKED)]
    mask_BS = left_pad([[1] * len(row) for row in rows], 0)
    wanted_BS = torch.zeros_like(mask_BS, dtype=torch.bool)
    wanted_BS[:, -CHECKED:] = True
    device = next(model.parameters()).device
    logits_LV = logits_at(model, left_pad(rows, 0).to(device), mask_BS.to(device), wanted_BS.to(device))
    parts = logits_LV[:CHECKED], logits_LV[CHECKED:]
    return max(_apart(part, _plain(model, row)) for part, row in zip(parts, rows, strict=True))


def _plain(model: PreTrainedModel, ids: Sequence[int], **more: Tensor) -> Tensor:
    """The logits (K, V) of a row's last tokens, read alone and at once."""
    logits_BSV: Tensor = model(
        input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), **more
    ).logits
    return logits_BSV[0, -CHECKED:]


def _apart(found_KV: Tensor, plain_KV: Tensor) -> float:
    """How far logits differ, as a share of how far they are spread: of the tokens' shares the median.

    What reads other positions moves all tokens; a router of experts may let a single one jump for a rounding error.
    """
    found_KV, plain_KV = found_KV.float(), plain_KV.float()
    apart_K = (found_KV - plain_KV).norm(dim=-1) / (plain_KV - plain_KV.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(apart_K.median())


def _tokens(model: PreTrainedModel, length: int) -> list[int]:
    """Tokens that are none of the first ones, among which the special ones mostly are."""
    last = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(length)
    return torch.randint(last // 8, last, (length,), generator=draw).tolist()
