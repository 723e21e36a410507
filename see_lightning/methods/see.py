"""SEE: Sequential Ensemble of Experts (Wang et al., Findings of ACL 2025, arXiv 2504.06664).

Each task gets an expert of its own, trained on its reconstructed task; queries walk the experts, newest first.
"""

from collections.abc import Sequence

from see_lightning.config import OptimConfig
from see_lightning.data.example import Example
from see_lightning.experts.pool import ExpertPool
from see_lightning.experts.walk import Verdict, read_verdict, strip_indicator, walk
from see_lightning.methods.method import Answer, ExpertMethod, select
from see_lightning.models.decode import greedy
from see_lightning.tasks.batches import Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.reconstruct import Indicators, reconstruct
from see_lightning.tasks.task import Task


class See(ExpertMethod):
    """Experts that say whether a query is theirs before they answer it.

    Args:
        pool: the base model and its experts.
        template: how a query is put to the model.
        optim: how one task is trained.
        run_seed: the run's seed.
        ratio: share of each past task's examples that a new expert learns to refuse, 0..1.
        draw: ``fresh`` draws them anew for every expert, ``fixed`` once.
        indicators: the words for mine and not mine.
    """

    refuses = True

    def __init__(
        self,
        *,
        pool: ExpertPool,
        template: PromptTemplate,
        optim: OptimConfig,
        run_seed: int,
        ratio: float,
        draw: str,
        indicators: dict[str, str],
    ) -> None:
        super().__init__(pool=pool, template=template, optim=optim, run_seed=run_seed)
        self.ratio, self.draw, self.indicators = ratio, draw, Indicators(**indicators)

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """The reconstructed task."""
        past = memory.rehearse(task, ratio=self.ratio, draw=self.draw)
        return reconstruct(task.train, past, self.indicators)

    def answer(self, batch: Batch) -> list[Answer]:
        """Walk the experts; the base model answers what nobody accepts."""
        accepted: dict[int, Answer] = {}

        def ask(expert: str, rows: list[int]) -> Sequence[Verdict]:
            verdicts, answers = self._ask(expert, select(batch, rows))
            accepted.update((row, answer) for row, answer in zip(rows, answers, strict=True) if answer is not None)
            return verdicts

        walked = walk(self.pool.names[::-1], len(batch), ask)
        left = [row for row in range(len(batch)) if row not in accepted]
        if left:
            accepted.update(zip(left, self.answer_by_base(select(batch, left)), strict=True))
        return [accepted[row]._replace(verdicts=walked[row].verdicts) for row in range(len(batch))]

    def _ask(self, expert: str, batch: Batch) -> tuple[list[Verdict], list[Answer | None]]:
        """An expert's verdicts, and its answers to what it accepts, out of one decode.

        The prompt is read once: a query that is refused stops at its verdict, one that is accepted goes on from there.
        """
        verdicts: list[Verdict | None] = [None] * len(batch)

        def settled(row: int, ids: list[int]) -> bool:
            if verdicts[row] is None:
                # The replacement character stands for a letter of which only some bytes are there yet.
                verdicts[row] = read_verdict(self.template.text(ids).rstrip("\ufffd"), self.indicators)
            return verdicts[row] in (Verdict.NEG, Verdict.NEITHER)

        with self.pool.active(expert) as model:
            decoded = greedy(
                model,
                batch.input_ids_BS,
                batch.attention_mask_BS,
                max_new_tokens=batch.max_new_tokens + self.indicator_tokens(),
                eos_ids=self.eos_ids(),
                stop=settled,
            )
        texts = [self.template.text(row.ids) for row in decoded]
        # A row that ended before its indicator was whole has given none.
        said = [v or Verdict.NEITHER for v in verdicts]
        self.counts["prefills"] += len(batch)
        self.counts["decisions"] += len(batch)
        self.counts["generations"] += said.count(Verdict.POS)
        self.counts["new_tokens"] += sum(len(row.ids) for row in decoded)
        return said, [
            Answer(id_, strip_indicator(text, self.indicators).strip(), expert, (), not row.ended)
            if verdict is Verdict.POS
            else None
            for id_, text, row, verdict in zip(batch.ids, texts, decoded, said, strict=True)
        ]

    def indicator_tokens(self) -> int:
        """Tokens that an indicator takes before the answer's own begin."""
        return max(len(self.template.target_ids(word)) - 1 for word in (self.indicators.pos, self.indicators.neg))
