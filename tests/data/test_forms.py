"""Rows of a user's own data in the forms in which people have them, in every format of file, and the faults of each."""

import builtins
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from see_lightning.data import Example, RowChecks
from see_lightning.data.example import Turn
from see_lightning.data.jsonl import JsonlReader
from see_lightning.errors import ConfigError, DataError

Row = dict[str, Any]


def said(*texts: str, system: str | None = None, **last: Any) -> list[Row]:
    """Messages: an optional system prompt, then user and assistant in turn; further values of the last message."""
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    turns[-1] |= last
    return [*([] if system is None else [{"role": "system", "content": system}]), *turns]


# As published: HuggingFaceH4/no_robots, tatsu-lab/alpaca, OpenAI's fine-tuning file, a file of TRL.
NO_ROBOTS = {
    "prompt": "Name a river in Peru.",
    "prompt_id": "8a1f",
    "messages": said("Name a river in Peru.", "The Ucayali.", "And a lake?", "Lake Junín.", system="You are a guide."),
    "category": "Chat",
}
ALPACA = {
    "instruction": "Name the odd one out.",
    "input": "Oslo, Bergen, Lima",
    "output": "Lima",
    "text": "Below is an instruction that describes a task. ...",
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Five.", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Four.", "weight": 1},
    ]
}
COMPLETION = {"prompt": "The sky is", "completion": " blue."}


