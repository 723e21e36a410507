"""The form of each file of a run: its fields and their types, and advice to the user if it has others."""

from typing import Any

NUMBER = (int, float)
OPTIONAL = (int, float, None)

# A shape is a type; None; `object` for any value; a tuple of alternative shapes; [shape], a list; or the fields of an object
# by name, where a name with a question mark may be missing, and `str` stands for all other names.
BLOCK = {
    **dict.fromkeys(("start?", "end?", "queries?"), int),
    "sha256?": str,
    **dict.fromkeys(("score?", "seconds?"), NUMBER),
    "counts?": {str: int},
}
ASKED = {**BLOCK, "task": str, "digest": str}
TRAINED = {
    "files": {str: str},
    "ended?": bool,
    "storage?": ({str: int}, None),
    "assigned?": ({"expert": str, "z": {str: NUMBER}}, None),
    "never_refuses?": bool,
    "import_notes?": [str],
    "parent?": (str, None),
    "report?": dict,
    "validation?": {
        "loss": [NUMBER],
        **dict.fromkeys(("best_epoch", "kept_epoch", "epochs", "rows", "tokens"), int),
        "seconds": NUMBER,
    },
    "seconds?": NUMBER,
    "hooks?": {"seconds": {str: NUMBER}, "tokens": {str: int}},
    **dict.fromkeys(
        ("tokens?", "past_tokens?", "negative_tokens?", "computed?", "examples?", "rehearsed?", "negatives?", "steps?"),
        int,
    ),
    **dict.fromkeys(("trained_weights?", "stored_rows?", "stored_bytes?"), int),
}
NUMBERS = {
    "method": {"_target_": str},
    "order": {"name": str, "tasks": [str]},
    "benchmark": {"reader": {"_target_": str}, "tasks": {str: (dict, None)}},
    "model": {"name": (str, None)},
}
STARTS = [{"command": str, "commit": (str, None), "versions": {str: str}, "dtype": str, "ranks?": int}]
BEGUN = {  # facts about a run, from its first start on
    "data?": {str: str},
    "command?": str,
    "commits?": [(str, None)],
    "versions?": {str: str},
    "starts?": STARTS,
    "dtype?": str,
    "date?": str,
    "prompts?": {str: str},
    "grown_from?": (str, None),
    "engine?": {"name": str, "url": str, "stages": {str: {str: int}}},
    "base_quantization?": {"kind": str, "bytes": int, "error?": NUMBER},
    "numbers?": NUMBERS,
    "contents?": {"files": {str: str}, "digests": {str: (str, None)}, "places": {str: [str]}},
}
NEEDED = {
    "data": dict,
    "command": str,
    "commits": [(str, None)],
    "versions": dict,
    "dtype": str,
}  # since the first version
#: Answers to the eval sets beside the run's own: foreign queries, and variants of both.
BESIDE: dict[Any, Any] = {
    f"{name}?": {str: ASKED}
    for name in ("ood", "ood_input_only", "input_only", "paraphrased", *(f"paraphrased_{n}" for n in range(2, 10)))
}
LEDGER = {
    "about": BEGUN,
    "stages": {
        str: {
            "trained": (TRAINED, None),
            "answers": {str: BLOCK},
            **BESIDE,
            str: {str: BLOCK},
        }
    },
}
ANSWER = {
    **dict.fromkeys(("id", "task", "prompt_sha", "text", "target"), str),
    "expert": (str, None),
    "verdicts": [str],
    "score": NUMBER,
    "truncated?": bool,
    "references?": [str],
    "prompt?": str,
}
REMEMBERED = {
    **dict.fromkeys(("id", "task", "prompt_sha", "expert", "key"), str),
    **dict.fromkeys(("verdict", "text"), (str, None)),
    **dict.fromkeys(("log_odds", "margin", "score"), OPTIONAL),
    "truncated": (bool, None),
}
METRICS = {str: OPTIONAL}
BY_HOOK: dict[Any, Any] = {str: [OPTIONAL]}
BY_STAGE: dict[Any, Any] = {
    name: [OPTIONAL] for name in ("train_tokens?", "trained_weights?", "stored_rows?", "stored_bytes?")
}
RESULTS = {
    **dict.fromkeys(("command", "method", "model", "order"), str),
    "commit": (str, None),
    "commits?": [(str, None)],
    "finished?": str,
    "starts?": STARTS,
    "versions": {str: str},
    "seed": int,
    "ratio": OPTIONAL,
    "tasks": [str],
    "score?": {str: str},
    "matrix": [[OPTIONAL]],
    "metrics": METRICS,
    "protocols?": {str: {"metrics": METRICS, "formulas": {str: str}}},
    "routing?": (
        {
            **dict.fromkeys(("accuracy?", "base_share?"), OPTIONAL),
            "confusion?": [[int]],
            "tasks?": [str],
            "columns?": [str],
            "thresholds?": {str: NUMBER},
        },
        None,
    ),
    "timing?": {
        "method_s?": BY_HOOK,
        "method_step_s?": BY_HOOK,
        "train_s?": [NUMBER],
        str: (*OPTIONAL, [OPTIONAL]),
    },
    "counts?": {"method_tokens?": BY_HOOK, **BY_STAGE, str: (*OPTIONAL, [OPTIONAL])},
    "ood?": (
        {
            "asked?": dict,
            "scores?": METRICS,
            "per_task?": METRICS,
            "digests?": {str: (str, None)},
            "auroc?": OPTIONAL,
            "input_only?": {
                "scores?": METRICS,
                "without_definition?": [str],
                "per_task?": METRICS,
                "base_share?": OPTIONAL,
            },
        },
        None,
    ),
    "variants?": ({"asked": [str]}, None),
    "lengths?": ({str: {"rule": (str, None), "max_new_tokens": (int, None), "cut": int}}, None),
    "last_row?": ({str: dict}, None),
    "notices?": [str],
    "benchmark?": (dict, None),
    "validation?": {
        "loss": [([NUMBER], None)],
        **{name: [(int, None)] for name in ("best_epoch", "kept_epoch", "epochs", "rows")},
    },
    "given?": {str: str},
    "method_report?": {str: list},
    "storage?": {str: [int]},
    "capacity?": [NUMBER],
    "config?": dict,
    "contents?": {"in_key?": dict, "digests?": dict},
}
MEASURED = {"belongs_to": str}
RANGE = ([NUMBER], None)
STUDIED = {
    "rows": [
        {
            "order": str,
            "experts": [str],
            "threshold": OPTIONAL,
            "is_best": bool,
            "AR": RANGE,
            "BWT": RANGE,
            **dict.fromkeys(("routing_accuracy", "base_share", "asked", "unknown"), OPTIONAL),
        }
    ],
    "queries": int,
    "picture": {
        "order": str,
        "edges": [NUMBER],
        "experts": {str: {"own": [int], "foreign": [int]}},
        "accuracy": [NUMBER],
        "base_share": [NUMBER],
        "best": {"threshold": OPTIONAL, "above": OPTIONAL, "to": NUMBER, "accuracy": NUMBER},
    },
}
SHARES = {"base_share": NUMBER, "right?": NUMBER, "per_task": {str: NUMBER}}
ROUTED = {
    **MEASURED,
    **dict.fromkeys(("method", "order"), str),
    "seed": int,
    "size": (int, None),
    "ood": (str, None),
    "variants": ([str], None),
    "foreign": (dict, None),
    "tasks": [str],
    "queries": {"as_is": int, str: int},
    "left_out": {str: str},
    "expert_bytes": int,
    "bound": OPTIONAL,
    "routers": [
        {
            "router": str,
            "settings": (dict, None),
            "is_own": bool,
            "tried": bool,
            "cannot": (str, None),
            "told?": bool,
            "sets?": {str: SHARES},
            "scores?": ({str: NUMBER}, None),
            "AR?": OPTIONAL,
            "bytes?": int,
            **dict.fromkeys(("prefills?", "asked?", "seconds?"), NUMBER),
        }
    ],
}
WHOLE = "Put it back, or delete the run's folder to run again from the start."
MEASURE_AGAIN = "Delete it and measure it again."
# The shape of each file by name, and advice if it has another.
FILES: dict[str, tuple[Any, str]] = {
    "ledger.json": (LEDGER, "Put it back, or move the folder away to start again."),
    "results.json": (
        RESULTS,
        "Delete it and give the run's command again, which makes it from the run's ledger; or go on without this run.",
    ),
    "rows.json": ({str: {str: [str]}}, "Delete it; the run goes on without it."),
    "study.json": (STUDIED, "Delete it and study the run again."),
    "perplexity.json": (
        {
            **MEASURED,
            "perplexity?": OPTIONAL,
            "tasks?": {str: {"perplexity?": OPTIONAL, "queries": [{"nll": NUMBER, "tokens": int}]}},
        },
        MEASURE_AGAIN,
    ),
    "transfer.json": (
        {
            **MEASURED,
            "size?": (int, None),
            "score?": {str: str},
            "queries?": {str: int},
            "own?": {str: str},
            "transfer?": {str: {str: NUMBER}},
        },
        MEASURE_AGAIN,
    ),
    "route.json": (ROUTED, MEASURE_AGAIN),
    "harness.json": ({"tasks?": [str], "limit?": (int, None), "num_fewshot?": (int, None)}, MEASURE_AGAIN),
    "expert.json": ({"task": str, "template_sha256": str}, WHOLE),
    "threshold.json": ({"log_odds": NUMBER}, WHOLE),
    "given.json": ({"expert": str, "z": {str: NUMBER}}, WHOLE),
    "origin.json": ({"from": (str, None), "verdicts?": bool, "notes?": [str]}, WHOLE),
    "adapter_config.json": (
        {"alora_invocation_tokens?": ([int], None)},
        WHOLE,
    ),
}
