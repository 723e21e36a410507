"""What every voice scores on every task: the diagonal is the run's own, the first row the base model's, each cell its voice's."""

import json
import shutil
from unittest.mock import patch

import pytest

from see_lightning import load_ensemble
from see_lightning.cli import transfer
from see_lightning.engine import build
from see_lightning.evaluation.expert_scorer import ExpertScorer
from see_lightning.evaluation.scores import score_fn
from see_lightning.methods.method import ExpertMethod, Method
from tests.runs import toy

NAMES = list(toy.TASKS)
SIMILAR = "benchmark.default.score=edit_similarity"  # tells answers apart of which none is right
TOLD = [("method=stl", SIMILAR), ("method=moses", SIMILAR), ("method=exssnet", SIMILAR)]
SEE = [("method=see", SIMILAR), ("method=see", SIMILAR, *toy.ACTIVATED)]


def run_of(base, tmp_path, *settings):
    return shutil.copytree(toy.whole(base, *settings).directory, tmp_path / "run=1")


def forget(run):
    """Take from a run what its voices are remembered to have said."""
    path = run / "ledger.json"
    ledger = toy.read_file(path)
    for stage in ledger["stages"].values():
        stage.pop("remembered", None)
    path.write_text(json.dumps(ledger))


def verdicts_of(run, verdict):
    """Who said so, and to what."""
    lines = [line for records in toy.read_answers(run, "remembered").values() for line in records]
    return {(line["expert"], line["id"]) for line in lines if line["verdict"] == verdict}


def said_in(run):
    """Voice and query -> what it answers, of its own accord or because it was told to."""
    kinds = ("remembered", "transfer_remembered")
    lines = [line for kind in kinds for records in toy.read_answers(run, kind).values() for line in records]
    return {(line["expert"], line["id"]): line["text"] for line in lines if line["text"] is not None}


def measure(run, *more):
    transfer.main([str(run), *more])
    return json.loads((run / "transfer.json").read_text())


def refused(capsys, *words):
    return toy.refused(capsys, transfer.main, *words)


@pytest.mark.parametrize("settings", TOLD, ids=lambda settings: settings[0])
@pytest.mark.parametrize("remembers", [True, False], ids=["remembered", "anew"])
def test_where_tasks_are_told_the_diagonal_is_the_last_row_and_the_base_model_that_of_its_own_run(
    base, tmp_path, settings, remembers
):
    run = run_of(base, tmp_path, *settings)
    if not remembers:
        forget(run)
    found = measure(run)
    results, alone = toy.read_results(run), toy.read_results(toy.whole(base, "method=base", SIMILAR).directory)
    assert list(found["transfer"]) == ["base", *NAMES]
    assert [found["transfer"][task][task] for task in NAMES] == results["matrix"][-1]
    assert [found["transfer"]["base"][task] for task in NAMES] == alone["matrix"][-1]
    assert found["score"] == results["score"]
    assert found["own"] == {task: task for task in NAMES}
    assert found["queries"] == dict.fromkeys(NAMES, toy.TESTED)


@pytest.mark.parametrize("settings", [TOLD[0], TOLD[1], *SEE], ids=["stl", "moses", "see", "see-activated"])
def test_each_cell_is_what_its_voice_writes_to_each_query_alone(base, tmp_path, settings):
    """The oracle reads and writes one query at a time; see's experts behind their word, whether they would have accepted."""
    run = run_of(base, tmp_path, *settings)
    assert bool(verdicts_of(run, "neg")) == ("method=see" in settings)
    found = measure(run)
    adapters, similar = ExpertScorer(load_ensemble(run).method, 1), score_fn("edit_similarity")
    prompts, said = toy.prompts(base), said_in(run)
    targets = {record["id"]: record["target"] for record in list(toy.read_answers(run).values())[-1]}
    for adapter in (None, *NAMES):
        for task in NAMES:
            ids = [id_ for id_ in prompts if id_.startswith(f"{task}-")]
            texts = [adapters.write(adapter, prompts[id_], max_new_tokens=4) for id_ in ids]
            assert [said[adapter or "base", id_] for id_ in ids] == texts
            scores = [similar(text, targets[id_]) for id_, text in zip(ids, texts, strict=True)]
            assert found["transfer"][adapter or "base"][task] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert len(said) == (len(NAMES) + 1) * len(prompts)
    answers = {adapter: [text for (one, _), text in said.items() if one == adapter] for adapter, _ in said}
    assert len(set(map(tuple, answers.values()))) == len(NAMES) + 1, "voices cannot be told apart"


def test_a_shared_expert_is_the_own_one_of_every_task_that_it_was_given(base, tmp_path):
    run = run_of(base, tmp_path, *TOLD[0])
    path = run / "results.json"
    path.write_text(json.dumps(toy.read_results(run) | {"given": {"sky": "sky", "sea": "sky", "ice": "ice"}}))
    assert measure(run)["own"] == {"sky": "sky", "sea": "sky", "ice": "ice"}


