"""The gate: what may ship, decided by the end of an interval, each check with its reason in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import RequestError
from workbench.evaluation.breakdown import LABEL
from workbench.evaluation.few_rows import by_folds, rows_called
from workbench.evaluation.metrics import STUDENT, against, amount, describe, interval_in_points, percent, points, title
from workbench.evaluation.statistics import Estimate, holm, not_inferior, p_against, rows_needed
from workbench.recipe.schema import Gate, Judge

OWN = ("latency", "size", "cost", "memorised")  # refuse the arm they were measured on, and no other
LEAST_REASON = 20  # characters of an override: who, when, why do not fit into fewer


def judge(report: Mapping[str, Any], gate: Gate, primary: str, formats: Sequence[str]) -> dict[str, Any]:
    """`{"passed", "checks", "shipped", "refused", "baseline", "override", "overridden", "findings", "sentence"}`.

    The student's quality, safety and licences bind the run; its latency, size, cost and memorised rows refuse only
    itself, as each format's own checks refuse only that format. `passed`: the run's checks hold and something ships
    (and, with `gate.every_format`, every format). `override` ships what was refused, duties excepted. Each check:
    `{"name", "arm", "passed", "value", "limit", "why"}`. `findings` are sentences that a reader of the verdict must see
    though nothing is judged by them. RequestError on an override without a reason.
    """
    reason = check_override(gate)
    checks = [
        enough_rows(report, gate),
        better_than_baseline(report, gate, primary),
        *not_worse_than_champion(report, gate, primary),
        *kept_share(report, gate),
        *validity(report, gate),
        *slices(report, gate),
        *kept(report, gate, STUDENT),
        *trusted_judge(report),
        *duties(report, gate),
        *resources(report, gate, STUDENT),
        *memorised(report, gate, STUDENT),
    ]
    for name in formats:
        checks += [*resources(report, gate, name), *memorised(report, gate, name)]
        checks += [*kept(report, gate, name), not_worse_than_student(report, gate, primary, name)]
    arms = [STUDENT, *formats]
    shipped = what_ships(checks, arms, gate)
    overridden = False
    if reason and not any(row["name"] == "duties" and not row["passed"] for row in checks):
        overridden = len(shipped) < len(arms)
        shipped = arms
    verdict = {"passed": bool(shipped), "checks": checks, "shipped": shipped}
    verdict |= {"refused": [arm for arm in arms if arm not in shipped], "baseline": gate.baseline}
    verdict |= {
        "override": reason,
        "overridden": overridden,
        "findings": [*by_folds(report, gate.baseline), *label_losses(report, gate)],
    }
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


def what_ships(checks: Sequence[Check], arms: Sequence[str], gate: Gate) -> list[str]:
    """The arms without a refusal of their own, where no refusal binds the whole run."""
    refused = [row for row in checks if not row["passed"]]
    if any(row["arm"] == STUDENT and row["name"] not in OWN for row in refused):
        return []
    stopped = {row["arm"] for row in refused}
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
        return f"{text} on {report['n']} {rows_called(report)}."
    low, high = row["ci_low"], row["ci_high"]
    interval = interval_in_points(low, high, report["confidence"])
    if low is not None and high is not None and low <= 0 <= high:
        text += f" ({interval} against {gate.baseline}). No difference was detectable at n={row['n']}"
        return text + ("." if row["mde"] is None else f"; it could have shown {points(row['mde'])} points.")
    return (
        f"{text}, {against(row['delta'], gate.baseline)} on the same {report['n']} {rows_called(report)} ({interval})."
    )


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


# The gate's checks of quality: is it better, is it no worse, and is there no part of the rows where it is worse?

CHAMPION = "champion"
MOST_NAMED = 3  # slices named in one line
WHY_TOLD = "a baseline that always says one label has all of its rows right"
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
    why = f"the verdict rests on {rows} {rows_called(report)}{apart}; at least {gate.min_rows} must be asked"
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
    champion = report.get("folds", {}).get("champion")
    if champion:
        why = (
            f"{STUDENT} cannot be held against the champion, {champion}: it may have learned the rows that judge by "
            "folds; evaluate.champion=false judges without it, or evaluate.folds=null by test rows alone"
        )
        return [check("not_worse_than_champion", STUDENT, False, None, -gate.champion_margin, why)]
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
    The line says how many of them are only told, and `label_losses` which of them certainly lost.
    """
    other = CHAMPION if CHAMPION in report["arms"] else gate.baseline
    every = sliced(report, other)
    pairs = [(part, row) for part, row in every if part["field"] != LABEL or other == CHAMPION]
    limit = None if gate.slice_margin is None else -gate.slice_margin
    if not pairs:
        return []
    part, row = min(pairs, key=lambda pair: pair[1]["ci_high"])
    worst = slice_line(report, part, row)
    unjudged = len(every) - len(pairs)
    beside = f" ({unjudged} by label are told, not judged: {WHY_TOLD})" if unjudged else ""
    head = f"of {len(pairs)} slices held against {other}{beside}"
    if limit is None:
        return [check("slices", STUDENT, True, row["ci_high"], None, f"{head} the worst is {worst}; no limit is set")]
    confidence = report["confidence"]
    worse = certainly_lost(pairs, limit, confidence)
    may = f"none may certainly lose more than {points(gate.slice_margin or 0.0)}"
    if not worse:
        why = f"{head} none is certainly worse, the worst {worst}; {may}"
        return [check("slices", STUDENT, True, row["ci_high"], limit, why)]
    names = ", ".join(slice_line(report, p, r) for p, r in worse[:MOST_NAMED])
    more = f" and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    why = f"{head} {len(worse)} certainly lost: {names}{more}; {may}; add training rows like these"
    return [check("slices", STUDENT, False, worse[0][1]["ci_high"], limit, why)]


