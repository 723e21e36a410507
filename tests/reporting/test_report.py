"""The report shows what is in the results, on any width, and nothing that a task's name could smuggle in."""

import csv
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from see_lightning.evaluation.protocols import PROTOCOLS, summaries
from see_lightning.reporting.report.page import render_html
from see_lightning.reporting.report.sections import costs_of, matrix_csv, validation
from see_lightning.reporting.report.terminal import print_report
from see_lightning.reporting.svg import confusion_svg, matrix_svg, readable_on
from see_lightning.reporting.words import number

TASKS = ["qa", "<b>bold</b>", "a_rather_long_name_of_a_task_$x$_[red]"]


LOSSES = {
    "loss": [[1.5, 1.25], [0.75], None],
    "best_epoch": [2, 1, None],
    "kept_epoch": [2, 1, None],
    "epochs": [2, 1, None],
}


def results(**changes: Any) -> dict[str, Any]:
    return {
        "command": "python run.py method=see 'order.tasks=[qa]' && echo <script>alert(1)</script>",
        "commit": "3f2a9c1d",
        "versions": {"torch": "2.13.0"},
        "seed": 7,
        "method": "see",
        "ratio": 0.1,
        "model": "tiny",
        "order": "superni_3",
        "tasks": TASKS,
        "score": dict.fromkeys(TASKS, "rouge_l"),
        "matrix": [[81.26, 12.5, None], [80.0, 63.47, 5.0], [79.99, 61.0, 44.44]],
        "metrics": {"AR": 61.81, "FWT": 8.75, "BWT": -1.87, "forgetting": 1.87},
        "routing": {
            "accuracy": 0.913,
            "tasks": TASKS,
            "columns": [*TASKS, "base"],
            "confusion": [[487, 3, 0, 10], [0, 500, 0, 0], [0, 0, 0, 0]],
            "base_share": 0.0123,
            "no_indicator_share": 0.004,
        },
        "timing": {"train_s": [61.0, 30.5, 4000.0], "evaluate_s": [1.0, 2.0, 3.0], "train_tokens_per_s": 12345.6},
        "counts": {"train_examples": [2000, 2000, 1999], "negatives": [0, 200, 400], "generations": 4321},
        "benchmark": {"name": "superni", "version": "2.8", "licence": "Apache-2.0", "citation": "Wang & al., <2022>"},
        "notices": ["sum holds <200> rows"],
        "config": {"method": {"indicators": {"mine": "<<pos>>"}}, "seed": 7},
    } | changes


def mtl() -> dict[str, Any]:
    none = [None, None, None]
    without_routing = {key: value for key, value in results().items() if key != "routing"}
    return without_routing | {
        "method": "mtl",
        "ratio": None,
        "matrix": [none, none, [79.99, 61.0, 44.44]],
        "metrics": {"AR": 61.81, "FWT": None, "BWT": None, "forgetting": None},
        "counts": {"train_examples": [5999], "negatives": None},
        "timing": {"train_s": [4000.0, None, None], "evaluate_s": [61.0], "queries_per_s": None},
    }


def single() -> dict[str, Any]:
    return mtl() | {"tasks": ["qa"], "score": {"qa": "accuracy"}, "matrix": [[50.0]]}