def write_jsonl(folder: Path, half: str, rows: Sequence[Row]) -> None:
    (folder / f"t.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(folder: Path, half: str, rows: Sequence[Row]) -> None:
    (folder / f"t.{half}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_table(folder: Path, half: str, rows: Sequence[Row], suffix: str = ".csv", separator: str = ",") -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / f"t.{half}{suffix}").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter=separator)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: one if isinstance(one, str) else json.dumps(one) for name, one in row.items()})


def write_tsv(folder: Path, half: str, rows: Sequence[Row]) -> None:
    write_table(folder, half, rows, ".tsv", "\t")


def write_parquet(folder: Path, half: str, rows: Sequence[Row]) -> None:
    Dataset.from_list(list(rows)).to_parquet(folder / f"t.{half}.parquet")


def write_saved(folder: Path, half: str, rows: Sequence[Row]) -> None:
    Dataset.from_list(list(rows)).save_to_disk(str(folder / "t" / half))


FORMATS = {
    "jsonl": write_jsonl, "json": write_json, "csv": write_table, "tsv": write_tsv, "parquet": write_parquet, "saved": write_saved,
}  # fmt: skip
Write = Callable[[Path, str, Sequence[Row]], None]


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def read(
    folder: Path, train: Sequence[Row], test: Sequence[Row] = (), write: Write = write_jsonl, **settings: Any
) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """Training rows, test rows and notices; without test rows, a plain one is written beside."""
    write(folder, "train", train)
    if test:
        write(folder, "test", test)
    else:
        write_jsonl(folder, "test", [{"prompt": "other?", "answer": "a"}])
    split = JsonlReader(folder, **settings).read("t", RowChecks())
    return list(split.train), list(split.test), split.notices


# ---------------------------------------------------------------------------------------------- forms


def test_a_conversation_is_its_last_answer_behind_what_was_said_before(tmp_path: Path) -> None:
    (row,), _, notices = read(tmp_path, [NO_ROBOTS])
    assert row == Example(
        "t-train-1",
        "And a lake?",
        "Lake Junín.",
        "t",
        system="You are a guide.",
        turns=(Turn("Name a river in Peru.", "The Ucayali."),),
    )
    assert notices == ("t: the columns category, prompt, prompt_id of the train rows are not read",)


def test_each_answer_is_an_example_where_all_are_trained_on_and_a_test_row_is_its_last(tmp_path: Path) -> None:
    other = {"messages": said("Hi", "Hello", "Bye", "So long")}
    train, test, _ = read(tmp_path, [NO_ROBOTS, {"messages": said("One?", "1")}], [other], train_on="all")
    assert [(row.id, row.prompt, row.target, len(row.turns), row.system) for row in train] == [
        ("t-train-1-turn-1", "Name a river in Peru.", "The Ucayali.", 0, "You are a guide."),
        ("t-train-1", "And a lake?", "Lake Junín.", 1, "You are a guide."),
        ("t-train-2", "One?", "1", 0, None),
    ]
    assert [(row.id, row.prompt) for row in test] == [("t-test-1", "Bye")]


def test_answers_of_weight_0_are_read_and_not_trained_on(tmp_path: Path) -> None:
    for train_on in ("last", "all"):
        train, _, _ = read(tmp_path, [OPENAI], train_on=train_on)
        assert [(row.target, row.turns, row.system) for row in train] == [
            ("Four.", (Turn("2 + 2?", "Five."),), "You are terse.")
        ]


def test_an_instruction_and_its_input_have_a_blank_line_between_them(tmp_path: Path) -> None:
    bare = {**ALPACA, "instruction": "Name a planet.", "input": "", "output": "Mars"}
    train, _, notices = read(tmp_path, [ALPACA, bare])
    assert [(row.prompt, row.target) for row in train] == [
        ("Name the odd one out.\n\nOslo, Bergen, Lima", "Lima"),
        ("Name a planet.", "Mars"),
    ]
    assert notices == ("t: the column text of the train rows is not read",)


@pytest.mark.parametrize("column", ["answer", "answers", "completion"])
def test_a_prompt_has_its_answers_in_one_of_three_columns(tmp_path: Path, column: str) -> None:
    (row,), _, notices = read(tmp_path, [{"prompt": "p", column: ["one", "two", "one"], "system": "Be kind", "id": 7}])
    assert row == Example("7", "p", "one", "t", alternatives=("two",), system="Be kind")
    assert notices == ()


def test_a_conversation_may_end_with_the_users_message_and_have_several_answers(tmp_path: Path) -> None:
    row = {"messages": said("Hi", "Hello", "Name one."), "answers": ["Ada", "Bea"]}
    train, _, _ = read(tmp_path, [row], train_on="all")
    assert [(one.id, one.prompt, one.references) for one in train] == [
        ("t-train-1-turn-1", "Hi", ("Hello",)),
        ("t-train-1", "Name one.", ("Ada", "Bea")),
    ]


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"messages": said("Hi", "Hello"), "system": "Be kind"}, "Be kind"),
        ({"messages": [{"role": "developer", "content": "Be kind"}, *said("Hi", "Hello")]}, "Be kind"),
        ({"messages": said("Hi", "Hello", system=" ")}, None),
        ({"messages": said("Hi", "Hello"), "system": None}, None),
        ({"prompt": "p", "answer": "a", "system": ""}, None),
        ({"instruction": "p", "output": "a", "system": "Be kind"}, "Be kind"),
    ],
)
def test_a_system_prompt_is_in_a_column_or_a_message_and_a_blank_one_is_none(
    tmp_path: Path, row: Row, system: str | None
) -> None:
    (example,), _, _ = read(tmp_path, [row])
    assert example.system == system
    assert example.turns == ()


def test_a_setting_that_no_row_needs_is_reported(tmp_path: Path) -> None:
    _, _, notices = read(tmp_path, [COMPLETION], train_on="all")
    assert notices == (
        "t: benchmark.reader.train_on=all has no effect, since no training row has messages with an answer before the last",
    )
    with pytest.raises(ConfigError, match=r"benchmark\.reader\.train_on must be one of last, all; got 'every'"):
        JsonlReader(tmp_path, train_on="every")