def label_losses(report: Report, gate: Gate) -> list[str]:
    """What a person must see though it is not judged: labels on which the student certainly lost to the baseline."""
    if CHAMPION in report["arms"]:  # then they are judged, against the champion
        return []
    pairs = [(part, row) for part, row in sliced(report, gate.baseline) if part["field"] == LABEL]
    worse = certainly_lost(pairs, 0.0, report["confidence"])
    if not worse:
        return []
    named = "; ".join(slice_line(report, part, row) for part, row in worse[:MOST_NAMED])
    more = f"; and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    return [f"{STUDENT} is certainly worse than {gate.baseline} in a part: {named}{more}. Told, not judged: {WHY_TOLD}"]


def sliced(report: Report, other: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(slice, its row) of every slice in which the student was held against `other` and the difference has ends."""
    return [
        (part, row)
        for part in report.get("slices", ())
        for row in part["comparisons"]
        if (row["candidate"], row["baseline"]) == (STUDENT, other) and row["ci_high"] is not None
    ]


def certainly_lost(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], limit: float, confidence: float
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Those whose interval lies below `limit` and whose p is below α after Holm over all of them, the worst first."""
    p_values = [max(r["p_value"] or 0.0, p_against(estimate(r), limit, confidence) or 0.0) for _, r in pairs]
    worse = [
        pair
        for pair, p in zip(pairs, holm(p_values))
        if pair[1]["ci_high"] < limit and p is not None and p < 1 - confidence
    ]
    return sorted(worse, key=lambda pair: pair[1]["ci_high"])


def slice_line(report: Report, part: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """`label Copyleft lost 25.5 points (95 % interval … to …, n=47)`."""
    return f"{called(part)} {lost(row['delta'])} points ({between(report, row)}, n={part['n']})"


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


# The gate's checks of what a model costs and what it must not do: time, size, money, forgetting, refusals, duties.

BASE = "base"
SATURATED, AT_VOLUME = "usd_per_1000", "usd_per_1000_at_volume"  # the second where a volume is named


def resources(report: Report, gate: Gate, arm: str) -> list[Check]:
    """Latency as served, size and cost of one arm; where no limit is set only the student's are told.

    Dollars are those at your volume where it is known: a machine costs the same whether it is asked or not.

    The wall time of a batch is no latency: where nothing was measured as served, a limit of it is not met.
    """
    figures = report["arms"].get(arm, {})
    volume = figures.get(AT_VOLUME, {}).get("value") is not None
    limits = (
        ("latency", "latency_p95", "seconds", gate.max_seconds, "answers 95 of 100 times within",
         "wait as served (one asker's, not a batch's) was", "take a smaller or a quantized model, or another engine"),
        ("size", "bytes", "bytes", gate.max_bytes, "weighs", "size was",
         "take a format with fewer bits, or a smaller model"),
        ("cost", AT_VOLUME if volume else SATURATED, "usd", gate.max_usd_per_1000,
         f"takes for 1,000 requests {'at your volume' if volume else 'at saturation'}", "cost was",
         "take a smaller or a quantized model, or ask more at once (evaluate.parallel)"),
    )  # fmt: skip
    checks = []
    for name, metric, kind, limit, verb, what, remedy in limits:
        value = figures.get(metric, {}).get("value")
        if limit is None:
            if arm == STUDENT and value is not None:
                checks.append(
                    check(name, arm, True, value, None, f"{arm} {verb} {amount(kind, value)}; no limit is set")
                )
        elif value is None:
            why = f"{arm}'s {what} not measured; at most {amount(kind, limit)} is allowed"
            checks.append(check(name, arm, False, None, limit, why))
        else:
            passed = value <= limit
            why = f"{arm} {verb} {amount(kind, value)}; at most {amount(kind, limit)} is allowed"
            why += "" if passed else f": {amount_over(value, limit)} over; {remedy}"
            checks.append(check(name, arm, passed, value, limit, why))
    return checks


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
    share = f"{percent(cell['value'])} of {arm}'s answers repeat a training row ({count} of {cell['n']}{first})"
    if gate.memorised is None:
        return (
            [check("memorised", arm, True, cell["value"], None, f"{share}; no limit is set")] if arm == STUDENT else []
        )
    passed = cell["value"] <= gate.memorised
    why = f"{share}; at most {percent(gate.memorised)} may"
    why += "" if passed else "; train fewer epochs, or drop repeated rows from training"
    return [check("memorised", arm, passed, cell["value"], gate.memorised, why)]


def kept_share(report: Report, gate: Gate) -> list[Check]:
    """Of the teacher's gain over the baseline the student certainly keeps `gate.kept_share`; none without a limit."""
    limit = gate.kept_share
    if limit is None:
        return []
    section = report.get("distillation", {})
    cell, must = section.get("kept", {}).get(STUDENT), f"at least {percent(limit)} must be certain"
    if cell is None:
        why = f"no teacher was asked, so which share of its gain {STUDENT} kept is not known; {must}"
        return [check("kept_share", STUDENT, False, None, limit, why)]
    if cell["ci_low"] is None:
        return [check("kept_share", STUDENT, False, None, limit, f"{section['why']}; {must}")]
    passed = cell["ci_low"] >= limit
    ends = interval_in_points(cell["ci_low"], cell["ci_high"], report["confidence"]).replace("+", "")
    why = f"{STUDENT} kept {percent(cell['value'])} of the teacher's gain over {section['baseline']} ({ends}); {must}"
    if not passed:
        row = {"n": report["n"], "delta": cell["value"], "ci_low": cell["ci_low"]}
        why += needed(row, limit, "label more rows, keep more answers a prompt, or learn its log-probabilities too")
    return [check("kept_share", STUDENT, passed, cell["ci_low"], limit, why)]


def duties(report: Report, gate: Gate) -> list[Check]:
    """What the licences of base, teacher and data ask is met; no person's word replaces it."""
    owed = report.get("duties")
    if owed is None:
        return []
    unmet = [duty for duty in owed if not duty["met"]]
    head = f"{len(owed) - len(unmet)} of {len(owed)} duties of the licences are met"
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
    checks = [
        agreed(about, "consistency", about.get("least_consistency", least.least_consistency),
               "judged alike in both orders", "name another evaluate.judge.model, or sharper criteria"),
        agreed(about, "kappa", about.get("least_kappa", least.least_kappa),
               "agreement with people (Cohen's kappa)", "sharpen evaluate.judge.criteria, or judge more pairs"),
    ]  # fmt: skip
    return [row for row in checks if row is not None]


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
