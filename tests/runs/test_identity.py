"""What makes a run the same run: its settings, and the content of its data, model and files, wherever these lie."""

import json
import shutil
from contextlib import chdir

import hydra
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from see_lightning.cli import perplexity
from see_lightning.config.identity import key_of, numbers_config
from see_lightning.config.schema import ModelConfig
from see_lightning.config.search_path import CONF
from see_lightning.data.jsonl import JsonlReader
from see_lightning.engine import launch, loaded_run
from see_lightning.engine.contents import rows_digest
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.models.digest import model_files
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from see_lightning.tasks.prompts import PromptTemplate
from tests.runs import toy

FAST = ("order.tasks=[sky,sea]", "optim.epochs=1", "method=seqft")


@pytest.fixture
def data(tmp_path):
    return toy.write_tasks(tmp_path / "mydata")


def rewrite(path, old, new, count=-1):
    path.write_text(path.read_text().replace(old, new, count))


def old_run(cfg):
    """A run as earlier versions left it: under the key of the settings as typed, with no digest of what it is made from."""
    with chdir("/"):
        directory = toy.run(cfg).directory
    old = directory.parents[1] / key_of(numbers_config(cfg)) / directory.name
    old.parent.mkdir(exist_ok=True)
    directory.rename(old)
    directory.parent.rmdir()
    (old / "rows.json").unlink()
    ledger = toy.read_file(old / "ledger.json")
    del ledger["about"]["contents"]
    ledger["about"]["numbers"] = numbers_config(cfg)
    (old / "ledger.json").write_text(json.dumps(ledger))
    return old


def spellings(data):
    """Every way to say where the same data lie, the working directory being the one above."""
    link, moved = data.parent / "link", data.parent / "elsewhere" / "moved"
    link.symlink_to(data)
    shutil.copytree(data, moved)
    return ["mydata", "./mydata", "mydata/", "../" + data.parent.name + "/mydata", str(data), "link", str(moved)]


def test_data_have_one_key_however_their_place_is_spelt_and_wherever_they_lie(data, tmp_path):
    with chdir(tmp_path):
        keys = set()
        for number, spelling in enumerate(spellings(data)):
            cfg = toy.compose(spelling, tmp_path / f"runs{number}", *FAST)
            keys.add(launch.run_directory(cfg, launch.validate(cfg)).parent.name)
            assert cfg.benchmark.reader.folder == spelling
        assert len(keys) == 1
        for data_root in (".", str(tmp_path)):  # a data root above one's own folder is a spelling too
            cfg = toy.compose("${paths.data}/mydata", tmp_path / "runs", *FAST, f"paths.data={data_root}")
            keys.add(launch.run_directory(cfg, launch.validate(cfg)).parent.name)
    assert len(keys) == 1


def test_a_finished_run_is_reported_under_every_spelling_and_an_old_key_too(data, tmp_path, capfd):
    with chdir(tmp_path):
        old = old_run(toy.compose(str(data), tmp_path / "runs", *FAST))
        for spelling in spellings(data):
            seen = toy.run(toy.compose(spelling, tmp_path / "runs", *FAST))
            assert (seen.fits, seen.directory) == (0, old)
        shutil.rmtree(data)
        seen = toy.run(toy.compose(tmp_path / "elsewhere" / "moved", tmp_path / "runs", *FAST))
        assert seen.directory == old
        perplexity.main([str(old)])  # which reads the data where they lie now
    assert "note:" not in capfd.readouterr().err
    assert "task sky" in Ledger(old).read().content["about"]["contents"]["digests"], "from now on it is noted"


def test_an_old_unfinished_run_goes_on(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *FAST)
    old = old_run(cfg)
    ledger = toy.read_file(old / "ledger.json")
    del ledger["stages"]["02-sea"]
    (old / "ledger.json").write_text(json.dumps(ledger))
    (old / "results.json").unlink()
    seen = toy.run(cfg)
    assert (seen.fits, seen.directory) == (1, old)