def test_values_of_messages_that_are_not_read_are_reported_and_empty_ones_are_not(tmp_path: Path) -> None:
    row = {"messages": said("Hi", "Hello", name="Ida", tool_calls=None, function_call=None)}
    assert read(tmp_path, [row])[2] == ("t: the column messages.name of the train rows is not read",)


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "rows",
    [
        [NO_ROBOTS, {**NO_ROBOTS, "messages": said("Hi", "Hello")}],
        [ALPACA, {**ALPACA, "input": ""}],
        [{"prompt": 'a "quoted",\nlonger\ttext', "answers": ["é", "b"]}, {"prompt": "007", "answers": ["1.0"]}],
        [
            {**COMPLETION, "system": "Be brief", "id": "mine"},
            {"prompt": "p", "completion": "c", "system": "", "id": "x"},
        ],
    ],
    ids=["messages", "instruction", "answers", "completion"],
)
def test_every_format_holds_every_form(tmp_path: Path, write: Write, rows: list[Row]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train, _, _ = read(tmp_path / "a", rows, write=write)
    expected, _, _ = read(tmp_path / "b", rows)
    assert train == expected
    assert JsonlReader(tmp_path / "a").tasks() == ["t"]


def test_a_data_set_that_was_saved_with_its_splits_is_read_with_the_names_of_its_labels(tmp_path: Path) -> None:
    features = Features({"prompt": Value("string"), "answer": ClassLabel(names=["bad", "good"])})
    halves = {
        "train": {"prompt": ["Fine day!", "Poor soup."], "answer": [1, 0]},
        "test": {"prompt": ["Nice."], "answer": [1]},
    }
    data = DatasetDict({half: Dataset.from_dict(columns, features=features) for half, columns in halves.items()})
    data.save_to_disk(str(tmp_path / "t"))
    reader = JsonlReader(tmp_path)
    split = reader.read("t", RowChecks())
    assert [(row.target, row.source) for row in split.train] == [
        ("good", f"{tmp_path}/t/train, row 1"),
        ("bad", f"{tmp_path}/t/train, row 2"),
    ]
    assert [row.target for row in split.test] == ["good"]
    assert [path.suffix for path in reader.parts("t")["train"].files] == [".arrow"]
    assert "validation" not in reader.parts("t")
    DatasetDict(data | {"validation": data["test"]}).save_to_disk(str(tmp_path / "t"))
    assert [row.target for row in reader.parts("t")["validation"].rows if isinstance(row, Example)] == ["good"]


def test_halves_may_have_different_formats_and_a_half_in_two_formats_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [COMPLETION])
    write_table(tmp_path, "test", [ALPACA])
    split = JsonlReader(tmp_path).read("t", RowChecks())
    assert [row.target for row in (*split.train, *split.test)] == [" blue.", "Lima"]
    write_jsonl(tmp_path, "test", [ALPACA])
    with pytest.raises(
        DataError, match=r"^t: .*t\.test\.jsonl and .*t\.test\.csv both have its test rows; keep one of them$"
    ):
        JsonlReader(tmp_path).read("t", RowChecks())


def test_a_missing_half_is_named_with_the_format_of_the_other(tmp_path: Path) -> None:
    write_table(tmp_path, "train", [ALPACA])
    with pytest.raises(DataError, match=r"^t: no file .*/t\.test\.csv$"):
        JsonlReader(tmp_path).read("t", RowChecks())


@pytest.mark.parametrize(("write", "library"), [(write_parquet, "pyarrow.parquet"), (write_saved, "datasets")])
def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, write: Write, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "train", [COMPLETION])
    write_jsonl(tmp_path, "test", [ALPACA])
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == library:
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"read by (pyarrow|datasets); pip install 'see-lightning\[hub\]'$"):
        JsonlReader(tmp_path).read("t", RowChecks())


# ---------------------------------------------------------------------------------------------- faults

