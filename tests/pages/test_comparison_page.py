"""`compare` end to end: it prints, writes one page of paired differences, and refuses runs that share no row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from page_reader import Page, at, says
from whole_report import answers
from workbench.errors import RequestError
from workbench.evaluation.answers import Prediction, write_predictions
from workbench.evaluation.pairing import compare_gathered, gather
from workbench.evaluation.report import build_report
from workbench.recipe.schema import Evaluate
from workbench.views import compare


def evaluated(experiments: Path, digest: str, student: list[Prediction]) -> None:
    """A run folder that was evaluated, of a student alone."""
    folder = experiments / "legal" / digest
    (folder / "evaluate" / "predictions").mkdir(parents=True)
    report = build_report("legal", Evaluate(resamples=1000), {"student": student}, {}, seed=1)
    (folder / "evaluate" / "report.json").write_text(json.dumps(report))
    (folder / "run.json").write_text(json.dumps({"stages": {"evaluate": {}}}))
    write_predictions(student, folder / "evaluate" / "predictions" / "student.jsonl")


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    right = answers("gguf_q4_k_m")
    evaluated(tmp_path, "aaaa", right)
    evaluated(tmp_path, "bbbb", [replace(p, answer=p.expected) if i % 4 == 0 else p for i, p in enumerate(right)])
    evaluated(tmp_path, "cccc", [replace(p, answer="none") if i % 5 == 0 else p for i, p in enumerate(right)])
    evaluated(tmp_path, "other", [replace(p, id=f"other {p.id}") for p in right])
    return tmp_path


def test_three_runs_are_one_page_whose_figures_are_those_that_were_printed(
    experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.run("aaaa,bbbb,cccc", "", str(experiments), "json") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    html = Path(told["page"]).read_text(encoding="utf-8")
    assert Path(told["page"]).parent == experiments / ".compare"
    page = Page(html)
    assert page.open == []
    assert len(page.quoted) > 40
    for pointer, kind, _, text in page.quoted:
        value = len(at(told, pointer)) if kind == "length" else at(told, pointer)
        assert says(text, kind, value), pointer
    assert {name for name in ("legal/aaaa", "legal/bbbb", "legal/cccc") if f">{name}</span>" in html} == {
        "legal/aaaa", "legal/bbbb", "legal/cccc"}  # fmt: skip
    assert 'data-kinds="lost"' in html
    assert 'data-kinds="gained"' in html


def test_a_page_of_ones_own_name_says_which_of_two_is_better(
    experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = experiments / "elsewhere" / "mine.html"
    (experiments / "legal" / "torn").mkdir()
    (experiments / "legal" / "torn" / "run.json").write_text('{"sta')  # another run's, that is damaged
    assert compare.run("aaaa,bbbb", "", str(experiments), "text", str(out)) == 0
    assert f"page: {out}" in capsys.readouterr().out
    assert "legal/bbbb is better." in out.read_text(encoding="utf-8")


def test_runs_that_share_no_row_are_refused(experiments: Path) -> None:
    with pytest.raises(RequestError, match="share no item"):
        compare.run("aaaa,other", "", str(experiments), "text")
    assert not (experiments / ".compare").exists()


def test_runs_that_a_judge_decided_are_compared_by_what_the_answers_are(experiments: Path) -> None:
    for name in ("aaaa", "bbbb"):
        path = experiments / "legal" / name / "evaluate" / "report.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scorer": "judge", "primary": "preference"}))
    found = compare_gathered(gather([experiments / "legal" / name for name in ("aaaa", "bbbb")]))
    assert found["primary"] == "exact_match"
    assert any("a judge's verdict within one run" in line for line in found["said"])
    assert compare.run("aaaa,bbbb", "", str(experiments), "json") == 0
