"""Slices: every row in its part, the worst part first, and no part called worse by chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from workbench.evaluation.answers import Prediction
from workbench.evaluation.breakdown import by_value
from workbench.evaluation.gate import judge
from workbench.evaluation.report import build_report
from workbench.recipe.schema import Evaluate, Gate

N = 400
EVALUATE = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slices=["source", "age"], slice_rows=20)
META = {f"row{i}": {"source": "web" if i % 4 else "book", "age": i} for i in range(N)}
LENGTHS = {f"row{i}": 100 + i for i in range(N)}


def arm(right: Sequence[bool]) -> list[Prediction]:
    rows = []
    for i, hit in enumerate(right):
        wanted = json.dumps({"category": f"c{i % 2}"})
        rows.append(Prediction(f"row{i}", "k", wanted if hit else "{}", wanted, "stop", 9, 5, 0.5))
    return rows


def report_of(arms: Mapping[str, Sequence[bool]], evaluate: Evaluate = EVALUATE) -> dict[str, Any]:
    rows = {name: arm(right) for name, right in arms.items()}
    return build_report("t", evaluate, rows, {}, 3, meta=META, lengths=LENGTHS)


def test_every_row_is_in_one_part_of_each_field_and_its_arms_are_measured_there() -> None:
    right = [i % 3 == 0 for i in range(N)]
    parts = report_of({"base_few_shot": [False] * N, "student": right})["slices"]
    for field, count in (("length", 4), ("label", 2), ("source", 2), ("age", 4)):
        mine = [part for part in parts if part["field"] == field]
        assert (len(mine), sum(part["n"] for part in mine)) == (count, N)
        assert sorted(item for part in mine for item in part["items"]) == sorted(META)
    web = next(part for part in parts if part["value"] == "web")
    hits = np.mean([right[int(item.removeprefix("row"))] for item in web["items"]])
    assert web["arms"]["student"]["value"] == pytest.approx(hits, abs=1e-6)
    assert web["arms"]["student"]["ci_low"] < hits < web["arms"]["student"]["ci_high"]
    (row,) = web["comparisons"]
    assert set(row) == {"candidate", "baseline", "delta", "ci_low", "ci_high", "p_value", "p_holm"}
    assert (row["delta"], row["candidate"], row["baseline"]) == (
        pytest.approx(hits, abs=1e-6),
        "student",
        "base_few_shot",
    )


def test_the_worst_part_comes_first_and_too_small_or_whole_parts_do_not_come() -> None:
    lost_books = [i % 4 != 0 for i in range(N)]
    parts = report_of({"base_few_shot": [True] * N, "student": lost_books})["slices"]
    assert (parts[0]["field"], parts[0]["value"], parts[0]["comparisons"][0]["delta"]) == ("source", "book", -1.0)
    lows = [part["comparisons"][0]["ci_low"] for part in parts]
    assert lows == sorted(lows)
    few = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slices=["source"], slice_rows=150)
    assert "book" not in [part["value"] for part in report_of({"student": lost_books}, few)["slices"]]
    alone = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slices=["nowhere"])
    assert "nowhere" not in [part["field"] for part in report_of({"student": lost_books}, alone)["slices"]]


def test_rows_of_several_sources_are_looked_at_by_source_unasked_and_those_of_one_are_not() -> None:
    lost_notes = [i % 4 != 0 for i in range(N)]
    rows = {name: arm(right) for name, right in {"base_few_shot": [True] * N, "student": lost_notes}.items()}
    asks = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slice_rows=20)
    for names, wanted in ((("notes", "letters"), {"notes": 100, "letters": 300}), (("notes", "notes"), {})):
        meta = {f"row{i}": {"data_source": names[0] if i % 4 == 0 else names[1]} for i in range(N)}
        parts = build_report("t", asks, rows, {}, 3, meta=meta, lengths=LENGTHS)["slices"]
        mine = [part for part in parts if part["field"] == "data_source"]
        assert {part["value"]: part["n"] for part in mine} == wanted
        if mine:
            assert (mine[0]["value"], mine[0]["comparisons"][0]["delta"]) == ("notes", -1.0)


def test_p_is_corrected_over_all_slices_of_the_pair() -> None:
    rng = np.random.default_rng(1)
    parts = report_of({"base_few_shot": rng.random(N) < 0.5, "student": rng.random(N) < 0.5})["slices"]
    rows = sorted((part["comparisons"][0] for part in parts), key=lambda row: row["p_value"])
    assert rows[0]["p_holm"] == pytest.approx(min(1.0, len(rows) * rows[0]["p_value"]), abs=1e-4)


def test_numbers_of_many_values_are_quartered_and_a_list_is_in_each_of_its_parts() -> None:
    found = by_value("length", list(range(1, 101)), " characters")
    names = [value for _, value in found]
    assert names[0] == "up to 25 characters"
    assert names[-1] == "over 75 characters"
    assert [len(places) for places in found.values()] == [25, 25, 25, 25]
    assert by_value("tag", [["a", "b"], "a", None, ""]) == {
        ("tag", "a"): [0, 1], ("tag", "b"): [0], ("tag", "(none)"): [2, 3],
    }  # fmt: skip
    assert list(by_value("year", [2020, 2021, 2020])) == [("year", "2020"), ("year", "2021")]
    assert by_value("fixed", [7] * 11 + [None]) == {("fixed", "7"): list(range(11)), ("fixed", "(none)"): [11]}


@pytest.mark.slow
def test_equal_arms_are_seldom_refused_for_one_of_many_slices() -> None:
    # Forty slices of 25 rows, arms equally good: without correction about two in three such evaluations would fail.
    meta = {f"row{i}": {"source": f"s{i % 40}"} for i in range(1000)}
    evaluate = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slices=["source"])
    rng, refused, bare = np.random.default_rng(2), 0, 0
    for _ in range(16):
        rows = {name: arm(rng.random(1000) < 0.6) for name in ("base_few_shot", "student")}
        report = build_report("t", evaluate, rows, {}, 3, meta=meta)
        (check,) = (c for c in judge(report, Gate(), report["primary"], [])["checks"] if c["name"] == "slices")
        refused += not check["passed"]
        bare += any(part["comparisons"][0]["ci_high"] < 0 for part in report["slices"])
    assert refused <= 2
    assert bare >= 6
