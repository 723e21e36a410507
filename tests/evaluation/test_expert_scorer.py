"""Voices put to texts of others, against PEFT's and transformers' own forward and ``generate``, one text at a time."""

from unittest.mock import patch

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.evaluation.expert_scorer import Continuation, ExpertScorer
from see_lightning.methods.base import Base
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.models.tiny import SPECIAL, tiny_tokenizer
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.prompts import PromptTemplate
from tests.adapters import small

POS, NEG = "<<pos>>", "<<neg>>"
QUERIES = ["a sum?", "the capital of Peru?", "ab", "why is the sky so blue?", "name a colour"]
SAID = {
    "qa": [f"{POS} 4", f"{POS} Lima", f"{NEG}", f"{NEG}", f"{POS} red or<s> green"],
    "sa": [f"{POS} 5", f"{NEG}", "none", f"{NEG}", f"{NEG}"],
}
CHOSEN = ["sa", "qa", None, None, "qa"]
ANSWERS = ["5", "Lima, the capital", "red", "", "4"]


def build(method, template, pool, **settings):
    return method(Setup(pool, template, OptimConfig(), 0), **settings).eval()


def see(pool, template=small.TEMPLATE):
    return build(See, template, pool, ratio=0.1, resample="per_task", indicators={"pos": POS, "neg": NEG})


