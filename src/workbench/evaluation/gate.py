"""The gate: what may ship, decided by the end of an interval, each check with its reason in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import RequestError
from workbench.evaluation import checks, limits
from workbench.evaluation.checks import Check, comparison
from workbench.evaluation.figures import amount, describe, interval_in_points, points, title
from workbench.evaluation.report import STUDENT
from workbench.recipe.nouns import Gate

__all__ = ["check_override", "comparison", "judge"]

OWN = ("latency", "size", "cost", "memorised")  # refuse the arm they were measured on, and no other
LEAST_REASON = 20  # characters of an override: who, when, why do not fit into fewer


def judge(report: Mapping[str, Any], gate: Gate, primary: str, formats: Sequence[str]) -> dict[str, Any]:
    """`{"passed", "checks", "shipped", "refused", "baseline", "override", "overridden", "sentence"}`.

    The student's quality, safety and licences bind the run; its latency, size, cost and memorised rows refuse only
    itself, as each format's own checks refuse only that format. `passed`: the run's checks hold and something ships
    (and, with `gate.every_format`, every format). `override` ships what was refused, duties excepted. Each check:
    `{"name", "arm", "passed", "value", "limit", "why"}`. RequestError on an override without a reason.
    """
    reason = check_override(gate)
    asked = [
        checks.enough_rows(report, gate),
        checks.better_than_baseline(report, gate, primary),
        *checks.not_worse_than_champion(report, gate, primary),
        *limits.kept_share(report, gate),
        *checks.validity(report, gate),
        *checks.slices(report, gate),
        *limits.kept(report, gate, STUDENT),
        *limits.trusted_judge(report),
        *limits.duties(report, gate),
        *limits.resources(report, gate, STUDENT),
        *limits.memorised(report, gate, STUDENT),
    ]
    for name in formats:
        asked += [*limits.resources(report, gate, name), *limits.memorised(report, gate, name)]
        asked += [*limits.kept(report, gate, name), checks.not_worse_than_student(report, gate, primary, name)]
    arms = [STUDENT, *formats]
    shipped = what_ships(asked, arms, gate)
    overridden = False
    if reason and not any(one["name"] == "duties" and not one["passed"] for one in asked):
        overridden = len(shipped) < len(arms)
        shipped = arms
    verdict = {"passed": bool(shipped), "checks": asked, "shipped": shipped}
    verdict |= {"refused": [arm for arm in arms if arm not in shipped], "baseline": gate.baseline}
    verdict |= {"override": reason, "overridden": overridden}
    return verdict | {"sentence": sentence(report, gate, primary, verdict)}


def check_override(gate: Gate) -> str | None:
    """The written reason, or None; RequestError where it is too short to be one."""
    if gate.override is None:
        return None
    reason = " ".join(gate.override.split())
    if len(reason) < LEAST_REASON:
        raise RequestError(
            f"an override needs a written reason of at least {LEAST_REASON} characters, this one has {len(reason)}",
            where="gate.override",
            remedy="say who ships it, when and why, or leave it null",
        )
    return reason


def what_ships(asked: Sequence[Check], arms: Sequence[str], gate: Gate) -> list[str]:
    """The arms without a refusal of their own, where no refusal binds the whole run."""
    refused = [one for one in asked if not one["passed"]]
    if any(one["arm"] == STUDENT and one["name"] not in OWN for one in refused):
        return []
    stopped = {one["arm"] for one in refused}
    if gate.every_format and stopped:
        return []
    return [arm for arm in arms if arm not in stopped]


def sentence(report: Mapping[str, Any], gate: Gate, primary: str, verdict: Mapping[str, Any]) -> str:
    """The verdict with its figures, for a reader who reads nothing else."""
    cell, row = report["arms"].get(STUDENT, {}).get(primary), comparison(report, STUDENT, gate.baseline, primary)
    shipped = listed(verdict["shipped"])
    head = f"{shipped} may ship" if shipped else "Nothing may ship"
    if verdict["overridden"]:
        head = f"{shipped} ship against the gate, on a person's word"
    text = head[0].upper() + head[1:]
    if cell is None:
        return f"{text}: no student was asked."
    text += f": {amount(describe(primary)['kind'], cell['value'])} {title(primary)}"
    if row is None:
        return f"{text} on {report['n']} test rows."
    size, low, high = points(abs(row["delta"])), row["ci_low"], row["ci_high"]
    interval = interval_in_points(low, high, report["confidence"])
    if low is not None and high is not None and low <= 0 <= high:
        text += f" ({interval} against {gate.baseline}). No difference was detectable at n={row['n']}"
        return text + ("." if row["mde"] is None else f"; it could have shown {points(row['mde'])} points.")
    side = "better" if row["delta"] > 0 else "worse"
    return f"{text}, {size} points {side} than {gate.baseline} on the same {report['n']} test rows ({interval})."


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
