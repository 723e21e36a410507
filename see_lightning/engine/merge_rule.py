"""The merge rule of a run: the check that it fits the method, and its object."""

import yaml
from omegaconf import DictConfig

from see_lightning.config.identity import method_name
from see_lightning.config.instantiate import bind, instantiate, target_of
from see_lightning.config.schema import RunConfig
from see_lightning.config.search_path import options
from see_lightning.errors import ConfigError
from see_lightning.files.text import read_text
from see_lightning.merging.rule import MergeRule
from see_lightning.methods.lookup import method_class
from see_lightning.methods.merge import Merge
from see_lightning.methods.method import Method


def settle_rule(cfg: DictConfig, config: RunConfig) -> None:
    """Refuse a rule that does not fit the method, and remove one that is the method's own, so that the run key has none.

    Args:
        cfg: composed; changed in place.
        config: its typed form; changed in place.

    Raises:
        ConfigError: the method merges nothing, the rule is none, or an argument is unknown or out of its range.
    """
    if cfg.rule is None:
        return
    method = method_class(cfg.method)
    if not issubclass(method, Merge):
        raise ConfigError(
            f"method={method_name(cfg)} merges nothing; rule={cfg.rule['_target_'].split('.')[-2]} is for method=merge."
        )
    bind(cfg.rule)
    make_rule(cfg.rule)
    settings = {str(name): value for name, value in cfg.rule.items() if name != "_target_"}
    if (target_of(cfg.rule), settings) == method.own_rule:
        cfg.rule = config.rule = None


def build_rule(cfg: DictConfig, method: Method) -> None:
    """Give a method the rule that a run names, if it names one."""
    if cfg.rule is not None:
        assert isinstance(method, Merge)  # settle_rule has refused others
        method.merge_rule = make_rule(cfg.rule)


def make_rule(node: DictConfig) -> MergeRule:
    """The rule that settings name.

    Raises:
        ConfigError: it is no merge rule, or an argument is out of its range.
    """
    rule = instantiate(node)
    if not isinstance(rule, MergeRule):
        raise ConfigError(f"rule._target_={node['_target_']} is no merge rule; give a subclass of MergeRule.")
    return rule


def rule_name(cfg: DictConfig) -> str | None:
    """The name of a run's rule: the file of ``conf/rule`` with these settings, else the module of its class.

    None if the method merges nothing.
    """
    method = method_class(cfg.method)
    if not issubclass(method, Merge):
        return None
    if cfg.rule is None:
        rule, settings = method.own_rule
        own = {"_target_": f"{rule.__module__}.{rule.__qualname__}", **settings}
    else:
        own = {str(name): value for name, value in cfg.rule.items()}
    alike = (path.stem for path in options("rule") if yaml.safe_load(read_text(path)) == own)
    return next(alike, str(own["_target_"]).split(".")[-2])
