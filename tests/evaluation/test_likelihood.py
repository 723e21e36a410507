"""Likelihoods of reference answers: which tokens count, and how batches of unlike rows are read."""

import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from see_lightning.adapters.answer_logits import prefix_tokens
from see_lightning.data.example import Example
from see_lightning.errors import Refusal
from see_lightning.evaluation.likelihood import adapter_of, likelihoods, perplexity, token_nlls
from see_lightning.routing.arrow import Arrow
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task
from tests.adapters import small


def method_on(pool, accept_prefix: str) -> SimpleNamespace:
    """A method whose routed experts answer."""
    router = SimpleNamespace(adapters=lambda queries, routes: routes)
    return SimpleNamespace(
        pool=pool,
        template=small.TEMPLATE,
        accept_prefix_of=lambda adapter: accept_prefix if adapter else "",
        router=router,
    )


def template_of(*pieces: str) -> PromptTemplate:
    """A tokenizer of bytes that joins letters to these pieces, which are merged from the left."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, vocabulary = [], ["</s>", *alphabet]
    for piece in (piece.replace(" ", "Ġ") for piece in pieces):
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocabulary:
                merges.append((piece[: end - 1], piece[end - 1]))
                vocabulary.append(piece[:end])
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PromptTemplate(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), style="plain", max_length=64
    )


@pytest.mark.parametrize(
    ("pieces", "answer", "counted"),
    [
        ((), "4", ["4", "</s>"]),
        ((">> ",), "4", ["4", "</s>"]),
        ((" four",), "four", [" four", "</s>"]),  # the blank is the answer's, as in words of most vocabularies
        ((), " 4", [" ", "4", "</s>"]),
        ((), "", ["</s>"]),
        ((), "</s>", [*"</s>", "</s>"]),  # text, whatever it spells
        ((), "<<pos>> 4", [*"<<pos>> 4", "</s>"]),
        ((), "ä", ["\ufffd", "\ufffd", "</s>"]),
    ],
)
def test_what_says_nothing_but_the_acceptance_is_given_and_the_rest_counts(pieces, answer, counted):
    template = template_of(*pieces)
    ids = template.target_ids(f"<<pos>> {answer}")
    given = prefix_tokens(ids, template.target_ids("<<pos>> ")[:-1])
    assert [template.tokenizer.decode([token]) for token in ids[given:]] == counted


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("adapter", ["one", "two", None])
def test_targets_of_unlike_lengths_are_as_likely_together_as_by_hugging_face_alone(tmp_path, activated, rows, adapter):
    """Prompts begin alike, so that the beginning is read once; one target is but the token that ends it."""
    pool = small.pool("one", "two", activated=activated)
    start = "Is the sky as blue over the sea as it is over the ice, or greyer? " * 2
    prompts = [small.TEMPLATE.prompt_ids(f"{start}{'no' * number}") for number in (3, 0, 7, 1, 2)]
    targets = [small.TEMPLATE.target_ids(text) for text in ("x", "a longer answer", "", "yy", "zzzz")]
    model = small.by_peft(pool, adapter, tmp_path)
    for prompt, target, nlls in zip(
        prompts, targets, token_nlls(pool, adapter, prompts, targets, rows=rows), strict=True
    ):
        with torch.inference_mode():
            logits_SV = model(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(dim=-1)
        expected = [-logits_SV[len(prompt) - 1 + place, token] for place, token in enumerate(target)]
        torch.testing.assert_close(nlls, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_answers_that_are_all_over_at_once_are_read():
    pool = small.pool("one")
    prompts = [small.TEMPLATE.prompt_ids(query) for query in ("Sky?", "And the sea?")]
    found = token_nlls(pool, "one", prompts, [small.TEMPLATE.target_ids("")] * 2, rows=2)
    with_more = token_nlls(pool, "one", prompts, [small.TEMPLATE.target_ids(""), [9, 9]], rows=2)
    torch.testing.assert_close(found[0], with_more[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("accept_prefix", ["++ ", ""])
def test_each_answer_is_that_of_the_voice_which_answered_and_only_an_accepting_one_is_given_its_word(
    tmp_path, accept_prefix
):
    pool = small.pool("one", "two")
    tests = [Example(f"t-{n}", f"Query {n}{'?' * n}", "answer"[: n + 1], "t") for n in range(5)]
    adapters = ["two", "base", "one", "base", "two"]
    records = [{"id": test.id, "expert": adapter} for test, adapter in zip(tests, adapters, strict=True)]
    task = Task(name="t", train=(), test=tuple(tests), score="exact_match", max_new_tokens=4)
    method = method_on(pool, accept_prefix)
    found = likelihoods(method, task, records[::-1], rows=2)
    assert [(one.id, one.expert) for one in found] == [(record["id"], record["expert"]) for record in records]
    for one, test, adapter in zip(found, tests, adapters, strict=True):
        given = small.TEMPLATE.target_ids("" if adapter == "base" else accept_prefix)[:-1]
        prompt, answer = small.TEMPLATE.prompt_ids(test.prompt) + given, small.TEMPLATE.target_ids(test.target)
        model = small.by_peft(pool, None if adapter == "base" else adapter, tmp_path)
        with torch.inference_mode():
            logits_SV = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)
        expected = [-float(logits_SV[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]
        assert one.tokens == len(answer)
        assert one.nll == pytest.approx(sum(expected), abs=1e-4)


def test_under_a_mixture_the_mixture_that_answers_is_measured_and_the_base_model_where_it_answers():
    pool = small.pool("one", "two")
    method = method_on(pool, "")
    method.router = Arrow(method, top_k=2)
    tests = [Example(f"t-{n}", f"Query {n}?", "answer", "t") for n in range(3)]
    records = [{"id": test.id, "expert": name} for test, name in zip(tests, ["two", "base", "one"], strict=True)]
    task = Task(name="t", train=(), test=tuple(tests), score="exact_match", max_new_tokens=4)
    found = likelihoods(method, task, records, rows=2)
    assert [one.expert for one in found] == ["two", "base", "one"]
    for one, test in zip(found, tests, strict=True):
        prompt, answer = small.TEMPLATE.prompt_ids(test.prompt), small.TEMPLATE.target_ids(test.target)
        with torch.no_grad(), pool.use_adapter(None if one.expert == "base" else "(arrow)") as model:
            logits_SV = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)
        expected = [-float(logits_SV[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]
        assert one.nll == pytest.approx(sum(expected), abs=1e-4)


def test_perplexity_is_that_of_the_tokens_and_not_a_mean_over_answers():
    fair, sure = (10 * math.log(2), 10), (0.0, 1)
    assert perplexity([fair]) == pytest.approx(2)
    assert perplexity([fair, sure]) == pytest.approx(2 ** (10 / 11))


@pytest.mark.parametrize("names", [(), ("one", "two")])
def test_an_answer_of_nobody_in_particular_is_refused_where_there_is_not_one_adapter(names):
    with pytest.raises(
        Refusal,
        match=r"do not name the adapter that gave them, and it has the adapters (\(none\)|one, two); exactly one",
    ):
        adapter_of(None, names)