GOOD = {"messages": said("Fine?", "Yes.")}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "'messages' must be a list of messages, found a list of 0"),
        ("Hi", "'messages' must be a list, found a text that is not the JSON of one: "),
        ({"role": "user"}, "'messages' must be a list of messages, found an object (dict with role)"),
        (["Hi"], "message 1 must be an object of role and content, found str"),
        ([{"role": "user"}], "message 1 has no 'content'; found: role"),
        ([{"from": "human", "value": "Hi"}], "message 1 has no 'role' and no 'content'; found: from, value"),
        ([{"role": "user", "content": None}], "message 1 has no 'content'; found: role, content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of message 1 must be a string, found a list of 1"),
        ([{"role": "human", "content": "Hi"}], "message 1 has the role 'human'; allowed are system, user, assistant"),
        ([{"role": "user", "content": " "}], "message 1, of the user, is empty"),
        ([*said("Hi"), {"role": "tool", "content": "3"}], "message 2 has the role 'tool'; allowed are system, user, assistant"),
        ([*said("Hi", "Ho", tool_calls=[{"id": "1"}])], "message 2 has 'tool_calls'; calls of tools cannot be learned"),
        (said("Hi", "Ho", weight=0.5), "the weight of message 2 must be 0 or 1, found 0.5"),
        ([*said("a", "b"), {"role": "system", "content": "s"}], "message 3 has the role system; only the first message may"),
        ([*said("a"), *said("b", "c")], "message 2 has the role user after one of the user; user and assistant take turns"),
        (said("a", "b", system="s")[:1] + said("a", "b")[1:], "message 2 has the role assistant as the first turn; "),
        (said("a"), "the last message is the user's; a row ends with the assistant's, or has the column answers"),
        (said("a", "b", weight=0), "the last answer has the weight 0, so there is nothing to train on; leave the row out"),
        (said("a", "b\ud800"), "message 2 holds half a surrogate pair, which cannot be written as UTF-8"),
        (said("a <<pos>>", "b", "c", "d"), "the conversation contains the indicator '<<pos>>'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_conversation_stops_with_file_line_and_reason(tmp_path: Path, messages: Any, reason: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, [GOOD, {"messages": messages}])
    assert str(error.value).startswith(f"{tmp_path}/t.train.jsonl:2: {reason}")
    assert "Fix the row, or set data.on_bad_row=skip" in str(error.value)


ALLOWED = (
    "a row has prompt and answer (or completion, or answers, a list); or instruction, input and output; or messages"
)


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ([{"question": "q", "reply": "r"}], 1, f"missing key 'prompt', 'answer'; found: question, reply, id; {ALLOWED}"),
        ([{"prompt": "q"}], 1, f"missing key 'answer'; found: prompt, id; {ALLOWED}"),
        ([{"instruction": "q", "input": "i"}], 1, f"missing key 'output'; found: instruction, input, id; {ALLOWED}"),
        ([{"prompt": "q", "answer": "a", "completion": "b"}], 1, f"answer and completion both have the answer; keep one of them: {ALLOWED}"),
        ([{"prompt": "q", "answer": "a", **GOOD}], 1, f"columns of two forms, messages beside answer: {ALLOWED}"),
        ([{**ALPACA, "prompt": "q"}], 1, "columns of two forms, prompt and answer beside instruction, input, output: "),
        ([{**ALPACA, **GOOD}], 1, "columns of two forms, messages beside instruction, input, output: "),
        ([GOOD, ALPACA], 2, "missing key 'messages'; found: instruction, input, output, text, id"),
        ([ALPACA, COMPLETION], 2, "missing key 'instruction', 'output'; found: prompt, completion, id"),
        ([COMPLETION, {**COMPLETION, **GOOD}], 2, f"column messages of another form than prompt and completion: {ALLOWED}"),
        ([{"prompt": "q", "answers": "a"}], 1, "'answers' must be a list, found a text that is not the JSON of one: "),
        ([{"prompt": "q", "answers": {}}], 1, "'answers' must be a list of strings, found dict"),
        ([{"prompt": "q", "answers": []}], 1, "'answers' is an empty list"),
        ([{"instruction": " ", "input": "i", "output": "o"}], 1, "empty instruction"),
        ([{"prompt": "q", "answer": "a", "system": 3}], 1, "'system' must be a string, found int"),
        ([{"messages": said("a", "b", system="s"), "system": "t"}], 1, "two system prompts, in the column system and in messages"),
        ([{"messages": said("a", "b"), "answers": ["c"]}], 1, "the last message is not the user's, to which the column answers"),
    ],
    ids=str,
)  # fmt: skip
def test_columns_of_no_form_or_of_two_stop_with_file_line_and_what_is_allowed(
    tmp_path: Path, rows: list[Row], line: int, reason: str
) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, rows)
    assert str(error.value).startswith(f"{tmp_path}/t.train.jsonl:{line}: {reason}")


