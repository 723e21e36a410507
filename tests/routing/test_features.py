"""Features behind a layer against transformers' hidden states; what a router learns, holds out and accepts."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from see_lightning.adapters import embeddings
from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.engine.router import check_prompts_suffice, learn_route
from see_lightning.errors import ConfigError
from see_lightning.evaluation.expert_scorer import ExpertScorer
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.models.architecture import decoder_layers
from see_lightning.routing.analytic import Analytic
from see_lightning.routing.centroid import Centroid
from see_lightning.routing.density import Density
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.knn import Knn
from see_lightning.routing.lda import Lda
from see_lightning.tasks.held_back import hold_back
from see_lightning.tasks.task import Task
from tests.adapters import small
from tests.models.zoo import random_model

PROMPTS = [small.TEMPLATE.prompt_ids(text) for text in ("a sum?", "why is the sky so blue?", "a sum?")]


def rows(name: str, number: int, text: str = "Tell.\n\n{name} {number}") -> tuple[Example, ...]:
    return tuple(Example(f"{name}-{n}", text.format(name=name, number=n), "x", name) for n in range(number))


def task(name: str, number: int, text: str = "Tell.\n\n{name} {number}") -> Task:
    return Task(name, rows(name, number, text), (), "rouge_l", 8)


class FirstState(FeatureRouter):
    """The score of a task is the first entry of the features, plus 1 for each task that is learned after it."""

    def fit(self, task, states_PH):
        self.kept[task] = {"states": states_PH}

    def score(self, states_PH):
        shift_T = torch.arange(len(self.kept) - 1, -1, -1)
        return states_PH[:, :1] + shift_T


class Noted(Centroid):
    """A centroid that notes what it is given."""

    def __init__(self, method, **settings):
        super().__init__(method, **settings)
        self.given = {}

    def learn(self, task, prompts):
        self.given["learn"] = [self.method.template.tokenizer.decode(prompt) for prompt in prompts]
        super().learn(task, prompts)

    def hold_out(self, task, prompts):
        self.given["hold_out"] = [self.method.template.tokenizer.decode(prompt) for prompt in prompts]
        super().hold_out(task, prompts)


@pytest.fixture
def method() -> Stl:
    made = Stl(Setup(small.pool("sky", "sea"), small.TEMPLATE, OptimConfig(), 0)).eval()
    made.response_cache = None
    return made


@pytest.mark.parametrize("layer", [1, 2])
def test_features_behind_a_layer_are_transformers_hidden_states_and_later_layers_are_not_computed(method, layer):
    pool, seen = method.pool, []
    inner = pool.model.get_base_model()
    layers = decoder_layers(inner)
    hooks = [one.register_forward_hook(lambda *_, n=n: seen.append(n)) for n, one in enumerate(layers, start=1)]
    found = embed_prompts(pool, PROMPTS, layer=layer)
    assert seen == [*range(1, layer + 1)] * len(PROMPTS)
    for hook in hooks:
        hook.remove()
    outputs, hook = [], layers[layer - 1].register_forward_hook(lambda *inputs: outputs.append(inputs[2]))
    for prompt in PROMPTS:
        with torch.no_grad(), pool.use_adapter(None):
            out = inner.base_model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        if layer < len(layers):  # of the last layer, transformers gives the states behind the final norm
            assert torch.equal(outputs[-1], out.hidden_states[layer])
    hook.remove()
    torch.testing.assert_close(found, torch.stack([output[0].mean(0) for output in outputs]))
    assert not torch.allclose(found, embed_prompts(pool, PROMPTS), atol=1e-3)


@pytest.mark.parametrize("layer", [0, 1])
def test_features_have_no_dropout_in_a_step_of_training_either_and_draw_nothing(layer):
    """GPT-2's blocks have dropout of their own."""
    pool = small.pool("sky", base=random_model("gpt2"), targets=["c_attn"])
    expected = embed_prompts(pool, PROMPTS, layer=layer)
    pool.train()
    pool.model.train()
    drawn = torch.get_rng_state()
    assert torch.equal(embed_prompts(pool, PROMPTS, layer=layer), expected)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert pool.training
    assert pool.model.training


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_the_model_does_not_have_is_refused(method, layer):
    with pytest.raises(ConfigError, match=rf"between 1 and the 2 of this model, .* got {layer}\."):
        Centroid(method, layer=layer)


def test_an_embedding_is_computed_once_for_each_layer(method):
    router, batch = Centroid(method), small.queries(["a sum?", "why?", "a sum?"])
    first, last = router.embed_queries(batch, 1), router.embed_queries(batch)
    assert len(router.embedded) == 4
    assert not torch.equal(first, last)
    layer = decoder_layers(method.pool.model.get_base_model())[0]
    hook = layer.register_forward_hook(lambda *_: pytest.fail("computed again"))
    assert torch.equal(router.embed_queries(batch, 1), first)
    hook.remove()
    assert method.counts["prefills"] == 9


