"""The page of answers in a real browser, from the disk: what filters leave, at a wide and at a phone's width.

A script that is added to a copy of the page acts as its reader would, and tells the page around it what is to be seen.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from see_lightning.files.writing import write_texts
from see_lightning.reporting.answers.files import INDEX, ROWS, answers_files
from see_lightning.reporting.answers.queries import StageAnswers, TestQueries
from tests.conftest import BROWSERS
from tests.reporting.answered import NASTY, TASKS, answer, prompts, queries, results, walked

pytestmark = pytest.mark.browser

SIZE = 2 * ROWS  # queries of a task; a task has two files of texts
#: Around the page, which it shows in a frame of a given width, and whose message becomes the title.
FRAME = """<!doctype html><meta charset="utf-8"><title></title>
<script>addEventListener("message", (event) => { document.title = event.data; });</script>
<iframe src="answers/index.html#ADDRESS" width="WIDTH" height="800"></iframe>"""
PROBE = """
const loads = [];
new MutationObserver((all) => { for (const one of all) for (const node of one.addedNodes) if (node.src) loads.push(node.getAttribute("src")); })
  .observe(document.head, { childList: true });
const rested = () => list.ariaBusy === "false";
const until = async (done) => { for (let n = 0; n < 400 && !done(); n++) await new Promise((go) => setTimeout(go, 50)); };
const told = () => document.getElementById("status").textContent;
const set = async (name, value) => {
  const field = document.forms[0].elements[name];
  const options = [...(field.options ?? [])];
  field.value = (options.find((one) => one.value === value) ?? options.find((one) => one.text.startsWith(value)))?.value ?? value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await until(rested);
  return told();
};
const seen = () => [...document.querySelectorAll("#list > details")].map((one) => one.innerText);
const wide = () => [document.documentElement.scrollWidth, innerWidth];
(async () => {
  await until(() => rested() || told().includes("missing"));
  let said;
  try { said = await (async () => { ACT })(); } catch (error) { said = String(error); }
  parent.postMessage(JSON.stringify(said), "*");
})();
"""


@pytest.fixture
def opened(tmp_path):
    """Open the page of some queries in the browser and act there: what JavaScript returns."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))

    def act(found: TestQueries, script: str, *, address: str = "", width: int = 1200, without: str = ""):
        write_texts(tmp_path / "answers", answers_files(found))
        page = tmp_path / "answers" / INDEX
        text = page.read_text(encoding="utf-8")
        probe = f"<script>{PROBE.replace('ACT', script)}</script></body>"
        page.write_text(
            text.replace(
                "<script>",
                "<script>window.onerror = (told) => parent.postMessage(JSON.stringify(told), '*');</script><script>",
                1,
            ).replace("</body>", probe),
            encoding="utf-8",
        )
        if without:
            (tmp_path / "answers" / without).unlink()
        frame = FRAME.replace("ADDRESS", address).replace("WIDTH", str(width))
        (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--virtual-time-budget=60000"]
        done = subprocess.run(
            [browser, *words, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        told = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert told, done.stderr[-1000:]
        return json.loads(html.unescape(told[1]))

    return act


STEPS = (
    *(
        ("task", "sum"),
        ("routing", "wrong"),
        ("expert", "base"),
        ("expert", "all"),
        ("routing", "right"),
        ("from", "97"),
    ),
    *(("to", "99"), ("task", "all"), ("text", "QUERY 4"), ("order", "highest"), ("stage", "after 02")),
)


def line(answers: list, of: int) -> str:
    mean = sum(one["score"] for one in answers) / len(answers)
    return f"{len(answers):,} of {of:,} queries, mean score {mean:.1f}"


def test_filters_leave_what_they_say_and_load_only_the_files_of_what_is_shown(opened):
    told, first, address = opened(
        queries(SIZE),
        """
        const all = [[told(), [...loads]]];
        for (const [name, value] of STEPS) {
          loads.length = 0;
          all.push([await set(name, value), [...loads]]);
        }
        return [all, seen()[0], location.hash];
        """.replace("STEPS", json.dumps(STEPS)),
    )
    second, last = (stage.answers for stage in walked(SIZE)[1:])
    of_sum = [one for one in last if one["task"] == "sum"]
    right = [one for one in last if one["expert"] == one["task"] and one["score"] >= 97]
    between = [one for one in right if one["score"] <= 99]
    with_text = [one for one in between if "-4" in one["id"]]
    earlier = [one for one in second if one["expert"] == one["task"] and one["id"] in {one["id"] for one in with_text}]
    assert told == [
        [line(last, 3 * SIZE), ["after-3.js", "page-1.js"]],
        [line(of_sum, 3 * SIZE), ["page-5.js"]],
        [line([one for one in of_sum if one["expert"] != "sum"], 3 * SIZE), ["page-6.js"]],
        [line([one for one in of_sum if one["expert"] == "base"], 3 * SIZE), []],
        [line([one for one in of_sum if one["expert"] != "sum"], 3 * SIZE), []],
        [line([one for one in of_sum if one["expert"] == "sum"], 3 * SIZE), []],
        [line([one for one in right if one["task"] == "sum"], 3 * SIZE), []],
        [line([one for one in between if one["task"] == "sum"], 3 * SIZE), []],
        [line(between, 3 * SIZE), ["page-2.js", "page-3.js", "page-4.js"]],
        [line(with_text, 3 * SIZE), []],
        [line(with_text, 3 * SIZE), []],
        [line(earlier, 3 * SIZE), ["after-2.js"]],
    ]
    assert first.split()[:3] == ["qa", "99.0", "qa"], "the highest score first"
    assert address == "#stage=02-%3Cb%3Etone%3C%2Fb%3E&routing=right&from=97&to=99&order=highest&text=QUERY+4"


def test_a_query_is_shown_as_text_with_all_that_is_known_of_it(opened):
    texts, marks, elements, title, hash_ = opened(
        queries(SIZE),
        """
        await set("text", "onerror");
        document.querySelector("#list summary").click();
        await until(() => document.querySelector(".more"));
        return [document.querySelector("#list details").innerText, document.querySelectorAll("mark").length,
                document.querySelectorAll("#list img, #list script, #list b").length, document.title, location.hash];
        """,
        address="task=%3Cb%3Etone%3C%2Fb%3E",
    )
    assert NASTY in texts
    assert "qa\trefuses" not in texts
    for wanted in ("right 1", f"{TASKS[1]}\taccepts\t1.25", "sum\trefuses\t2.25", "1 of 100", "id <b>tone</b>-1"):
        assert wanted in texts, wanted
    assert (elements, title) == (0, "Test queries of see on made_up · tiny · ratio 0.1 · seed 0")
    assert marks == 2
    assert hash_ == "#task=%3Cb%3Etone%3C%2Fb%3E&text=onerror"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_and_is_turned_by_keys(opened, width):
    (page, inner), shown, number, address = opened(
        queries(SIZE),
        """
        document.querySelector("#list summary").click();
        await until(() => document.querySelector(".more"));
        const size = wide();
        document.getElementById("next").click();
        await until(() => seen()[0].includes("Query 25 "));
        return [size, seen().length, document.getElementById("page").value, location.hash];
        """,
        width=width,
    )
    assert inner == width
    assert page <= width
    assert (shown, number, address) == (25, "2", "#page=2")


def test_of_a_method_without_experts_the_page_has_no_filters_of_experts(opened):
    answers = [answer("qa", row, None) for row in range(3)]
    without = {name: value for name, value in results().items() if name != "routing"}
    names, texts = opened(
        TestQueries(without, [StageAnswers("01-all", (), answers)], (), prompts()),
        """
        document.querySelector("#list summary").click();
        await until(() => document.querySelector(".more"));
        return [[...document.forms[0].elements].filter((one) => one.name && one.checkVisibility()).map((one) => one.name), seen()];
        """,
    )
    assert names == ["task", "from", "to", "order", "text"]
    assert len(texts) == 3
    assert "log-odds" not in texts[0]


def test_a_file_that_is_missing_is_named(opened):
    assert "page-1.js is missing" in opened(queries(), "return told();", without="page-1.js")
