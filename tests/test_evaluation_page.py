"""The page: self-contained, escaped, and saying what the report says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from workbench.evaluation.answers import Prediction
from workbench.evaluation.charts import axis_of
from workbench.evaluation.gate import judge
from workbench.evaluation.page import write_page
from workbench.evaluation.report import build_report
from workbench.recipe.nouns import Evaluate, Gate

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "line", "circle", "rect", "input", "br", "img", "link"}


class Tags(HTMLParser):
    """Counts tags and finds those that are never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def arm(right: int, n: int = 200, wrong: str = "no") -> list[Prediction]:
    return [
        Prediction(f"row{i}", f"k{i}", "yes" if i < right else wrong, "yes" if i % 2 else "yes ", "stop", 9, 5, 0.5)
        for i in range(n)
    ]


def page(tmp_path: Path, *, wrong: str = "no", gate: Gate | None = None, context: dict[str, Any] | None = None) -> str:
    rows = {"base_few_shot": arm(60, wrong=wrong), "student": arm(150), "gguf_q4_k_m": arm(120)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {"student": {"bytes": 2.7e8}}, seed=1)
    if gate:
        report["gate"] = judge(report, gate, report["primary"], ["gguf_q4_k_m"])
    write_page(report, rows, tmp_path / "report.html", title="legal_lora", context=context or {})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_verdict_stands_on_top_with_its_figures(tmp_path: Path) -> None:
    html = page(tmp_path, gate=Gate())
    assert html.index("The student ships; gguf_q4_k_m does not.") < html.index("<table")
    assert "75.0\u00a0% exact match, 45.0 points better than base_few_shot on the same 200 test rows" in html
    assert "gguf_q4_k_m lost 15.0 points against student" in html


def test_a_refused_student_is_called_so(tmp_path: Path) -> None:
    assert "The student may not ship." in page(tmp_path, gate=Gate(min_rows=201))


def test_a_report_without_a_gate_has_a_page_too(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "The student was measured." in html
    assert "<h2>The gate</h2>" not in html


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(tmp_path: Path) -> None:
    html = page(tmp_path, gate=Gate())
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://|<script", html)


def test_what_models_and_data_say_is_escaped(tmp_path: Path) -> None:
    context = {"prompts": {"row100": EVIL}, "facts": {EVIL: EVIL}, "recipe": EVIL, "versions": {"torch": EVIL}}
    context |= {"datasets": [{"name": EVIL}]}
    html = page(tmp_path, wrong=EVIL, context=context)
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 6


def test_every_tag_is_closed(tmp_path: Path) -> None:
    context = {
        "facts": {"run": "abc"},
        "recipe": "a: 1",
        "datasets": [{"name": "x", "digest": "d"}],
        "versions": {"a": "1"},
    }
    tags = Tags()
    tags.feed(page(tmp_path, gate=Gate(), context=context))
    assert tags.open == []


def test_changed_answers_are_counted_whole_and_shown_in_part(tmp_path: Path) -> None:
    html = page(tmp_path, gate=Gate())
    # 90 rows gained over the baseline; 30 of them lost again by quantizing, so that some are of both kinds.
    assert 'Gained over base_few_shot <span class="num">(90)' in html
    assert 'Changed by quantizing <span class="num">(30)' in html
    assert 10 < html.count("<article") <= 20
    assert "gained over base_few_shot, changed by quantizing" in html


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    assert page(tmp_path, gate=Gate()) == page(tmp_path, gate=Gate())


def test_an_answer_that_several_arms_gave_is_shown_once(tmp_path: Path) -> None:
    html = page(tmp_path, gate=Gate())
    assert "student, gguf_q4_k_m</span>" in html


def test_a_manifest_and_a_recipe_as_they_stand_are_told(tmp_path: Path) -> None:
    manifest = {"digest": "4f1c09ab", "versions": {"torch": "2.13.0"}, "stages": {"train": {"seconds": 366.0}}}
    html = page(tmp_path, context={"manifest": manifest, "recipe": {"method": {"kind": "lora"}}})
    for words in ("<dd>4f1c09ab</dd>", "<dd>6.1 minutes</dd>", "2.13.0", "method:\n  kind: lora"):
        assert words in html


def test_facts_of_any_name_are_kept(tmp_path: Path) -> None:
    assert "<dt>machine</dt><dd>2 cores</dd>" in page(tmp_path, context={"machine": "2 cores"})


@pytest.mark.parametrize("values", [[0.0], [-0.087, 0.013], [0.7, 0.72], [-1.0, 1.0], [1e-5]])
def test_an_axis_holds_its_values_between_round_ticks(values: list[float]) -> None:
    axis = axis_of(values)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert axis.low == pytest.approx(axis.ticks[0])
    assert axis.high == pytest.approx(axis.ticks[-1])
    assert all(0 <= float(axis.at(v).rstrip("%")) <= 100 for v in values)


def test_json_reports_read_back_give_the_same_page(tmp_path: Path) -> None:
    rows = {"base_few_shot": arm(60), "student": arm(150)}
    report = build_report("legal", Evaluate(resamples=1000), rows, {}, seed=1)
    again = json.loads(json.dumps(report))
    for name, source in (("a.html", report), ("b.html", again)):
        write_page(source, rows, tmp_path / name, title="t", context={})
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
