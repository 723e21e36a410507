"""The training of one stage: a method learns a task, and weights and counts become final in one commit."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
import torch

from see_lightning.data.example import Example
from see_lightning.engine.callbacks import StageProgress, Throughput
from see_lightning.engine.examples_file import write_examples
from see_lightning.engine.origin import own_settings
from see_lightning.engine.pages import kept_pages
from see_lightning.engine.router import save_expert, storage_of
from see_lightning.engine.row_counts import row_counts, stored_counts
from see_lightning.engine.task_stage import TaskStage
from see_lightning.engine.validation import Validation
from see_lightning.errors import Refusal
from see_lightning.seeds import seed
from see_lightning.tasks.datamodule import TaskDataModule


class Diverged(Refusal):
    """The loss or a weight became infinite or NaN."""


class TrainStage(TaskStage):
    """Trains one task of a run, or restores what an earlier start of the run trained."""

    def run(self) -> None:
        """Train the task unless it is trained already.

        Raises:
            Diverged: the loss or a weight is no finite number; nothing of the task is kept.
            Preempted: a rank received a stop signal.
        """
        trained = self.context.ledger.stage(self.stage.name)["trained"]
        if not trained:
            self._train()
            return
        self.context.restore(self.stage)
        if not trained.get("ended", True):
            self._end_again(trained)

    def _train(self) -> None:
        context, method = self.context, self.context.method
        context.check_preemption()  # the model may have been loaded just now
        context.ledger.begin(self.stage.name)
        method.drawn.clear()
        method.drawn_rows.clear()
        if self.origin and not self.origin.training:
            self._take_from(self.origin)
            return
        assigned = self._assign() if method.may_reuse else None
        if assigned and assigned.expert != self.task.name:
            self._reuse(assigned)
            return
        if not method.traits.trains:
            self._keep()
            return
        examples = self._training_examples()
        with own_settings(method, self.origin.training if self.origin else {}):
            self._begin_task()
            throughput, weights = Throughput(), sum(weight.numel() for weight in method.trained_weights())
            validation = Validation.of(context, self.task)
            seconds = self._fit(examples, throughput, validation)
        rounded = self._quantize()
        self._end_task()
        epochs = self._epochs(validation)
        facts = self._facts(examples, throughput, seconds, epochs) | {"trained_weights": weights} | rounded
        facts |= {"validation": validation.facts()} if validation else {}
        facts |= {"assigned": asdict(assigned)} if assigned else {}
        if context.ranks.first:
            context.ledger.check_held()
            save_expert(method, self.task.name, self.folder / "expert")
        self._commit(facts)
        began = f"begun as {method.parent}, " if method.parent else ""
        found = validation.summary() if validation else ""
        context.console.print(
            f"{self.title}: {began}{facts['steps']} steps on {len(examples)} examples, {facts['rehearsed']} rows rehearsed,"
            f" loss {facts['loss']:.3f}, {found}{facts['tokens'] / seconds:,.0f} tokens/s, {seconds:.0f} s"
        )

    def _training_examples(self) -> list[Example]:
        """The rows that the stage trains on, the same on every rank.

        Made on the first rank and broadcast: a method may draw or generate them, and ranks with different rows drift apart.
        """
        context = self.context
        with self.costs.of("training_examples"):
            examples = context.ranks.share(lambda: context.method.training_examples(self.task, context.memory))
        if context.ranks.first:
            write_examples(self.folder / "examples.jsonl", examples)
        return examples

    def _fit(self, examples: Sequence[Example], throughput: Throughput, validation: Validation | None) -> float:
        """Make every step of the training; if it ends early, the best epoch is kept.

        Args:
            examples: the rows to train on.
            throughput: counts steps and tokens.
            validation: None without validation rows.

        Returns:
            Seconds that the steps and the validation took.

        Raises:
            Diverged: the loss or a weight is no finite number.
            RuntimeError: Lightning made another number of steps than the rows need.
        """
        context, settings, ranks, method = self.context, self.settings, self.context.ranks, self.context.method
        data = TaskDataModule(
            self.task.name,
            examples,
            method.template,
            batch_size=settings.global_batch_size,
            run_seed=settings.seed,
            loss_reduction=settings.loss_reduction,
            max_tokens_per_microbatch=settings.max_tokens_per_microbatch,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        callbacks: list[L.Callback] = [throughput, StageProgress(context.console, self.title, throughput)]
        callbacks += [validation] if validation else []
        logger = context.tracker.stage(self.task.name, self.folder)
        trainer = context.trainer(self.stage, callbacks, logger=logger, epochs=settings.epochs)
        # The seed of dropout depends on the task's name alone, not on earlier tasks; ranks compute different rows.
        purpose = "dropout" if ranks.first else f"dropout of rank {ranks.rank}"
        torch.manual_seed(seed(settings.seed, self.task.name, purpose))
        started = time.monotonic()
        try:
            with kept_pages(), self.costs.of_steps(method):
                trainer.fit(method, datamodule=data)
                if validation:
                    validation.keep_best()
            # The update of the last step is in no loss.
            if not all(parameter.isfinite().all() for parameter in method.parameters() if parameter.requires_grad):
                raise FloatingPointError("weights are no numbers.")
        except FloatingPointError as error:
            raise self._diverged(error, int(trainer.num_training_batches), throughput.steps) from error
        seconds = time.monotonic() - started
        # Lightning's limit is a share if it is a float, where 1.0 is all; else a number of steps.
        limit = trainer.limit_train_batches
        whole = isinstance(limit, float) and limit == 1
        per_epoch = data.steps_per_epoch if whole else int(trainer.num_training_batches)
        expected = per_epoch * self._epochs(validation)
        if throughput.steps != expected:
            raise RuntimeError(f"{self.stage.name} was trained for {throughput.steps} steps instead of {expected}.")
        return seconds

    def _epochs(self, validation: Validation | None) -> int:
        """The number of passes over the rows."""
        return len(validation.losses) if validation and validation.stopped else self.settings.epochs

    def _diverged(self, error: FloatingPointError, steps_per_epoch: int, steps: int) -> Diverged:
        """The refusal that names the step and the learning rate.

        Args:
            error: names the loss or weight.
            steps_per_epoch: steps of one pass over the data.
            steps: that were finished.
        """
        lr, step = self.context.method.optim.lr, min(steps + 1, steps_per_epoch * self.settings.epochs)
        has_own = self.origin is not None and "lr" in self.origin.training
        name = f"order.experts.{self.task.name}.lr" if has_own else "optim.lr"
        lower = f"--lr {lr / 10:g} (see-lightning experts)" if has_own else f"{name}={lr / 10:g}"
        return Diverged(
            f"{self.task.name} diverged in step {step}, epoch {(step - 1) // steps_per_epoch + 1}: {error} Nothing of this"
            f" task is kept. {name} is {lr:g}; lower it, such as to {lower}"
        )

    def _facts(
        self, examples: Sequence[Example], throughput: Throughput, seconds: float, epochs: int
    ) -> dict[str, Any]:
        """The facts that the ledger keeps of the training, over all ranks."""
        ranks, method = self.context.ranks, self.context.method
        shares = ranks.gather((throughput.tokens, throughput.computed, throughput.loss))
        tokens, computed, loss = (sum(column) for column in zip(*shares, strict=True))
        return {
            **row_counts(self.context, self.task, examples, epochs),
            "steps": throughput.steps,
            "tokens": tokens,
            "computed": computed,
            "loss": round(loss / ranks.size, 6),
            "seconds": round(self.costs.seconds("assign") + seconds, 3),
            "hooks": self._hooks(),
            "storage": storage_of(method),
            "parent": method.parent,
            **self._report(),
        }

    def _end_again(self, trained: dict[str, Any]) -> None:
        """End a task that was trained in another run, with this run's settings.

        Args:
            trained: the stage's entry ``trained`` in the ledger.
        """
        context, expert = self.context, self.folder / "expert"
        context.ranks.on_rank_zero(lambda: context.ledger.only_final(self.stage.name, "expert"))
        context.method.drawn_rows.clear()
        self._end_task()
        if context.ranks.first and not (self.origin and self.origin.is_none):
            copy = self.folder / "expert.again"
            shutil.rmtree(copy, ignore_errors=True)  # of a run that was killed here
            save_expert(context.method, self.task.name, copy)
            for file in copy.iterdir():
                if f"expert/{file.name}" not in trained["files"]:  # final files, such as the weights, stay unchanged
                    file.replace(expert / file.name)
            shutil.rmtree(copy)
        facts = {key: value for key, value in trained.items() if key not in ("ended", "files", "report")}
        facts |= self._report()
        before = trained.get("hooks", {})
        facts["hooks"] = {unit: {**before.get(unit, {}), **part} for unit, part in self._hooks().items()}
        if facts.get("storage"):
            facts["storage"] = storage_of(context.method)
        # Training and end_task may have read the same rows, so the larger number had to be stored at least.
        again = stored_counts(context, [])
        facts |= {name: max(value, facts[name]) for name, value in again.items() if name in facts}
        self._commit(facts)
        context.console.print(f"{self.title}: weights copied, not trained again")
