"""The loop over tasks: each is trained, evaluated and made final. A killed run continues after its last final work."""

from see_lightning.engine.context import RunContext
from see_lightning.engine.evaluate_stage import EvaluateStage
from see_lightning.engine.train_stage import TrainStage


def run_stages(context: RunContext) -> None:
    """Train and evaluate all stages that are not final in the ledger; called by every rank.

    Args:
        context: of the run.

    Raises:
        Preempted: a rank received a stop signal.
        Diverged: the loss or a weight is no finite number.
    """
    for number, stage in enumerate(context.stages, start=1):
        context.check_preemption()
        title = f"{number}/{len(context.stages)} {stage.name}"
        if stage.task:
            TrainStage(context, stage, stage.task, title).run()
        EvaluateStage(context, stage, title).run()
        if stage.task:
            context.memory.add(stage.task)
