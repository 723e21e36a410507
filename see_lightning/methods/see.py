"""SEE: Sequential Ensemble of Experts (Wang et al., Findings of ACL 2025, arXiv 2504.06664).

Each task gets an expert of its own, trained on its reconstructed task; queries walk the experts, newest first.
"""

from see_lightning.config import OptimConfig
from see_lightning.data.example import Example
from see_lightning.experts.hearing import Hearing
from see_lightning.experts.opening import IndicatorTree
from see_lightning.experts.pool import ExpertPool
from see_lightning.methods.method import Answer, ExpertMethod
from see_lightning.tasks.batches import Queries
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

    def answer(self, queries: Queries) -> list[Answer]:
        """Walk the experts, newest first; the base model answers what nobody accepts."""
        hearing = self._hear(queries)
        walks = hearing.walk()
        return [
            Answer(id_, said.text or "", walked.expert or "base", walked.verdicts, bool(said.truncated))
            for id_, walked, said in zip(queries.ids, walks, hearing.answers(walks), strict=True)
        ]

    def decide(self, queries: Queries) -> None:
        """Let every expert decide on every query, for studies of other walks; only what is new is asked.

        Unless ``queries.only_decide``, experts also answer what they accept, and the base model everything.
        """
        self._hear(queries).ask_everyone()

    def _hear(self, queries: Queries) -> Hearing:
        words = IndicatorTree(self.indicators, self.template)
        return Hearing(self.pool, words, queries, self.eos_ids(), self.counts, self.recall)
