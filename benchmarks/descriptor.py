"""Telling foreign queries by where their prompts lie, beside telling them by how far the experts lean: a rival remedy.

    SEE_DATA=DIR python benchmarks/descriptor.py RUN_DIR

A task's descriptor is the mean of the base model's last hidden states over its training prompts. A query's distance to the
nearest descriptor says how foreign it is, and a threshold on it sends the far ones to the base model. Which queries are
foreign, and what the experts said of them, is read from the run, which must have been asked some (``ood``).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import argparse
import json

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import cosine, embed_prompts, mahalanobis, within
from see_lightning.config.trust import load_config
from see_lightning.config.validation import validate
from see_lightning.engine.build_further import build_ood
from see_lightning.engine.ledger import OOD, Ledger
from see_lightning.engine.loaded_run import load_method, read_tasks
from see_lightning.errors import ConfigError
from see_lightning.evaluation.evaluate import prompt_sha
from see_lightning.evaluation.ood import accepted_at, auroc, highest_log_odds
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import variant_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="of a finished run: runs/<order>/<method>/<key>/seed=<n>")
    print_table(compare(parser.parse_args(arguments).run_dir))


def compare(run_dir: Path) -> dict[str, dict[str, float]]:
    """AUROC, and the share of foreign queries accepted where 95 and 98 % of own ones are, by each way to tell them."""
    cfg = load_config(run_dir / "config.yaml")
    if cfg.ood is None:
        raise ConfigError(f"{run_dir} was asked no foreign queries; give its command with ood=... first.")
    config, ledger = validate(cfg), Ledger(run_dir).read()
    method = load_method(cfg, ledger).eval()
    template = method.template
    tasks, ood_tasks = read_tasks(cfg, ledger, template), build_ood(cfg, config, template).get(OOD, [])

    def states(prompts: Sequence[str]) -> Tensor:
        return embed_prompts(method.pool, [method.template.prompt_ids(prompt) for prompt in prompts])

    train = [states([example.prompt for example in task.train]) for task in tasks]
    means_TH = torch.stack([states_PH.mean(0) for states_PH in train])
    covariance_HH = within(train)
    own_PH, foreign_PH = (states(_prompts(some)) for some in (tasks, ood_tasks))
    room = max(len(template.target_ids(word)) for word in (config.indicators.pos, config.indicators.neg))
    alone_PH = states(_prompts([variant_of(task, "input_only", {}, template, room) for task in tasks]))
    told: dict[str, tuple[Tensor, Tensor]] = {}
    for name, distance in {
        "cosine": lambda states_PH: cosine(states_PH, means_TH),
        "Mahalanobis": lambda states_PH: mahalanobis(states_PH, means_TH, covariance_HH),
    }.items():
        near = {kind: -distance(some).amin(1) for kind, some in (("own", own_PH), ("foreign", foreign_PH))}
        told[name] = near["own"], near["foreign"]
        told[f"{name}, own queries without their definition"] = -distance(alone_PH).amin(1), near["foreign"]
    stages = list(ledger.content["stages"])
    asked = {(task.name, prompt_sha(example)) for task in ood_tasks for example in task.test}
    heard = [record for stage in stages for record in ledger.remembered(stage, f"{OOD}_remembered")]
    said = [record for record in heard if (record["task"], record["prompt_sha"]) in asked]
    own = [record for stage in stages for record in ledger.remembered(stage)]
    names = [task.name for task in tasks]
    told["the experts' log-odds"] = highest_log_odds(own, names), highest_log_odds(said, names)
    return {
        name: {
            "auroc": auroc(own_I, foreign_O),
            **{f"accepted at {share:.0%}": accepted_at(own_I, foreign_O, share) for share in (0.95, 0.98)},
        }
        for name, (own_I, foreign_O) in told.items()
    }


def _prompts(tasks: Sequence[Task]) -> list[str]:
    return [example.prompt for task in tasks for example in task.test]


def print_table(found: dict[str, dict[str, float]]) -> None:
    """A line for each way, and all of it as JSON in the last line."""
    for name, values in found.items():
        print(f"{name:45}", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