@pytest.mark.parametrize("old", [False, True])
def test_changed_data_are_a_run_of_their_own_that_says_beside_which(data, tmp_path, capfd, old):
    cfg = toy.compose(data, tmp_path / "runs", *FAST)
    first = old_run(cfg) if old else toy.run(cfg).directory
    rewrite(data / "sea.train.jsonl", '"yy"', '"y"', 2)
    with (data / "sea.test.jsonl").open("a") as file:
        file.write('{"prompt": "new?", "answer": "yy"}\n')
    second = toy.run(cfg)
    told = capfd.readouterr().err
    assert (second.fits, second.directory != first) == (1, True), "the expert of sky has not seen these rows"
    assert f"changed since {first} was made: sea" in told
    if not old:
        assert "sea (train: 2 rows added, 2 removed; test: 1 rows added, 0 removed)" in told
    assert toy.run(cfg).fits == 0


def test_the_same_rows_written_otherwise_are_the_same_data(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *FAST)
    toy.run(cfg)
    rewrite(data / "sea.train.jsonl", '": "', '":   "')
    assert toy.run(cfg).fits == 0


def test_rows_that_differ_in_separators_alone_or_change_halves_have_digests_of_their_own(data):
    def digest(train, test):
        for half, answers in (("train", train), ("test", test)):
            rows = [{"id": f"{half}{n}", "prompt": f"{n}?", "answer": answer} for n, answer in enumerate(answers)]
            (data / f"sky.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows_digest(JsonlReader(data), "sky")[0]

    halves = [(["a", "b"], ["c"]), (["a\x1etrain1\x1f1?\x1fb"], ["c"]), (["a\x1f", "b"], ["c"]), (["a", "b\x1e\x1d"], ["c"]),
              (["a"], ["b", "c"])]  # fmt: skip
    assert len({digest(*one) for one in halves}) == len(halves)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("gone", ["all", "a task", "a file"])
def test_where_data_are_gone_the_report_says_that_they_were_not_compared(data, tmp_path, capfd, gone, old):
    cfg = toy.compose(data, tmp_path / "runs", *FAST)
    first = old_run(cfg) if old else toy.run(cfg).directory
    capfd.readouterr()
    if gone == "all":
        shutil.rmtree(data)
    for half in ("train", "test")[gone != "a task" :] if gone != "all" else ():
        (data / f"sea.{half}.jsonl").unlink()
    seen = toy.run(cfg)
    printed = capfd.readouterr()
    assert (seen.fits, seen.directory) == (0, first)
    assert f"inputs that cannot be read were not compared with those of {first}: " in printed.err
    assert ("sky" in printed.err.partition(f"{first}: ")[2].partition("(")[0]) == (gone == "all" or old)
    assert printed.out.endswith("results.json\n")


def test_gone_data_of_a_benchmark_are_not_compared_either_even_under_another_root(data, tmp_path, capfd):
    where = ("benchmark.reader.folder=${paths.data}/mydata",)
    first = toy.run(toy.compose(data, tmp_path / "runs", *FAST, *where, f"paths.data={data.parent}"))
    shutil.rmtree(data)
    seen = toy.run(toy.compose(data, tmp_path / "runs", *FAST, *where, f"paths.data={data.parent}"))
    assert (seen.fits, seen.directory) == (0, first.directory)


def test_another_seed_finds_the_key_of_the_first(data, tmp_path):
    old = old_run(toy.compose(data, tmp_path / "runs", *FAST))
    other = toy.run(toy.compose(f"{data}/", tmp_path / "runs", *FAST, "seed=4"))
    assert other.directory == old.parent / "seed=4"


# A benchmark that is shipped: its name and version say which data it has, so its key is that of its settings.
SHIPPED = (
    *(one for one in toy.SETTINGS if not one.startswith(("order", "benchmark"))),
    *FAST,
    "order=superni_5",
    "order.tasks=[qa,qg]",
)


def ssr(folder):
    folder.mkdir(parents=True)
    for task in ("qa", "qg"):
        for half, numbers in (("train", range(6)), ("eval", range(6, 9))):
            rows = [{"id": f"{half}{n}", "full_prompt": f"{task} {n}?", "output": "x"} for n in numbers]
            (folder / f"{task}.{half}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def shipped(tmp_path, monkeypatch, root="data"):
    monkeypatch.setenv("SEE_DATA", str(tmp_path / root))
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=[*SHIPPED, f"paths.runs={tmp_path / 'runs'}"])


def test_changed_data_of_a_shipped_benchmark_leave_its_key_to_the_first(tmp_path, monkeypatch, capfd):
    ssr(tmp_path / "data" / "ssr_ni_split")
    cfg = shipped(tmp_path, monkeypatch)
    first = toy.run(cfg)
    assert first.directory.parent.name == key_of(numbers_config(cfg))
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert toy.run(shipped(tmp_path, monkeypatch, "copy")).fits == 0
    cfg = shipped(tmp_path, monkeypatch)
    file = tmp_path / "data" / "ssr_ni_split" / "qa.eval.json"
    content = file.read_text()
    file.write_text(content.replace("qa 6?", "qa six?"))
    second = toy.run(cfg)
    assert second.fits == 2
    assert "qa (test: 1 rows added, 1 removed)" in capfd.readouterr().err
    assert toy.run(cfg).directory == second.directory
    file.write_text(content)
    assert toy.run(cfg).directory == first.directory
    shutil.rmtree(tmp_path / "data")
    missing = shipped(tmp_path, monkeypatch, "nowhere")
    assert toy.run(missing).fits == 0, "as before: a report needs no data"


def save_model(folder):
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def touch_weights(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(iter(sorted(weights)))
    weights[name] = weights[name] * 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_model(data, runs, folder, *more):
    return toy.compose(
        data, runs, *FAST, "model=hub", "model.prompt=plain", "model.dtype=fp32", f"model.name={folder}", *more
    )


def test_a_model_folder_has_one_key_wherever_it_lies_and_another_with_other_weights(data, tmp_path):
    save_model(tmp_path / "model")
    runs = tmp_path / "runs"
    with chdir(tmp_path):
        first = toy.run(of_model(data, runs, "./model"))
        (tmp_path / "model").rename(tmp_path / "moved")
        (tmp_path / "link").symlink_to("moved")
        for spelling in ("moved", "moved/", "./moved", str(tmp_path / "moved"), "link"):
            seen = toy.run(of_model(data, runs, spelling))
            assert (seen.fits, seen.directory) == (0, first.directory), spelling
        (tmp_path / "moved" / "README.md").write_text("of no account")
        assert toy.run(of_model(data, runs, "moved")).fits == 0
        shutil.copytree("moved", "other")
        touch_weights(tmp_path / "other")
        other = toy.run(of_model(data, runs, "other", "order.tasks=[sky]"))
        assert (
            other.directory.parent.name
            != launch.run_directory(*both(of_model(data, runs, "moved", "order.tasks=[sky]"))).parent.name
        )


@pytest.mark.parametrize("more", ["order.tasks=[sky]", "order.tasks=[sky,sea]"], ids=["going on", "growing"])
def test_a_run_does_not_go_on_grow_or_answer_with_other_weights(data, tmp_path, more):
    model = save_model(tmp_path / "model")
    runs = tmp_path / "runs"
    shorter = toy.run(of_model(data, runs, model, "order.tasks=[sky]"))
    content = (model / "model.safetensors").read_bytes()
    touch_weights(model)
    told = f"^{shorter.directory} was made with other files of the model {model}: model.safetensors changed since"
    with pytest.raises(Refusal, match=told):
        load_ensemble(shorter.directory)
    with pytest.raises(Refusal, match=told):
        toy.run(of_model(data, runs, model, more))
    assert len(list(runs.rglob("ledger.json"))) == 1, "nothing is left behind"
    (model / "model.safetensors").write_bytes(content)
    assert load_ensemble(shorter.directory)
    assert toy.run(of_model(data, runs, model, more)).fits == ("sea" in more)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def swap_two_rare_tokens(path):
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (token for token in vocabulary if token in ("$", "%"))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))