def test_routers_that_share_embeddings_embed_training_prompts_once(method, monkeypatch):
    one, other = Centroid(method), Centroid(method)
    one.learn("sky", PROMPTS)
    assert not one.embedded
    one.keeps_embeddings, other.embedded = True, one.embedded
    one.learn("sky", PROMPTS)
    assert len(one.embedded) == 2
    monkeypatch.setattr(embeddings, "embed_prompts", lambda *_, **more: pytest.fail("computed again"))
    other.learn("sky", PROMPTS)
    assert torch.equal(other.kept["sky"]["key"], one.kept["sky"]["key"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"wordings": ("reworded",)}, r"words from as_is, input_only; got \('reworded',\)"),
        ({"wordings": "as_is"}, "is a list of words"),
        ({"wordings": ()}, "is a list of words"),
        ({"target_recall": 1.5}, "router.target_recall must be between 0 and 1"),
    ],
)
def test_an_unusable_setting_is_refused(method, settings, told):
    with pytest.raises(ConfigError, match=told):
        Centroid(method, **settings)


def test_a_query_is_scored_in_each_wording_and_read_once_where_both_are_the_same(method):
    router = Centroid(method, layer=1, wordings=("as_is", "input_only"))
    for name, text in (("sky", "Say why.\n\nthe sky"), ("sea", "Sing.\n\na sea")):
        router.learn(name, [small.TEMPLATE.prompt_ids(text)])
    texts = ["Say why.\n\nthe sea", "the sky"]
    before = method.counts["prefills"]
    found = router.scores(small.queries(texts))
    assert method.counts["prefills"] == before + 3
    one = Centroid(method, layer=1)
    one.kept = router.kept
    whole, body = (one.scores(small.queries(some)) for some in (texts, ["the sea", "the sky"]))
    torch.testing.assert_close(found, (whole + body) / 2)
    assert not torch.equal(whole[0], body[0])


@pytest.mark.parametrize("recall", [0.5, 0.9, 1.0])
def test_at_least_the_share_of_held_out_rows_is_accepted_and_what_lies_lower_is_not(method, recall):
    router = FirstState(method, target_recall=recall)
    held_out = [small.TEMPLATE.prompt_ids(f"sky {number}") for number in range(10)]
    router.learn("sky", PROMPTS)
    router.hold_out("sky", held_out)
    own = small.queries([f"sky {number}" for number in range(10)])
    accepted = [name is not None for name in router.route(own)]
    assert sum(accepted) == round(recall * 10)
    scores = router.scores(own)[:, 0]
    assert scores[torch.tensor(accepted)].min() == router.thresholds()[0]
    router.learn("sea", PROMPTS)  # all scores of the first task rise by 1, and its threshold with them
    router.hold_out("sea", held_out)
    least = float(scores[torch.tensor(accepted)].min())
    assert router.thresholds().tolist() == pytest.approx([least + 1, least])
    assert [name is not None for name in router.route(own)] == accepted


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Centroid, {}), (Density, {}), (Knn, {"k": 3}), (Analytic, {"features": 64}), (Lda, {})],
    ids=lambda one: one.__name__ if isinstance(one, type) else "",
)
@pytest.mark.parametrize("recall", [0.6, 1.0])
def test_every_router_of_features_accepts_at_least_the_share_of_held_out_rows(method, kind, settings, recall):
    router = kind(method, layer=1, target_recall=recall, **settings)
    texts = {"sky": "why is the sky so {}?", "sea": "the sea, {}, is deep"}
    for name, text in texts.items():
        router.learn(name, [small.TEMPLATE.prompt_ids(text.format(number)) for number in range(10, 22)])
        router.hold_out(name, [small.TEMPLATE.prompt_ids(text.format(number)) for number in range(30, 38)])
    for place, text in enumerate(texts.values()):
        own = small.queries([text.format(number) for number in range(30, 38)])
        least = float(router.thresholds()[place])
        reach = [score >= least for score in router.scores(own)[:, place].tolist()]
        assert recall <= sum(reach) / 8 < 1 or (recall == 1 and all(reach))
        assert min(score for score in router.scores(own)[:, place].tolist() if score >= least) == least


def test_a_density_must_lie_within_both_limits(method):
    router = Density(method, layer=1, target_recall=1.0)
    router.learn("sky", [small.TEMPLATE.prompt_ids(f"sky {number}") for number in range(10, 22)])
    router.hold_out("sky", [small.TEMPLATE.prompt_ids(f"sky {number}") for number in range(30, 38)])
    least = float(router.thresholds()[0])
    for limit, expected in ((-least + 1, least), (0.5, max(least, -0.5))):
        router.reject_above = limit
        assert router.thresholds().tolist() == [expected]


