"""The gate's checks of quality: is it better, is it no worse, and is there no part of the rows where it is worse?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.figures import describe, interval_in_points, percent, points, title
from workbench.evaluation.report import STUDENT
from workbench.evaluation.significance import holm, not_inferior, p_against, rows_needed
from workbench.evaluation.slices import LABEL
from workbench.evaluation.statistics import Estimate
from workbench.recipe.nouns import Gate

CHAMPION = "champion"
MOST_NAMED = 3  # slices named in one line
FARTHEST = 1000  # times as many rows: what would take more is not worth telling

Check = dict[str, Any]
Report = Mapping[str, Any]


def check(name: str, arm: str, passed: bool, value: float | None, limit: float | None, why: str) -> Check:
    """One check of the gate: `value` and `limit` in the metric's own unit, `why` in one line."""
    return {"name": name, "arm": arm, "passed": passed, "value": value, "limit": limit, "why": why}


def enough_rows(report: Report, gate: Gate) -> Check:
    """A verdict rests on at least `gate.min_rows` items; near copies of one another count once."""
    rows = report.get("clusters", report["n"])
    apart = "" if rows == report["n"] else f" ({report['n']} rows, near copies counted once)"
    why = f"the verdict rests on {rows} test rows{apart}; at least {gate.min_rows} must be asked"
    passed = rows >= gate.min_rows
    why += "" if passed else f": {gate.min_rows - rows} more are needed"
    return check("enough_rows", STUDENT, passed, rows, gate.min_rows, why)


def better_than_baseline(report: Report, gate: Gate, primary: str) -> Check:
    """The lower end of student minus baseline exceeds `gate.better_by`."""
    row = comparison(report, STUDENT, gate.baseline, primary)
    if row is None or row["ci_low"] is None:
        return unmeasured("better_than_baseline", STUDENT, gate.baseline, primary, gate.better_by)
    passed = row["ci_low"] > gate.better_by
    arms = report["arms"]
    figures = ""
    if describe(primary)["kind"] == "share":
        figures = (
            f": {percent(arms[STUDENT][primary]['value'])} against {percent(arms[gate.baseline][primary]['value'])}"
        )
    must = f"a gain above {points(gate.better_by)} must be certain"
    why = (
        f"{STUDENT} {result(row['delta'], gate.baseline)} on {title(primary)} ({between(report, row)}){figures}; {must}"
    )
    if not passed:
        why += honest(row) + needed(row, gate.better_by, f"train for a gain above {points(gate.better_by)}")
    return check("better_than_baseline", STUDENT, passed, row["ci_low"], gate.better_by, why)


def not_worse_than_champion(report: Report, gate: Gate, primary: str) -> list[Check]:
    """A loss of more than `gate.champion_margin` against what is in production is ruled out; none without one."""
    if CHAMPION not in report["arms"]:
        return []
    return [not_worse(report, "not_worse_than_champion", STUDENT, CHAMPION, primary, gate.champion_margin)]


def not_worse_than_student(report: Report, gate: Gate, primary: str, name: str) -> Check:
    """A format loses no more than `gate.quantized_margin` against the student."""
    return not_worse(report, "not_worse_than_student", name, STUDENT, primary, gate.quantized_margin)


def not_worse(report: Report, name: str, arm: str, other: str, primary: str, margin: float) -> Check:
    """Non-inferiority: the lower end of arm minus other is at or above −margin."""
    row = comparison(report, arm, other, primary)
    if row is None or row["ci_low"] is None:
        return unmeasured(name, arm, other, primary, -margin)
    passed = not_inferior(estimate(row), margin)
    may = f"at most {points(margin)} may be lost"
    if not passed and row["delta"] >= -margin:
        may += ", which this interval does not rule out"
    why = f"{arm} {result(row['delta'], other)} ({between(report, row)}); {may}{honest(row)}"
    if not passed:
        remedy = "take a format with more bits" if other == STUDENT else f"train it to lose less against {other}"
        why += needed(row, -margin, remedy)
    return check(name, arm, passed, row["ci_low"], -margin, why)


def validity(report: Report, gate: Gate) -> list[Check]:
    """The lower end of the student's share of valid answers reaches `gate.validity`; unmeasured, it is said so."""
    cell = report["arms"].get(STUDENT, {}).get("validity")
    if cell is None:
        if gate.validity == 0:
            return []
        why = f"the scorer measures no validity, so the limit of {percent(gate.validity)} was held against nothing"
        return [check("validity", STUDENT, True, None, gate.validity, why)]
    low, high = cell["ci_low"], cell["ci_high"]
    if low is None:
        passed, ends = gate.validity == 0, "no interval"
    else:
        passed = low >= gate.validity
        ends = interval_in_points(low, high, report["confidence"]).replace("+", "")
    must = f"at least {percent(gate.validity)} must be certain" if gate.validity > 0 else "no limit is set"
    why = f"{percent(cell['value'])} of {STUDENT}'s answers are valid ({ends}); {must}"
    if not passed and low is not None:
        row = {"n": report["n"], "delta": cell["value"], "ci_low": low}
        why += needed(row, gate.validity, "train on more answers of the wanted form, or decode under the schema")
    return [check("validity", STUDENT, passed, low, gate.validity, why)]


