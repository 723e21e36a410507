"""Refused queries that are put to the likeliest expert behind its task's definition."""

import pytest
import torch

from see_lightning import load_ensemble
from see_lightning.cli import study
from see_lightning.config.effects import check_effects
from see_lightning.config.identity import run_key
from see_lightning.errors import ConfigError, Refusal
from see_lightning.tasks.datamodule import query_batch
from tests.runs import toy

ON = "method.second_chance=on"


@pytest.mark.parametrize("router", [(), ("router=propose",)], ids=["walk", "propose"])
def test_refused_queries_are_asked_again_behind_the_definition_and_no_others(base, tmp_path, router):
    settings = (*toy.DEFINED, *toy.VARIANTS, *router)
    plain = toy.run(toy.compose(toy.defined_in(base), tmp_path, *settings))
    again = toy.run(toy.compose(toy.defined_in(base), tmp_path, *settings, ON))
    assert (plain.fits, again.fits) == (3, 0)
    asked_again, accepted = 0, []
    for kind in ("answers", "input_only", "paraphrased"):
        pairs = zip(
            toy.read_answers(plain.directory, kind).items(),
            toy.read_answers(again.directory, kind).items(),
            strict=True,
        )
        for (_, before), (_, after) in pairs:
            for old, new in zip(before, after, strict=True):
                more = new["verdicts"][len(old["verdicts"]) :]
                assert new["verdicts"][: len(old["verdicts"])] == old["verdicts"]
                assert len(more) <= (old["expert"] == "base")
                if more == ["pos"]:
                    assert new["expert"] == new["asked"][-1]
                    accepted.append((kind, new))
                else:
                    assert (new["expert"], new["text"]) == (old["expert"], old["text"])
                asked_again += len(more) * (kind == "answers")
    assert accepted, "some query is accepted at the second chance"
    results = toy.read_results(again.directory)
    assert results["counts"]["second_chances"] == asked_again
    assert "second_chances" not in toy.read_results(plain.directory)["counts"]
    with pytest.raises(Refusal, match="second chance" if not router else "was routed by propose"):
        study.run_study(again.directory, None, ["newest"])
    # A loaded ensemble has the definitions too.
    method = load_ensemble(again.directory, max_new_tokens=4).method
    for variant, tasks in toy.put_otherwise(base).items():
        *_, last = toy.read_answers(again.directory, variant).values()
        for one in last:
            prompt, _ = tasks[one["task"]][one["id"]]
            with torch.inference_mode():
                (answer,) = method.answer(query_batch([prompt], method.template, max_new_tokens=4))
            assert (answer.expert, list(answer.verdicts), answer.text) == (one["expert"], one["verdicts"], one["text"])


def test_it_is_in_no_key_while_it_is_off_and_has_no_effect_where_nobody_decides(base):
    keys = [
        run_key(toy.compose(toy.data_in(base), base / "nowhere", "method=see", *some))
        for some in ((), ("method.second_chance=off",), (ON,))
    ]
    assert keys[0] == keys[1] != keys[2]
    cfg = toy.compose(toy.data_in(base), base / "nowhere", "method=see", "router=centroid", ON)
    with pytest.raises(ConfigError, match="method.second_chance has no effect here"):
        check_effects(cfg, ["router=centroid", ON], several=False)
