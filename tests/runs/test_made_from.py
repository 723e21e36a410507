"""What a run's prompts are made from: the date is that of its start, and an edited template is told wherever it goes on."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from see_lightning import load_ensemble
from see_lightning.cli.calibrate import calibrate
from see_lightning.engine import made_from
from see_lightning.engine.ledger import LedgerError
from see_lightning.errors import Refusal
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from tests.runs import toy

DATED = (
    "{{ bos_token }}[system]Written on {{ strftime_now('%Y-%m-%d') }}.</s>{% for m in messages %}[{{ m['role'] }}]"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = ("model=hub", "model.prompt=chat", "model.dtype=fp32", "optim.epochs=1")
TWO = ("order.tasks=[sky,sea]",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    edit(folder, DATED)
    return folder


def edit(folder: Path, template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture
def start(tmp_path: Path, model: Path):
    data, runs = toy.write_tasks(tmp_path / "data"), tmp_path / "runs"

    def begin(*overrides: str) -> Path:
        return toy.run(toy.compose(data, runs, *CHAT, f"model.name={model}", *overrides)).directory

    return begin


def on(monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    class Day(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return cls(year, 2, 3)

    monkeypatch.setattr(made_from, "datetime", Day)


def about(directory: Path) -> dict[str, object]:
    content: dict[str, object] = toy.read_file(directory / "ledger.json")["about"]
    return content


def test_the_date_of_a_run_is_that_of_its_start_when_it_grows_is_asked_or_calibrated(start, monkeypatch):
    on(monkeypatch, 2031)
    first = start(*TWO, "train_size=3")
    assert about(first)["date"] == "2031-02-03T00:00:00"
    on(monkeypatch, 2032)
    whole = start("train_size=3")
    assert about(whole)["date"] == about(first)["date"]
    assert about(whole)["grown_from"] == str(first)
    digests = {json.loads(path.read_text())["template_sha256"] for path in whole.rglob("expert.json")}
    assert len(digests) == 1
    template = load_ensemble(whole).method.template
    assert "Written on 2031-02-03." in template.tokenizer.decode(template.prompt_ids("sky?"))
    calibrated = calibrate(whole, on=1, target_recall=0.5)
    assert about(calibrated.parent)["date"] == about(first)["date"]


def test_a_run_that_goes_on_keeps_its_date(start, monkeypatch):
    on(monkeypatch, 2031)
    directory = start(*TWO)
    (directory / "results.json").unlink()
    ledger = toy.read_file(directory / "ledger.json")
    ledger["stages"].popitem()
    (directory / "ledger.json").write_text(json.dumps(ledger))
    on(monkeypatch, 2032)
    assert start(*TWO) == directory
    assert about(directory)["date"] == "2031-02-03T00:00:00"
    assert len({json.loads(path.read_text())["template_sha256"] for path in directory.rglob("expert.json")}) == 1


@pytest.mark.parametrize("more", [TWO, ()], ids=["finished", "growing"])
def test_an_edited_template_is_refused_in_one_line(start, model, more):
    directory = start(*TWO)
    edit(model, DATED.replace("Written on", "It is"))
    told = f"^{directory} was made with other files of the model {model}: chat_template.jinja changed since"
    with pytest.raises(LedgerError, match=told):
        start(*more)
    with pytest.raises(LedgerError, match=told):
        load_ensemble(directory)
    edit(model, DATED)
    start(*more)


def test_another_tokenizer_under_one_name_is_told_as_such(start, model):
    directory = start(*TWO)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Refusal, match="was made with other files of the model .*: tokenizer.json changed since"):
        load_ensemble(directory)


def test_what_an_older_run_did_not_note_is_not_compared(start, model):
    directory = start(*TWO, "model.prompt=plain")
    ledger = toy.read_file(directory / "ledger.json")
    assert "date" not in ledger["about"]
    del ledger["about"]["prompts"]
    (directory / "ledger.json").write_text(json.dumps(ledger))
    edit(model, "{{ messages }}")
    load_ensemble(directory)
    start("model.prompt=plain")


def test_arguments_of_a_template_are_a_part_of_the_key_when_there_are_any(start, model, tmp_path):
    edit(model, DATED + "{% if brief is defined and brief %}Brief:{% endif %}")
    plain = start(*TWO)
    brief = start(*TWO, "+model.template_args.brief=true")
    assert brief != plain
    template = load_ensemble(brief).method.template
    assert template.tokenizer.decode(template.prompt_ids("sky?")).endswith("Brief:")
    for spelled in ("model.template_args={brief:true}", "model.template_args.brief=true"):
        assert start(*TWO, spelled) == brief
    with pytest.raises(Refusal, match="model.template_args.brif=True has no effect"):
        start(*TWO, "+model.template_args.brif=true")
