"""Pools small enough to be made dozens of times, and PEFT and Hugging Face as oracles of what their experts say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from see_lightning.adapters import files
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig
from see_lightning.inference.decoder import Decoded
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from see_lightning.tasks.batches import IGNORED, Queries, collate
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.prompts import PromptTemplate

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Chat prompts of the tiny tokenizer: one token a byte, ``[assistant]`` at the end.
TEMPLATE = PromptTemplate(tiny_tokenizer(), style="chat", max_length=512)
EOS = {TEMPLATE.tokenizer.eos_token_id}
HEADER = TEMPLATE.header_ids()


def pool(
    *names: str,
    activated: bool = False,
    rank: int = 8,
    alpha: float = 16.0,
    targets: list[str] = ALL,
    base: nn.Module | None = None,
    cache_gb: float = 4.0,
    full: bool = False,
) -> ExpertPool:
    """A pool around a fresh tiny base, its experts moved off their first weights, where they would change nothing."""
    adapter = AdapterConfig(
        rank=rank, alpha=alpha, dropout=0.0, targets=list(targets), activated=activated, cache_gb=cache_gb, full=full
    )
    base = (tiny_model() if base is None else base).requires_grad_(False).eval()
    made = ExpertPool(base, adapter, "tiny", header_ids=HEADER if activated else ())
    for number, name in enumerate(names):
        made.add_expert(name, weights_seed=0)
        draw = torch.Generator().manual_seed(number)
        for parameter in made.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3, generator=draw)
    return made.eval()


def first(of: ExpertPool) -> str:
    """The name of the first layer that is adapted."""
    return next(iter(of.layers))


def learner(*, activated: bool = False) -> ExpertPool:
    """An empty pool whose experts learn fast: adapted at the vocabulary head too, they need not move a random model."""
    return pool(activated=activated, rank=16, alpha=64.0, targets=["q_proj", "v_proj", "lm_head"])


def memorise(of: ExpertPool, name: str, said: dict[str, str]) -> None:
    """Train a new expert until it answers a few queries by heart."""
    of.add_expert(name, weights_seed=0)
    ids, mask, labels = collate(
        [TEMPLATE.prompt_ids(query) for query in said], [TEMPLATE.target_ids(text) for text in said.values()], pad=0
    )
    wanted = labels[labels != IGNORED]
    optimizer = torch.optim.AdamW([p for p in of.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    of.keep_prompts([[TEMPLATE.prompt_ids(query) for query in said]])
    for _ in range(400):
        logits = of(ids, mask, labels)
        if torch.equal(logits.argmax(dim=-1), wanted):
            break
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, wanted).backward()
        optimizer.step()
    else:
        pytest.fail(f"expert {name} did not learn its {len(said)} answers")
    of.prompt_cache.clear()
    of.eval()


def by_peft(of: ExpertPool, name: str | None, folder: Path) -> nn.Module:
    """An expert as PEFT alone loads it around a fresh base; the plain base model for None."""
    if name is None:
        return tiny_model().eval()
    files.save(of, name, folder / name)
    return PeftModel.from_pretrained(tiny_model(), folder / name).eval()


def alone(model: nn.Module, prompt: list[int], limit: int) -> Decoded:
    """Hugging Face's ``generate`` on one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0
        )
    new = out[0, len(prompt) :].tolist()
    return Decoded(new[:-1], True) if new[-1] in EOS else Decoded(new, False)


def queries(texts: list[str], *, limit: int = 12, rows: int = 16, only_decide: bool = False) -> Queries:
    """Queries whose ids are their places."""
    return replace(query_batch(texts, TEMPLATE, max_new_tokens=limit, rows=rows), only_decide=only_decide)
