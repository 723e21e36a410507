"""The table of general ability: base model, mean of the experts and ensemble, with the metrics that the harness wrote."""

import json

from see_lightning.reporting.markdown import fill
from tests.reporting.test_rivals import add

MARK = "<!-- harness: two -->\n<!-- end -->\n"


def score(acc, bits=None):
    text = {} if bits is None else {"text": {"bits_per_byte,none": bits}}
    return {"choice": {"acc,none": acc, "acc_stderr,none": 0.1}, **text}


def rows_of(root):
    text, _ = fill(MARK, root)
    heads, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_a_row_for_each_adapter_with_the_mean_over_seeds(tmp_path):
    for seed, acc in enumerate([0.5, 0.7]):
        path = add(tmp_path, "see", seed)
        metrics = {
            "base": score(0.4, 1.25),
            "experts": {"mean": score(0.3), "each": {"qa": score(0.3)}},
            "ensemble": score(acc, 1.25),
        }
        content = {"metrics": metrics, "base_share": 0.9, "answered_by": {"choice": {"base": 0.9, "qa": 0.1}}}
        path.with_name("harness.json").write_text(json.dumps(content))
    base, experts, ensemble = rows_of(tmp_path)
    command = "`method=see experiment=rivals`"
    assert base == {
        "run.py": command,
        "adapter": "base model",
        "choice acc, %": "40.0 ± 0.0",
        "text bits_per_byte": "1.2 ± 0.0",
        "at the base, %": "–",
        "runs": "2",
    }
    assert (experts["adapter"], experts["choice acc, %"], experts["text bits_per_byte"]) == (
        "mean of the experts",
        "30.0 ± 0.0",
        "–",
    )
    assert (ensemble["adapter"], ensemble["choice acc, %"], ensemble["at the base, %"]) == (
        "ensemble",
        "60.0 ± 14.1",
        "90.0 ± 0.0",
    )


def test_a_method_with_one_adapter_has_an_adapted_model_and_others_no_row(tmp_path):
    add(tmp_path, "see")
    path = add(tmp_path, "seqft")
    metrics = {"base": score(0.4), "ensemble": score(0.25)}
    content = {"metrics": metrics, "base_share": 0.0, "answered_by": {"choice": {"shared": 1.0}}}
    path.with_name("harness.json").write_text(json.dumps(content))
    assert [(row["run.py"], row["adapter"], row["choice acc, %"]) for row in rows_of(tmp_path)] == [
        ("`method=seqft experiment=rivals`", "base model", "40.0"),
        ("`method=seqft experiment=rivals`", "adapted model", "25.0"),
    ]
