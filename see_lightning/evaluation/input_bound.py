"""How well inputs alone tell their task: the bound beside every routing accuracy of queries without definitions.

Some inputs belong to several tasks, so no router can be right on all of them.

Letters: P prompts, T tasks, H hidden states.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.adapters.embeddings import Embedded, checked_layer, embed_once
from see_lightning.adapters.pool import ExpertPool
from see_lightning.data.example import Example
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import INPUT_ONLY, definition, in_wordings

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # weights of the squared norm, of which one is chosen
HELD_OUT = 5  # one training row in so many chooses it
STEPS = 200  # of L-BFGS, at most


@dataclass(frozen=True, slots=True)
class InputBound:
    """How many test inputs a classifier assigns to their own task.

    Args:
        accuracy: share of all test inputs, 0..1.
        per_task: share of each task's test inputs, 0..1.
        left_out: tasks without a definition, whose prompts are inputs as they stand.
    """

    accuracy: float
    per_task: dict[str, float]
    left_out: tuple[str, ...]


def input_bound(
    pool: ExpertPool,
    template: PromptTemplate,
    tasks: Sequence[Task],
    *,
    layer: float | None = None,
    embedded: MutableMapping[Embedded, Tensor] | None = None,
) -> InputBound:
    """Train a classifier on training inputs without definitions, and measure it on test inputs without definitions.

    Args:
        pool: has the base model.
        template: of prompts.
        tasks: with training and test rows.
        layer: number of the layer behind which hidden states are averaged; None for a quarter of all layers.
        embedded: embeddings by layer and ids, such as a router's; it takes up those that are computed.

    Raises:
        ConfigError: the base model has no such layer.
    """
    layer, embedded = checked_layer(pool, layer), {} if embedded is None else embedded
    common = {task.name: definition((*task.train, *task.test)) for task in tasks}

    def states(task: Task, examples: Sequence[Example]) -> Tensor:
        inputs = in_wordings(examples, common[task.name], [INPUT_ONLY])
        return embed_once(pool, [template.prompt_ids(one) for one in inputs], layer, embedded)

    train_of, test_of = ({one.name: states(one, getattr(one, part)) for one in tasks} for part in ("train", "test"))
    right = classified_right(train_of, test_of)
    return InputBound(
        float(torch.cat([*right.values()]).double().mean()),
        {name: float(right_P.double().mean()) for name, right_P in right.items()},
        tuple(name for name, text in common.items() if not text.strip()),
    )


def classified_right(train_of: Mapping[str, Tensor], test_of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether a logistic regression assigns each test prompt to its own task, by task, (P,) each.

    Features are standardised by the training prompts. Of ``DECAYS`` that is taken which is best on every fifth training
    prompt, of equal ones the largest.

    Args:
        train_of: features of each task's training prompts, (P, H).
        test_of: features of each task's test prompts; the same tasks.
    """
    x_PH, y_P = _stacked(train_of)
    mean_H, scale_H = x_PH.mean(0), x_PH.std(0).clamp(min=1e-6)
    x_PH = (x_PH - mean_H) / scale_H
    is_held_P = torch.arange(len(x_PH)) % HELD_OUT == HELD_OUT - 1
    right = {
        decay: int((_predicted(x_PH[~is_held_P], y_P[~is_held_P], decay, x_PH[is_held_P]) == y_P[is_held_P]).sum())
        for decay in DECAYS
    }
    best = max(DECAYS, key=lambda decay: (right[decay], decay))
    new_PH, own_P = _stacked(test_of)
    right_P = _predicted(x_PH, y_P, best, (new_PH - mean_H) / scale_H) == own_P
    return {name: right_P[own_P == place] for place, name in enumerate(test_of)}


def logistic_regression(x_PH: Tensor, y_P: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    r"""Weights, (H, T), and offsets, (T,), of a multinomial logistic regression.

    The minimum of $\frac1P \sum_p -\log \mathrm{softmax}(x_p W + b)_{y_p} + \frac\lambda2 \lVert W \rVert^2$.

    Args:
        x_PH: inputs, in fp64.
        y_P: classes, 0..T-1.
        decay: λ, above 0.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x_PH, y_P, classes = x_PH.clone(), y_P.clone(), int(y_P.max()) + 1
        weights_HT = torch.zeros(x_PH.shape[1], classes, dtype=x_PH.dtype, requires_grad=True)
        offset_T = torch.zeros(classes, dtype=x_PH.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights_HT, offset_T],
            max_iter=STEPS,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(x_PH @ weights_HT + offset_T, y_P) + decay / 2 * weights_HT.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights_HT.detach(), offset_T.detach()


def _predicted(x_PH: Tensor, y_P: Tensor, decay: float, new_PH: Tensor) -> Tensor:
    """The most probable class of further prompts, (P,)."""
    weights_HT, offset_T = logistic_regression(x_PH, y_P, decay)
    return (new_PH @ weights_HT + offset_T).argmax(1)


def _stacked(states_of: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of all tasks, (P, H), in fp64 on the CPU, and the index of each one's task, (P,)."""
    sizes = torch.tensor([len(states_PH) for states_PH in states_of.values()])
    return torch.cat([*states_of.values()]).cpu().double(), torch.arange(len(sizes)).repeat_interleave(sizes)
