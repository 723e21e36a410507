"""The experts of a run: a list of them, and one as a folder of its own for other programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import CONFIG, EXPERT_FILE, THRESHOLD, WEIGHTS, read_weights, write_tensors
from see_lightning.config.identity import method_name
from see_lightning.config.origins import Origin
from see_lightning.config.trust import NOTHING, Trust, load_config
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_template
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.model_card import card_head
from see_lightning.engine.origin import read_origin
from see_lightning.errors import ConfigError, listed, nearest
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import check_new, write_bytes, write_new_folder, write_text
from see_lightning.methods.lookup import method_class
from see_lightning.tasks.prompts import PromptTemplate

#: Ranks for which vLLM has kernels; --max-lora-rank is one of them.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Expert:
    """What a stage of a run has learned.

    Args:
        task: its name.
        stage: of the run, such as ``02-news``.
        folder: with its files.
        rows: training rows of its own task.
        refused: rows that it learned to refuse.
        rehearsed: rows of past tasks that it learned to answer.
        score: on its own task after its stage, 0..100; None if it was not tested.
        size: bytes of its weights.
        threshold: log-odds below which a positive verdict counts as negative; None if there is none.
        parent: the expert from which it was initialised; None if at random.
        is_portable: whether its folder has an adapter that PEFT loads.
        origin: where it comes from if it was not trained as the others, in words; None if it was.
    """

    task: str
    stage: str
    folder: Path
    rows: int
    refused: int
    rehearsed: int
    score: float | None
    size: int
    threshold: float | None
    parent: str | None
    is_portable: bool
    origin: str | None


def list_experts(run_dir: Path, trust: Trust = NOTHING) -> list[Expert]:
    """The experts of a run in the order in which they were trained; their files are checked against the ledger.

    Args:
        run_dir: of the run.
        trust: the code named in the run's settings that may run.

    Raises:
        ConfigError: there is no run, or it has trained nothing.
        LedgerError: a file is damaged.
    """
    if not (run_dir / "ledger.json").exists():
        raise ConfigError(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    cfg, ledger = load_config(run_dir / "config.yaml", trust), Ledger(run_dir).read()
    is_portable = method_class(cfg.method).traits.peft_loadable
    origins = validate(cfg).order.origins()
    found = [
        _expert(ledger, stage, entry["trained"], is_portable, origins)
        for stage, entry in ledger.content["stages"].items()
        if entry["trained"]
    ]
    if not found:
        raise ConfigError(f"{run_dir} has trained no task yet, so it has no expert.")
    return found


def _expert(
    ledger: Ledger, stage: str, trained: dict[str, Any], is_portable: bool, origins: Mapping[str, Origin]
) -> Expert:
    folder = ledger.verified(stage) / "expert"
    about = read_file(folder / EXPERT_FILE) if (folder / EXPERT_FILE).exists() else {}
    weights = [folder / name.removeprefix("expert/") for name in trained["files"] if name.startswith("expert/")]
    threshold = folder / THRESHOLD
    return Expert(
        task=stage.partition("-")[2],
        stage=stage,
        folder=folder,
        rows=trained["examples"] - trained["negatives"] - trained["rehearsed"] * (trained["negatives"] == 0),
        refused=trained["negatives"],
        rehearsed=0 if trained["negatives"] else trained["rehearsed"],
        score=about.get("score"),
        size=sum(path.stat().st_size for path in weights if path.suffix == ".safetensors"),
        threshold=read_file(threshold)["log_odds"] if threshold.exists() else None,
        parent=about.get("parent"),
        is_portable=is_portable and (folder / CONFIG).exists(),
        origin=_origin(origins.get(stage.partition("-")[2]), read_origin(folder)),
    )


def _origin(origin: Origin | None, noted: Mapping[str, Any]) -> str | None:
    """Where an expert comes from, in words.

    Args:
        origin: by the run's settings.
        noted: content of its ``origin.json``.
    """
    if origin is None:
        return None
    if origin.training:
        return "trained with " + ", ".join(f"{name}={value:g}" for name, value in origin.training.items())
    if origin.is_none:
        return REMOVED
    return f"imported from {origin.folder}" + ("" if noted.get("verdicts", True) else ", never refuses")


def find_expert(experts: Sequence[Expert], task: str) -> Expert:
    """The expert of a task.

    Raises:
        ConfigError: there is none.
    """
    for expert in experts:
        if expert.task == task:
            return expert
    names = [expert.task for expert in experts]
    raise ConfigError(f"there is no expert {task!r}.{nearest(task, names)} There are: {listed(names)}.")


def export_expert(run_dir: Path, task: str, out: Path, *, base: str | None = None, trust: Trust = NOTHING) -> str:
    """Write an expert as a folder that PEFT, vLLM and llama.cpp's converter read, with a model card.

    Args:
        run_dir: of the run, which is not changed.
        task: the expert's.
        out: the folder to write; it must not exist, or be empty.
        base: name or folder of the base model for other programs; None is the name in the run's settings.
        trust: the code named in the run's settings that may run.

    Returns:
        The model card.

    Raises:
        ConfigError: there is no such expert, PEFT cannot load it, or the folder has files.
        LedgerError: a file is damaged.
    """
    expert = find_expert(list_experts(run_dir, trust), task)
    if expert.origin == REMOVED:
        raise ConfigError(
            f"the expert of {task} was removed from this run; export it from the run that it was made from."
        )
    if not expert.is_portable:
        raise ConfigError(
            f"the expert {task!r} needs its method to answer, so PEFT alone cannot load it; ask it by see-lightning ask."
        )
    check_new(out)
    cfg = load_config(run_dir / "config.yaml", trust)
    config, about = validate(cfg), Ledger(run_dir).read().facts()
    template = build_template(config, about.get("date"))
    settings = read_file(expert.folder / CONFIG)
    told = read_file(expert.folder / EXPERT_FILE)
    if "verdicts" not in told and not expert.origin:  # of an earlier version
        told["verdicts"] = method_class(cfg.method).traits.learns_refusals
    base = base or str(config.model.name).partition("@")[0]
    settings["base_model_name_or_path"] = base
    facts = {"method": method_name(cfg), "order": cfg.order.name, "seed": cfg.seed, "dtype": about["dtype"]}
    card = model_card(expert, settings, facts, template, read_file(expert.folder / EXPERT_FILE))

    def fill(folder: Path) -> None:
        if (path := expert.folder / WEIGHTS).exists():
            write_bytes(folder / WEIGHTS, path.read_bytes())
        else:  # quantised, which other programs do not read
            write_tensors(read_weights(expert.folder), folder / WEIGHTS, {"format": "pt"})
        write_text(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        write_text(folder / "README.md", card)
        write_text(folder / EXPERT_FILE, json.dumps(told, indent=1, ensure_ascii=False) + "\n")

    write_new_folder(out, fill)
    return card


def model_card(
    expert: Expert, settings: dict[str, Any], facts: dict[str, Any], template: PromptTemplate, about: dict[str, Any]
) -> str:
    """The model card of an expert: what it learned, how a query is put to it, and how other programs load it.

    Args:
        expert: of a run.
        settings: of its adapter, as PEFT has them.
        facts: of the run: ``method``, ``order``, ``seed``, ``dtype``.
        template: how queries are put to the model.
        about: content of ``expert.json``.
    """
    base, header = settings["base_model_name_or_path"], settings.get("alora_invocation_tokens")
    prompt = template.tokenizer.decode(template.prompt_ids("QUERY"))
    rows = [
        ("task", expert.task),
        ("method", f"{facts['method']} on {facts['order']}, seed {facts['seed']}"),
        ("training rows", str(expert.rows)),
        *([("rows that it learned to refuse", str(expert.refused))] if expert.refused else []),
        *([("rows of earlier tasks", str(expert.rehearsed))] if expert.rehearsed else []),
        *([("score on its own test rows", f"{expert.score:.1f}")] if expert.score is not None else []),
        ("base model", f"{base}, {facts['dtype']}"),
        ("adapter", f"{'activated ' if header else ''}LoRA, rank {settings['r']}, alpha {settings['lora_alpha']:g}"),
    ]
    sections = [
        card_head(expert.task, base, "peft", ["lora", "see_lightning", expert.task], rows),
        f"## Prompt\n\nA query is put to the model as\n\n{_quoted(prompt)}\n",
    ]
    if expert.refused or (about.get("indicators") and facts["method"] == "see"):
        words = about["indicators"]
        threshold = f" with log-odds of at least {expert.threshold}" if expert.threshold is not None else ""
        sections.append(
            f"It begins an answer with `{words['pos']}` if it accepts the query{threshold}, and writes `{words['neg']}` if it"
            f" refuses it. To get an answer in every case, let the answer begin with `{words['pos']} `.\n"
        )
    sections.append(_loading(expert.task, base, settings["r"], bool(header)))
    return "\n".join(sections)


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _loading(task: str, base: str, rank: int, is_activated: bool) -> str:
    """How PEFT, vLLM and llama.cpp load the folder, which is ``DIR``."""
    fits = next((one for one in VLLM_RANKS if one >= rank), None)
    if is_activated:
        vllm = (
            "vLLM does not run activated adapters: it would apply them to the whole prompt, and answers would differ."
        )
    elif fits is None:
        vllm = f"vLLM has no kernel for the rank {rank}; its largest is {VLLM_RANKS[-1]}."
    else:
        vllm = f"    vllm serve {base} --enable-lora --max-lora-rank {fits} --lora-modules {task}=DIR"
    return f"""\
## Load

With PEFT:

    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained("DIR")

With vLLM:

{vllm}

With llama.cpp, whose converter reads the base model's config.json and tokenizer.json from BASE:

    python convert_lora_to_gguf.py --base BASE --outfile {task}.gguf DIR
"""
