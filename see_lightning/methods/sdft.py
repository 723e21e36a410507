"""Self-distillation fine-tuning: one adapter learns, on answers of its own, what the model says with the reference in view.

Shenfeld et al., *Self-Distillation Enables Continual Learning*, arXiv 2601.19897. PAPERS.md lists what differs.

Letters: B rows, S tokens, L labels, V vocabulary.
"""

from dataclasses import replace
from random import Random
from string import Formatter

import torch
from torch import Tensor

from see_lightning.config.checks import one_of, within
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.distillation import divergence
from see_lightning.methods.ilora import interpolate
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.sampling import sampled_answers
from see_lightning.methods.setup import Setup, Traits
from see_lightning.models.architecture import longest_text
from see_lightning.models.sharding import in_step
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch, collate
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def mean_over_rows(loss_L: Tensor, sampled_BS: Tensor, reference_BS: Tensor, mean: str) -> Tensor:
    """The mean over rows of their mean losses; a row weighs as its reference answer does, however long its own answer is.

    Args:
        loss_L: of the sampled tokens, row by row.
        sampled_BS: labels of the sampled answers, ``IGNORED`` elsewhere.
        reference_BS: labels of the reference answers, ``IGNORED`` elsewhere; its S may be another.
        mean: ``tokens``: rows weigh as many times as their reference has tokens; ``examples``: once.

    >>> sampled, reference = torch.tensor([[7, 7], [IGNORED, 7]]), torch.tensor([[IGNORED, IGNORED, 7], [7, 7, 7]])
    >>> loss = torch.tensor([1.0, 3.0, 6.0])  # means of the rows: 2 and 6
    >>> mean_over_rows(loss, sampled, reference, "tokens"), mean_over_rows(loss, sampled, reference, "examples")
    (tensor(5.), tensor(4.))
    """
    tokens_B = (sampled_BS != IGNORED).sum(dim=1)
    row_L = torch.arange(len(tokens_B), device=loss_L.device).repeat_interleave(tokens_B)
    means_B = torch.zeros(len(tokens_B), device=loss_L.device).index_add(0, row_L, loss_L) / tokens_B
    weight_B = (reference_BS != IGNORED).sum(dim=1) if mean == "tokens" else torch.ones_like(tokens_B)
    return (weight_B * means_B).sum() / weight_B.sum()