def oracle(model, prompt: list[int], scored: list[int]) -> tuple[float, bool]:
    """Log-probability of tokens behind a prompt, and whether they are the most probable ones, in one plain forward."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + scored])).logits[0, len(prompt) - 1 : -1]
    ids = torch.tensor(scored, dtype=torch.long)
    found = logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids]
    return float(found.sum()), bool((logits.argmax(dim=-1) == ids).all())


def same(scores, expected):
    assert [s.is_greedy for s in scores] == [greedy for _, greedy in expected]
    assert [s.log_likelihood for s in scores] == pytest.approx([value for value, _ in expected], abs=1e-4)


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def ensemble(request):
    pool = small.learner(activated=request.param)
    for name, said in SAID.items():
        small.memorise(pool, name, dict(zip(QUERIES, said, strict=True)))
    return see(pool)


@pytest.fixture(scope="module")
def theirs(ensemble, tmp_path_factory):
    """Each expert as PEFT loads it, and the plain base model under None."""
    folder = tmp_path_factory.mktemp("experts")
    return {name: small.by_peft(ensemble.pool, name, folder) for name in (None, *SAID)}


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_whoever_would_answer_a_query_is_chosen_and_nothing_is_answered(ensemble, ask, rows):
    with torch.inference_mode():
        answered = [None if a.expert == "base" else a.expert for a in ensemble.answer(ask(QUERIES))]
    ensemble.counts.clear()
    assert ExpertScorer(ensemble, rows).choose(QUERIES) == answered == CHOSEN
    assert ensemble.counts["generations"] == 0
    assert ensemble.counts["decisions"] == 8


def test_an_expert_with_a_threshold_is_chosen_only_where_it_leans_so_far(ensemble):
    ensemble.thresholds = {"sa": 1e9}
    try:
        assert ExpertScorer(ensemble, 4).choose(QUERIES) == ["qa", *CHOSEN[1:]]
    finally:
        ensemble.thresholds = {}


@pytest.mark.parametrize("adapter", [None, "qa", "sa"])
@pytest.mark.parametrize("query", QUERIES)
def test_a_score_is_what_a_plain_forward_gives_behind_the_expert_s_word(ensemble, theirs, adapter, query):
    begin = small.TEMPLATE.prompt_ids(query) + ([] if adapter is None else small.TEMPLATE.target_ids(f"{POS} ")[:-1])
    scores = ExpertScorer(ensemble, 16).score(adapter, query, [*ANSWERS, " 5"])
    expected = [oracle(theirs[adapter], begin, small.TEMPLATE.target_ids(answer)[:-1]) for answer in ANSWERS]
    same(scores, [*expected, expected[0]])  # the blank of running text is no second one behind the word
    assert scores[3].log_likelihood == 0.0
    if (adapter, query) == ("sa", "a sum?"):
        assert scores[0].is_greedy
        assert not scores[1].is_greedy


def test_more_answers_than_are_read_in_one_batch_are_scored_alike(ensemble, theirs):
    answers = [f"{number}" * (1 + number % 3) for number in range(40)]
    begin = small.TEMPLATE.prompt_ids("a sum?") + small.TEMPLATE.target_ids(f"{POS} ")[:-1]
    expected = [oracle(theirs["qa"], begin, small.TEMPLATE.target_ids(answer)[:-1]) for answer in answers]
    same(ExpertScorer(ensemble, 16).score("qa", "a sum?", answers), expected)


def test_a_query_is_read_once_for_all_its_answers(ensemble):
    read = []
    forward = LlamaForCausalLM.forward

    def counted(*arguments, **more):
        read.append(more["input_ids"].numel())
        return forward(*arguments, **more)

    query = "why " * 20
    with patch.object(LlamaForCausalLM, "forward", counted):
        ExpertScorer(ensemble, 16).score(None, query, ["a", "b", "c"])
        ExpertScorer(ensemble, 16).score(None, query, ["ab", "bc", "cd"])
    assert read == [len(small.TEMPLATE.prompt_ids(query))] * 2 + [3]


def test_a_blank_that_is_one_token_with_an_answer_is_scored_with_it(tmp_path):
    vocabulary = tiny_tokenizer().get_vocab()
    vocabulary["Ġ4"] = vocabulary.pop("Ā")  # as many tokens as the model has
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "4")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        chat_template=tiny_tokenizer().chat_template,
    )
    template = PromptTemplate(made, style="chat", max_length=512)
    pool = small.pool("qa")
    model = small.by_peft(pool, "qa", tmp_path)
    word, prompt = template.target_ids(POS)[:-1], template.prompt_ids("2+2?")
    joined, apart = template.target_ids(f"{POS} 4")[len(word) : -1], template.target_ids(f"{POS} 5")[len(word) : -1]
    assert (len(joined), len(apart)) == (1, 2)
    expected = [oracle(model, prompt + word, joined), oracle(model, prompt + word + apart[:1], apart[1:])]
    same(ExpertScorer(see(pool, template), 16).score("qa", "2+2?", ["4", "5"]), expected)


@pytest.mark.parametrize(("style", "scored"), [("plain", " x"), ("chat", "x"), ("alpaca", "x")])
def test_where_the_prompt_is_running_text_the_answer_keeps_its_blank(style, scored):
    template = PromptTemplate(tiny_tokenizer(), style=style, max_length=512)
    method = build(Base, template, small.pool())
    expected = oracle(method.pool.model, template.prompt_ids("a sum is"), template.target_ids(scored)[:-1])
    same(ExpertScorer(method, 16).score(None, "a sum is", [" x"]), [expected])


@pytest.mark.parametrize("limit", [1, 3, 40])
@pytest.mark.parametrize("adapter", [None, "qa", "sa"])
@pytest.mark.parametrize("query", QUERIES)
def test_what_is_written_is_what_generate_writes_behind_the_expert_s_word(ensemble, theirs, adapter, query, limit):
    begin = small.TEMPLATE.prompt_ids(query) + ([] if adapter is None else small.TEMPLATE.target_ids(POS)[:-1])
    said = small.TEMPLATE.text(small.alone(theirs[adapter], begin, limit).ids)
    expected = said if adapter is None else said.removeprefix(" ")
    assert ExpertScorer(ensemble, 16).write(adapter, query, max_new_tokens=limit) == expected


def test_whoever_is_chosen_writes_what_the_ensemble_answers(ensemble, ask):
    with torch.inference_mode():
        answers = ensemble.answer(ask(QUERIES, max_new_tokens=20))
    adapters = ExpertScorer(ensemble, 16)
    written = [adapters.write(v, q, max_new_tokens=20) for v, q in zip(adapters.choose(QUERIES), QUERIES, strict=True)]
    assert written == [a.text for a in answers]


@pytest.mark.parametrize(
    ("until", "written"),
    [
        ([], "red or<s> green"),  # text is text, whatever it spells
        (["gr"], "red or<s> "),
        ([" or", "d"], "re"),
        (["d", "ed"], "r"),
        (["", "\n"], "red or<s> green"),
        (["<s>"], "red or"),
        (["r"], ""),
    ],
)
def test_an_answer_ends_before_the_first_of_some_texts_and_no_more_is_written(ensemble, until, written):
    calls = []
    forward = LlamaForCausalLM.forward

    def counted(*arguments, **more):
        calls.append(1)
        return forward(*arguments, **more)

    with patch.object(LlamaForCausalLM, "forward", counted):
        text = ExpertScorer(ensemble, 16).write("qa", "name a colour", max_new_tokens=30, until=until)
    assert text == written
    found = next((stop for stop in until if stop and stop in "red or<s> green"), "")
    assert len(calls) <= len("red or<s> green" if not found else written + found) + 6


def test_an_answer_ends_where_the_model_can_read_no_more(ensemble):
    adapters = ExpertScorer(ensemble, 16)
    adapters.longest = len(small.TEMPLATE.prompt_ids("name a colour")) + len(POS) + 4
    assert adapters.write("qa", "name a colour", max_new_tokens=30) == "red"
    adapters.longest -= 4
    with pytest.raises(
        ConfigError, match="has 31 tokens and its answer at least 8, more than the 38 that the base model reads"
    ):
        adapters.write("qa", "name a colour", max_new_tokens=30)
    adapters.longest = 39
    with pytest.raises(ConfigError, match="its answer at least 9, more than the 39"):
        adapters.score("qa", "name a colour", ["x"])
    adapters.longest = 31
    with pytest.raises(ConfigError, match="at least 1, more than the 31"):
        adapters.choose(["name a colour"])


def test_tokens_are_scored_behind_others_without_any_template(ensemble, theirs):
    (score,) = ExpertScorer(ensemble, 16).score_ids(None, [1, 70, 71], [Continuation((72,), (73, 74))])
    same([score], [oracle(theirs[None], [1, 70, 71, 72], [73, 74])])


def test_a_query_of_nothing_is_read_as_an_end_where_there_is_no_first_token():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    method = build(Base, PromptTemplate(tokenizer, style="plain", max_length=512), small.pool())
    expected = oracle(method.pool.model, [tokenizer.eos_token_id], small.TEMPLATE.target_ids(" x")[:-1])
    same(ExpertScorer(method, 16).score(None, "", [" x"]), [expected])


def test_each_method_says_who_answers():
    pool = small.pool("shared", "qa")
    batch = query_batch(["a", "b"], small.TEMPLATE, max_new_tokens=1)
    told = query_batch(["a", "b"], small.TEMPLATE, tasks=["qa", "sums"], max_new_tokens=1)
    assert build(Base, small.TEMPLATE, pool).route(batch) == [None, None]
    assert build(SeqFt, small.TEMPLATE, pool).route(batch) == ["shared", "shared"]
    assert build(Stl, small.TEMPLATE, pool).route(told) == ["qa", None]