def test_without_a_share_nothing_is_kept_of_held_out_rows_and_everything_is_accepted(method):
    router = FirstState(method)
    router.learn("sky", PROMPTS)
    router.hold_out("sky", PROMPTS)
    assert list(router.state("sky")) == ["states"]
    assert router.thresholds().tolist() == [-torch.inf]
    assert router.route(small.queries(["a", "b"])) == ["sky", "sky"]
    assert Centroid(method).route(small.queries(["a"])) == [None]


def test_thresholds_survive_saving(method):
    router, again = (FirstState(method, target_recall=0.5) for _ in range(2))
    for name in ("sky", "sea"):
        router.learn(name, PROMPTS[:2])
        router.hold_out(name, PROMPTS[1:])
    for name in ("sky", "sea"):
        again.load_state(name, router.state(name))
    assert torch.equal(again.thresholds(), router.thresholds())
    assert router.nbytes() == 4 * 4 * 2 * method.pool.model.config.hidden_size


def test_a_router_gets_its_wordings_and_every_fifth_row_is_held_out(method):
    def told(texts: list[str]) -> list[str]:
        return [small.TEMPLATE.tokenizer.decode(small.TEMPLATE.prompt_ids(text)) for text in texts]

    router = method.chosen_router = Noted(method, wordings=("as_is", "input_only"), target_recall=0.9)
    learn_route(method, task("sky", 11))
    kept = [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert router.given["learn"] == told([text for n in kept for text in (f"Tell.\n\nsky {n}", f"sky {n}")])
    assert router.given["hold_out"] == told(["Tell.\n\nsky 4", "sky 4", "Tell.\n\nsky 9", "sky 9"])
    learn_route(method, replace(task("sky", 2), held_out=rows("sky", 9)[7:]))
    assert router.given["learn"] == told(["Tell.\n\nsky 0", "sky 0", "Tell.\n\nsky 1", "sky 1"])
    assert router.given["hold_out"] == told(["Tell.\n\nsky 7", "sky 7", "Tell.\n\nsky 8", "sky 8"])
    learn_route(method, task("sky", 6, "{name} {number}"))
    assert router.given["learn"] == told([f"sky {n}" for n in (0, 1, 2, 3, 5)]), "there is no definition to leave out"
    router = method.chosen_router = Noted(method)
    learn_route(method, task("sky", 6))
    assert router.given == {"learn": told([f"Tell.\n\nsky {n}" for n in range(6)])}


def test_a_prompt_that_is_held_out_is_not_learned_where_it_comes_again():
    twice = Task("sky", rows("sky", 5) + rows("sky", 5), (), "rouge_l", 8)
    learned, held_out = hold_back(twice, holds_out=True)
    assert [one.id for one in learned] == ["sky-0", "sky-1", "sky-2", "sky-3"] * 2
    assert [one.id for one in held_out] == ["sky-4"] * 2


@pytest.mark.parametrize(
    ("router", "settings", "number", "told"),
    [
        ("centroid.Centroid", {"target_recall": 0.9}, 1, "needs 1 different ones for training, and 20%"),
        ("centroid.Centroid", {"target_recall": 0.9}, 2, None),
        ("centroid.Centroid", {"target_recall": 0}, 1, None),
        ("density.Density", {"target_recall": 0.9}, 4, "needs 4 different ones for training, and 20%"),
        ("density.Density", {}, 3, "needs 4 different ones for training; sky has 3"),
        ("density.Density", {"target_recall": 0.9}, 5, None),
    ],
)
def test_a_task_with_too_few_rows_to_hold_some_back_is_refused(router, settings, number, told):
    cfg = OmegaConf.create({"router": {"_target_": f"see_lightning.routing.{router}", **settings}})
    nested = OmegaConf.create({"router": {"_target_": "see_lightning.routing.oracle.Oracle", "by": cfg.router}})
    for one in (cfg, nested):
        if told is None:
            check_prompts_suffice(one, [task("sky", number)])
        else:
            with pytest.raises(ConfigError, match=told):
                check_prompts_suffice(one, [task("sky", number)])


def test_an_answer_names_the_routed_expert_where_another_adapter_generates_it(method, monkeypatch):
    router = method.chosen_router = FirstState(method)
    router.learn("sky", PROMPTS)
    batch = small.queries(["a sum?", "why is the sky so blue?"])
    plain = method.answer(batch)
    monkeypatch.setattr(router, "adapters", lambda queries, routes: ["sea", None])
    mixed = method.answer(batch)
    assert [answer.expert for answer in plain] == [answer.expert for answer in mixed] == ["sky", "sky"]
    (other,), (base,) = method.generate_as("sea", batch.select([0])), method.generate_as(None, batch.select([1]))
    assert [answer.text for answer in mixed] == [other.text, base.text]
    assert [answer.text for answer in plain] != [answer.text for answer in mixed]
    assert ExpertScorer(method, rows=2).choose(["a sum?", "why is the sky so blue?"]) == ["sea", None]