def slices(report: Report, gate: Gate) -> list[Check]:
    """No slice certainly loses more than `gate.slice_margin` against the champion, else the baseline.

    Looked at are all slices of the pair at once: refused is one whose interval lies below −margin and whose p, the
    larger of its own and the interval's against −margin, is below α after Holm over the slices. Slices by wanted label
    are judged against the champion alone: an untrained baseline that always says one label has it right every time.
    """
    other = CHAMPION if CHAMPION in report["arms"] else gate.baseline
    found = [
        (part, row)
        for part in report.get("slices", ())
        for row in part["comparisons"]
        if (row["candidate"], row["baseline"]) == (STUDENT, other)
        and row["ci_high"] is not None
        and (part["field"] != LABEL or other == CHAMPION)
    ]
    limit = None if gate.slice_margin is None else -gate.slice_margin
    if not found:
        return []
    part, row = min(found, key=lambda pair: pair[1]["ci_high"])
    told = f"{called(part)} {lost(row['delta'])} points ({between(report, row)}, n={part['n']})"
    head = f"of {len(found)} slices held against {other}"
    if limit is None:
        return [check("slices", STUDENT, True, row["ci_high"], None, f"{head} the worst is {told}; no limit is set")]
    confidence = report["confidence"]
    p_values = [max(r["p_value"] or 0.0, p_against(estimate(r), limit, confidence) or 0.0) for _, r in found]
    worse = [
        pair
        for pair, p in zip(found, holm(p_values))
        if pair[1]["ci_high"] < limit and p is not None and p < 1 - confidence
    ]
    may = f"none may certainly lose more than {points(gate.slice_margin or 0.0)}"
    if not worse:
        why = f"{head} none is certainly worse, the worst {told}; {may}"
        return [check("slices", STUDENT, True, row["ci_high"], limit, why)]
    worse.sort(key=lambda pair: pair[1]["ci_high"])
    names = ", ".join(
        f"{called(p)} {lost(r['delta'])} points ({between(report, r)}, n={p['n']})" for p, r in worse[:MOST_NAMED]
    )
    more = f" and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    why = f"{head} {len(worse)} certainly lost: {names}{more}; {may}; add training rows like these"
    return [check("slices", STUDENT, False, worse[0][1]["ci_high"], limit, why)]


def unmeasured(name: str, arm: str, other: str, primary: str, limit: float) -> Check:
    """A difference that is needed and not there."""
    why = f"no interval for {arm} against {other} on {title(primary)} was measured; evaluate {other} too"
    return check(name, arm, False, None, limit, why)


def comparison(report: Report, candidate: str, baseline: str, metric: str) -> Mapping[str, Any] | None:
    """The report's row for this pair and metric, if it has one."""
    return row_of(report["comparisons"], candidate, baseline, metric)


def row_of(rows: Sequence[Mapping[str, Any]], candidate: str, baseline: str, metric: str) -> Mapping[str, Any] | None:
    """The row of this pair and metric, if there is one."""
    wanted = (candidate, baseline, metric)
    return next((row for row in rows if (row["candidate"], row["baseline"], row["metric"]) == wanted), None)


def estimate(row: Mapping[str, Any]) -> Estimate:
    """A comparison's difference with its interval."""
    return Estimate(row["delta"], row["ci_low"], row["ci_high"])


def called(part: Mapping[str, Any]) -> str:
    """A slice by field and value: `label Copyleft`."""
    return f"{part['field']} {part['value']}"


def lost(delta: float) -> str:
    """`lost 4.0`, `gained 2.1`, `moved 0.0`."""
    size = points(abs(delta))
    return f"moved {size}" if size == points(0.0) else f"gained {size}" if delta > 0 else f"lost {size}"


def result(delta: float, other: str) -> str:
    """`gained 20.5 points over base`, `lost 4.0 points against student`, `scored the same as student`."""
    size = points(abs(delta))
    if size == points(0.0):
        return f"scored the same as {other}"
    return f"gained {size} points over {other}" if delta > 0 else f"lost {size} points against {other}"


def between(report: Report, row: Mapping[str, Any]) -> str:
    """The row's interval in words."""
    return interval_in_points(row["ci_low"], row["ci_high"], report["confidence"])


def honest(row: Mapping[str, Any]) -> str:
    """What an interval that holds zero does and does not say: no difference shown is not no difference."""
    if row["ci_low"] > 0 or row["ci_high"] < 0 or row["mde"] is None:
        return ""
    return f"; no difference was detectable at n={row['n']}, which could have shown one of {points(row['mde'])} points"


def needed(row: Mapping[str, Any], limit: float, remedy: str) -> str:
    """What a refusal wants: so many rows if the figure itself is good enough, else another model."""
    rows = rows_needed(row["n"], row["delta"], row["ci_low"], limit)
    if rows is None or rows > FARTHEST * row["n"]:
        return f"; more rows will not show it: {remedy}"
    return f"; if it holds, about {rows:,} rows would show it"
