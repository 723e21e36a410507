"""Definitions are what prompts have in common, and a variant changes nothing else."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from see_lightning.config.schema import PARAPHRASED, ModelConfig
from see_lightning.config.search_path import CONF, register
from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Body, Example
from see_lightning.errors import ConfigError
from see_lightning.models.base import load_tokenizer
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Benchmark, Task
from see_lightning.tasks.variants import definition, input_only, paraphrased, variant_of


def rows(*prompts: str, **more: object) -> tuple[Example, ...]:
    return tuple(Example(f"id {n}", prompt, f"answer {n}", "qa", **more) for n, prompt in enumerate(prompts))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["Add.\n\n1 and 2", "Add.\n\n3 and 4"], "Add."),
        (["Add.\n\n1 and 2", "Add.\n\n1 and 4"], "Add."),  # what inputs share is no definition
        (["Add.\n\n1\n\n2", "Add.\n\n1\n\n3"], "Add.\n\n1"),  # unless a blank line ends it
        (["Do it.\n\nLike so.\n\nInput: a", "Do it.\n\nLike so.\n\nInput: b"], "Do it.\n\nLike so."),
        (["Add.\n\n12", "Add.\n\n1"], "Add."),  # one prompt is the beginning of another
        (["Add.\n1 and 2", "Add.\n3 and 4"], "Add."),  # without a blank line a line break ends it
        (["Add.\nTwo: 1 and 2", "Add.\nTwo: 3 and 4"], "Add."),
        (["Add.\n\nTwo:\n1", "Add.\n\nTwo:\n3"], "Add."),
        (["Add. 1 and 2", "Add. 3 and 4"], ""),
        (["Add.\n\n1", "Subtract.\n\n1"], ""),
        (["Add.\n\n1", "Else", "Add.\n\n2"], ""),
        (["Add.\n\n1"], "Add."),
    ],
)
def test_the_definition_is_the_common_beginning_up_to_its_last_blank_line(prompts, expected):
    assert definition(rows(*prompts)) == definition(rows(*prompts[::-1])) == expected


def test_a_variant_keeps_ids_targets_and_inputs():
    given = rows("Add.\n\n1 and 2", "Add.\n\nAdd.\n\n3")
    for found, prompts in (
        (input_only(given, "Add."), ["1 and 2", "Add.\n\n3"]),
        (
            paraphrased(given, "Add.", "What is the sum?"),
            ["What is the sum?\n\n1 and 2", "What is the sum?\n\nAdd.\n\n3"],
        ),
    ):
        assert [example.prompt for example in found] == prompts
        assert [(e.id, e.target, e.task) for e in found] == [(e.id, e.target, e.task) for e in given]


def test_a_line_break_behind_a_definition_goes_with_it_and_stays_behind_a_paraphrase():
    given = rows("Add.\n1 and 2", "Add.\n\n3")
    assert [example.prompt for example in input_only(given, "Add.")] == ["1 and 2", "\n3"]
    assert [example.prompt for example in paraphrased(given, "Add.", "Sum?")] == ["Sum?\n1 and 2", "Sum?\n\n3"]


def test_what_may_be_cut_of_a_prompt_is_still_the_same_text():
    prompt = "Sum up.\n\nText: a long one. Summary:"
    start = prompt.index("a long")
    (given,) = rows(prompt, body=Body(start, start + len("a long one")))
    assert input_only([given], "Sum up.")[0].shortened(6).prompt == "Text: a long. Summary:"
    assert paraphrased([given], "Sum up.", "In short?")[0].shortened(1).prompt == "In short?\n\nText: a. Summary:"
    (all_of_it,) = rows(prompt, body=Body(0, len(prompt)))
    assert input_only([all_of_it], "Sum up.")[0].shortened(7).prompt == "Text: a"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    tokenizer = load_tokenizer(ModelConfig(source="tiny", name="tiny"), tmp_path_factory.mktemp("cache"))
    return PromptTemplate(tokenizer, style="plain", max_length=40)


def task(train: tuple[Example, ...], test: tuple[Example, ...]) -> Task:
    return Task(name="qa", train=train, test=test, score="rouge_l", max_new_tokens=5, notices=("told",), held_out=train)


TRAIN = rows("Add.\n\n1", "Add.\n\n2")


def test_a_variant_of_a_task_is_asked_under_its_name_and_trains_nobody(template):
    found = variant_of(task(TRAIN, rows("Add.\n\n3")), "paraphrased", {"qa": ("Sum?",)}, template, 2)
    assert found == Task(name="qa", train=(), test=rows("Sum?\n\n3"), score="rouge_l", max_new_tokens=5)


def test_each_variant_takes_its_own_paraphrase(template):
    given, texts = task(TRAIN, rows("Add.\n\n3")), {"qa": ("Sum?", "total pls", "Dear sum")}
    found = [variant_of(given, name, texts, template, 2).test[0].prompt for name in PARAPHRASED[:3]]
    assert found == ["Sum?\n\n3", "total pls\n\n3", "Dear sum\n\n3"]
    with pytest.raises(
        ConfigError,
        match=r"variants=\[paraphrased_4\]: benchmark.paraphrases.qa holds 3 of the 4 texts .*"
        r"\(benchmark.paraphrases.qa=\['...','...','...','...'\]\), or leave paraphrased_4 out",
    ):
        variant_of(given, "paraphrased_4", texts, template, 2)
    with pytest.raises(ConfigError, match=r"holds 0 of the 2 texts .*\(\+benchmark.paraphrases.qa="):
        variant_of(given, "paraphrased_2", {}, template, 2)


def test_a_task_without_training_rows_has_the_definition_of_its_test_rows(template):
    given = task((), rows("Add.\n3", "Add.\n4"))
    found = variant_of(given, "input_only", {}, template, 2, "ood.variants")
    assert [example.prompt for example in found.test] == ["3", "4"]
    with pytest.raises(ConfigError, match=r"^ood.variants=\[input_only\]: the 2 test prompts of qa have no definition"):
        variant_of(task((), rows("3", "4")), "input_only", {}, template, 2, "ood.variants")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"qa": "Sum?"}, ("Sum?",)),
        ({"qa": ["Sum?", "Total?"]}, ("Sum?", "Total?")),
        ({"qa": None}, ()),
        ({"qa": ["Sum?", " "]}, r"benchmark.paraphrases.qa must be a text or a list of texts; it holds ' '"),
        ({"qa": ["Sum?", 3]}, r"it holds 3"),
        ({"qa": ["a"] * 10}, r"holds 10 texts, of at most 9"),
    ],
)
def test_paraphrases_are_a_text_or_a_list(given, told):
    def made():
        return Benchmark(name="b", version="1", licence="", citation="", reader=None, tasks={}, paraphrases=given)

    if isinstance(told, str):
        with pytest.raises(ConfigError, match=told):
            made()
    else:
        assert made().paraphrases == {"qa": told}


@pytest.mark.parametrize(
    ("given", "variant", "told"),
    [
        (task(rows("1", "2"), rows("3")), "input_only", "2 training prompts of qa have no definition in common.*Leave"),
        (task(rows("\n\n1", "\n\n2"), rows("\n\n3")), "paraphrased", "no definition in common"),
        (task(TRAIN, rows("Add.\n\n3", "Add: 4")), "input_only", "id 1 does not begin as the training.*'Add.'"),
        (task(TRAIN, rows("Add.\n\n ")), "input_only", "id 0 of qa has no input behind its definition"),
        (task(TRAIN, rows("Add.\n\n3")), "paraphrased", r"benchmark.paraphrases.qa is not set.*'Add.'.*\+benchmark"),
        (task(TRAIN, rows(f"Add.\n\n{'9' * 36}")), "input_only", r"id 0 of qa has \d+ tokens, of at most 33"),
    ],
)
def test_a_task_of_which_there_is_no_such_variant_is_refused(template, given, variant, told):
    with pytest.raises(ConfigError, match=rf"variants=\[{variant}\]: .*{told}"):
        variant_of(given, variant, {}, template, 2)


def test_a_prompt_that_a_paraphrase_makes_too_long_is_cut_where_it_may_be_and_told(template):
    given = task(TRAIN, rows("Add.\n\n1234567890", body=Body(6, 16)) + rows("Add.\n\n3"))
    found = variant_of(given, "paraphrased", {"qa": ("What is the sum of these",)}, template, 2)
    long, short = (example.prompt for example in found.test)
    assert len(template.prompt_ids(long)) <= 33
    assert "What is the sum of these\n\n1234567890".startswith(long)
    assert long.startswith("What is the sum of these\n\n1")
    assert short == "What is the sum of these\n\n3"
    assert found.notices == ("qa, paraphrased: 1 of 2 prompts were cut to fit model.max_length=40",)


def in_a_row(text: str, size: int) -> set[tuple[str, ...]]:
    """All runs of so many words of a text, in small letters."""
    words = text.lower().split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


@pytest.mark.parametrize(
    ("order", "wordings"),
    [("pocket_5", 1), pytest.param("superni_10", 3, marks=pytest.mark.data)],
    ids=lambda x: str(x),
)
def test_every_paraphrase_that_is_ours_differs_from_the_definition_and_from_the_others(order, wordings):
    register()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("run", overrides=[f"order={order}"])
    benchmark = instantiate(cfg.benchmark)
    assert list(benchmark.paraphrases) == cfg.order.tasks
    beginnings = []
    for name in cfg.order.tasks:
        texts = (definition(benchmark.reader.read(name, RowChecks()).train), *benchmark.paraphrases[name])
        assert len(texts) == 1 + wordings
        assert len({text.split()[0].lower() for text in texts}) == len(texts), name
        for place, text in enumerate(texts):
            for other in texts[:place]:
                shared = in_a_row(text, 4) & in_a_row(other, 4)
                assert not shared or name == "pos", shared  # of the list of tags some are names
        beginnings += [text[:12] for text in texts[1:]]
        if wordings == 3:
            plain, short, long = (len(text.split()) for text in texts[1:])
            assert short < 36, "typed in haste"
            assert short < min(plain, long) / 1.5
            assert long > max(48, 0.75 * len(texts[0].split())) or name == "pos", "a letter, or rules"
    assert len(set(beginnings)) == len(beginnings), "one beginning for several tasks would tell nothing"
