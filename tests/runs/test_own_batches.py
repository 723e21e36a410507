"""Rows of past tasks that a method draws itself count as rehearsed, and several ranks draw them together."""

import pytest

from see_lightning.engine import launch
from tests.runs import toy
from tests.runs.test_ranks import CALM

MINE = '''
from see_lightning.methods.seqft import SeqFt


class Drawing(SeqFt):
    """Adds to each step's gradient that of the next three rows of past tasks."""

    def begin_task(self, task, memory):
        super().begin_task(task, memory)
        self.past = [example for past in memory.past for example in past.train][:5]
        list(self.batches(task.train, 4))  # rows of the new task are not rehearsed

    def edit_gradients(self):
        if self.past:
            self.past = self.past[3:] + self.past[:3]
            (batch,) = self.batches(self.past[:3], 3)
            for weight, gradient in zip(self.trained_weights(), self.gradients(batch), strict=True):
                weight.grad += gradient
'''


@pytest.fixture
def words(tmp_path, monkeypatch):
    (tmp_path / "drawing_method.py").write_text(MINE)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "drawing.yaml").write_text("_target_: drawing_method.Drawing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return (*CALM, f"hydra.searchpath=[file://{tmp_path}/conf]", "method=drawing", "optim.epochs=2")


def test_drawn_rows_of_past_tasks_count_as_rehearsed_once_over_all_ranks(base, tmp_path, words):
    alone = toy.run(toy.compose(toy.data_in(base), tmp_path / "alone", *words)).directory
    results = toy.read_results(alone)
    assert results["counts"]["rehearsed"] == [0, *(3 * steps for steps in results["counts"]["steps"][1:])]
    assert results["counts"]["stored_rows"] == [0, 4, 5], "the different ones among them"

    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    cfg = toy.compose(toy.data_in(base), tmp_path / "two", *words, *ranks)
    log = tmp_path / "log"
    ends = toy.ended(toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log))
    assert ends == [0, 0], log.read_text()[-3000:]
    together = toy.read_results(tmp_path / "two" / toy.place_of(alone))
    for name in ("rehearsed", "stored_rows", "stored_bytes", "trained_weights"):
        assert together["counts"][name] == results["counts"][name]
    assert together["matrix"] == results["matrix"]