class Page(HTMLParser):
    """Elements that stay open, attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def printed(given: dict[str, Any], **console: Any) -> str:
    stream = io.StringIO()
    print_report(given, Console(file=stream, **console))
    return stream.getvalue()


@pytest.mark.parametrize("given", [results(), mtl(), single()], ids=["see", "mtl", "single"])
def test_the_page_is_well_formed_and_needs_nothing_but_itself(given):
    page = Page(render_html(given))
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    loading = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "action"}]
    assert all(value.startswith("#") for value in loading)
    assert "url(http" not in render_html(given)
    assert "@import" not in render_html(given)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {value.removeprefix("#") for value in loading}
    referred |= {value for name, value in page.attributes if name == "aria-labelledby"}
    referred |= set(re.findall(r"url\(#([^)]*)\)", render_html(given)))
    assert referred <= set(ids)


def test_the_page_shows_every_number_and_where_it_comes_from():
    text = Page(render_html(results())).text
    scores = ["81.26", "12.50", "80.00", "63.47", "79.99", "44.44", "61.81", "8.75", "−1.87", "1.87"]
    shares_and_costs = ["91.3 %", "1.2 %", "0.4 %", "487", "1 min 01 s", "1 h 06 min", "12,345.60", "4,321", "1,999"]
    sources = ["3f2a9c1d", "2.13.0", "superni_3", "tiny", "Apache-2.0", "Wang & al., <2022>", "mine: <<pos>>", "2.8"]
    for wanted in (*scores, *shares_and_costs, *sources, results()["command"], *results()["notices"]):
        assert wanted in text, wanted


def test_of_experts_that_give_no_verdicts_no_indicator_is_told():
    silent = results()
    silent["config"]["method"] = {"task_id": "key"}
    told, asked = "neither indicator", "answered by their own task's expert"
    assert told in Page(render_html(results())).text
    assert told not in Page(render_html(silent)).text
    assert asked in Page(render_html(silent)).text


LAST_ROW = {
    TASKS[0]: {"n": 500, "score": 79.99, "stderr": 1.23, "exact_match_olora": 33.3, "strict": 70.1, "normalised": 80.2},
    TASKS[1]: {"n": 1, "score": 61.0, "stderr": None, "exact_match_olora": 0.0},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_report_by_a_protocol_has_its_metrics_and_their_formulas(protocol):
    given = results(last_row=LAST_ROW | {TASKS[2]: LAST_ROW[TASKS[1]]})
    given |= {"protocols": summaries(given), "config": {"protocol": protocol}}
    stream = io.StringIO()
    print_report(given, Console(file=stream, width=40), protocol)
    text = Page(render_html(given)).text.replace("\u2060", "")
    cards = text[: text.index("By other protocols")]
    for name, formula in PROTOCOLS[protocol].items():
        value = given["metrics"][name] if protocol == "ssr" else given["protocols"][protocol]["metrics"][name]
        assert re.search(rf"{re.escape(name)} +{re.escape(number(value))} +{re.escape(formula)}", stream.getvalue())
        assert f"{name}\n{number(value)}\n{formula}" in cards.replace("\n\n", "\n")
    for other in PROTOCOLS.values():
        assert all(formula in text for formula in other.values())


def test_results_of_an_older_version_are_summed_up_from_their_matrix():
    stream = io.StringIO()
    print_report(results(), Console(file=stream, width=40), "trace")
    assert re.search(r"OP +61\.81 ", stream.getvalue())
    stream = io.StringIO()
    print_report(results(), Console(file=stream, width=40), "olora")
    assert re.search("predict_exact_match +– ", stream.getvalue())
    assert "By other protocols" not in render_html(results())


def test_the_last_row_stands_with_its_standard_errors_and_both_ways_to_compare_labels():
    given = results(last_row=LAST_ROW, score={TASKS[0]: "accuracy", TASKS[1]: "sari", TASKS[2]: "bleu"})
    assert re.search(r"qa \(accuracy\) +79\.99 +500 +1\.23 +70\.10 +80\.20\n", printed(given))
    assert re.search(r"<b>bold</b> \(sari\) +61\.00 +1 +– +– +–\n", printed(given))
    text = Page(render_html(given)).text
    assert all(cell in text for cell in ("qa (accuracy)", "79.99", "500", "1.23", "70.10", "80.20"))


def test_how_long_answers_may_be_by_which_rule_and_how_many_were_cut_is_told():
    lengths = {task: {"rule": "training", "max_new_tokens": 31 + n, "cut": n} for n, task in enumerate(TASKS)}
    given = results(last_row=LAST_ROW, lengths=lengths, config={"benchmark": {"protocol_max_new_tokens": 512}})
    for text in (printed(given), Page(render_html(given)).text):
        assert "benchmark.max_new_tokens=training" in text
        assert "3 were cut there. Its authors generate up to 512." in text
    assert re.search(r"<b>bold</b> \(rouge_l\) +61\.00 +1 +– +– +– +32 +1\n", printed(given))
    mixed = results(last_row=LAST_ROW, lengths=lengths | {"qa": {"rule": "protocol", "max_new_tokens": 512, "cut": 0}})
    assert re.search(r"benchmark.max_new_tokens=protocol\): qa; .*=training\): <b>bold</b>, a_r", printed(mixed))
    assert "were cut" not in printed(results(last_row=LAST_ROW))


def test_nothing_in_the_results_becomes_markup():
    page = render_html(results())
    assert "<b>bold" not in page
    assert "<script" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert TASKS[1] in Page(page).text


def test_what_was_not_measured_is_left_out_or_dashed():
    text = Page(render_html(mtl())).text
    assert "–" in text
    assert "None" not in text
    assert "nan" not in text
    assert "Who answered" not in text
    assert "Each task over time" not in text
    assert "Who answered" in Page(render_html(results())).text


def test_the_same_results_give_the_same_bytes():
    assert render_html(results()) == render_html(results())
    assert not re.search(r"dc:date|\b20\d\d-\d\d-\d\d", render_html(results()))


def test_every_drawing_has_a_name_for_screen_readers():
    page = render_html(results())
    drawings = page.count("<svg ")
    assert drawings == 2 + len(TASKS)
    named = re.findall(r'<svg role="img" aria-labelledby="([^"]+)"[^>]*><title id="\1">[^<]+</title>', page)
    assert len(named) == drawings
    assert "81.3 after 1, 80.0 after 2, 80.0 after 3" in page


def test_a_drawing_holds_the_scores_as_text():
    svg = matrix_svg(TASKS, results()["matrix"])
    texts = [text.strip() for text in re.findall(r">([^<>]+)</text>", svg)]
    assert {"81.3", "12.5", "80.0", "63.5", "5.0", "61.0", "44.4", "·"} <= set(texts)


def test_the_right_expert_of_a_task_without_its_own_is_framed():
    columns = ["sky", "sea", "base"]
    for given, expected in ({}, {"1", "4"}), ({"sky": "base"}, {"3", "4"}), ({"sea": "sky"}, {"1", "5"}):
        svg = confusion_svg(columns[:2], columns, [[1, 2, 3], [5, 4, 6]], given)
        assert set(re.findall(r'<text style="font-weight: 700;[^>]*>([^<]+)</text>', svg)) == expected


def test_text_on_every_shade_has_the_contrast_that_wcag_asks_for():
    from matplotlib import colormaps

    def luminance(colour: tuple[float, float, float]) -> float:
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for step in range(101):
        colour = colormaps["cividis"](step / 100)[:3]
        ink = {"black": 0.0, "white": 1.0}[readable_on(colour)]
        low, high = sorted([ink, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_file_gets_every_number_and_aligned_columns():
    text = printed(results(), force_terminal=False, width=40)
    for wanted in (
        "81.3*",
        "63.5*",
        "44.4*",
        "12.5",
        "61.81",
        "−1.87",
        "91.3 %",
        "[red]",
        "sum holds <200> rows",
        *TASKS,
    ):
        assert wanted in text
    assert "\x1b" not in text
    assert "…" not in text
    rows = [line for line in text.splitlines() if re.match(r" *\d after ", line)]
    ends = {tuple(match.end() for match in re.finditer(r" \d+\.\d| ·", line)) for line in rows}
    assert len(rows) == len(TASKS)
    assert len(ends) == 1
    assert len(ends.pop()) == len(TASKS)


def test_a_narrow_terminal_shows_numbers_whole_and_heads_the_columns_by_number():
    tasks = [f"a_long_name_of_task_{t}" for t in range(10)]
    rows = [[float(10 * t + j) for j in range(10)] for t in range(10)]
    text = printed(results(tasks=tasks, matrix=rows), force_terminal=True, color_system=None, width=90)
    assert all(f"{score:.1f}" in text for row in rows for score in row)
    assert "…" not in text
    assert re.search(r"score +1 +2 +3 +4 +5 +6 +7 +8 +9 +10", text)


@pytest.mark.parametrize("given", [mtl(), single()], ids=["mtl", "single"])
def test_unmeasured_metrics_are_printed_as_dashes(given):
    text = printed(given, force_terminal=False)
    assert re.search(r"FWT +–", text)
    assert "None" not in text
    assert "routing" not in text


def test_the_matrix_goes_to_a_spreadsheet_unrounded():
    header, *lines = csv.reader(io.StringIO(matrix_csv(results())))
    assert header == ["after", *TASKS]
    assert lines[0] == ["qa", "81.26", "12.5", ""]


def test_variants_stand_beside_what_was_learned_in_the_terminal_and_on_the_page():
    found = {
        "asked": ["input_only", "paraphrased"],
        "input_only": {"AR": 31.25, "scores": dict(zip(TASKS, (11.5, 22.5, 33.5), strict=True)),
                       "routing_accuracy": 0.4567, "base_share": 0.25},
        "paraphrased": {"AR": 52.75, "scores": dict(zip(TASKS, (44.5, 55.5, 66.5), strict=True)),
                        "routing_accuracy": None, "base_share": None},
    }  # fmt: skip
    rows = [
        ["asked", "as learned", "input only", "paraphrased"],
        ["AR", "61.81", "31.25", "52.75"],
        ["routing accuracy", "91.3 %", "45.7 %", "–"],
        ["base share", "1.2 %", "25.0 %", "–"],
        [TASKS[0], "79.99", "11.50", "44.50"],
        [TASKS[1], "61.00", "22.50", "55.50"],
        [TASKS[2], "44.44", "33.50", "66.50"],
    ]
    lines = printed(results(variants=found)).splitlines()
    assert [row for row in rows if any(re.split(r"  +", line.strip()) == row for line in lines)] == rows
    page = Page(render_html(results(variants=found)))
    cells = [cell for cell in page.text.splitlines() if cell.strip()]
    flat = [cell for row in rows for cell in row]
    assert any(cells[start : start + len(flat)] == flat for start in range(len(cells)))
    assert "Put otherwise" not in render_html(results())
    assert "input only" not in printed(results())


def test_foreign_queries_without_definitions_stand_beside_them():
    alone = {"scores": {}, "without_definition": ["code"], "base_share": 0.25, "per_task": {"quiz": 0.125}}
    ood = {"base_share": 0.75, "per_task": {"quiz": 0.5, "code": 1.0}, "input_only": alone}
    text = printed(results(ood=ood), width=160)
    for line in (
        r"out-of-distribution queries answered by the base model +75.0 %",
        r"out-of-distribution queries without their definitions answered by the base model +25.0 %",
        r"quiz: answered by the base model +50.0 %",
        r"quiz without its definition: answered by the base model +12.5 %",
    ):
        assert re.search(line, text), line
    assert "code without" not in text
    assert "quiz without its definition" in render_html(results(ood=ood))
    unrouted = {"scores": {"quiz": 1.0}, "input_only": {"scores": {"quiz": 1.0}, "without_definition": []}}
    assert "without" not in printed(results(ood=unrouted))


def test_a_methods_own_work_is_told_by_task_over_all_its_hooks():
    spent = {"assign": [None, 1.5], "end_task": [2.0, 4.0]}
    assert costs_of({"timing": {"method_s": spent}, "counts": {"method_tokens": {}}}) == {
        "method time": ([2.0, 5.5], True)
    }


def test_validation_losses_are_a_row_of_each_trained_task_and_a_column_of_each_epoch():
    assert validation(results()) == []
    assert "Validation loss" not in render_html(results())
    rows = [
        ["task", "kept epoch", "epoch 1", "epoch 2"],
        ["qa", "2", "1.5000", "1.2500"],
        [TASKS[1], "1", "0.7500", ""],
    ]
    assert validation(results(validation=LOSSES)) == rows
    joint = {name: one[:1] for name, one in LOSSES.items()}
    assert validation(results(validation=joint))[1:] == [["all", "2", "1.5000", "1.2500"]]
    page = render_html(results(validation=LOSSES))
    assert page.count("<td>1.2500</td>") == 1
