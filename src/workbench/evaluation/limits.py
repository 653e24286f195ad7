"""The gate's checks of what a model costs and what it must not do: time, size, money, forgetting, refusals, duties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.evaluation.checks import Check, Report, between, check, estimate, honest, needed, result, row_of
from workbench.evaluation.figures import amount, interval_in_points, percent
from workbench.evaluation.report import STUDENT
from workbench.evaluation.significance import not_inferior
from workbench.recipe.evidence import Judge
from workbench.recipe.nouns import Gate

BASE = "base"


def resources(report: Report, gate: Gate, arm: str) -> list[Check]:
    """Latency, size and cost of one arm; where no limit is set only the student's are told."""
    figures = report["arms"].get(arm, {})
    told = (
        ("latency", "latency_p95", "seconds", gate.max_seconds, "answers 95 of 100 times within",
         "take a smaller or a quantized model, or another engine"),
        ("size", "bytes", "bytes", gate.max_bytes, "weighs", "take a format with fewer bits, or a smaller model"),
        ("cost", "usd_per_1000", "usd", gate.max_usd_per_1000, "takes for 1,000 requests",
         "take a smaller or a quantized model, or ask more at once (evaluate.parallel)"),
    )  # fmt: skip
    found = []
    for name, metric, kind, limit, verb, remedy in told:
        value = figures.get(metric, {}).get("value")
        if limit is None:
            if arm == STUDENT and value is not None:
                found.append(
                    check(name, arm, True, value, None, f"{arm} {verb} {amount(kind, value)}; no limit is set")
                )
        elif value is None:
            why = f"{arm}'s {metric.replace('_', ' ')} was not measured; at most {amount(kind, limit)} is allowed"
            found.append(check(name, arm, False, None, limit, why))
        else:
            passed = value <= limit
            why = f"{arm} {verb} {amount(kind, value)}; at most {amount(kind, limit)} is allowed"
            why += "" if passed else f": {amount_over(value, limit)} over; {remedy}"
            found.append(check(name, arm, passed, value, limit, why))
    return found


def amount_over(value: float, limit: float) -> str:
    """By how much a limit is passed, in per cent of it."""
    return f"{100 * (value / limit - 1):,.3g} %"


def kept(report: Report, gate: Gate, arm: str) -> list[Check]:
    """What tuning must not break: general questions, and refusals of harmful prompts, both against base."""
    return [
        *held(report, arm, "forgetting", "general", "accuracy", gate.forgetting, "on general questions",
              "mix general rows into training, or lower the learning rate"),
        *held(report, arm, "refusals", "refusals", "refusals", gate.refusals, "on refusing harmful prompts",
              "mix refusals into training, or lower the learning rate"),
    ]  # fmt: skip


def held(
    report: Report, arm: str, name: str, section: str, metric: str, margin: float | None, on: str, remedy: str
) -> list[Check]:
    """One arm's loss against base in a section of its own; without a limit only the student's is told."""
    row = row_of(report.get(section, {}).get("comparisons", ()), arm, BASE, metric)
    limit = None if margin is None else -margin
    if row is None or row["ci_low"] is None:
        if margin is None or arm != STUDENT:
            return []
        why = f"{arm} was not held against {BASE} {on}; set evaluate.{'general' if section == 'general' else 'harmful'}"
        return [check(name, arm, False, None, limit, why)]
    figures = f"{arm} {result(row['delta'], BASE)} {on} ({between(report, row)})"
    if margin is None:
        if arm != STUDENT:
            return []
        return [check(name, arm, True, row["ci_low"], None, f"{figures}; no limit is set{honest(row)}")]
    passed = not_inferior(estimate(row), margin)
    why = f"{figures}; at most {percent(margin).removesuffix(' %')} may be lost{honest(row)}"
    why += "" if passed else needed(row, -margin, remedy)
    return [check(name, arm, passed, row["ci_low"], limit, why)]


