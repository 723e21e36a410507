"""Rows with several answers: every record, score and replay of a run takes the one that is matched best."""

import json

from see_lightning.cli import study
from see_lightning.evaluation.scores import best_score
from tests.runs import toy


def test_a_run_scores_against_all_references_and_writes_them_down(tmp_path, capsys):
    data = toy.write_tasks(tmp_path / "data")
    path = data / "ice.test.jsonl"
    rows = [json.loads(line) | {"answer": ["never", "zz", "z"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = toy.run(toy.compose(data, tmp_path / "runs", "benchmark.default.score=edit_similarity")).directory
    answers = [answer for stage in toy.read_answers(run).values() for answer in stage]
    for answer in answers:
        assert ("references" in answer) == (answer["task"] == "ice")
        references = answer.get("references", [answer["target"]])
        assert answer["target"] == references[0]
        assert answer["score"] == best_score("edit_similarity", answer["text"], references)
    scores = {a["score"] for a in answers if a["task"] == "ice"}
    assert max(scores) == 100.0, "the target alone is never matched"
    remembered = [line for stage in toy.read_answers(run, "remembered").values() for line in stage]
    assert 100.0 in {line["score"] for line in remembered if line["task"] == "ice"}
    study.main([str(run)])  # replays the run from what was remembered, and would refuse other scores
    assert "AR" in capsys.readouterr().out