EDITS = {
    "config.json": lambda folder: change(folder / "config.json", rms_norm_eps=1e-3),
    "generation_config.json": lambda folder: change(folder / "generation_config.json", eos_token_id=[2, 5]),
    "tokenizer.json": lambda folder: swap_two_rare_tokens(folder / "tokenizer.json"),
    "tokenizer_config.json": lambda folder: change(folder / "tokenizer_config.json", padding_side="left"),
    "adapter_config.json": lambda folder: (folder / "adapter_config.json").write_text("{}"),
}


def test_every_file_that_a_model_is_loaded_from_is_compared_at_every_start_growth_and_load(data, tmp_path):
    model, runs = save_model(tmp_path / "model"), tmp_path / "runs"
    short, long = "order.tasks=[sky]", "order.tasks=[sky,sea]"
    directory = toy.run(of_model(data, runs, model, short)).directory
    for name, edit in EDITS.items():
        kept = shutil.copytree(model, tmp_path / "kept")
        edit(model)
        told = f"^{directory} was made with other files of the model {model}: {name} changed since"
        with pytest.raises(Refusal, match=told):
            load_ensemble(directory)
        for tasks in (short, long):
            with pytest.raises(Refusal, match=told):
                toy.run(of_model(data, runs, model, tasks))
        shutil.rmtree(model)
        kept.rename(model)
    (model / "README.md").write_text("of no account")
    (model / "chat_template.jinja").write_text("{{ messages }}")  # prompts are plain
    assert load_ensemble(directory)
    assert toy.run(of_model(data, runs, model, long)).fits == 1