class Sdft(OneAdapterMethod):
    r"""The loss is $\mathrm{KL}(\pi_\theta(\cdot \mid x) \Vert \pi_\phi(\cdot \mid x, c))$ at the tokens of sampled answers.

    $x$ is a prompt and $c$ its reference answer, which only the teacher $\pi_\phi$ reads. The answers are samples of
    $\pi_\theta(\cdot \mid x)$, the adapter in its present state. The reference itself is in no loss.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        teacher: ``average``: the adapter as the task begins, then a moving average of it; ``base``: the base model.
        follow: share of the trained weights in the average that each step adds, 0..1; 1 is the trained adapter itself.
        direction: ``reverse`` as above, or ``forward``: $\mathrm{KL}(\pi_\phi \Vert \pi_\theta)$.
        demonstration: the teacher's query; ``{prompt}`` and ``{answer}`` stand for $x$ and $c$.
        max_new_tokens: most tokens of a sampled answer; a task may allow fewer.

    Raises:
        ConfigError: a setting is out of range, or the demonstration lacks one of the two.
    """

    traits = Traits()
    TEACHER = "teacher"

    def __init__(
        self, setup: Setup, *, teacher: str, follow: float, direction: str, demonstration: str, max_new_tokens: int
    ) -> None:
        super().__init__(setup)
        one_of("method.teacher", teacher, ("average", "base"))
        within("method.follow", follow, 0, 1)
        one_of("method.direction", direction, ("reverse", "forward"))
        within("method.max_new_tokens", max_new_tokens, 1)
        check_demonstration(demonstration)
        self.teacher = self.TEACHER if teacher == "average" else None
        self.follow, self.direction, self.demonstration = follow, direction, demonstration
        self.max_new_tokens, self.step = max_new_tokens, 0

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Sets the teacher to the adapter, and writes its prompts.

        Raises:
            ConfigError: a prompt of the teacher is longer than the model's context.
        """
        super().begin_task(task, memory)
        if self.teacher:
            if not self.pool.has_adapter(self.TEACHER):
                self.pool.add_adapter(self.TEACHER, weights_seed=0)
                self.pool.train_only(self.ADAPTER)
            self.pool.load_weights(self.TEACHER, self.pool.pairs(self.ADAPTER))
        self.task, self.step = task, 0
        self.teacher_prompts = {row.id: self._teacher_prompt(row) for row in task.train}

    def _teacher_prompt(self, row: Example) -> list[int]:
        demonstrated = self.demonstration.format(prompt=row.prompt, answer=row.target)
        ids = self.template.prompt_ids(replace(row, prompt=demonstrated))
        context = longest_text(self.pool.model.config)
        if context and len(ids) + self.max_new_tokens > context:
            raise ConfigError(
                f"{row.source or row.id}: with its answer in view the prompt has {len(ids)} tokens, which leaves no room for"
                f" method.max_new_tokens={self.max_new_tokens} within the model's {context}. Lower it, or shorten the row by"
                " model.max_length."
            )
        return ids

    def loss(self, part: Batch) -> Tensor:
        """The divergence of the adapter from its teacher, on answers that the adapter has just sampled."""
        with torch.no_grad(), self.pool.evaluating(), in_step(self.pool.model):  # answers of ranks differ in length
            batch, teacher_LV = self._taught(part) if part.ids else (part, None)
        if teacher_LV is None:  # a rank without a row, whose loss has the weight 0
            return super().loss(part)
        student_LV = self.pool(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS)
        ordered = (student_LV, teacher_LV) if self.direction == "reverse" else (teacher_LV, student_LV)
        mean = mean_over_rows(divergence(*ordered), batch.labels_BS, part.labels_BS, self.optim.loss_reduction)
        return self.finite(mean, part)

    def _taught(self, part: Batch) -> tuple[Batch, Tensor]:
        """Prompts with sampled answers, and the teacher's logits at these answers, (L, V)."""
        prompts = prompts_of(part)
        limits = [max(1, min(self.max_new_tokens, self.task.limit(len(prompt)))) for prompt in prompts]
        # By row and step, whatever the size of micro-batches and the number of ranks.
        draws = [Random(seed(self.run_seed, self.task.name, f"answer {self.step} to {id_}")) for id_ in part.ids]
        answers = sampled_answers(self.pool, self.ADAPTER, prompts, limits, draws, self.eos_ids())
        demonstrated = [self.teacher_prompts[id_] for id_ in part.ids]
        own, shown = (
            Batch(*collate(queries, answers, pad_id(self.template)), part.ids).to(self.pool.device())
            for queries in (prompts, demonstrated)
        )
        return own, self.pool.logits(shown, self.teacher)

    def after_step(self) -> None:
        """Moves the teacher towards the adapter."""
        self.step += 1
        if self.teacher:
            teacher, adapter = (self.pool.weights_of([name]) for name in (self.TEACHER, self.ADAPTER))
            interpolate(teacher, adapter, 1 - self.follow)


def check_demonstration(text: str) -> None:
    """Refuse a demonstration that does not contain ``{prompt}`` and ``{answer}``, or other names in braces."""
    try:
        names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        names = set()
    if names != {"prompt", "answer"}:
        raise ConfigError(
            "method.demonstration is the teacher's query and must contain {prompt} and {answer}, and nothing else in braces;"
            f" got {text!r}."
        )


def prompts_of(part: Batch) -> list[list[int]]:
    """Token ids of the prompts of a batch, without padding and answers.

    >>> prompts_of(Batch(*collate([[5, 6], [7]], [[8], [9]], pad=0), ["a", "b"]))
    [[5, 6], [7]]
    """
    answers = (part.labels_BS != IGNORED).sum(dim=1).tolist()
    whole = part.attention_mask_BS.sum(dim=1).tolist()
    rows = zip(part.input_ids_BS.tolist(), whole, answers, strict=True)
    return [ids[len(ids) - tokens : len(ids) - answer] for ids, tokens, answer in rows]
