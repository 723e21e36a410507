"""Initialisation of a new expert: at random, or from the most transferable earlier one (KKT, Yadav and Bansal, ExSSNeT)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from see_lightning.adapters.answer_logits import answer_logits
from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.checks import one_of, within
from see_lightning.methods.method import Method
from see_lightning.methods.transferability import above_chance, below, mean_loss, neighbours_accuracy
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Encoded, encode
from see_lightning.tasks.task import Task

NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Chooses an earlier expert for a new task.

    Args:
        how: ``none``: at random. ``loss``: the expert with the lowest loss on the new task, if it is below the base model's,
            which is a new expert's before training. ``knn``: the expert whose hidden states predict answers best by nearest
            neighbours, if above chance.
        probe: number of the new task's training examples that are used, at least 2.
    """

    how: str
    probe: int

    def __post_init__(self) -> None:
        one_of("method.warm_start", self.how, ("none", "loss", "knn"))
        within("method.probe", self.probe, 2)

    def choose(self, method: Method, task: Task) -> str | None:
        """The expert to initialise from; None initialises at random.

        Args:
            method: with its experts; its ``accept_prefix`` is part of the answers.
            task: the new task.
        """
        names = method.pool.names
        if self.how == "none" or not names:
            return None
        draw = random.Random(seed(method.run_seed, task.name, "warm start"))
        examples = draw.sample(task.train, min(self.probe, len(task.train)))
        training = method.training
        method.eval()
        try:
            with torch.no_grad():
                if self.how == "knn":
                    prompts = [method.template.prompt_ids(example) for example in examples]
                    labels = [method.template.target_ids(example.target)[0] for example in examples]
                    return above_chance(
                        {
                            name: neighbours_accuracy(embed_prompts(method.pool, prompts, name), labels, NEIGHBOURS)
                            for name in names
                        },
                        labels,
                    )
                accepted = [replace(one, target=f"{method.accept_prefix}{one.target}") for one in examples]
                rows = encode(accepted, method.template)
                losses = {name: _loss(method, name, rows) for name in names}
                return below(losses, _loss(method, None, rows))
        finally:
            method.train(training)


def _loss(method: Method, adapter: str | None, rows: Sequence[Encoded]) -> float:
    """The mean loss of an adapter on answers, each in a batch of its own."""
    sums = []
    for row in rows:
        logits_1V, read = method.pool.prefill(adapter, [row.prompt])
        (logits_KV,) = answer_logits(method.pool, adapter, logits_1V, read, [row.target])
        target_K = torch.tensor(row.target, device=logits_KV.device)
        sums.append(float(cross_entropy(logits_KV, target_K, reduction="sum")))
    return mean_loss(sums, [len(row.target) for row in rows], method.optim.loss_reduction)