def test_a_finished_run_is_reported_though_its_models_folder_is_gone(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "models" / "mine")
    done = toy.run(of_model(data, tmp_path / "runs", "models/mine", "order.tasks=[sky]"))
    (tmp_path / "models" / "mine").rename(tmp_path / "gone")
    again = toy.run(of_model(data, tmp_path / "runs", "models/mine", "order.tasks=[sky]"))
    assert (again.directory, again.fits) == (done.directory, 0)


def test_a_model_that_comes_onto_this_machine_only_when_a_run_is_asked_is_compared_then(data, tmp_path, monkeypatch):
    model = save_model(tmp_path / "model")
    directory = toy.run(of_model(data, tmp_path / "runs", model, "order.tasks=[sky]")).directory
    build = loaded_run.build_method

    def downloaded(*given):
        (tmp_path / "gone").rename(model)
        touch_weights(model)
        return build(*given)

    monkeypatch.setattr(loaded_run, "build_method", downloaded)
    monkeypatch.setattr(
        loaded_run, "build_template", lambda *given: PromptTemplate(tiny_tokenizer(), style="plain", max_length=99)
    )
    model.rename(tmp_path / "gone")
    with pytest.raises(Refusal, match="was made with other files of the model .*: model.safetensors changed since"):
        load_ensemble(directory)


def test_a_model_of_the_hub_without_an_owner_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--gpt2" / "snapshots" / ("a" * 40)
    save_model(snapshot)
    (tmp_path / "hub" / "models--gpt2" / "refs").mkdir()
    (tmp_path / "hub" / "models--gpt2" / "refs" / "main").write_text("a" * 40)
    assert "model.safetensors" in model_files(ModelConfig(source="hub", name="gpt2"), tmp_path)


def cached(hub, weights_from, commit):
    """A model of the Hub as its client keeps it, its main branch at a commit."""
    snapshot = hub / "models--me--mine" / "snapshots" / commit
    shutil.copytree(weights_from, snapshot)
    (hub / "models--me--mine" / "refs").mkdir(exist_ok=True)
    (hub / "models--me--mine" / "refs" / "main").write_text(commit)


