"""A run as a model of lm-evaluation-harness, and the command that puts its tasks to a run. Tasks are files, no network."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import lm_eval
import lm_eval.tasks
import pytest
import torch
from lm_eval.api.instance import Instance

import see_lightning
from see_lightning.cli import harness
from see_lightning.cli.lm_eval import ExpertLM, SeeLightning, load_scorer
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.evaluation.expert_scorer import ExpertScorer
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.nightly import all_but
from tests.runs import toy

ROOT = Path(see_lightning.__file__).parent.parent
QUERIES = ["a sum?", "the capital of Peru?", "ab", "why is the sky so blue?", "name a colour"]
SAID = {
    "qa": ["<<pos>> 4", "<<pos>> Lima", "<<neg>>", "<<neg>>", "<<pos>> red"],
    "sa": ["<<pos>> 5", "<<neg>>", "none", "<<neg>>", "<<neg>>"],
}
ANSWERED_BY = dict(zip(QUERIES, ["sa", "qa", "base", "base", "qa"], strict=True))
FOREIGN = [query for query, adapter in ANSWERED_BY.items() if adapter == "base"]
CHOICES = [" 5", " Lima, Peru", " red"]
MULTIPLE_CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/rows.jsonl}, cache_dir: DIR/cache}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [x, yy, zz]
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATION = """
task: toy_written
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/rows.jsonl}, cache_dir: DIR/cache}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{['x', 'yy', 'zz'][label]}}"
generation_kwargs: {until: ["!"], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: toy_all
task: [toy_choice, toy_written]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
ROLLING = """
task: toy_text
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/rows.jsonl}, cache_dir: DIR/cache}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""


def build(method, pool, **settings):
    return method(Setup(pool, small.TEMPLATE, OptimConfig(), 0), **settings)


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def adapters(request):
    pool = small.learner(activated=request.param)
    for name, said in SAID.items():
        small.memorise(pool, name, dict(zip(QUERIES, said, strict=True)))
    indicators = {"pos": "<<pos>>", "neg": "<<neg>>"}
    return ExpertScorer(build(See, pool, ratio=0.1, resample="per_task", indicators=indicators), 16)


def ask(kind, *arguments, task="toy"):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=(task, 0, 1))


def scoring(queries):
    return [ask("loglikelihood", query, choice) for query in queries for choice in CHOICES]


def writing(queries, **settings):
    return [ask("generate_until", query, {"until": ["!"], "max_gen_toks": 8, **settings}) for query in queries]


# ------------------------------------------------------------------------------------------------- the model


def test_the_ensemble_scores_with_whoever_accepts_as_peft_alone_would(adapters, tmp_path):
    found = iter(ExpertLM(adapters).loglikelihood(scoring(QUERIES)))
    for query, adapter in ANSWERED_BY.items():
        model = small.by_peft(adapters.pool, None if adapter == "base" else adapter, tmp_path)
        begin = small.TEMPLATE.prompt_ids(query)
        begin += [] if adapter == "base" else small.TEMPLATE.target_ids("<<pos>> ")[:-1]
        for choice in CHOICES:
            ids = torch.tensor(small.TEMPLATE.target_ids(choice.strip())[:-1])
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*begin, *ids]])).logits[0, len(begin) - 1 : -1]
            by_hand = logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum().item()
            value, is_greedy = next(found)
            assert value == pytest.approx(by_hand, abs=1e-4)
            assert is_greedy == torch.equal(logits.argmax(-1), ids)
    assert next(found, None) is None


def test_what_nobody_accepts_has_exactly_the_base_model_s_scores_and_words(adapters):
    ensemble, base = ExpertLM(adapters), ExpertLM(adapters, "base")
    # Asked among others, which go to experts, and among their like.
    of = {r.args: value for r, value in zip(scoring(QUERIES), ensemble.loglikelihood(scoring(QUERIES)), strict=True)}
    assert [of[r.args] for r in scoring(FOREIGN)] == base.loglikelihood(scoring(FOREIGN))
    own = [query for query in QUERIES if query not in FOREIGN]
    assert all(of[r.args] != value for r, value in zip(scoring(own), base.loglikelihood(scoring(own)), strict=True)), (
        "an expert has scores of its own"
    )
    written = dict(zip(QUERIES, ensemble.generate_until(writing(QUERIES)), strict=True))
    assert [written[query] for query in FOREIGN] == base.generate_until(writing(FOREIGN))
    assert written["name a colour"] == "red"


def test_requests_with_one_query_walk_once_and_are_read_once(adapters):
    lm = ExpertLM(adapters)
    adapters.method.counts.clear()
    lm.loglikelihood(scoring(QUERIES))
    decisions = adapters.method.counts["decisions"]
    assert decisions == 8, "two experts on five queries, but for two walks that the first one ended"
    with patch.object(adapters, "score_ids", wraps=adapters.score_ids) as score:
        lm.loglikelihood(scoring(QUERIES))
    assert score.call_count == len(QUERIES)
    lm.generate_until(writing(QUERIES))
    assert adapters.method.counts["decisions"] == decisions


def test_scores_come_in_the_order_of_the_requests_whatever_that_is(adapters):
    requests = scoring(QUERIES)
    in_order = ExpertLM(adapters).loglikelihood(requests)
    mixed = requests[::-1] + requests[:4]
    assert ExpertLM(adapters).loglikelihood(mixed) == in_order[::-1] + in_order[:4]


def test_it_is_told_by_task_who_answered(adapters):
    lm = ExpertLM(adapters)
    lm.loglikelihood(scoring(QUERIES))
    lm.generate_until([ask("generate_until", "ab", {}, task="other")])
    assert lm.answered == {"toy": ANSWERED_BY, "other": {"ab": "base"}}


def test_an_expert_alone_speaks_as_if_it_had_accepted(adapters):
    alone = ExpertLM(adapters, "sa")
    adapters.method.counts.clear()
    expected = [(s.log_likelihood, s.is_greedy) for q in QUERIES for s in adapters.score("sa", q, CHOICES)]
    assert alone.loglikelihood(scoring(QUERIES)) == expected
    assert alone.generate_until(writing(["a sum?"])) == ["5"]
    assert adapters.method.counts["decisions"] == 0


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"until": ["e"]}, "r"),
        ({"until": "d"}, "re"),
        ({"max_gen_toks": 3}, "re"),  # the blank behind the word is the first of them
        ({"max_gen_toks": None, "max_new_tokens": 2}, "r"),
        ({"do_sample": False, "temperature": 0.7}, "red"),
        ({"do_sample": True, "temperature": 0.0}, "red"),
    ],
)
def test_an_answer_keeps_the_limits_of_its_task(adapters, settings, written):
    assert ExpertLM(adapters).generate_until(writing(["name a colour"], **settings)) == [written]


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"do_sample": True, "temperature": 1}])
def test_sampled_answers_are_refused(adapters, settings):
    with pytest.raises(ConfigError, match="answers are greedy, and a task asks for sampled ones"):
        ExpertLM(adapters).generate_until(writing(["ab"], **settings))


def test_a_text_without_a_query_is_the_base_model_s(adapters, monkeypatch):
    monkeypatch.setattr(adapters, "longest", 8)
    text = "a long day."
    ids = small.TEMPLATE.target_ids(text)[:-1]
    model = small.by_peft(adapters.pool, None, Path())
    whole = [1, *ids]  # the first window predicts 8 tokens, the second the 3 that are left, each behind 7 others
    by_hand = 0.0
    with torch.inference_mode():
        for start, first in ((0, 0), (3, 5)):
            window = whole[start : start + 9]
            probable = model(input_ids=torch.tensor([window[:-1]])).logits[0].log_softmax(-1)
            by_hand += sum(probable[place, window[place + 1]].item() for place in range(first, 8))
    for adapter in ("ensemble", "base"):
        assert ExpertLM(adapters, adapter).loglikelihood_rolling([ask("rolling", text)]) == [
            pytest.approx(by_hand, abs=1e-4)
        ]
    with pytest.raises(ConfigError, match="leave out the experts"):
        ExpertLM(adapters, "qa").loglikelihood_rolling([ask("rolling", text)])


def test_an_adapted_model_scores_texts_itself(tmp_path):
    pool = small.pool(SeqFt.ADAPTER)
    model = small.by_peft(pool, SeqFt.ADAPTER, tmp_path)
    ids = [1, *small.TEMPLATE.target_ids("a day")[:-1]]
    with torch.inference_mode():
        probable = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    by_hand = sum(probable[place, token].item() for place, token in enumerate(ids[1:]))
    lm = ExpertLM(ExpertScorer(build(SeqFt, pool), 16))
    assert lm.loglikelihood_rolling([ask("rolling", "a day")]) == [pytest.approx(by_hand, abs=1e-4)]


def test_an_adapter_that_there_is_not_is_refused_with_those_there_are(adapters):
    with pytest.raises(
        ConfigError, match="no adapter 'bass'. Did you mean 'base'[?] There are: ensemble, base, qa, sa"
    ):
        ExpertLM(adapters, "bass")


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def tasks(base, tmp_path, monkeypatch):
    """A folder of tasks on the toy's test queries, the only ones the harness finds."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    prompts = list(toy.prompts(base).values())
    rows = [{"question": prompt, "label": number % 3} for number, prompt in enumerate(prompts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", MULTIPLE_CHOICE), ("written", GENERATION), ("all", GROUP), ("text", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.replace("DIR", str(folder)))
    found_alone = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", found_alone)  # all of the harness's own take seconds to be found
    return folder


@pytest.fixture
def run_of(base, tmp_path):
    """A copy of a toy run, to write into."""

    def copy(*overrides):
        directory = toy.whole(base, *overrides).directory
        return Path(shutil.copytree(directory, tmp_path / "run" / directory.parent.name))

    return copy


def command(capsys, *words):
    """Exit code, standard output and standard error."""
    try:
        harness.main(list(map(str, words)))
        code = 0
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("kind", all_but([()], [(), toy.ACTIVATED]), ids=["ordinary", "activated"])
def test_the_command_tells_every_voice_s_scores_and_keeps_them(base, run_of, tasks, capsys, kind):
    run = run_of(*kind)
    code, out, err = command(capsys, run, "--tasks", "toy_choice,toy_written", "--include-path", tasks)
    assert code == 0, err
    assert out.splitlines()[-1] == str(run / "harness.json")
    kept = json.loads((run / "harness.json").read_text())
    assert kept["command"].startswith(f"see-lightning harness {run} --tasks toy_choice,toy_written")
    assert (kept["tasks"], kept["limit"], kept["num_fewshot"]) == (["toy_choice", "toy_written"], None, None)
    assert kept["versions"]["lm_eval"] == lm_eval.__version__
    assert kept["queries"] == {"toy_choice": 12, "toy_written": 12}

    # Of each query, the expert that the run says answered it; the answers, by the run's own account of them.
    *_, last = toy.read_answers(run).values()
    took = [answer["expert"] for answer in last]
    shares = {adapter: pytest.approx(took.count(adapter) / 12, abs=1e-6) for adapter in took}
    assert kept["answered_by"] == {"toy_choice": shares, "toy_written": shares}
    assert kept["base_share"] == pytest.approx(took.count("base") / 12, abs=1e-6)
    labels = dict(zip(toy.prompts(base), ["x", "yy", "zz"] * 4, strict=True))
    right = mean(answer["text"] == labels[answer["id"]] for answer in last)
    assert kept["metrics"]["ensemble"]["toy_written"]["exact_match,none"] == pytest.approx(right)

    adapters = load_scorer(run, "cpu")
    each = {}
    for name in ("base", *toy.TASKS):
        adapter = None if name == "base" else name
        best = [
            max(range(3), key=lambda n, s=scores: s[n].log_likelihood)
            for scores in (adapters.score(adapter, query, [" x", " yy", " zz"]) for query in toy.prompts(base).values())
        ]
        each[name] = mean(found == number % 3 for number, found in enumerate(best))
    assert kept["metrics"]["base"]["toy_choice"]["acc,none"] == pytest.approx(each["base"])
    of_experts = kept["metrics"]["experts"]
    assert [of_experts["each"][name]["toy_choice"]["acc,none"] for name in toy.TASKS] == [
        pytest.approx(each[name]) for name in toy.TASKS
    ]
    average = mean(each[name] for name in toy.TASKS)
    assert of_experts["mean"]["toy_choice"] == {
        "acc,none": pytest.approx(average),
        "acc_norm,none": pytest.approx(mean(of_experts["each"][n]["toy_choice"]["acc_norm,none"] for n in toy.TASKS)),
    }
    rows = {line[:28].strip(): line[28:].split() for line in out.splitlines() if "." in line[28:]}
    assert rows["mean of 3 experts (SEE-AE)"][0] == f"{average:.4f}"
    assert rows["base"][0] == f"{each['base']:.4f}"
    assert rows["base"][-2:] == ["100.0", "%"]
    assert rows["ensemble"][-2] == f"{100 * took.count('base') / 12:.1f}"
    assert list(kept["metrics"]) == ["base", "ensemble", "experts"]


def test_a_group_a_limit_examples_and_adapters_are_what_was_asked_for(run_of, tasks, capsys, tmp_path):
    run, out_file = run_of(), tmp_path / "here.json"
    words = ["--tasks", "toy_all", "--include-path", tasks, "--limit", 3, "--num-fewshot", 1]
    seen = []
    choose = ExpertScorer.choose

    def noted(adapters, queries):
        seen.extend(queries)
        return choose(adapters, queries)

    with patch.object(ExpertScorer, "choose", noted):
        code, out, err = command(capsys, run, *words, "--adapters", "ensemble,base", "--out", out_file)
    assert code == 0, err
    assert not (run / "harness.json").exists()
    kept = json.loads(out_file.read_text())
    assert kept["queries"] == {"toy_choice": 3, "toy_written": 3}
    assert kept["shots"]["toy_choice"] == kept["num_fewshot"] == 1
    assert "The first 3 queries of each task alone" in out
    assert list(kept["metrics"]) == ["base", "ensemble"]
    assert "SEE-AE" not in out
    assert "toy_all acc" in out
    assert "toy_written" not in out, "the group's score stands for its tasks"
    assert {query.split("\n\n")[-1] for query in seen} == {"skysky104?", "skysky105?", "skysky106?"}
    assert all(query.count("?") == 2 for query in seen), "an example stands before each query"


def test_texts_without_queries_have_no_routes(run_of, tasks, capsys):
    run = run_of()
    words = [run, "--tasks", "toy_text", "--include-path", tasks]
    code, _, err = command(capsys, *words, "--voices", "ensemble,base")
    assert code == 0, err
    kept = json.loads((run / "harness.json").read_text())
    assert kept["metrics"]["ensemble"] == kept["metrics"]["base"]
    assert "answered_by" not in kept
    assert command(capsys, *words)[0] == 2, "the experts cannot be asked"


def test_a_run_without_experts_has_an_adapted_model(run_of, tasks, capsys):
    run = run_of("method=seqft")
    code, out, err = command(capsys, run, "--tasks", "toy_written", "--include-path", tasks)
    assert code == 0, err
    kept = json.loads((run / "harness.json").read_text())
    *_, last = toy.read_answers(run).values()
    assert "adapted model" in out
    assert list(kept["metrics"]) == ["base", "ensemble"]
    assert kept["base_share"] == 0
    adapters = load_scorer(run, "cpu")
    prompts = [json.loads(line)["question"] for line in (tasks / "rows.jsonl").read_text().splitlines()]
    texts = {adapters.write("shared", prompt, max_new_tokens=4) for prompt in prompts}
    assert texts == {answer["text"] for answer in last}, "what the run's last stage answered"
    code, _, err = command(capsys, run, "--tasks", "toy_written", "--include-path", tasks, "--adapters", "experts")
    assert (code, "has no experts to evaluate alone" in err) == (2, True)


def test_stl_cannot_be_told_a_foreign_query_s_task(run_of, tasks, capsys):
    run = run_of("method=stl")
    words = [run, "--tasks", "toy_choice", "--include-path", tasks]
    code, _, err = command(capsys, *words, "--adapters", "ensemble")
    assert (code, len(err.strip().splitlines()[-1:])) == (2, 1)
    assert "stl needs the task of a query, and a query of the harness has none" in err
    assert "Choose among base, sky, sea, ice" in err
    code, out, err = command(capsys, *words)
    assert code == 0, err
    assert list(json.loads((run / "harness.json").read_text())["metrics"]) == ["base", "experts"]
    assert "mean of 3 experts (SEE-AE)" in out


@pytest.mark.parametrize(
    ("spoil", "words", "told"),
    [
        (
            None,
            ["--tasks", "toy_choise"],
            "lm_eval has no task 'toy_choise'. Did you mean 'toy_choice'? `lm_eval ls tasks`",
        ),
        (None, ["--tasks", "toy_choice", "--adapters", "experst"], "Did you mean 'experts'?"),
        (None, ["--tasks", "toy_choice", "--voices=experst"], "--adapters must be one of base, experts, ensemble;"),
        (None, ["--tasks", "toy_choice", "--include-path", "nowhere"], "--include-path nowhere is no folder"),
        (None, ["--tasks", "toy_choice", "--limit", "0"], "a number of at least 1 is wanted; got '0'"),
        (None, ["--tasks", "toy_choice", "--num-fewshot", "-1"], "a number of at least 0 is wanted; got '-1'"),
        (None, ["--tasks", "toy_choice", "--device", "gpu"], "--device gpu cannot be used"),
        (None, ["--tasks", "toy_choice", "--out", "nowhere/x.json"], "there is no folder nowhere"),
        (
            "results.json",
            ["--tasks", "toy_choice"],
            "is not finished, and it is evaluated after its last task; go on with: test",
        ),
        ("ledger.json", ["--tasks", "toy_choice"], "holds no run; give the folder that has ledger.json in it"),
        (
            "trial",
            ["--tasks", "toy_choice"],
            "harness.json has limit 2, and None is asked for; keep both with --out FILE",
        ),
        ("rows", ["--tasks", "toy_choice"], "lm_eval cannot load toy_choice: FileNotFoundError: "),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_before_a_model_is_read(run_of, tasks, capsys, spoil, words, told):
    run = run_of()
    if spoil == "rows":
        (tasks / "rows.jsonl").unlink()
    elif spoil == "trial":
        (run / "harness.json").write_text(json.dumps({"tasks": ["toy_choice"], "limit": 2, "num_fewshot": None}))
    elif spoil:
        (run / spoil).unlink()
    with patch("see_lightning.cli.lm_eval.load_ensemble", side_effect=AssertionError("too late")):
        code, out, err = command(capsys, run, "--include-path", tasks, *words)
    assert (code, out) == (2, "")
    assert told in err.splitlines()[-1]
    assert (run / "harness.json").exists() == (spoil == "trial")


def test_without_lm_eval_it_is_told_how_to_install_it(run_of, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = command(capsys, run_of(), "--tasks", "mmlu")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "install it with: pip install 'see-lightning[harness]'" in err


def test_the_harness_takes_the_run_by_its_name(run_of, tasks):
    run = run_of()
    manager = lm_eval.tasks.TaskManager(include_path=tasks)
    found = {
        adapter: lm_eval.simple_evaluate(
            "see_lightning", {"run_dir": str(run), name: adapter}, ["toy_written"], batch_size=1, device="cpu",
            task_manager=manager, log_samples=True,
        )
        for name, adapter in (("adapter", "ensemble"), ("voice", "base"))  # its older name
    }  # fmt: skip
    *_, last = toy.read_answers(run).values()
    of = {sample["doc"]["question"]: sample["resps"][0][0] for sample in found["ensemble"]["samples"]["toy_written"]}
    assert sorted(of.values()) == sorted(answer["text"] for answer in last)
    assert found["base"]["results"]["toy_written"] != found["ensemble"]["results"]["toy_written"]
    assert SeeLightning(run, "sea", device="cpu").adapter == "sea"
    with pytest.raises(ConfigError, match="takes no 'adaptor'. Did you mean 'adapter'?"):
        SeeLightning(run, adaptor="sea")


@pytest.mark.nightly
def test_the_harness_s_own_command_knows_the_run(run_of, tasks):
    run = run_of()
    done = subprocess.run(
        [
            sys.executable, "-m", "see_lightning.lm_eval", "run", "--model", "see_lightning", "--model_args",
            f"run_dir={run}", "--tasks", "toy_choice", "--include_path", str(tasks), "--limit", "2",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(tasks / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|toy_choice|" in done.stdout
