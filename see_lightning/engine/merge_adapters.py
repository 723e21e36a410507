"""Merges PEFT LoRA adapters of one base model into one adapter or one checkpoint: ``see-lightning merge``."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from see_lightning.adapters.peft_folder import PeftFolder, check_one_model, write_adapter
from see_lightning.engine.merge_rule import make_rule
from see_lightning.engine.model_card import card_head
from see_lightning.errors import ConfigError, listed
from see_lightning.files.writing import check_new, write_new_folder, write_text
from see_lightning.merging.changes import Changes, LowRank, as_low_rank, dense
from see_lightning.merging.rule import TaskVector
from see_lightning.models.base import DTYPES
from see_lightning.seeds import seed


class Written(NamedTuple):
    """What was written.

    Args:
        rank: of the merged adapter; None of a checkpoint.
        error: what truncation left out, as a share of the Frobenius norm of the merged change, 0..1.
        size: bytes of the weights.
    """

    rank: int | None
    error: float
    size: int


def merge_adapters(
    out: Path,
    folders: Sequence[Path],
    rule: DictConfig,
    name: str,
    *,
    rank: int | None = None,
    checkpoint: bool = False,
    base: str | None = None,
    dtype: str = "fp32",
    draw: int = 0,
) -> Written:
    """Merge adapters in their order, one in memory at a time where the rule keeps one, and write the result.

    Args:
        out: the folder to write; new or empty.
        folders: PEFT LoRA adapters of one base model.
        rule: settings of the rule, with ``_target_``.
        name: of the rule, for the model card.
        rank: to which the merged adapter is truncated; None keeps it exact.
        checkpoint: whether to write a whole model instead of an adapter.
        base: name or folder of the base model; None is the name in the adapters.
        dtype: ``fp32`` or ``bf16``, of the checkpoint.
        draw: seed of what a rule draws at random.

    Raises:
        ConfigError: an adapter is none of plain LoRA, two of them are of different models, or ``out`` has files.
    """
    check_new(out)
    made = make_rule(rule)
    if made.rows:
        raise ConfigError(
            f"rule={name} chooses merging coefficients on rows of the tasks; use it in a run: method=merge rule={name}."
        )
    first, *_ = adapters = _of_one_model(folders)
    own = {name: first.settings.get(name) for name in ("base_model_name_or_path", "revision")}
    base, revision = (base, None) if base else (str(own["base_model_name_or_path"]), own["revision"])
    is_activated = bool(first.settings.get("alora_invocation_tokens"))
    if checkpoint and is_activated:
        raise ConfigError(
            f"{first.folder} acts from the end of a prompt on, and the weights of a checkpoint act on the whole prompt; leave"
            f" out --checkpoint."
        )

    def vectors() -> Iterator[TaskVector]:
        for place, adapter in enumerate(adapters):
            yield TaskVector(adapter.changes(), seed(draw, str(place), "merge"))

    with torch.inference_mode():
        merged = made.merge(vectors())
        low, error = ({}, 0.0) if checkpoint else as_low_rank(merged, rank)
        model = _changed_model(base, revision, merged, dtype) if checkpoint else None
        names = [str(one.about.get("task") or one.folder.resolve().name) for one in adapters]
        told = f"{name}: {', '.join(f'{key!s} {value}' for key, value in rule.items() if key != '_target_')}"
        card = _card(names, told, base, error, _rank_of(low), is_activated=is_activated)
        write_new_folder(out, partial(_fill, card=card, low=low, like=first, model=model, base=base, revision=revision))
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return Written(_rank_of(low), error, size)


def _of_one_model(folders: Sequence[Path]) -> list[PeftFolder]:
    """The adapters in folders, which were trained for one base model."""
    if len(folders) < 2:
        raise ConfigError("give at least two adapters to merge.")
    first, *others = adapters = [PeftFolder(folder) for folder in folders]
    for other in others:
        check_one_model(first, other)
    return adapters


def _fill(
    folder: Path,
    *,
    card: str,
    low: Mapping[str, LowRank],
    like: PeftFolder,
    model: PreTrainedModel | None,
    base: str,
    revision: str | None,
) -> None:
    """Write the files of an adapter, or of a whole model if there is one."""
    if model is None:
        write_adapter(folder, low, like, base=base, revision=revision)
    else:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base, revision=revision).save_pretrained(folder)
    write_text(folder / "README.md", card)


def _rank_of(low: Mapping[str, LowRank]) -> int | None:
    return max((len(change.a_RI) for change in low.values()), default=None)


def _changed_model(base: str, revision: str | None, changes: Changes, dtype: str) -> PreTrainedModel:
    """The base model with changed weights; the sum is computed in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=torch.float32)
    if missing := [layer for layer in changes if layer not in dict(model.named_modules())]:
        raise ConfigError(f"{base} has no {listed(missing, most=3)}; give the base model of the adapters (--base).")
    for layer, change in changes.items():
        module, delta_OI = model.get_submodule(layer), dense(change)
        delta = delta_OI.T if isinstance(module, Conv1D) else delta_OI
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        if weight.shape != delta.shape:
            raise ConfigError(
                f"{layer} of {base} has the sizes {tuple(weight.shape)}, and the adapters' {tuple(delta.shape)}."
            )
        if any(
            weight is other
            for name, other in model.named_parameters(remove_duplicate=False)
            if name != f"{layer}.weight"
        ):
            module.weight = torch.nn.Parameter(weight.clone())  # tied weights: an adapter changes this layer alone
            model.config.tie_word_embeddings = False
        module.weight.data += delta
    return model.to(DTYPES[dtype])


def _card(names: Sequence[str], rule: str, base: str, error: float, rank: int | None, *, is_activated: bool) -> str:
    """The model card: what was merged, by which rule, and how it is loaded."""
    loader = "AutoModelForCausalLM" if rank is None else "AutoPeftModelForCausalLM"
    form = (
        "the base model with merged weights"
        if rank is None
        else f"{'activated ' if is_activated else ''}LoRA, rank {rank}"
    )
    rows = {"merged": ", ".join(names), "rule": rule, "base model": base, "form": form}
    if error:
        rows["left out by truncation"] = f"{error:.2%} of the norm of the merged change"
    library = "transformers" if rank is None else "peft"
    head = card_head(" + ".join(names), base, library, ["merge", "see_lightning"], rows.items())
    load = f'    from {library} import {loader}\n    model = {loader}.from_pretrained("DIR")\n'
    return f"{head}\n## Load\n\n{load}"