def test_it_is_measured_once_and_then_only_printed(base, tmp_path, capsys):
    run = run_of(base, tmp_path, *SEE[0])
    found = measure(run)
    text, printed = (run / "transfer.json").read_text(), capsys.readouterr().out
    results = toy.read_results(run)
    for name in ("method", "ratio", "order", "seed"):
        assert found[name] == results[name]
    assert found["command"] == f"see-lightning transfer {run}"
    assert found["commit"]
    matrix = found["transfer"]
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    for adapter in ("base", *NAMES):
        cells = [f"{matrix[adapter][task]:.2f}" + "*" * (adapter == task) for task in NAMES]
        assert rows[adapter] == [*cells, f"{sum(matrix[adapter].values()) / 3:.2f}"]
    own = [matrix[task][task] for task in NAMES]
    others = [sum(matrix[adapter][task] for adapter in NAMES if adapter != task) / 2 for task in NAMES]
    assert own != others
    lines = [line.split() for line in printed.splitlines()]
    for head, values in (("own", own), ("other", others)):
        (line,) = [line for line in lines if line[:1] == [head]]
        assert [float(cell) for cell in line[2:]] == pytest.approx([*values, sum(values) / 3], abs=0.006)
    assert lines[-1] == [str(run / "transfer.json")]
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        transfer.main([str(run)])
    assert capsys.readouterr().out == printed
    assert (run / "transfer.json").read_text() == text


def test_so_many_queries_as_are_asked_for_are_put_and_another_number_is_measured_anew(base, tmp_path):
    run = run_of(base, tmp_path, *TOLD[0])
    whole = measure(run)
    some = measure(run, "--size", "1")
    assert (whole["size"], some["size"], some["queries"]) == (None, 1, dict.fromkeys(NAMES, 1))
    *_, last = toy.read_answers(run).values()
    first = {record["task"]: record["score"] for record in reversed(last)}
    assert {task: some["transfer"][task][task] for task in NAMES} == first


def test_what_was_said_is_not_generated_again_and_a_command_that_was_broken_off_goes_on(base, tmp_path):
    run = run_of(base, tmp_path, *SEE[0])
    known = said_in(run)
    assert known
    whole = (len(NAMES) + 1) * len(NAMES) * toy.TESTED
    written, generate, generate_as = [], Method.generate, ExpertMethod.generate_as

    def counted(method, adapter, queries, *more):
        written.extend((adapter or "base", id_) for id_ in queries.ids)
        return generate(method, adapter, queries, *more)

    def dying(method, adapter, queries):
        if len(calls) == 2 * (len(NAMES) + 1):
            raise InterruptedError
        calls.append(adapter)
        return generate_as(method, adapter, queries)

    calls: list[str | None] = []
    with patch.object(Method, "generate", counted):
        with patch.object(ExpertMethod, "generate_as", dying), pytest.raises(InterruptedError):
            transfer.main([str(run)])
        assert not (run / "transfer.json").exists()
        before = len(written)
        assert before
        found = measure(run)
    assert len(written) == whole - len(known), "each once"
    assert len(written) > before
    anew = run_of(base, tmp_path / "anew", *SEE[0])
    assert measure(anew)["transfer"] == found["transfer"]


def test_what_experts_are_made_to_say_is_never_taken_for_what_they_say(base, tmp_path):
    """Not by a study, nor by a run whose thresholds are others, which both go by what is remembered."""
    run = run_of(base, tmp_path, *SEE[0])
    before = toy.kept(run)
    measure(run)
    after = toy.kept(run)
    assert {name for name in after if after[name] != before.get(name)} == {"tasks/03-ice/transfer_remembered.jsonl"}
    made = [line for records in toy.read_answers(run, "transfer_remembered").values() for line in records]
    natural = {line["key"] for records in toy.read_answers(run, "remembered").values() for line in records}
    told = {(line["expert"], line["id"]): line for line in made if line["expert"] != "base"}
    assert verdicts_of(run, "neg") <= told.keys()
    assert not natural & {line["key"] for line in told.values()}
    assert {line["verdict"] for line in made} == {None}


@pytest.mark.parametrize("method", ["mtl", "base"])
def test_a_method_without_experts_is_refused_without_its_model(base, tmp_path, capsys, method):
    run = run_of(base, tmp_path, f"method={method}")
    capsys.readouterr()
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        told = refused(capsys, str(run))
    assert told.startswith(f"{run} is a run of {method}, whose answers to all tasks come from one model")
    assert told.endswith("give a run of stl, see, moses, exssnet or sema.")
    assert not (run / "transfer.json").exists()


def test_what_is_no_finished_run_is_refused_in_a_line(base, tmp_path, capsys):
    assert refused(capsys, str(tmp_path)) == f"{tmp_path} holds no run; give the folder that has ledger.json in it."
    run = run_of(base, tmp_path, *TOLD[0])
    (run / "results.json").unlink()
    capsys.readouterr()
    assert "is not finished, and transfer is measured after the last task; go on with: test" in refused(
        capsys, str(run)
    )
