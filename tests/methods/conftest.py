"""What the tests of methods share: the tiny model, its template, and batches made by hand."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from see_lightning.config import AdapterConfig
from see_lightning.experts.pool import ExpertPool
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from see_lightning.tasks.batches import Batch, collate
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.prompts import PromptTemplate

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def template() -> PromptTemplate:
    """Chat prompts of the tiny tokenizer."""
    return PromptTemplate(tiny_tokenizer(), style="chat", max_length=512)


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., ExpertPool]:
    """A pool around a fresh tiny base, its experts named and given random weights."""

    def make(*names: str, rank: int = 8) -> ExpertPool:
        base = tiny_model().requires_grad_(False).eval()
        pool = ExpertPool(base, AdapterConfig(rank=rank, alpha=16.0, dropout=0.0, targets=ALL), "tiny")
        draw = torch.Generator().manual_seed(0)
        for name in names:
            pool.attach(name, weights_seed=0)
            for parameter in pool.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.3, generator=draw)
        return pool.eval()

    return make


@pytest.fixture(scope="session")
def memorise(template: PromptTemplate) -> Callable[[ExpertPool, str, dict[str, str]], None]:
    """Train a new expert until it answers a few queries by heart."""

    def train(pool: ExpertPool, name: str, said: dict[str, str]) -> None:
        pool.attach(name, weights_seed=0)
        ids, mask, labels = collate(
            [template.prompt_ids(query) for query in said], [template.target_ids(text) for text in said.values()], pad=0
        )
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        optimizer = torch.optim.AdamW([p for p in pool.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
        for _ in range(300):
            logits = pool.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
            wanted = labels[:, 1:]
            if bool(((logits.argmax(dim=-1) == wanted) | (wanted == -100)).all()):
                break
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
            optimizer.step()
        else:
            pytest.fail(f"expert {name} did not learn its {len(said)} answers")
        pool.eval()

    return train


@pytest.fixture(scope="session")
def ask(template: PromptTemplate) -> Callable[..., Batch]:
    """A batch of queries; a query's id is its place."""

    def make(queries: Sequence[str], *, tasks: Sequence[str] = (), max_new_tokens: int = 12) -> Batch:
        rows = [(str(place), query) for place, query in enumerate(queries)]
        return query_batch(rows, template, tasks=tasks, max_new_tokens=max_new_tokens)

    return make


@pytest.fixture(scope="session")
def alone(template: PromptTemplate) -> Callable[[nn.Module, str, int], tuple[list[int], bool]]:
    """The oracle of every answer: Hugging Face's ``generate`` on one query; new tokens, and whether they ended."""

    def generate(model: nn.Module, query: str, limit: int) -> tuple[list[int], bool]:
        ids = torch.tensor([template.prompt_ids(query)])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=limit,
                pad_token_id=0,
            )
        new = out[0, ids.shape[1] :].tolist()
        eos = template.tokenizer.eos_token_id
        return (new[:-1], True) if new[-1] == eos else (new, False)

    return generate