def test_where_no_answer_may_be_trained_on_the_setting_that_helps_is_named(tmp_path: Path) -> None:
    row = {"messages": [*said("a", "b"), *said("c", "d", weight=0)]}
    with pytest.raises(DataError, match="leave the row out, or set benchmark.reader.train_on=all"):
        read(tmp_path, [row])
    (example,), _, notices = read(tmp_path, [row], train_on="all")
    assert (example.target, notices) == ("b", ())
    nothing = {"messages": said("a", "b", weight=0)}
    with pytest.raises(DataError, match="all answers have the weight 0, so there is nothing to train on"):
        read(tmp_path, [nothing], train_on="all")
    _, (tested,), _ = read(tmp_path, [GOOD], [nothing])
    assert tested.target == "b", "a weight is of the training alone"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.train.csv", b"prompt,answer\np,a\nq\n", ":3: 1 cells under 2 columns"),
        ("t.train.csv", b'prompt,answer\n"p\nq",a\n\n"r"s,b\n', ":5: invalid CSV: "),
        ("t.train.csv", b'prompt,answer\n"p\nq",a\n\nr,\n', ":5: empty answer"),
        ("t.train.csv", b"prompt;answer\np;a\n", ": its columns seem to be separated by ';'"),
        ("t.train.csv", b"prompt,answer\n\xe9,a\n", ":2: not UTF-8: byte 0xe9"),
        ("t.train.tsv", b"prompt\tanswer\np\ta\tb\n", ":2: 3 cells under 2 columns"),
        ("t.train.json", b'{"prompt": "p"}', ": a JSON dict where an array of rows is needed"),
        ("t.train.json", b'[{"prompt": "p", "answer": "a"}, 3]', ", row 2: a JSON int where an object is needed"),
        ("t.train.json", b'[{"prompt": "p",\n]', ":2: invalid JSON"),
        ("t.train.parquet", b"PAR1 is not enough", ", row 1: it cannot be read: "),
    ],
    ids=str,
)
def test_a_bad_file_of_each_format_is_told_with_its_place(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    write_jsonl(tmp_path, "test", [{"prompt": "other?", "answer": "a"}])
    with pytest.raises(DataError) as error:
        JsonlReader(tmp_path).read("t", RowChecks())
    assert str(error.value).startswith(f"{tmp_path}/{name}{told}")


def test_a_typed_value_that_is_no_text_and_a_broken_folder_are_told_with_their_row(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [{"prompt": "p", "answer": "1"}])
    write_saved(tmp_path, "test", [{"prompt": "q", "answer": 1}])
    with pytest.raises(DataError, match=r"^.*/t/test, row 1: 'answer' must be a string, found int\. Fix the row"):
        JsonlReader(tmp_path).read("t", RowChecks())
    for path in (tmp_path / "t" / "test").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"^.*/t/test, row 1: it cannot be read: "):
        JsonlReader(tmp_path).read("t", RowChecks())


# ---------------------------------------------------------------------------------------------- what a conversation is


def example(**more: Any) -> Example:
    return Example("1", "And now?", "x", "t", **more)


def test_a_test_row_is_in_train_if_the_whole_conversation_is_and_not_if_its_last_message_is(tmp_path: Path) -> None:
    train = [{"messages": said("Hi", "Hello", "And now?", "x")}]
    other = {"messages": said("Ho", "Hello", "And now?", "x")}
    assert len(read(tmp_path, train, [other])[1]) == 1
    with pytest.raises(
        DataError, match=r"t\.test\.jsonl:1: this test prompt is also in the training rows, at .*jsonl:1"
    ):
        read(tmp_path, train, [{"messages": said("Hi", "Hello", "And now?", "y")}])


def test_digests_see_a_conversation_and_stay_where_there_is_none() -> None:
    turns = (Turn("Hi", "Hello"),)
    conversations: list[Mapping[str, Any]] = [
        {}, {"system": "Be kind"}, {"turns": turns}, {"turns": turns, "system": "Be kind"}, {"turns": turns * 2},
        {"turns": (Turn("Hi\x1fHello", "Hello"),)}, {"alternatives": ("Be kind",)},
    ]  # fmt: skip
    examples = [example(**one) for one in conversations]
    assert len({one.identity() for one in examples}) == len(examples)
    assert len({one.whole_prompt for one in examples[:5]}) == 5
    assert examples[0].identity() == "1\x1fAnd now?\x1fx"
    assert examples[0].whole_prompt == examples[-1].whole_prompt == "And now?"
