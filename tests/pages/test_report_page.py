"""The page: self-contained, escaped, readable by any browser, and saying what report.json says, figure by figure."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import screenshots
from page_boxes import BOXES
from page_reader import Page, at, says
from whole_report import context, gate, whole_report
from workbench.evaluation.answers import Prediction
from workbench.evaluation.report import build_report
from workbench.pages.changed_answers import MOST, changed_items
from workbench.pages.charts import Spot, axis_of, pareto_front
from workbench.pages.report_page import write_page
from workbench.recipe.schema import Evaluate

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'

PARTS = ("slices", "calibration", "confusion", "general", "refusals", "memorised", "judge", "duties", "chain",
         "engines", "formats", "gate")  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Any], dict[str, list[Prediction]]]:
    return whole_report()


@pytest.fixture(scope="module")
def html(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(tmp_path_factory.mktemp("page"), whole)


def page(folder: Path, whole: Any, changes: dict[str, Any] | None = None, **told: Any) -> str:
    report, predictions = whole
    write_page(
        report | (changes or {}),
        predictions,
        folder / "report.html",
        title="legal",
        context=told or context(predictions),
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def arm(right: int, n: int = 200, wrong: str = "no") -> list[Prediction]:
    return [
        Prediction(f"row{i}", f"k{i}", "yes" if i < right else wrong, "yes" if i % 2 else "yes ", "stop", 9, 5, 0.5)
        for i in range(n)
    ]


def test_every_figure_on_the_page_is_the_one_in_the_report(html: str, whole: Any) -> None:
    report = json.loads(json.dumps(whole[0]))
    quoted = Page(html).quoted
    assert len(quoted) > 600
    for pointer, kind, exact, text in quoted:
        value = len(at(report, pointer)) if kind == "length" else at(report, pointer)
        assert exact is None or json.loads(exact) == value, pointer
        assert says(text, kind, value), f"{pointer}: {text!r} is not {value!r} as {kind}"


def test_no_figure_stands_on_the_page_that_is_not_quoted_from_the_report(html: str, whole: Any) -> None:
    names = re.compile("|".join([*whole[0]["arms"], "F1", r"p\d\d", "1,000", r"^\d+ more"]))
    loose = [names.sub("", words.strip()) for words in Page(html).around]
    assert [words for words in loose if re.search(r"\d", words)] == []
    told = [*Page(html.replace("<h2>Item by item</h2>", "<h2>Item by item: 7 points</h2>")).around]
    assert any("7 points" in words for words in told), "or the test above sees nothing"


def test_each_dot_of_the_forest_lies_where_its_figure_says(html: str, whole: Any) -> None:
    report, _ = whole
    forest = html[html.index('id="arms"') : html.index('id="differences"')]
    for name, cells in report["arms"].items():
        told = re.search(rf"<title>{name}: [^<]*</title>.*?<circle cx=\"([\d.]+)%\"", forest)
        assert told, name
        assert float(told[1]) == pytest.approx(100 * cells[report["primary"]]["value"], abs=1e-3)


def test_the_verdict_stands_on_top_with_its_figures(html: str) -> None:
    top = re.sub(r"<[^>]+>", "", html[html.index('class="verdict') : html.index('id="gate"')]).replace("\u00a0", " ")
    assert "The student ships; gguf_q4_k_m does not." in top
    assert re.search(
        r"77\.5 % exact match, 31\.7 points better than base_few_shot on the same 120 test rows \(95 % interval", top
    )


def test_a_refused_student_is_called_so(tmp_path: Path, whole: Any) -> None:
    assert "The student may not ship." in page(tmp_path, whole, {"gate": gate(passed=False, shipped=[])})


def test_a_person_who_overrides_the_gate_is_named_on_top(tmp_path: Path, whole: Any) -> None:
    told = page(tmp_path, whole, {"gate": gate(overridden=True, override="A. Reader, 3 May: the old model is wrong")})
    top = told[: told.index('id="gate"')]
    assert "The student ships against the gate." in top
    assert "A. Reader, 3 May: the old model is wrong" in top


@pytest.mark.parametrize("part", PARTS)
def test_a_report_without_a_part_still_has_a_page(part: str, tmp_path: Path, whole: Any) -> None:
    report = {name: value for name, value in whole[0].items() if name != part}
    heading = {"slices": "Where it is weak", "calibration": "Does it know", "confusion": "What is taken for what",
               "chain": "Where quality went", "gate": "May it ship?", "general": "General questions",
               "refusals": "<h3>Refusals", "memorised": "Memorised", "judge": "The judge",
               "duties": "Duties of"}  # fmt: skip
    told = page(tmp_path, (report, whole[1]))
    assert Page(told).open == []
    if part in heading:
        assert heading[part] in page(tmp_path, whole)
        assert heading[part] not in told


def test_an_evaluation_that_was_never_gated_is_a_measurement(tmp_path: Path) -> None:
    rows = {"base_few_shot": arm(60), "student": arm(150)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {}, seed=1)
    told = page(tmp_path, (report, rows), facts={"machine": "2 cores"})
    assert "The student was measured." in told
    assert "May it ship?" not in told
    assert "<dt>machine</dt><dd>2 cores</dd>" in told


def test_only_the_pages_own_script_may_run_and_nothing_may_be_fetched(html: str) -> None:
    assert html.count("<script") == 1
    script = re.search(r"<script>(.*?)</script>", html, re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert not re.search(r"src\s*=|url\(|@import|https?://|href=\"[^#]", html)


def test_what_models_and_data_say_is_escaped(tmp_path: Path) -> None:
    rows = {"base_few_shot": arm(60, wrong=EVIL), "student": arm(150), "gguf_q4_k_m": arm(120)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {}, seed=1)
    told = {"prompts": {"row100": EVIL}, "facts": {EVIL: EVIL}, "recipe": EVIL, "versions": {"torch": EVIL}}
    html = page(tmp_path, (report, rows), **told, datasets=[{"name": EVIL}], teacher={EVIL: EVIL})
    assert html.count("<script") == 1
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 8


def test_every_tag_is_closed(html: str) -> None:
    assert Page(html).open == []


def test_equal_input_gives_equal_bytes_even_from_a_file(tmp_path: Path, whole: Any, html: str) -> None:
    assert page(tmp_path, (json.loads(json.dumps(whole[0])), whole[1])) == html


def test_a_slice_leads_to_the_rows_behind_it(html: str, whole: Any) -> None:
    part = whole[0]["slices"][3]
    behind = re.findall(r'id="row-([^"]*)" data-kinds="[^"]*" data-slices="(?:\d+ )*3(?: \d+)*"', html)
    assert sorted(item.replace("%20", " ") for item in behind) == sorted(part["items"])
    strip = html[html.index(part["value"]) :]
    assert strip[: strip.index("</details>")].count('href="#row-') == part["n"]


def test_answers_are_of_the_kinds_that_the_scores_make_them() -> None:
    rows = {"base_few_shot": arm(60), "student": arm(150), "gguf_q4_k_m": arm(120)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {}, seed=1)
    shown, counts = changed_items(report, rows, {}, "base_few_shot")
    assert counts == {"lost": 0, "quantized": 30, "gained": 90, "wrong": 50, "right": 60}
    both = next(row for row in shown if row.id == "row130")
    assert both.kinds == ("quantized", "gained")
    assert [(s.arms, s.right) for s in both.answers] == [
        (("base_few_shot", "gguf_q4_k_m"), False),
        (("student",), True),
    ]


def test_by_a_judge_no_answer_is_marked_right_or_wrong(tmp_path: Path) -> None:
    rows = {"base_few_shot": arm(60), "student": arm(150), "gguf_q4_k_m": arm(120)}
    judged = {"preference": {name: {p.id: float(i % 2) for i, p in enumerate(own)} for name, own in rows.items()}}
    report = build_report("letters", Evaluate(scorer="judge", resamples=1000), rows, {}, seed=1, judged=judged)
    shown, counts = changed_items(report, rows, {}, "base_few_shot")
    assert counts == {"quantized": 30, "differs": 90, "same": 110}
    assert {given.right for row in shown for given in row.answers} == {row.right for row in shown} == {None}
    html = page(tmp_path, (report, rows))
    answers = html[html.index('<section id="answers"') :]
    assert "By the judge" in answers
    assert 'class="mark mark-' not in answers


def test_a_page_of_many_rows_keeps_some_of_each_kind() -> None:
    rows = {"base_few_shot": arm(800, 3000), "student": arm(1500, 3000), "gguf_q8_0": arm(1495, 3000)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {}, seed=1)
    shown, counts = changed_items(report, rows, {}, "base_few_shot")
    assert len(shown) == MOST
    assert counts == {"lost": 0, "quantized": 5, "gained": 700, "wrong": 1500, "right": 800}
    kept = {kind: sum(row.kinds[0] == kind for row in shown) for kind in counts}
    assert kept["quantized"] == 5
    assert min(kept["gained"], kept["wrong"], kept["right"]) > 100


def test_the_front_holds_those_that_none_beats_for_less() -> None:
    told = (("slow", 3.0, 0.7), ("best", 2.0, 0.8), ("cheap", 1.0, 0.5), ("worse", 1.0, 0.4), ("even", 2.0, 0.8))
    spots = [Spot(name, "student", x, y) for name, x, y in told]
    assert [spot.arm for spot in pareto_front(spots)] == ["cheap", "best"]


@pytest.mark.parametrize("values", [[0.0], [-0.087, 0.013], [0.7, 0.72], [-1.0, 1.0], [1e-5]])
def test_an_axis_holds_its_values_between_round_ticks(values: list[float]) -> None:
    axis = axis_of(values)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert axis.low == pytest.approx(axis.ticks[0])
    assert axis.high == pytest.approx(axis.ticks[-1])
    assert all(0 <= float(axis.at(v).rstrip("%")) <= 100 for v in values)


def test_the_page_has_its_contents_on_top_and_what_each_stage_took_at_its_end(html: str) -> None:
    places = re.findall(r'<section id="([\w-]+)"', html)
    links = re.findall(r'<a href="#([\w-]+)">', html[: html.index("<section")])
    assert links == places
    assert len(links) >= 12
    made = " ".join(re.sub(r"<[^>]+>", " ", html[html.index('id="made"') :]).split())
    assert "label 1.0 0.44 train 6.1 0.12 merge 0.4 0.01 in all 7.5 0.57" in made, (
        "a teacher's bill and the machine's hours"
    )


def test_how_the_training_went_is_drawn_as_far_as_it_was_told(html: str, whole: Any, tmp_path: Path) -> None:
    for title in ("Learning rate", "Norm of the gradient", "Memory, most so far (GB)", "Tokens a second"):
        assert f"<figcaption>{title}</figcaption>" in html
    told = context(whole[1]) | {"train": [{"step": s, "loss": 1.0, "grad_norm": 0.2} for s in (1, 2)]}
    bare = page(tmp_path, whole, **told)
    assert "<figcaption>Norm of the gradient</figcaption>" in bare
    assert "Learning rate" not in bare


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_real_browser_shows_it_without_an_error_a_request_or_a_sideways_scroll(
    browser: screenshots.Browser, whole: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    page(tmp_path, whole)
    browser.events.clear()
    browser.look(width, 900, dark=dark)
    browser.go(str(tmp_path / "report.html"), 1.0)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) is dark
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "with everything unfolded"
    for look in ("screen", "print"):  # on paper everything is unfolded
        browser.look(width if look == "screen" else 720, 900, dark=dark, media=look)
        there = browser.evaluate(BOXES)
        assert there["boxes"] > 1000
        assert there["touching"] == [], "no two boxes overlap"
        assert there["cut"] == [], "nothing is cut"
        assert there["near"] == [], "no card stands on another"
    methods = [event.get("method") for event in browser.events]
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file://") and url.endswith("/report.html") for url in asked)
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(methods)


@pytest.mark.slow
def test_the_answers_can_be_filtered_by_kind_slice_and_words(
    browser: screenshots.Browser, whole: Any, tmp_path: Path
) -> None:
    page(tmp_path, whole)
    browser.look(1440, 900)
    browser.go(str(tmp_path / "report.html"), 1.0)
    _, counts = changed_items(*whole, {}, "base_few_shot")

    def shown() -> int:
        return int(browser.evaluate("document.getElementById('found').textContent").split()[0])

    browser.evaluate("document.querySelector('input[name=kind][value=gained]').click()")
    assert shown() == counts["gained"]
    assert browser.evaluate("[...document.querySelectorAll('.item')].filter((i) => !i.hidden).length") == 20
    browser.evaluate("document.getElementById('more').click()")
    assert browser.evaluate("[...document.querySelectorAll('.item')].filter((i) => !i.hidden).length") == min(
        40, counts["gained"]
    )
    browser.evaluate("document.querySelector('a.pick[data-slice=\"2\"]').click()")
    assert shown() == whole[0]["slices"][2]["n"]
    browser.evaluate("document.getElementById('find').value = 'number 25'")
    browser.evaluate("document.getElementById('find').dispatchEvent(new Event('input'))")
    assert shown() == 1
