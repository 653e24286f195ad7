"""The chain of attribution: joints in order, those that lost named, and what was not asked told as such."""

from __future__ import annotations

from typing import Any

from workbench.evaluation.attribution import chain_lines, joints


def report(**arms: tuple[float, float, float] | None) -> dict[str, Any]:
    """Arms with (delta, low, high) against the arm before them; None for one that was asked and compares to nothing."""
    before = {"student": "adapter", "adapter": "teacher"}
    rows = [
        {"candidate": arm, "baseline": before.get(arm, "student"), "metric": "right", "delta": ends[0],
         "ci_low": ends[1], "ci_high": ends[2]}
        for arm, ends in arms.items() if ends
    ]  # fmt: skip
    formats = [arm for arm in arms if arm not in ("teacher", "adapter", "student")]
    return {"primary": "right", "arms": arms, "comparisons": rows, "formats": formats}


FAR = {"student": {"kl": 3e-4, "top_token_agreement": 0.997}, "q4": {"kl": 0.03, "top_token_agreement": 0.96}}


def test_the_joints_come_in_the_order_in_which_a_model_passes_them() -> None:
    whole = report(teacher=None, adapter=(0.0, -0.01, 0.01), student=(0.0, -0.02, 0.02), q4=(-0.05, -0.09, -0.01))
    chain = joints(whole, FAR)
    assert [(j["joint"], j["before"], j["after"]) for j in chain] == [
        ("training", "teacher", "adapter"), ("merging", "adapter", "student"), ("quantizing", "student", "q4"),
    ]  # fmt: skip
    assert [j["lost"] for j in chain] == [False, False, True]
    assert chain[1]["kl"] == 3e-4


def test_an_adapter_that_was_not_asked_has_its_distance_told_and_no_points() -> None:
    lines = chain_lines(joints(report(student=None, q4=(-0.05, -0.09, -0.01)), FAR), 0.95)
    assert lines[0] == "adapter → student (merging): not asked, KL 0.0003, same first choice 99.7 %"
    assert lines[1].endswith("KL 0.03, same first choice 96.0 %: lost here")
