"""What a setting may be, and what is said of one that may not."""

import re

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from see_lightning.config.schema import (
    AdapterConfig,
    DataConfig,
    IndicatorConfig,
    ModelConfig,
    OptimConfig,
    OrderConfig,
    RunConfig,
)
from see_lightning.config.search_path import CONF
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError, nearest

NAN = float("nan")


def given(config: type, **settings: object) -> object:
    """A part of the configuration, with what is mandatory filled in."""
    mandatory: dict[type, dict[str, object]] = {
        ModelConfig: {"source": "tiny", "name": "tiny"},
        OrderConfig: {"name": "mine", "tasks": ["qa"]},
    }
    return config(**{**mandatory.get(config, {}), **settings})


REFUSED = [
    (ModelConfig, {"source": "hup"}, "model.source must be one of package, tiny, hub; got 'hup'. Did you mean 'hub'?"),
    (ModelConfig, {"prompt": "chats"}, "model.prompt must be one of chat, plain, alpaca, llama2"),
    (ModelConfig, {"dtype": "bf61"}, "model.dtype must be one of auto, bf16, fp32; got 'bf61'. Did you mean 'bf16'?"),
    (ModelConfig, {"max_length": 15}, "model.max_length must be at least 16; got 15"),
    (
        ModelConfig,
        {"prompt": "plain", "template_args": {"enable_thinking": False}},
        "model.template_args are for model.prompt=chat; the style is plain",
    ),
    (ModelConfig, {"revision": "main"}, "belong to model.source=hub, not tiny"),
    (ModelConfig, {"trust_remote_code": True}, "belong to model.source=hub, not tiny"),
    (AdapterConfig, {"rank": 0}, "adapter.rank must be at least 1; got 0"),
    (AdapterConfig, {"dropout": 1.0}, "adapter.dropout must be between 0 and 0.99; got 1"),
    (AdapterConfig, {"dropout": -0.1}, "adapter.dropout must be between 0 and 0.99"),
    (AdapterConfig, {"targets": []}, "adapter.targets is empty"),
    (OptimConfig, {"lr": -1e-9}, "optim.lr must be at least 0"),
    (OptimConfig, {"lr": NAN}, "optim.lr must be at least 0; got nan"),
    (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay must be at least 0"),
    (OptimConfig, {"epochs": 0}, "optim.epochs must be at least 1"),
    (OptimConfig, {"global_batch_size": 0}, "optim.global_batch_size must be at least 1"),
    (OptimConfig, {"warmup": 1.01}, "optim.warmup must be between 0 and 1; got 1.01"),
    (OptimConfig, {"grad_clip": -1.0}, "optim.grad_clip must be at least 0"),
    (OptimConfig, {"schedule": "cosin"}, "optim.schedule must be one of cosine, linear, constant; got 'cosin'. Did you"),
    (OptimConfig, {"loss_reduction": "token"}, "optim.loss_reduction must be one of tokens, examples"),
    (OrderConfig, {"tasks": []}, "order.tasks is empty"),
    (OrderConfig, {"tasks": ["qa", "qg", "qa"]}, "order.tasks names qa more than once"),
    (OrderConfig, {"tasks": ["base"]}, "task name 'base' cannot name an expert"),
    (OrderConfig, {"tasks": ["a/b"]}, "task name 'a/b' cannot name an expert"),
    (OrderConfig, {"tasks": [".."]}, "task name '..' cannot name an expert"),
    (OrderConfig, {"tasks": ["q.a"]}, "task name 'q.a' cannot name an expert"),
    (OrderConfig, {"tasks": [""]}, "task name '' cannot name an expert"),
    (DataConfig, {"on_bad_row": "ignore"}, "data.on_bad_row must be one of stop, skip"),
    (DataConfig, {"resample": "onc"}, "data.resample must be one of per_task, once; got 'onc'. Did you mean 'once'?"),
    (DataConfig, {"eval_batch_size": 0}, "data.eval_batch_size must be at least 1"),
    (IndicatorConfig, {"pos": " "}, "must not be blank"),
    (IndicatorConfig, {"neg": ""}, "must not be blank"),
    (IndicatorConfig, {"pos": "no", "neg": "not"}, "one indicator begins with the other"),
    (IndicatorConfig, {"pos": "not", "neg": "no"}, "one indicator begins with the other"),
    (IndicatorConfig, {"pos": "yes", "neg": "yes"}, "one indicator begins with the other"),
    (RunConfig, {"ratio": 1.1}, "ratio is the share of past examples that is rehearsed, between 0 and 1; got 1.1."),
    (RunConfig, {"ratio": -0.1}, "between 0 and 1; got -0.1. For 10 % write 0.1."),
    (RunConfig, {"ratio": NAN}, "between 0 and 1; got nan"),
    (RunConfig, {"method": {"ratio": 10}}, "method.ratio is the share"),
    (RunConfig, {"method": {"ratio": "much"}}, "method.ratio is the share of past examples that is rehearsed"),
    (RunConfig, {"seed": -1}, "seed must be at least 0"),
    (RunConfig, {"train_size": 0}, "train_size must be at least 1"),
    (RunConfig, {"test_size": 0}, "test_size must be at least 1"),
    (RunConfig, {"valid_size": -1}, "valid_size must be at least 0"),
    (RunConfig, {"optim": OptimConfig(early_stopping=2)}, "optim.early_stopping=2 compares validation losses, and no validation rows are"
     " chosen; write valid_size=N too"),
    (OptimConfig, {"early_stopping": -1}, "optim.early_stopping must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "settings", "message"), REFUSED)
def test_a_setting_out_of_range_is_refused_with_what_is_allowed(config, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        given(config, **settings)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (ModelConfig, {"source": "hub", "revision": "main", "trust_remote_code": True, "max_length": 16}),
        (AdapterConfig, {"rank": 1, "dropout": 0.0}),
        (AdapterConfig, {"dropout": 0.99}),
        (
            OptimConfig,
            {"lr": 0.0, "weight_decay": 0.0, "epochs": 1, "global_batch_size": 1, "warmup": 0.0, "grad_clip": 0.0},
        ),
        (OptimConfig, {"warmup": 1.0, "schedule": "constant", "loss_reduction": "examples"}),
        (OrderConfig, {"tasks": ["qa", "task-1_b", "7"]}),
        (DataConfig, {"eval_batch_size": 1, "on_bad_row": "skip", "resample": "once"}),
        (IndicatorConfig, {"pos": "yes", "neg": "no"}),
        (RunConfig, {"ratio": 0.0, "seed": 0, "train_size": 1, "test_size": 1}),
        (RunConfig, {"ratio": 1.0, "train_size": None, "method": {"ratio": 1}}),
    ],
)
def test_the_ends_of_a_range_belong_to_it(config, settings):
    made = given(config, **settings)
    assert {key: getattr(made, key) for key in settings} == settings


def test_an_indicator_with_a_leading_blank_is_refused_as_no_answer_could_begin_with_it():
    with pytest.raises(ConfigError, match="blank"):
        IndicatorConfig(pos=" yes", neg="no")


@pytest.mark.parametrize(
    "override",
    ["ratio=abc", "seed=1.5", "optim.lr=fast", "optim.epochs=2.5", "train_size=few", "order.tasks=qa",
     "model.trust_remote_code=perhaps", "paths.runs=[a]"],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(composed, override):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        validate(composed(override))


@pytest.mark.parametrize(
    "override", ["+foo=1", "+model.foo=1", "+adapter.foo=1", "+optim.foo=1", "+order.foo=1", "+data.foo=1",
                 "+indicators.foo=x", "+paths.foo=x"],
)  # fmt: skip
def test_a_key_that_nobody_reads_is_refused_even_with_a_plus(composed, override):
    with pytest.raises((ConfigError, HydraException, OmegaConfBaseException), match="foo"):
        validate(composed(override))


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn", "null"])
def test_a_strategy_that_would_deal_data_or_save_weights_otherwise_is_refused(composed, strategy):
    with pytest.raises(ConfigError, match=r"^trainer\.strategy must be one of auto, ddp, fsdp_base; got"):
        validate(composed("trainer=ddp", f"trainer.strategy={strategy}"))


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "ddp", "fsdp", "slurm"])
def test_every_trainer_of_ours_is_allowed(composed, trainer):
    validate(composed(f"trainer={trainer}"))


def test_what_is_missing_is_named_with_how_to_give_it(composed):
    with pytest.raises(ConfigError, match=r"^model\.name is not set; give model\.name=\.\.\. on the command line\.$"):
        validate(composed("model=hub"))
    with pytest.raises(ConfigError, match=r"benchmark\.reader\.folder is not set"):
        validate(composed("order=jsonl", "order.tasks=[a]"))


def test_the_composed_defaults_are_what_the_typed_root_holds(composed):
    config = validate(composed("train_size=7"))
    assert (config.ratio, config.seed, config.train_size, config.test_size) == (0.1, 0, 7, 30)
    assert config.optim == OptimConfig(**OmegaConf.load(CONF / "optim" / "small.yaml"))
    assert config.adapter == AdapterConfig(**OmegaConf.load(CONF / "adapter" / "lora.yaml"))
    assert config.indicators == IndicatorConfig("<<pos>>", "<<neg>>")
    assert config.method == {"_target_": "see_lightning.methods.see.See", "ratio": 0.1, "resample": "per_task",
                             "min_negatives": 12, "max_negatives": 0, "indicators": config.indicators, "general_negatives": 0, "general_source": "built_in",
                             "other_instructions": 0, "calibrate_on": 0, "target_recall": 0.98, "ood_examples": 0, "margin": 0.25,
                             "warm_start": "none", "probe": 32, "instruction_variants": [],
                             "rewordings": "built_in", "wordings_per_example": 1, "second_chance": "off",
                             "reuse": "off", "reuse_share": 0.9, "reuse_gain": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("superni10", " Did you mean 'superni_10'?"),
        ("superni_10", " Did you mean 'superni_10'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_the_nearest_word_is_named_only_when_one_is_near(word, hint):
    assert nearest(word, ["superni_10", "pocket_5"]) == hint


@pytest.mark.parametrize(
    ("order", "expected"), [("jsonl", "train"), ("hub", "train"), ("pocket_5", 0), ("superni_5", 0)]
)
def test_thresholds_cost_no_row_of_ones_own_data_and_published_orders_have_none(composed, order, expected):
    own = ["order.tasks=[a]"] if order in ("jsonl", "hub") else []
    assert composed(f"order={order}", *own).method.calibrate_on == expected
    assert composed(f"order={order}", *own, "method.calibrate_on=5").method.calibrate_on == 5
    assert composed(f"order={order}", *own, "data.calibrate_on=0").method.calibrate_on == 0


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", ".inf", ".nan"])
@pytest.mark.parametrize(
    "name",
    [
        "ratio",
        "optim.lr",
        "adapter.alpha",
        "method.target_recall",
        "logger.timeout",
        "trainer.limit_train_batches",
        "seed",
    ],
)
def test_no_setting_is_endless_or_no_number(composed, name, value):
    added = "+" if name.startswith("trainer") else ""
    with pytest.raises((ConfigError, OmegaConfBaseException, HydraException), match=re.escape(name)):
        validate(composed("logger=csv", f"{added}{name}={value}"))


def test_a_file_s_endless_setting_is_refused_too(composed):
    cfg = composed()
    cfg.method.target_recall = float("inf")
    with pytest.raises(ConfigError, match=r"method\.target_recall must be a finite number; got inf"):
        validate(cfg)
