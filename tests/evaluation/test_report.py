"""The report and the gate: what is compared, what may ship, and the reason in words."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.answers import Prediction, write_predictions
from workbench.evaluation.gate import judge
from workbench.evaluation.pairing import compare_arms, compare_gathered, gather
from workbench.evaluation.report import build_report
from workbench.pages.terminal import arms_table, compare_table, gate_lines, verdict
from workbench.recipe.schema import Evaluate, Gate

FIELDS = ["category", "license"]
EVALUATE = Evaluate(scorer="json_fields", fields=FIELDS, resamples=2000)
NAMES = ["Permissive", "Copyleft", "Commercial"]


def arm(right: Sequence[bool], *, groups: Sequence[str] | None = None, invalid: int = 0) -> list[Prediction]:
    """Answers whose category is right where `right` says so; the last `invalid` are no JSON."""
    rows = []
    for i, hit in enumerate(right):
        wanted = {"category": NAMES[i % 3], "license": f"licence-{i % 70}"}
        got = wanted if hit else wanted | {"category": NAMES[(i + 1) % 3]}
        text = "no idea" if i >= len(right) - invalid else json.dumps(got)
        group = groups[i] if groups else ""
        rows.append(Prediction(f"row{i}", f"k{i}", text, json.dumps(wanted), "stop", 9, 5, 0.5, group))
    return rows


def first(right: int, n: int = 400) -> list[bool]:
    return [i < right for i in range(n)]


def report_of(predictions: Mapping[str, list[Prediction]], evaluate: Evaluate = EVALUATE) -> dict[str, Any]:
    return build_report("legal", evaluate, predictions, {name: {"bytes": 1e8} for name in predictions}, seed=3)


def judged(predictions: Mapping[str, list[Prediction]], gate: Gate, formats: Sequence[str] = ()) -> dict[str, Any]:
    report = report_of(predictions)
    return judge(report, gate, report["primary"], formats)


def test_every_arm_has_its_metrics_with_intervals_and_its_facts_without() -> None:
    report = report_of({"base": arm(first(100)), "student": arm(first(280), invalid=4)})
    cell = report["arms"]["student"]["category_accuracy"]
    assert cell["value"] == 0.7
    assert 0.64 < cell["ci_low"] < 0.7 < cell["ci_high"] < 0.76
    assert report["arms"]["student"]["validity"]["value"] == 0.99
    assert report["arms"]["student"]["bytes"] == {"value": 1e8, "ci_low": None, "ci_high": None}
    assert report["arms"]["student"]["seconds_per_answer"] == {"value": 0.5, "ci_low": None, "ci_high": None}
    assert set(report["metrics"]) == set(report["arms"]["student"])
    assert (report["task"], report["n"], report["primary"]) == ("legal", 400, "category_accuracy")


def test_macro_f1_is_taken_only_where_the_wanted_answers_are_classes() -> None:
    metrics = report_of({"student": arm(first(200))})["arms"]["student"]
    assert "category_macro_f1" in metrics
    assert "license_macro_f1" not in metrics  # 70 distinct


def test_the_student_is_held_against_baselines_and_each_format_against_the_student() -> None:
    rows = {name: arm(first(200)) for name in ("base", "base_few_shot", "student", "gguf_q8_0", "w8a8")}
    pairs = {(r["candidate"], r["baseline"]) for r in report_of(rows)["comparisons"]}
    assert pairs == {("student", "base"), ("student", "base_few_shot"), ("gguf_q8_0", "student"), ("w8a8", "student")}


def test_a_comparison_has_the_shape_that_the_report_promises() -> None:
    rows = report_of({"base": arm(first(100)), "student": arm(first(180))})["comparisons"]
    keys = {"metric", "candidate", "baseline", "delta", "ci_low", "ci_high", "p_value", "p_holm", "test", "n", "mde"}
    assert all(set(row) == keys for row in rows)
    by_metric = {row["metric"]: row for row in rows}
    share, macro = by_metric["category_accuracy"], by_metric["category_macro_f1"]
    assert (share["delta"], share["test"], share["n"]) == (0.2, "mcnemar_exact", 400)
    assert share["p_value"] < 1e-6
    assert (macro["p_value"], macro["p_holm"], macro["test"]) == (None, None, "bootstrap")
    assert 0 < macro["ci_low"] < macro["delta"] < macro["ci_high"]


def test_the_report_is_the_same_each_time_and_is_plain_json() -> None:
    rows = {"base": arm(first(100)), "student": arm(first(180))}
    assert json.dumps(report_of(rows), allow_nan=False) == json.dumps(report_of(rows), allow_nan=False)


def test_near_copies_widen_the_interval() -> None:
    right = [i // 4 % 2 == 0 for i in range(400)]
    fours = [f"g{i // 4}" for i in range(400)]
    apart = report_of({"base": arm([True] * 400), "student": arm(right)})
    tied = report_of({"base": arm([True] * 400, groups=fours), "student": arm(right, groups=fours)})
    assert (apart["clusters"], tied["clusters"]) == (400, 100)

    def width(report: dict[str, Any]) -> float:
        row = next(r for r in report["comparisons"] if r["metric"] == "category_accuracy")
        return row["ci_high"] - row["ci_low"]

    assert width(tied) == pytest.approx(2 * width(apart), rel=0.1)


@pytest.mark.parametrize("n", [1, 2])
def test_a_report_on_a_row_or_two_is_wide_and_not_broken(n: int) -> None:
    rows = {"base": arm([False] * n), "student": arm([True] * n), "gguf_q8_0": arm([True] * n)}
    report = report_of(rows)
    json.dumps(report, allow_nan=False)
    found = judge(report, Gate(min_rows=1, better_by=0.5), report["primary"], ["gguf_q8_0"])
    assert found["passed"] is False
    arms_table(report | {"gate": found})


def test_a_scorer_with_graded_values_gets_bootstrap_intervals_and_no_mcnemar(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.evaluation import scorers

    graded = scorers.Scorer(lambda evaluate: ["overlap"], lambda evaluate, wanted, got: {"overlap": len(got) / 100})
    monkeypatch.setitem(scorers.SCORERS, "overlap", graded)
    rows = {"base": arm(first(100)), "student": arm(first(180))}
    report = report_of(rows, Evaluate(scorer="overlap", resamples=1000))
    row = report["comparisons"][0]
    assert (row["metric"], row["p_value"], row["test"]) == ("overlap", None, "bootstrap")
    cell = report["arms"]["base"]["overlap"]
    assert cell["ci_low"] < cell["value"] < cell["ci_high"]


def test_p_is_corrected_for_the_number_of_metrics_of_its_pair() -> None:
    rows = report_of({"base": arm(first(190)), "student": arm(first(200), invalid=2)})["comparisons"]
    known = sorted((r for r in rows if r["p_value"] is not None), key=lambda r: r["p_value"])
    assert len(known) >= 4
    assert known[0]["p_holm"] == pytest.approx(min(1.0, len(known) * known[0]["p_value"]), abs=1e-5)
    assert all(r["p_holm"] >= r["p_value"] for r in known)


def verdicts(values: Sequence[float]) -> dict[str, float]:
    return {f"row{i}": value for i, value in enumerate(values)}


def test_a_judges_verdicts_decide_as_a_graded_metric_against_the_baselines_half() -> None:
    rows = {name: arm(first(200)) for name in ("base_few_shot", "student", "gguf_q8_0")}
    won = [(1.0, 1.0, 0.5, 0.0, 1.0)[i % 5] for i in range(400)]
    judged_by = {"base_few_shot": verdicts([0.5] * 400), "student": verdicts(won), "gguf_q8_0": verdicts(won)}
    evaluate = Evaluate(scorer="judge", resamples=2000)
    report = build_report("t", evaluate, rows, {}, 3, judged={"preference": judged_by})
    assert report["primary"] == "preference"
    cell = report["arms"]["student"]["preference"]
    assert cell["ci_low"] < cell["value"] == 0.7 < cell["ci_high"]
    row = next(r for r in report["comparisons"] if (r["baseline"], r["metric"]) == ("base_few_shot", "preference"))
    assert (row["delta"], row["p_value"], row["test"]) == (pytest.approx(0.2), None, "bootstrap")
    found = judge(report, Gate(), "preference", ["gguf_q8_0"])
    assert found["shipped"] == ["student", "gguf_q8_0"]
    assert all(part["comparisons"][0]["p_value"] is not None for part in report["slices"])
    del judged_by["student"]["row7"]
    with pytest.raises(WorkbenchError, match="1 of 400 items have no preference, the first 'row7'"):
        build_report("t", evaluate, rows, {}, 3, judged={"preference": judged_by})


def test_answers_under_the_schema_are_scored_beside_the_free_ones() -> None:
    free, forced = arm(first(200), invalid=40), arm(first(220))
    report = build_report(
        "t", EVALUATE, {"base": arm(first(10)), "student": free}, {}, 3, constrained={"student": forced}
    )
    cells = report["arms"]["student"]
    assert (cells["category_accuracy"]["value"], cells["constrained_category_accuracy"]["value"]) == (0.5, 0.55)
    assert "constrained_validity" not in cells
    assert "constrained_category_accuracy" not in report["arms"]["base"]
    assert not [r for r in report["comparisons"] if r["metric"].startswith("constrained_")]  # base has none to pair
    with pytest.raises(WorkbenchError, match="did not answer the same items"):
        build_report("t", EVALUATE, {"student": free}, {}, 3, constrained={"student": forced[:9]})


def test_a_micro_f1_has_the_interval_of_a_ratio() -> None:
    wanted = json.dumps(["a", "b"])
    rows = [
        Prediction(f"row{i}", "k", json.dumps(["a"] if i % 2 else ["a", "b", "c"]), wanted, "stop", 9, 5, 0.5)
        for i in range(200)
    ]
    metrics = report_of({"student": rows}, Evaluate(scorer="extraction", resamples=1000))["arms"]["student"]
    assert metrics["micro_f1"]["value"] == pytest.approx(2 * 300 / (400 + 400))
    assert 0 < metrics["micro_f1"]["ci_low"] < 0.75 < metrics["micro_f1"]["ci_high"] < 0.8


def test_a_score_of_nought_that_no_resample_moves_is_not_certainly_nought() -> None:
    cell = report_of({"base": arm([False] * 100, invalid=100)})["arms"]["base"]["category_macro_f1"]
    assert (cell["value"], cell["ci_low"]) == (0.0, 0.0)
    assert 0.03 < cell["ci_high"] < 0.04  # 1 − 0.025^(1/100)


def test_the_time_of_the_batches_is_told_where_every_answer_tells_it() -> None:
    told = [dataclasses.replace(p, latency=0.1 + i / 1000, first_token=0.05) for i, p in enumerate(arm(first(200)))]
    arms = report_of({"base": [*told[:-1], arm(first(200))[-1]], "student": told})["arms"]
    assert arms["student"]["batch_seconds_p95"] == {
        "value": pytest.approx(0.1 + 0.95 * 0.399),
        "ci_low": None,
        "ci_high": None,
    }
    assert arms["student"]["batch_first_token_p50"]["value"] == 0.05
    assert "batch_seconds_p50" not in arms["base"]


def sure_of(probability: float, rows: list[Prediction]) -> list[Prediction]:
    return [dataclasses.replace(p, logprob=math.log(probability) - (i % 20) / 1000) for i, p in enumerate(rows)]


def test_an_arm_that_is_surer_than_right_has_an_error_that_cannot_be_chance() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.6).tolist()
    report = report_of({"base": arm(right), "adapter": sure_of(0.61, arm(right)), "student": sure_of(0.95, arm(right))})
    found = report["calibration"]
    assert set(found) == {"adapter", "student"}  # base gave no probabilities
    ours = found["student"]
    share = sum(right) / 400
    assert ours["ece"]["value"] == pytest.approx(0.94 - share, abs=0.02)
    assert ours["ece"]["ci_low"] > 0.25 > 0.2 > found["adapter"]["ece"]["ci_high"]
    assert found["adapter"]["ece"]["ci_low"] == 0.0  # a calibrated model would show as much
    assert ours["brier"]["ci_low"] < ours["brier"]["value"] < ours["brier"]["ci_high"]
    assert [part["n"] for part in ours["bins"]] == [40] * 10
    assert sum(part["n"] * part["right"] for part in ours["bins"]) == pytest.approx(sum(right), abs=0.01)


def test_confusion_counts_every_row_and_gathers_what_is_rare_or_no_label() -> None:
    report = report_of({"student": arm(first(280), invalid=4)})
    table = report["confusion"]["category_macro_f1"]
    assert table["labels"] == ["Permissive", "Commercial", "Copyleft", "(none)"]  # the most often wanted first
    counts = np.array(table["arms"]["student"])
    assert (counts.sum(), np.trace(counts), counts[:, -1].sum()) == (400, 280, 4)
    many = Evaluate(scorer="exact_match", resamples=1000)
    rows = [Prediction(f"r{i}", "k", f"c{i % 30 or 'x'}", f"c{i % 30}", "stop", 1, 1, 0.1) for i in range(300)]
    table = report_of({"student": rows}, many)["confusion"]["macro_f1"]
    assert (len(table["labels"]), table["labels"][-1]) == (16, "other")
    assert np.array(table["arms"]["student"]).sum() == 300


def test_arms_that_answered_other_items_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="base and student did not answer the same items"):
        report_of({"base": arm(first(5, 10)), "student": arm(first(5, 11))})
    with pytest.raises(WorkbenchError, match="no answer"):
        report_of({"student": []})


def test_a_macro_f1_that_cannot_be_taken_is_refused_as_primary() -> None:
    chosen = dataclasses.replace(EVALUATE, primary="license_macro_f1")
    with pytest.raises(WorkbenchError, match="2 to 50 distinct"):
        report_of({"student": arm(first(200))}, chosen)


def test_six_arms_of_600_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    names = ("base", "base_few_shot", "student", "gguf_q8_0", "gguf_q4_k_m", "w8a8")
    rows = {name: arm((rng.random(600) < 0.6).tolist()) for name in names}
    start = time.process_time()
    report_of(rows, dataclasses.replace(EVALUATE, resamples=10_000))
    assert time.process_time() - start < 10


# The gate.


def shares(**right: int) -> dict[str, list[Prediction]]:
    return {name: arm(first(count)) for name, count in right.items()}


def test_a_certain_gain_passes_and_a_lossy_format_is_refused_alone() -> None:
    found = judged(
        shares(base_few_shot=200, student=280, gguf_q8_0=278, gguf_q4_k_m=256),
        Gate(validity=0.9),
        ["gguf_q8_0", "gguf_q4_k_m"],
    )
    assert found["passed"] is True
    assert found["shipped"] == ["student", "gguf_q8_0"]
    assert found["refused"] == ["gguf_q4_k_m"]
    lossy = found["checks"][-1]
    assert (lossy["name"], lossy["arm"], lossy["passed"]) == ("not_worse_than_student", "gguf_q4_k_m", False)
    assert lossy["limit"] == -0.03
    assert lossy["why"].startswith("gguf_q4_k_m lost 6.0 points against student (95 % interval −")
    assert lossy["why"].endswith("at most 3.0 may be lost; more rows will not show it: take a format with more bits")


def test_the_gate_goes_by_the_interval_and_not_by_the_point() -> None:
    # 3 of 100 rows better: a point says gain, the interval does not.
    found = judged({"base_few_shot": arm(first(50, 100)), "student": arm(first(53, 100))}, Gate(better_by=0.01))
    check = next(c for c in found["checks"] if c["name"] == "better_than_baseline")
    assert check["passed"] is False
    assert check["value"] <= 0.01
    assert "no difference was detectable at n=100, which could have shown one of" in check["why"]
    assert (found["shipped"], found["refused"]) == ([], ["student"])


def test_a_format_that_seems_no_worse_on_too_few_rows_is_refused() -> None:
    rng = np.random.default_rng(1)
    student = (rng.random(60) < 0.6).tolist()
    other = [bool(hit) ^ (rng.random() < 0.15) for hit in student]
    found = judged(
        {"base_few_shot": arm([False] * 60), "student": arm(student), "w8a8": arm(other)}, Gate(min_rows=50), ["w8a8"]
    )
    assert found["passed"] is True
    assert found["refused"] == ["w8a8"]


def test_two_identical_arms_are_equal_only_within_what_the_rows_can_show() -> None:
    same = shares(base_few_shot=100, student=280, gguf_q8_0=280)
    fine = judged(same, Gate(quantized_margin=0.03), ["gguf_q8_0"])
    strict = judged(same, Gate(quantized_margin=0.001), ["gguf_q8_0"])
    assert (fine["shipped"], strict["shipped"]) == (["student", "gguf_q8_0"], ["student"])
    assert "scored the same as student" in fine["checks"][-1]["why"]


@pytest.mark.parametrize(
    ("gate", "failing"),
    [
        (Gate(min_rows=401), "enough_rows"),
        (Gate(better_by=0.3), "better_than_baseline"),
        (Gate(validity=0.999), "validity"),
        (Gate(baseline="base"), "better_than_baseline"),
    ],
)
def test_each_limit_can_refuse_the_student_and_with_it_every_format(gate: Gate, failing: str) -> None:
    found = judged(shares(base_few_shot=200, student=280, gguf_q8_0=280), gate, ["gguf_q8_0"])
    assert [c["name"] for c in found["checks"] if not c["passed"]] == [failing]
    assert (found["passed"], found["shipped"], found["refused"]) == (False, [], ["student", "gguf_q8_0"])


def test_every_format_may_be_demanded() -> None:
    rows = shares(base_few_shot=200, student=280, gguf_q8_0=280, gguf_q4_k_m=200)
    found = judged(rows, Gate(every_format=True), ["gguf_q8_0", "gguf_q4_k_m"])
    assert (found["passed"], found["shipped"]) == (False, [])


def test_a_format_that_was_never_asked_is_refused() -> None:
    found = judged(shares(base_few_shot=200, student=280), Gate(), ["w8a8"])
    assert (found["shipped"], found["refused"]) == (["student"], ["w8a8"])
    assert "was measured" in found["checks"][-1]["why"]


def test_a_limit_on_validity_is_told_of_when_the_scorer_measures_none() -> None:
    exact = Evaluate(scorer="exact_match", resamples=1000)
    rows = {name: arm(first(count)) for name, count in (("base_few_shot", 100), ("student", 300))}
    report = report_of(rows, exact)
    with_limit = judge(report, Gate(validity=0.9), "exact_match", [])
    assert with_limit["passed"] is True
    assert "measures no validity" in next(c for c in with_limit["checks"] if c["name"] == "validity")["why"]
    assert "validity" not in [c["name"] for c in judge(report, Gate(), "exact_match", [])["checks"]]


def test_the_terminal_shows_each_arm_and_why_the_gate_decided() -> None:
    from rich.console import Console

    report = report_of(shares(base_few_shot=200, student=280, gguf_q4_k_m=240))
    report["gate"] = judge(report, Gate(), report["primary"], ["gguf_q4_k_m"])
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(arms_table(report, 120))
    for line in gate_lines(report):
        console.print(line)
    console.print(compare_table(report["comparisons"]))
    text = console.export_text()
    for words in ("student", "70.0 %", "100 MB", "ships", "refused", "✗ gguf_q4_k_m lost 10.0 points", "+20.0"):
        assert words in text
    assert [verdict(report, a) for a in report["arms"]] == ["–", "ships", "refused"]


# Pairing any runs.


def test_runs_are_paired_on_the_items_they_share_and_the_rest_is_told() -> None:
    older, newer = arm(first(200)), arm(first(280))[50:][::-1]
    found = compare_arms({"old student": older, "new student": newer}, EVALUATE, seed=3)
    assert found["n"] == 350
    row = next(r for r in found["comparisons"] if r["metric"] == "category_accuracy")
    assert row["delta"] == pytest.approx(80 / 350, abs=1e-6)
    assert found["said"] == ["old student: 50 of 400 items have no partner and are left out"]


def rename(p: Prediction) -> Prediction:
    return dataclasses.replace(p, id="other-" + p.id)


def rewant(p: Prediction) -> Prediction:
    return dataclasses.replace(p, expected=p.expected.replace("Copyleft", "Commercial"))


@pytest.mark.parametrize(("change", "why"), [(rename, "share no item"), (rewant, "want different answers of item")])
def test_runs_on_different_test_sets_are_refused(change: Callable[[Prediction], Prediction], why: str) -> None:
    rows = arm(first(20, 40))
    with pytest.raises(RequestError, match=why) as caught:
        compare_arms({"a": rows, "b": [change(p) for p in rows]}, EVALUATE, seed=0)
    assert caught.value.remedy


def test_one_run_alone_cannot_be_compared() -> None:
    with pytest.raises(RequestError, match="two runs"):
        compare_arms({"a": arm(first(5, 10))}, EVALUATE, seed=0)


def saved(root: Path, name: str, arms: Mapping[str, list[Prediction]]) -> Path:
    folder = root / name
    (folder / "evaluate" / "predictions").mkdir(parents=True)
    (folder / "evaluate" / "report.json").write_text(json.dumps(report_of(arms)))
    for arm_name, rows in arms.items():
        write_predictions(rows, folder / "evaluate" / "predictions" / f"{arm_name}.jsonl")
    return folder


def test_run_folders_are_compared_arm_by_arm_without_their_baselines(tmp_path: Path) -> None:
    old = saved(tmp_path, "legal/11111111", shares(base=50, student=200, w8a8=190))
    new = saved(tmp_path, "legal/22222222", shares(base=50, student=280, gguf_q8_0=280))
    found = compare_gathered(gather([old, new]), "category_accuracy")
    (row,) = found["comparisons"]
    assert (row["candidate"], row["baseline"]) == ("legal/22222222 student", "legal/11111111 student")
    assert (row["delta"], row["n"]) == (0.2, 400)
    assert row["p_value"] < 1e-6
    assert found["said"] == [
        "legal/11111111 w8a8 has no counterpart and is left out",
        "legal/22222222 gguf_q8_0 has no counterpart and is left out",
    ]
    assert "legal/22222222 student" in json.dumps(found)
    arms_table(found)
    compare_table(found["comparisons"])


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    run = saved(tmp_path, "legal/11111111", shares(base=50, student=200))
    other = saved(tmp_path, "legal/22222222", shares(base=50, student=200))
    with pytest.raises(RequestError, match="each named once"):
        gather([run, run])
    with pytest.raises(RequestError, match="was not evaluated"):
        gather([run, tmp_path / "legal" / "33333333"])
    with pytest.raises(RequestError, match="does not measure 'category_acuracy'") as caught:
        compare_gathered(gather([run, other]), "category_acuracy")
    assert caught.value.remedy == "did you mean 'category_accuracy'?"
