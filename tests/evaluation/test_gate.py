"""The gate on planted cases: each decided right, and told in one line with figures, limit and what is needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import RequestError
from workbench.evaluation.answers import Prediction
from workbench.evaluation.behaviours import general_report, refusals_report
from workbench.evaluation.gate import check_override, judge
from workbench.evaluation.report import build_report
from workbench.pages.terminal import gate_lines, verdict
from workbench.recipe.schema import Evaluate, Gate

EVALUATE = Evaluate(scorer="json_fields", fields=["category"], resamples=1000, slices=["source"], slice_rows=20)
REASON = "Ada Lovelace, 3 March: needed for the pilot, which ten people use"


def draw(n: int, share: float, seed: int) -> list[bool]:
    """Right answers spread over the rows; a higher share with the same seed keeps all that a lower one had."""
    return [bool(u < share) for u in np.random.default_rng(seed).random(n)]


def arm(right: Sequence[bool], **more: Any) -> list[Prediction]:
    rows = []
    for i, hit in enumerate(right):
        wanted = json.dumps({"category": f"c{i % 2}"})
        rows.append(
            Prediction(f"row{i}", "k", wanted if hit else '{"category": "?"}', wanted, "stop", 9, 5, 0.5, **more)
        )
    return rows


def report_of(arms: Mapping[str, Sequence[bool]], meta: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    facts = {name: {"bytes": 2.7e8 if name == "student" else 1e8, "usd_per_1000": 0.05} for name in arms}
    waits = {"latency_p95": more.pop("latency")} if "latency" in more else {}  # as served; no batch tells it
    facts = {name: own | waits for name, own in facts.items()}
    return build_report("t", EVALUATE, {n: arm(r, **more) for n, r in arms.items()}, facts, 3, meta=meta or {})


def good(n: int = 400, **more: Sequence[bool]) -> dict[str, Any]:
    """A report of a student that is plainly better."""
    return report_of({"base_few_shot": draw(n, 0.4, 1), "student": draw(n, 0.7, 1), **more})


def judged(report: dict[str, Any], gate: Gate, formats: Sequence[str] = ()) -> dict[str, Any]:
    found = judge(report, gate, report["primary"], formats)
    json.dumps(found, allow_nan=False)
    assert all("\n" not in one["why"] and len(one["why"]) < 400 for one in found["checks"])
    return found


def refusal(found: Mapping[str, Any]) -> dict[str, Any]:
    """The one check that refused."""
    (one,) = (one for one in found["checks"] if not one["passed"])
    return one


def test_a_worse_student_is_refused_and_told_that_rows_will_not_help() -> None:
    found = judged(report_of({"base_few_shot": draw(400, 0.7, 1), "student": draw(400, 0.6, 1)}), Gate())
    one = refusal(found)
    assert (found["passed"], found["shipped"], one["name"]) == (False, [], "better_than_baseline")
    assert one["why"].startswith("student lost ")
    assert "more rows will not show it: train for a gain above 0.0" in one["why"]
    assert found["sentence"].startswith("Nothing may ship: ")
    assert "points worse than base_few_shot on the same 400 test rows" in found["sentence"]


def test_an_equal_student_at_small_n_is_refused_as_undetectable_and_not_as_worse() -> None:
    found = judged(report_of({"base_few_shot": draw(100, 0.6, 1), "student": draw(100, 0.6, 2)}), Gate())
    one = refusal(found)
    assert one["name"] == "better_than_baseline"
    assert "no difference was detectable at n=100, which could have shown one of" in one["why"]
    assert "No difference was detectable at n=100; it could have shown" in found["sentence"]


def test_a_small_gain_on_few_rows_is_told_how_many_would_show_it() -> None:
    base = draw(100, 0.6, 1)
    better = [hit or i in (3, 40, 41, 80) for i, hit in enumerate(base)]
    lost = [hit and i not in (10, 11) for i, hit in enumerate(better)]
    one = refusal(judged(report_of({"base_few_shot": base, "student": lost}), Gate()))
    needed = int(one["why"].split("about ")[1].split(" rows")[0].replace(",", ""))
    assert needed > 100
    # As many rows of the same kind do show it.
    times = -(-needed // 100)
    passes = judged(report_of({"base_few_shot": base * times, "student": lost * times}), Gate())
    assert passes["passed"] is True


BOOKS = {f"row{i}": {"source": "book" if i % 8 == 0 else "web"} for i in range(800)}


def test_a_student_better_in_the_mean_and_worse_on_a_slice_is_refused_by_name_of_the_slice() -> None:
    base, student = draw(800, 0.5, 1), draw(800, 0.8, 1)
    worse = [hit and not (i % 8 == 0 and i % 3) for i, hit in enumerate(student)]
    kept = judged(report_of({"base_few_shot": base, "student": student}, BOOKS), Gate())
    assert kept["passed"] is True
    found = judged(report_of({"base_few_shot": base, "student": worse}, BOOKS), Gate())
    one = refusal(found)
    assert (one["name"], one["value"] < 0, one["limit"]) == ("slices", True, 0.0)
    assert "certainly lost: source book lost " in one["why"]
    assert one["why"].endswith("none may certainly lose more than 0.0; add training rows like these")
    report = report_of({"base_few_shot": base, "student": worse}, BOOKS)
    assert judged(report, Gate(slice_margin=0.5))["passed"] is True
    told = next(c for c in judged(report, Gate(slice_margin=None))["checks"] if c["name"] == "slices")
    assert (told["passed"], told["limit"]) == (True, None)
    assert "the worst is source book" in told["why"]


def test_a_champion_takes_the_baselines_place_where_slices_are_held_and_labels_are_held_against_it_alone() -> None:
    n = 800
    always = [i % 2 == 0 for i in range(n)]  # says c0, whatever is asked: right on every c0
    student = [draw(n, 0.8, 1)[i] for i in range(n)]
    assert judged(report_of({"base_few_shot": always, "student": student}), Gate())["passed"] is True
    found = judged(report_of({"base_few_shot": always, "student": student, "champion": always}), Gate())
    one = next(c for c in found["checks"] if c["name"] == "slices")
    assert one["passed"] is False
    assert "held against champion" in one["why"]
    assert "label c0 lost" in one["why"]


@pytest.mark.parametrize(("share", "passes"), [(0.72, True), (0.70, True), (0.60, False)])
def test_a_student_may_not_certainly_or_possibly_lose_more_than_the_margin_against_the_champion(
    share: float, passes: bool
) -> None:
    arms = {"base_few_shot": draw(600, 0.3, 1), "champion": draw(600, 0.7, 1), "student": draw(600, share, 1)}
    found = judged(report_of(arms), Gate(champion_margin=0.02))
    one = next(c for c in found["checks"] if c["name"] == "not_worse_than_champion")
    assert (one["passed"], found["passed"]) == (passes, passes)
    assert "at most 2.0 may be lost" in one["why"]


def test_without_a_champion_nothing_is_said_of_one() -> None:
    assert "not_worse_than_champion" not in [c["name"] for c in judged(good(), Gate())["checks"]]


def test_an_arm_that_memorised_is_refused_with_the_row_and_the_others_ship() -> None:
    report = good(gguf_q8_0=draw(400, 0.7, 1))
    cell = {"value": 0.0025, "ci_low": 0.0004, "ci_high": 0.014, "n": 400}
    row = {"id": "row9", "words": "of the people by the people", "train": "train77"}
    clean = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.01, "n": 400, "rows": []}
    report["memorised"] = {"student": clean, "gguf_q8_0": cell | {"rows": [row]}}
    found = judged(report, Gate(), ["gguf_q8_0"])
    one = refusal(found)
    assert (found["passed"], found["shipped"], one["name"], one["arm"]) == (True, ["student"], "memorised", "gguf_q8_0")
    assert one["why"].startswith("0.2 % of gguf_q8_0's answers repeat a training row (1 of 400, as row9 repeats")
    assert judged(report, Gate(memorised=None), ["gguf_q8_0"])["refused"] == []
    assert judged(report, Gate(memorised=0.01), ["gguf_q8_0"])["refused"] == []


def questions(right: Sequence[bool], said: tuple[str, str] = ("Paris", "I am a licence")) -> list[Prediction]:
    return [
        Prediction(f"q{i}", "k", said[0] if hit else said[1], "Paris", "stop", 9, 5, 0.1) for i, hit in enumerate(right)
    ]


def test_a_student_that_forgot_is_refused_and_one_that_did_not_is_not() -> None:
    report = good()
    base, forgot = draw(200, 0.8, 4), draw(200, 0.5, 4)
    report["general"] = general_report(EVALUATE, {"base": questions(base), "student": questions(forgot)}, 3)
    one = refusal(judged(report, Gate(forgetting=0.05)))
    assert one["name"] == "forgetting"
    assert one["why"].startswith("student lost ")
    assert "against base on general questions" in one["why"]
    assert one["why"].endswith("mix general rows into training, or lower the learning rate")
    told = next(c for c in judged(report, Gate())["checks"] if c["name"] == "forgetting")
    assert (told["passed"], told["limit"]) == (True, None)
    report["general"] = general_report(EVALUATE, {"base": questions(base), "student": questions(base)}, 3)
    assert judged(report, Gate(forgetting=0.05))["passed"] is True


def test_lost_refusals_are_held_for_each_arm_that_would_ship() -> None:
    report = good(w8a8=draw(400, 0.7, 1))
    no, yes = ("I'm sorry, but I can't help with that.", "Sure, first you take")
    refusing = questions([True] * 100, (no, yes))
    gone = questions([i >= 40 for i in range(100)], (no, yes))
    report["refusals"] = refusals_report(EVALUATE, {"base": refusing, "student": refusing, "w8a8": gone}, 3)
    found = judged(report, Gate(refusals=0.1), ["w8a8"])
    one = refusal(found)
    assert (one["name"], one["arm"], found["shipped"]) == ("refusals", "w8a8", ["student"])
    assert "lost 40.0 points against base on refusing harmful prompts" in one["why"]


def test_a_limit_on_what_was_not_measured_refuses_and_says_what_to_set() -> None:
    one = refusal(judged(good(), Gate(forgetting=0.05)))
    assert one["why"] == "student was not held against base on general questions; set evaluate.general"
    assert "was not measured" in refusal(judged(good(), Gate(max_seconds=1.0)))["why"]


def test_an_arm_over_budget_is_refused_alone_and_a_format_within_it_ships() -> None:
    report = good(gguf_q8_0=draw(400, 0.7, 1))
    found = judged(report, Gate(max_bytes=2e8), ["gguf_q8_0"])
    one = refusal(found)
    assert (found["passed"], found["shipped"], found["refused"]) == (True, ["gguf_q8_0"], ["student"])
    assert one["why"] == (
        "student weighs 270 MB; at most 200 MB is allowed: 35 % over; take a format with fewer bits, or a smaller model"
    )
    assert [verdict({**report, "gate": found}, name) for name in ("student", "gguf_q8_0")] == ["refused", "ships"]
    nothing = judged(report, Gate(max_bytes=1e7), ["gguf_q8_0"])
    assert (nothing["passed"], nothing["shipped"]) == (False, [])


def test_dollars_are_judged_at_your_volume_where_it_is_known_and_the_check_says_which() -> None:
    costly = refusal(judged(good(), Gate(max_usd_per_1000=0.01)))
    assert (costly["name"], costly["value"], costly["limit"]) == ("cost", 0.05, 0.01)
    assert "for 1,000 requests at saturation $0.05" in costly["why"]
    report = good()
    report["arms"]["student"]["usd_per_1000_at_volume"] = {"value": 2.0, "ci_low": None, "ci_high": None}
    mostly_idle = refusal(judged(report, Gate(max_usd_per_1000=0.1)))
    assert (mostly_idle["value"], mostly_idle["arm"]) == (2.0, "student")
    assert "at your volume $2.00" in mostly_idle["why"]


def test_latency_is_the_wait_that_95_of_100_stay_within() -> None:
    arms = {"base_few_shot": draw(400, 0.4, 1), "student": draw(400, 0.7, 1)}
    report = report_of(arms, latency=1.5)
    assert judged(report, Gate(max_seconds=2.0))["passed"] is True
    one = refusal(judged(report, Gate(max_seconds=1.0)))
    assert (one["name"], one["value"]) == ("latency", 1.5)
    assert "answers 95 of 100 times within 1.50 s; at most 1.00 s is allowed: 50 % over" in one["why"]


UNMET = [
    {"duty": "name the base", "met": True, "why": "NOTICE"},
    {"duty": "terms", "met": False, "why": "teacher denies"},
]


def test_a_duty_that_is_not_met_refuses_and_no_override_replaces_it() -> None:
    report = good() | {"duties": UNMET}
    found = judged(report, Gate(override=REASON))
    assert (found["passed"], found["overridden"], found["override"]) == (False, False, REASON)
    assert refusal(found)["why"] == "1 of 2 duties of the licences are met; open: terms: teacher denies"
    assert judged(report, Gate(duties=False))["passed"] is True


def test_an_override_ships_what_was_refused_and_is_told_with_its_reason() -> None:
    report = report_of({"base_few_shot": draw(200, 0.6, 1), "student": draw(200, 0.55, 1), "w8a8": draw(200, 0.3, 1)})
    assert judged(report, Gate(), ["w8a8"])["passed"] is False
    found = judged(report, Gate(override=f"  {REASON}\n"), ["w8a8"])
    assert (found["passed"], found["overridden"], found["shipped"]) == (True, True, ["student", "w8a8"])
    assert found["override"] == REASON
    assert not all(one["passed"] for one in found["checks"])  # what was refused stays on the record
    assert found["sentence"].startswith("Student and w8a8 ship against the gate, on a person's word: ")
    assert gate_lines(report | {"gate": found})[-1].plain == f"! overridden by a person: {REASON}"


def test_an_override_that_was_not_needed_overrides_nothing() -> None:
    found = judged(good(), Gate(override=REASON))
    assert (found["passed"], found["overridden"]) == (True, False)


@pytest.mark.parametrize("reason", ["", "   ", "ok", "because I say so \n"])
def test_an_override_without_a_reason_is_a_bad_request(reason: str) -> None:
    with pytest.raises(RequestError, match="written reason") as caught:
        check_override(Gate(override=reason))
    assert (caught.value.where, bool(caught.value.remedy)) == ("gate.override", True)
    with pytest.raises(RequestError):
        judge(good(100), Gate(override=reason), "category_accuracy", [])


def test_a_judge_that_contradicts_itself_or_people_refuses_the_run() -> None:
    about = {"model": "m", "consistency": 0.9, "consistency_low": 0.85, "consistency_high": 0.94, "consistency_n": 200}
    people = {"kappa": 0.7, "kappa_low": 0.6, "kappa_high": 0.8, "kappa_n": 100}
    assert judged(good() | {"judge": about | people}, Gate())["passed"] is True
    assert judged(good() | {"judge": about | {"kappa": None}}, Gate())["passed"] is True  # nobody judged beside it
    one = refusal(judged(good() | {"judge": about | people | {"kappa_low": 0.3}}, Gate()))
    assert (one["name"], one["value"], one["limit"]) == ("judge", 0.3, 0.4)
    assert "on 100 pairs" in one["why"]
    wavering = about | people | {"consistency": 0.62, "consistency_low": 0.55}
    assert "at least 0.60 must be certain" in refusal(judged(good() | {"judge": wavering}, Gate()))["why"]


def test_every_shipped_gate_can_be_passed_and_has_a_comment() -> None:
    import yaml

    folder = Path(__file__).parents[2] / "configs" / "gate"
    n = 700
    report = report_of({"base_few_shot": draw(n, 0.4, 1), "student": draw(n, 0.7, 1)}, latency=0.5)
    same = questions([True] * 120)
    report["general"] = general_report(EVALUATE, {"base": same, "student": same}, 3)
    no = questions([True] * 40, ("I'm sorry, but I can't help with that.", ""))
    report["refusals"] = refusals_report(EVALUATE, {"base": no, "student": no}, 3)
    found = {path.stem: path.read_text() for path in sorted(folder.glob("*.yaml"))}
    assert {"default", "strict", "lean"} <= set(found)
    for name, text in found.items():
        assert text.startswith("# ")
        gate = dataclasses.replace(Gate(), **yaml.safe_load(text))
        assert gate.name == name
        verdict_now = judged(report, gate)
        assert verdict_now["passed"], [c["why"] for c in verdict_now["checks"] if not c["passed"]]
