"""Names of tasks and of their settings that are mistyped are refused, for nothing would ever read them."""

import pytest

from see_lightning.config.explain import explain
from see_lightning.config.instantiate import instantiate
from see_lightning.config.validation import validate
from see_lightning.engine.contents import read_contents
from see_lightning.errors import ConfigError
from tests.runs import toy


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+benchmark.tasks.skye.score=accuracy", r"benchmark\.tasks names 'skye', .* Did you mean 'sky'\?"),
        ("+benchmark.paraphrases={see:'a'}", r"benchmark\.paraphrases names 'see', .* Did you mean 'sea'\?"),
        (
            "+benchmark.tasks.sky.scroe=accuracy",
            r"benchmark\.tasks\.sky has a setting 'scroe' .* Did you mean 'score'\?",
        ),
        ("+benchmark.default.scores=accuracy", r"benchmark\.default has a setting 'scores' .* Did you mean 'score'\?"),
    ],
)
def test_a_mistyped_name_is_refused_with_the_nearest(tmp_path, override, told):
    cfg = toy.compose(toy.write_tasks(tmp_path / "data"), tmp_path, override, "order.tasks=[sky]")
    with pytest.raises(ConfigError, match=told):
        read_contents(cfg, validate(cfg))


def test_tasks_that_are_there_but_not_in_the_order_may_be_set(tmp_path):
    cfg = toy.compose(
        toy.write_tasks(tmp_path / "data"), tmp_path, "+benchmark.tasks.sea.score=accuracy", "order.tasks=[sky]"
    )
    assert read_contents(cfg, validate(cfg)).digests["task sky"]


def test_a_task_without_settings_is_told_how_to_add_some(tmp_path):
    with pytest.raises(Exception, match="Could not override") as refused:
        toy.compose(tmp_path, tmp_path, "benchmark.tasks.sky.score=accuracy")
    assert explain(refused.value) == (
        "benchmark.tasks.sky.score is not set yet; what is added has a + before it: +benchmark.tasks.sky.score=accuracy"
    )


def test_a_name_that_no_source_of_foreign_queries_has_is_refused(tmp_path):
    cfg = toy.compose(toy.write_tasks(tmp_path / "data"), tmp_path, "order.tasks=[sky]")
    benchmark = instantiate(cfg.benchmark)
    benchmark.tasks = {"skye": {"score": "accuracy"}}
    with pytest.raises(ConfigError, match=r"^ood\.sources\.far\.tasks names 'skye'"):
        benchmark.check_names((), "ood.sources.far")
