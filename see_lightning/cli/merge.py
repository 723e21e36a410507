"""Merges PEFT LoRA adapters: ``see-lightning merge OUT ADAPTER...``."""

import argparse
from pathlib import Path

from hydra.errors import HydraException

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.errors import ConfigError, listed
from see_lightning.files.text import visible

DESCRIPTION = """\
Merges LoRA adapters of one base model into one, by a rule of conf/rule: rule=opcm, rule=ties rule.density=0.3. Adapters may
have different ranks and scales, and come from PEFT or from a run, whose folder stands for its experts in their order. Their
changes B A are merged, never B and A by themselves. Adapters of different base models, layers, tokenizers or prompts are
refused, and variants such as DoRA. Writes a PEFT adapter with a model card, exact or truncated to a rank with its error, or a
whole checkpoint."""
EPILOG = """\
The order of the adapters counts for opcm, moving_average and slerp. Sums, opcm and slerp give an adapter whose rank is at
most the sum of all; other rules give matrices of full rank, of which --rank keeps the nearest, and --checkpoint all."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: the folder to write, the adapters, the rule, and the form of the result."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new or empty")
    words = (
        "folders of LoRA adapters, or runs with experts, and settings of the rule: rule=NAME rule.SETTING=VALUE (default:"
        " rule=average)"
    )
    parser.add_argument("words", nargs="+", metavar="ADAPTER", help=words)
    parser.add_argument("--rank", type=at_least(1), metavar="R", help="truncate the merged adapter to this rank")
    parser.add_argument("--checkpoint", action="store_true", help="write the base model with merged weights")
    base = "name or folder of the base model (default: the name in the adapters)"
    parser.add_argument("--base", metavar="MODEL", help=base)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of the checkpoint (default: fp32)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of what dare_linear and dare_ties draw (default: 0)"
    )


@command("merge", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Merge, and print what was written."""
    from see_lightning.config.compose import composed
    from see_lightning.engine.merge_adapters import merge_adapters

    settings = [word for word in given.words if word.partition("=")[0].partition(".")[0] == "rule"]
    folders = [folder for word in given.words if word not in settings for folder in adapters_at(Path(word))]
    if given.checkpoint and given.rank:
        raise ConfigError("--rank is of an adapter; leave it out with --checkpoint.")
    if given.dtype and not given.checkpoint:
        raise ConfigError("--dtype is of a checkpoint; write --checkpoint too. Adapters are in fp32.")
    named = next((word.removeprefix("rule=") for word in settings if word.startswith("rule=")), "average")
    try:
        cfg = composed(["method=merge", f"rule={named}", *settings])
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    written = merge_adapters(
        given.out,
        folders,
        cfg.rule,
        named,
        rank=given.rank,
        checkpoint=given.checkpoint,
        base=given.base,
        dtype=given.dtype or "fp32",
        draw=given.seed,
    )
    form = "checkpoint" if written.rank is None else f"adapter of rank {written.rank}"
    left_out = f", {written.error:.2%} of the merged change left out" if given.rank else ""
    print(visible(f"{form}, {written.size / 2**20:.1f} MiB{left_out}"))
    print(visible(str(given.out)))


def adapters_at(place: Path) -> list[Path]:
    """A folder of an adapter, or those of a run's experts, the oldest first."""
    from see_lightning.adapters.files import CONFIG
    from see_lightning.engine.experts import REMOVED, list_experts
    from see_lightning.engine.latest import find_run

    if (place / CONFIG).exists() or not ((run := find_run(place)) / "ledger.json").exists():
        return [place]
    found = [expert for expert in list_experts(run) if expert.origin != REMOVED]
    if alone := [expert.task for expert in found if not expert.is_portable]:
        raise ConfigError(
            f"{run}: the experts of {listed(alone)} need their method to answer, and are no LoRA adapters."
        )
    return [expert.folder for expert in found]
