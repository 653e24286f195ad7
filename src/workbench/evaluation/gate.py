"""The gate: what may ship, decided by the end of an interval, each check with its reason in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.figures import describe, interval_in_points, percent, points, title
from workbench.evaluation.report import STUDENT
from workbench.recipe.nouns import Gate


def judge(report: Mapping[str, Any], gate: Gate, primary: str, formats: Sequence[str]) -> dict[str, Any]:
    """`{"passed", "checks", "shipped", "refused", "baseline"}` for the student and each quantized format.

    `passed`: the student may ship (and, with `gate.every_format`, every format may). Each check:
    `{"name", "arm", "passed", "value", "limit", "why"}`, value and limit in the metric's own unit.
    """
    common = [enough_rows(report, gate), better_than_baseline(report, gate, primary), *validity(report, gate)]
    of_formats = [not_worse(report, gate, primary, name) for name in formats]
    sound = {check["arm"] for check in of_formats if check["passed"]}
    passed = all(check["passed"] for check in common)
    if gate.every_format:
        passed = passed and len(sound) == len(formats)
    shipped = [arm for arm in (STUDENT, *formats) if passed and (arm == STUDENT or arm in sound)]
    refused = [arm for arm in (STUDENT, *formats) if arm not in shipped]
    verdict = {"passed": passed, "checks": common + of_formats, "shipped": shipped, "refused": refused}
    return verdict | {"baseline": gate.baseline}


def check(name: str, arm: str, passed: bool, value: float | None, limit: float | None, why: str) -> dict[str, Any]:
    """One check of the gate."""
    return {"name": name, "arm": arm, "passed": passed, "value": value, "limit": limit, "why": why}


def enough_rows(report: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    """A verdict rests on at least `gate.min_rows` items; near copies of one another count once."""
    rows = report.get("clusters", report["n"])
    apart = "" if rows == report["n"] else f" ({report['n']} rows, near copies counted once)"
    why = f"the verdict rests on {rows} test rows{apart}; at least {gate.min_rows} must be asked"
    return check("enough_rows", STUDENT, rows >= gate.min_rows, rows, gate.min_rows, why)


def better_than_baseline(report: Mapping[str, Any], gate: Gate, primary: str) -> dict[str, Any]:
    """The lower end of student minus baseline exceeds `gate.better_by`."""
    row = comparison(report, STUDENT, gate.baseline, primary)
    if row is None or row["ci_low"] is None:
        why = f"no interval for {STUDENT} against {gate.baseline} on {title(primary)} was measured"
        return check("better_than_baseline", STUDENT, False, None, gate.better_by, why)
    passed = row["ci_low"] > gate.better_by
    arms = report["arms"]
    told = result(row["delta"], gate.baseline)
    figures = ""
    if describe(primary)["kind"] == "share":
        figures = (
            f": {percent(arms[STUDENT][primary]['value'])} against {percent(arms[gate.baseline][primary]['value'])}"
        )
    must = f"a gain above {points(gate.better_by)} must be certain"
    why = f"{STUDENT} {told} on {title(primary)} ({between(report, row)}){figures}; {must}"
    if not passed:
        why += honest(row)
    return check("better_than_baseline", STUDENT, passed, row["ci_low"], gate.better_by, why)


def validity(report: Mapping[str, Any], gate: Gate) -> list[dict[str, Any]]:
    """The lower end of the student's share of valid answers reaches `gate.validity`; unmeasured, it is said so."""
    cell = report["arms"].get(STUDENT, {}).get("validity")
    if cell is None:
        if gate.validity == 0:
            return []
        why = f"the scorer measures no validity, so the limit of {percent(gate.validity)} was held against nothing"
        return [check("validity", STUDENT, True, None, gate.validity, why)]
    passed = cell["ci_low"] >= gate.validity
    ends = interval_in_points(cell["ci_low"], cell["ci_high"], report["confidence"]).replace("+", "")
    must = f"at least {percent(gate.validity)} must be certain" if gate.validity > 0 else "no limit is set"
    why = f"{percent(cell['value'])} of {STUDENT}'s answers are valid ({ends}); {must}"
    return [check("validity", STUDENT, passed, cell["ci_low"], gate.validity, why)]


def not_worse(report: Mapping[str, Any], gate: Gate, primary: str, name: str) -> dict[str, Any]:
    """The lower end of format minus student stays within `gate.quantized_margin`."""
    limit = -gate.quantized_margin
    row = comparison(report, name, STUDENT, primary)
    if row is None or row["ci_low"] is None:
        why = f"no interval for {name} against {STUDENT} on {title(primary)} was measured"
        return check("not_worse_than_student", name, False, None, limit, why)
    passed = row["ci_low"] >= limit
    may = f"at most {points(gate.quantized_margin)} may be lost"
    if not passed and row["delta"] >= limit:
        may += ", which this interval does not rule out"
    why = f"{name} {result(row['delta'], STUDENT)} ({between(report, row)}); {may}"
    return check("not_worse_than_student", name, passed, row["ci_low"], limit, why + honest(row))


def comparison(report: Mapping[str, Any], candidate: str, baseline: str, metric: str) -> Mapping[str, Any] | None:
    """The report's row for this pair and metric, if it has one."""
    wanted = (candidate, baseline, metric)
    rows = (row for row in report["comparisons"] if (row["candidate"], row["baseline"], row["metric"]) == wanted)
    return next(rows, None)


def result(delta: float, other: str) -> str:
    """`gained 20.5 points over base`, `lost 4.0 points against student`, `scored the same as student`."""
    size = points(abs(delta))
    if size == points(0.0):
        return f"scored the same as {other}"
    return f"gained {size} points over {other}" if delta > 0 else f"lost {size} points against {other}"


def between(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The row's interval in words."""
    return interval_in_points(row["ci_low"], row["ci_high"], report["confidence"])


def honest(row: Mapping[str, Any]) -> str:
    """What an interval that holds zero does and does not say: no difference shown is not no difference."""
    if row["ci_low"] > 0 or row["ci_high"] < 0 or row["mde"] is None:
        return ""
    return f"; no difference was detectable at n={row['n']}, which could have shown one of {points(row['mde'])} points"