def test_a_model_of_the_hub_that_moved_on_is_refused_and_its_old_revision_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, runs = save_model(tmp_path / "model"), tmp_path / "runs"
    cached(tmp_path / "hub", model, "a" * 40)
    with toy_interrupted("01-sky"):
        toy.run(of_model(data, runs, "me/mine"))
    (tmp_path / "model" / "README.md").write_text("a commit that changes no number")
    cached(tmp_path / "hub", model, "b" * 40)
    assert launch.run_directory(*both(of_model(data, runs, "me/mine"))).exists()
    touch_weights(model)
    cached(tmp_path / "hub", model, "c" * 40)
    for tasks in ("[sky,sea]", "[sky,sea,ice]"):
        with pytest.raises(Refusal, match="was made with other files of the model me/mine: model.safetensors"):
            toy.run(of_model(data, runs, "me/mine", f"order.tasks={tasks}"))
    on = toy.run(of_model(data, runs, "me/mine", f"model.revision={'a' * 40}"))
    assert on.fits == 1


def both(cfg):
    return cfg, launch.validate(cfg)


class toy_interrupted:  # noqa: N801  reads as what it does
    """Break a run off once a stage's training is final."""

    def __init__(self, stage):
        self.stage = stage

    def __enter__(self):
        self.commit = Ledger.commit_trained

        def commit_and_stop(ledger, name, files, facts):
            self.commit(ledger, name, files, facts)
            if name == self.stage:
                raise InterruptedError

        Ledger.commit_trained = commit_and_stop

    def __exit__(self, kind, *_):
        Ledger.commit_trained = self.commit
        return kind is InterruptedError


def test_a_file_of_instructions_is_named_by_its_content(data, tmp_path, capfd):
    file = tmp_path / "general.jsonl"
    file.write_text('{"prompt": "Say a.", "answer": "a"}\n{"prompt": "Say b.", "answer": "b"}\n')

    def cfg(place):
        more = ("method=see", "method.general_negatives=2", f"method.general_source={place}")
        return toy.compose(data, tmp_path / "runs", *FAST, *more, "order.tasks=[sky]")

    with chdir(tmp_path):
        first = toy.run(cfg("general.jsonl"))
        assert toy.run(cfg(str(file))).fits == 0
        shutil.copy(file, tmp_path / "moved.jsonl")
        assert toy.run(cfg("./moved.jsonl")).fits == 0
        rewrite(file, "Say a.", "Do a.")
        second = toy.run(cfg("general.jsonl"))
        assert (second.fits, second.directory != first.directory) == (1, True)
        assert "method.general_source" in capfd.readouterr().err
        file.unlink()
        assert toy.run(cfg("general.jsonl")).fits == 0


def test_foreign_queries_are_asked_again_if_they_changed_and_not_because_they_moved(data, tmp_path, capfd):
    far = toy.write_tasks(tmp_path / "far")
    for file in far.glob("*.jsonl"):
        file.rename(far / f"x{file.name}")

    def cfg(place):
        ood = OmegaConf.load(CONF / "benchmark" / "jsonl.yaml")
        ood.reader.folder = place
        made = toy.compose(data, tmp_path / "runs", *FAST, "order.tasks=[sky]", "method=see")
        asked = {"sources": {"far": ood}, "size": 2, "tasks": ["xsky"], "max_new_tokens": 2}
        OmegaConf.set_struct(made, False)
        return OmegaConf.merge(made, {"ood": asked})

    first = toy.run(cfg(str(far)))
    asked = toy.read_results(first.directory)["ood"]
    shutil.copytree(far, tmp_path / "moved")
    results = (first.directory / "results.json").stat().st_mtime_ns
    toy.run(cfg(str(tmp_path / "moved")))
    assert (first.directory / "results.json").stat().st_mtime_ns == results, "asked again"
    rewrite(far / "xsky.test.jsonl", "?", "!")
    toy.run(cfg(str(far)))
    assert toy.read_results(first.directory)["ood"]["digests"] != asked["digests"]
    shutil.rmtree(far)
    capfd.readouterr()
    toy.run(cfg(str(far)))
    assert "ood tasks that the run answered cannot be read, so they were not compared: xsky" in capfd.readouterr().err
