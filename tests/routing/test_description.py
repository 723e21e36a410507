"""The base model asked for the task, against the likelihood of whole texts by transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from see_lightning.errors import ConfigError
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from see_lightning.routing.description import Description, QueryText, labels, question
from see_lightning.tasks.prompts import AROUND, PromptTemplate
from tests.adapters import small
from tests.routing.fake import method_on, prompt_of

TASKS = {"sums": "Add the numbers. Write digits.\n\n", "moods": "Tell the mood of\na review!\n\n"}


def learned(**settings) -> Description:
    router = Description(method_on(small.pool(*TASKS)), **settings)
    for task, text in TASKS.items():
        router.learn(task, [list(prompt_of(f"{text}{row}")) for row in ("one", "two")])
    return router


def likelihoods(descriptions: list[str], query: str) -> list[float]:
    """Of every label, by a pass over question and label."""
    model, found = tiny_model().eval(), []
    prompt = small.TEMPLATE.prompt_ids(question(descriptions, query))
    for label in labels(len(descriptions) + 1):
        answer = small.TEMPLATE.text_ids(label)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        found.append(-float(cross_entropy(logits, torch.tensor(answer), reduction="sum")))
    return found


@pytest.mark.parametrize("tasks", [2, 30])
def test_the_label_with_the_largest_likelihood_is_chosen(tasks):
    descriptions = [f"Do thing {number}." for number in range(tasks)]
    router = Description(method_on(small.pool(*(f"t{number}" for number in range(tasks)))))
    for number, text in enumerate(descriptions):
        router.learn(f"t{number}", [list(prompt_of(f"{text}\n\n{row}")) for row in ("one", "two")])
    expected = likelihoods(descriptions, "Which?")
    assert router.log_likelihoods(descriptions, prompt_of("Which?")).tolist() == pytest.approx(expected, abs=1e-3)
    names = [*(f"t{number}" for number in range(tasks)), None]
    assert router.route(small.queries(["Which?"])) == [names[expected.index(max(expected))]]
    assert router.method.counts == {"prefills": 1}


def test_tasks_are_described_by_the_first_sentence_of_their_definition_or_as_told():
    kept = [
        bytes(one["description"].tolist()).decode() for one in learned(descriptions={"sums": "Größe"}).kept.values()
    ]
    assert kept == ["Größe", "Tell the mood of a review!"]


def test_the_last_option_is_the_base_model(monkeypatch):
    router = learned()
    monkeypatch.setattr(router, "log_likelihoods", lambda descriptions, prompt: torch.tensor([-2.0, -1.5, -1.0]))
    assert router.route(small.queries(["Which?"])) == [None]


def test_what_it_keeps_is_enough():
    router, again = learned(), Description(method_on(small.pool(*TASKS)))
    for task in TASKS:
        again.load_state(task, router.state(task))
    queries = small.queries(["One?", "Two?", "Three?"])
    assert again.route(queries) == router.route(queries)


def test_labels_differ_and_none_begins_as_another():
    for options in (1, 2, 10, 11, 26, 27, 100, 101):
        found = labels(options)
        assert len(set(found)) == options
        assert not [pair for pair in zip(sorted(found), sorted(found)[1:], strict=False) if pair[1].startswith(pair[0])]


@pytest.mark.parametrize("style", ["chat", *AROUND])
def test_the_query_is_found_in_its_prompt(style):
    template = PromptTemplate(tiny_tokenizer(), style=style, max_length=512)
    inner = QueryText(template)
    for query in ("Add 12 and 3.", "Qu", "another thing? And more", "x"):
        assert inner.text(inner.ids(template.prompt_ids(query))) == query


def test_a_long_query_is_cut_and_too_many_descriptions_are_refused():
    router = learned()
    longest = router.method.pool.model.config.max_position_embeddings
    asked = router._ask(["Add.", "Tell."], prompt_of("x" * longest), 1)
    assert longest - 10 < len(asked) + 1 <= longest
    with pytest.raises(ConfigError, match="about 2 tasks in .* give shorter router.descriptions"):
        router._ask(["Add. " * longest, "Tell."], prompt_of("Which?"), 1)


def test_without_tasks_the_base_model_answers():
    assert Description(method_on(small.pool())).route(small.queries(["Which?"])) == [None]