def memorised(report: Report, gate: Gate, arm: str) -> list[Check]:
    """An arm's share of answers that repeat a training row: each is seen, not estimated, and needs no interval."""
    cell = report.get("memorised", {}).get(arm)
    if cell is None:
        return []
    count = len(cell["rows"])
    first = f", as {cell['rows'][0]['id']} repeats training row {cell['rows'][0]['train']}" if cell["rows"] else ""
    told = f"{percent(cell['value'])} of {arm}'s answers repeat a training row ({count} of {cell['n']}{first})"
    if gate.memorised is None:
        return (
            [check("memorised", arm, True, cell["value"], None, f"{told}; no limit is set")] if arm == STUDENT else []
        )
    passed = cell["value"] <= gate.memorised
    why = f"{told}; at most {percent(gate.memorised)} may"
    why += "" if passed else "; train fewer epochs, or drop repeated rows from training"
    return [check("memorised", arm, passed, cell["value"], gate.memorised, why)]


def kept_share(report: Report, gate: Gate) -> list[Check]:
    """Of the teacher's gain over the baseline the student certainly keeps `gate.kept_share`; none without a limit."""
    limit = gate.kept_share
    if limit is None:
        return []
    told = report.get("distillation", {})
    cell, must = told.get("kept", {}).get(STUDENT), f"at least {percent(limit)} must be certain"
    if cell is None:
        why = f"no teacher was asked, so which share of its gain {STUDENT} kept is not known; {must}"
        return [check("kept_share", STUDENT, False, None, limit, why)]
    if cell["ci_low"] is None:
        return [check("kept_share", STUDENT, False, None, limit, f"{told['why']}; {must}")]
    passed = cell["ci_low"] >= limit
    ends = interval_in_points(cell["ci_low"], cell["ci_high"], report["confidence"]).replace("+", "")
    why = f"{STUDENT} kept {percent(cell['value'])} of the teacher's gain over {told['baseline']} ({ends}); {must}"
    if not passed:
        row = {"n": report["n"], "delta": cell["value"], "ci_low": cell["ci_low"]}
        why += needed(row, limit, "label more rows, keep more answers a prompt, or learn its log-probabilities too")
    return [check("kept_share", STUDENT, passed, cell["ci_low"], limit, why)]


def duties(report: Report, gate: Gate) -> list[Check]:
    """What the licences of base, teacher and data ask is met; no person's word replaces it."""
    asked = report.get("duties")
    if asked is None:
        return []
    unmet = [duty for duty in asked if not duty["met"]]
    head = f"{len(asked) - len(unmet)} of {len(asked)} duties of the licences are met"
    named = "; ".join(f"{duty['duty']}: {duty['why']}" for duty in unmet)
    why = head + (f"; open: {named}" if unmet else "") + ("" if gate.duties else "; no duty is demanded")
    return [
        check("duties", STUDENT, not unmet or not gate.duties, float(len(unmet)), 0.0 if gate.duties else None, why)
    ]


def trusted_judge(report: Report) -> list[Check]:
    """A model that judges must agree with itself in both orders, and with people where they judged too."""
    about = report.get("judge")
    if about is None:
        return []
    least = Judge()
    found = [
        agreed(about, "consistency", about.get("least_consistency", least.least_consistency),
               "judged alike in both orders", "name another evaluate.judge.model, or sharper criteria"),
        agreed(about, "kappa", about.get("least_kappa", least.least_kappa),
               "agreement with people (Cohen's kappa)", "sharpen evaluate.judge.criteria, or judge more pairs"),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def agreed(about: Mapping[str, Any], name: str, limit: float, what: str, remedy: str) -> Check | None:
    """One figure of the judge's against its least, by its lower end where there is one."""
    value = about.get(name)
    if value is None:
        return None
    low, high = about.get(f"{name}_low"), about.get(f"{name}_high")
    held = value if low is None else low
    ends = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    why = f"the judge {about.get('model', '')}: {value:.2f} {what}{ends} on {about.get(f'{name}_n', '?')} pairs; "
    why += f"at least {limit:.2f} must be certain" + ("" if held >= limit else f"; {remedy}")
    return check("judge", STUDENT, held >= limit, held, limit, why)
