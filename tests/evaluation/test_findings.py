"""What the verdict may claim: of slices that are only told, of waits nobody measured, of how sure the wrong are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from workbench.evaluation.answers import Prediction
from workbench.evaluation.few_rows import too_few
from workbench.evaluation.gate import judge
from workbench.evaluation.metrics import against, describe
from workbench.evaluation.report import build_report
from workbench.recipe.schema import Evaluate, Gate

LABELS = ("red", "blue", "green", "black")
N = 400


def answers(arm: str, right: dict[str, float], seed: int = 1, **more: Any) -> list[Prediction]:
    """N answers whose share of right ones by wanted label is known."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(N):
        wanted = LABELS[number % len(LABELS)]
        is_right = draw.random() < right[wanted]
        said = wanted if is_right else LABELS[(number + 1) % len(LABELS)]
        rows.append(Prediction(f"row {number}", f"{arm}{number}", said, wanted, "stop", 40, 3, 0.1, f"g{number}"))
    return [dataclasses.replace(row, **more) for row in rows]


def report_of(student: dict[str, float], baseline: dict[str, float]) -> dict[str, Any]:
    predictions = {"base_few_shot": answers("b", baseline, 2), "student": answers("s", student, 3)}
    return build_report(
        "colours", Evaluate(scorer="label", labels=list(LABELS), resamples=1000), predictions, {}, seed=5
    )


def test_a_label_that_certainly_lost_is_a_finding_in_the_verdicts_first_lines() -> None:
    better = dict.fromkeys(LABELS, 0.95) | {"red": 0.6}
    report = report_of(better, dict.fromkeys(LABELS, 0.3) | {"red": 1.0})
    verdict = judge(report, Gate(), report["primary"], [])
    assert verdict["passed"], "it is not judged by it"
    (finding,) = verdict["findings"]
    assert finding.startswith("student is certainly worse than base_few_shot in a part: label red lost ")
    assert "blue" not in finding
    assert "Told, not judged" in finding
    from workbench.pages.terminal import gate_lines

    first = gate_lines(report | {"gate": verdict})[0]
    assert first.plain == f"! {finding}"


def test_no_finding_is_made_where_no_label_certainly_lost() -> None:
    report = report_of(dict.fromkeys(LABELS, 0.9), dict.fromkeys(LABELS, 0.3) | {"red": 0.92})
    assert judge(report, Gate(), report["primary"], [])["findings"] == []


def test_the_line_on_slices_says_how_many_are_only_told_and_why() -> None:
    better = dict.fromkeys(LABELS, 0.95) | {"red": 0.6}
    predictions = {"base_few_shot": answers("b", dict.fromkeys(LABELS, 0.3) | {"red": 1.0}, 2),
                   "student": answers("s", better, 3)}  # fmt: skip
    lengths = {f"row {number}": 10 + number for number in range(N)}
    evaluate = Evaluate(scorer="label", labels=list(LABELS), resamples=1000)
    report = build_report("colours", evaluate, predictions, {}, seed=5, lengths=lengths)
    (line,) = (c["why"] for c in judge(report, Gate(), report["primary"], [])["checks"] if c["name"] == "slices")
    assert line.startswith("of 4 slices held against base_few_shot (4 by label are told, not judged: ")


def test_the_wall_time_of_a_batch_is_nobodys_wait_and_meets_no_limit_of_one() -> None:
    shares = dict.fromkeys(LABELS, 0.9)
    predictions = {"base_few_shot": answers("b", dict.fromkeys(LABELS, 0.3), 2, latency=9.0),
                   "student": answers("s", shares, 3, latency=9.0, first_token=2.0)}  # fmt: skip
    evaluate = Evaluate(scorer="label", labels=list(LABELS), resamples=1000)
    report = build_report("colours", evaluate, predictions, {}, seed=5)
    student = report["arms"]["student"]
    assert student["batch_seconds_p95"]["value"] == 9.0
    assert student["seconds_per_answer"]["value"] == pytest.approx(0.1)
    assert not {name for name in student if "latency" in name}
    for name in student:
        assert "waits" not in describe(name)["meaning"], name
    checks = {c["name"]: c for c in judge(report, Gate(max_seconds=60.0), report["primary"], [])["checks"]}
    assert not checks["latency"]["passed"]
    assert "as served" in checks["latency"]["why"]
    assert "not measured" in checks["latency"]["why"]
    assert "latency" not in {c["name"] for c in judge(report, Gate(), report["primary"], [])["checks"]}


def test_an_arm_that_is_never_right_is_not_praised_for_knowing_it() -> None:
    never, often = dict.fromkeys(LABELS, 0.0), dict.fromkeys(LABELS, 0.8)
    predictions = {"base": answers("n", never, 2, logprob=-30.0), "student": answers("s", often, 3, logprob=-0.2)}
    evaluate = Evaluate(scorer="label", labels=list(LABELS), resamples=1000)
    report = build_report("colours", evaluate, predictions, {}, seed=5)
    assert set(report["calibration"]) == {"student"}
    assert "0 of 400 answers are right" in report["uncalibrated"]["base"]


@pytest.mark.parametrize(
    ("delta", "words"),
    [(0.0, "the same as base"), (0.0004, "the same as base"), (0.01, "1.0 points better than base"),
     (-0.255, "25.5 points worse than base")],
)  # fmt: skip
def test_a_difference_of_nothing_is_neither_better_nor_worse(delta: float, words: str) -> None:
    assert against(delta, "base") == words


def test_too_few_rows_to_judge_is_told_with_what_a_verdict_takes_and_what_can_be_had() -> None:
    lines = too_few(40, 200, Gate(), 0.2)
    assert "40 test rows are fewer than gate.min_rows=100" in lines[0]
    assert "500 rows at data.test_share=0.2 (now 200)" in lines[1]
    assert "or evaluate.folds=5: nearly all of 200 rows judge" in " ".join(lines)
    assert "data.test_share=0.5" in " ".join(lines)
    assert lines[-1].startswith("or gate.min_rows=40")
    assert "or evaluate.folds=5 without quantize:" in " ".join(too_few(40, 200, Gate(), 0.2, against=["quantize"]))
    assert "folds" not in " ".join(too_few(40, 200, Gate(), 0.2, against=["quantize", "teacher"])), (
        "it would be refused"
    )
    assert "folds" not in " ".join(too_few(16, 80, Gate(), 0.2)), "so few rows could not judge all together either"
    assert too_few(100, 200, Gate(), 0.5) == []
    assert "data.test_share=0.5" not in " ".join(too_few(10, 50, Gate(), 0.2)), "even half of them are too few"
    assert "60 more rows in data.test" in too_few(40, 40, Gate(), None)[1]
