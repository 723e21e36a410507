"""A setting of Lightning's that shortens training, and what it leaves behind."""

from tests.runs import toy


def test_fewer_steps_of_an_epoch_are_trained_and_counted(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path, "method=seqft", "order.tasks=[sky,sea]", "optim.epochs=2", "optim.global_batch_size=2",
                      "+trainer.limit_train_batches=1")  # fmt: skip
    assert toy.read_results(toy.run(cfg).directory)["counts"]["steps"] == [2, 2]
