"""Answers to the same items, paired: runs against one of them, a model against its registered score."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from workbench.errors import RequestError
from workbench.evaluation import scorers
from workbench.evaluation.answers import Prediction, read_predictions
from workbench.evaluation.metrics import (
    BASELINES,
    DASH,
    amount,
    describe,
    interval_in_points,
    measure,
    percent,
    points,
    title,
)
from workbench.evaluation.report import arm_metrics, compare, settings_of
from workbench.evaluation.scorers import primary_metric
from workbench.evaluation.statistics import independent_difference, quantile
from workbench.names import check_name
from workbench.recipe.schema import Evaluate

SETTINGS = ("scorer", "fields", "labels", "function", "resamples", "seed")  # of the first run's report, kept


@dataclass(frozen=True)
class Gathered:
    """Runs that can be compared: their names and reports, the arms all have, and `<run> <arm>` → its answers."""

    names: tuple[str, ...]
    reports: tuple[Mapping[str, Any], ...]
    arms: tuple[str, ...]
    contenders: Mapping[str, Sequence[Prediction]]
    notes: tuple[str, ...]


def gather(folders: Sequence[Path]) -> Gathered:
    """The student and every format that all these evaluated runs have, with their answers.

    `folders` are run folders (`experiments/<recipe>/<digest>`). Raises RequestError when fewer than two are given,
    when one was not evaluated, or when they have no arm in common.
    """
    names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    if len(set(names)) < max(2, len(names)):
        raise RequestError("two runs or more are compared, each named once", where="runs")
    reports = [read_report(folder) for folder in folders]
    settings = [(r["scorer"], r["fields"]) for r in reports]
    notes = [
        f"{n} was scored otherwise and is scored as {names[0]} here"
        for n, s in zip(names, settings)
        if s != settings[0]
    ]
    own = [[arm for arm in r["arms"] if arm not in BASELINES] for r in reports]
    for arm in {arm for arms in own for arm in arms}:
        check_name(arm, "report.json: arms")
    common = [arm for arm in own[0] if all(arm in arms for arms in own)]
    notes += [
        f"{n} {arm} has no counterpart and is left out"
        for n, arms in zip(names, own)
        for arm in arms
        if arm not in common
    ]
    if not common:
        raise RequestError("the runs have no arm in common", where="runs", remedy="evaluate a student in each of them")
    contenders = {
        f"{n} {arm}": read_predictions(folder / "evaluate" / "predictions" / f"{arm}.jsonl")
        for arm in common
        for n, folder in zip(names, folders)
    }
    return Gathered(tuple(names), tuple(reports), tuple(common), contenders, tuple(notes))


def compare_gathered(gathered: Gathered, metric: str | None = None) -> dict[str, Any]:
    """The comparison of runs whose answers were read."""
    first, names = gathered.reports[0], gathered.names
    evaluate, unjudged = without_judge(settings_of(first, metric))
    pairs = [(f"{n} {arm}", f"{names[0]} {arm}") for arm in gathered.arms for n in names[1:]]
    result = compare_arms(gathered.contenders, evaluate, first["seed"], pairs=pairs)
    for n, report in zip(names, gathered.reports):
        for arm in gathered.arms:
            if "bytes" in report["arms"][arm]:
                result["arms"][f"{n} {arm}"]["bytes"] = report["arms"][arm]["bytes"]
                result["metrics"]["bytes"] = describe("bytes")
    if metric:
        result["comparisons"] = [row for row in result["comparisons"] if row["metric"] == evaluate.primary]
    kept = {name: first[name] for name in SETTINGS if name in first}
    return result | kept | {"runs": list(names), "said": [*gathered.notes, *unjudged, *result["said"]]}


def without_judge(evaluate: Evaluate) -> tuple[Evaluate, list[str]]:
    """(how to score answers of several runs, what to say): a judge saw each run's answers beside its own baseline's."""
    judged = scorers.find(evaluate.scorer).judged(evaluate)
    if evaluate.primary not in judged:
        return evaluate, []
    plain = scorers.metric_names(evaluate)[0]
    note = f"{evaluate.primary} is a judge's verdict within one run, so the runs are compared by {plain}"
    return replace(evaluate, primary=plain), [note]


def compare_arms(
    contenders: Mapping[str, Sequence[Prediction]],
    evaluate: Evaluate,
    seed: int,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Paired differences on the items that all contenders answered; `pairs` are (candidate, baseline).

    `contenders` maps a name a reader will know to predictions; without `pairs` each is held against the
    first. Returns `{"task", "n", "primary", "confidence", "metrics", "arms", "comparisons", "said"}`, in
    report.json's shapes. Raises RequestError when fewer than two are given, when they share no item, or
    when they want different answers of one item, since then their test sets only look alike.
    """
    if len(contenders) < 2:
        raise RequestError("a comparison needs two runs that were evaluated", where="compare")
    first = next(iter(contenders))
    pairs = [(name, first) for name in contenders if name != first] if pairs is None else pairs
    shared, notes = shared_items(contenders)
    primary = primary_metric(evaluate)
    measured = measure(evaluate, shared, seed)
    arms = {name: arm_metrics(name, rows, measured, evaluate.confidence) for name, rows in shared.items()}
    return {
        "task": "comparison",
        "n": len(measured.clusters_n),
        "primary": primary,
        "confidence": evaluate.confidence,
        "metrics": {name: describe(name) for name in dict.fromkeys(m for cells in arms.values() for m in cells)},
        "arms": arms,
        "comparisons": [row for a, b in pairs for row in compare(measured, a, b, evaluate.confidence)],
        "said": notes,
    }


def read_report(folder: Path) -> dict[str, Any]:
    """A run's report.json; RequestError when it has none."""
    path = folder / "evaluate" / "report.json"
    if not path.is_file():
        remedy = f"take its recipe {folder.parent.name} as far as evaluate first"
        raise RequestError("this run was not evaluated", where=str(folder), remedy=remedy)
    return json.loads(path.read_text(encoding="utf-8"))


def shared_items(
    contenders: Mapping[str, Sequence[Prediction]],
) -> tuple[dict[str, list[Prediction]], list[str]]:
    """Each contender's predictions on the items all share, in one order, and what was left out."""
    by_id = {name: {p.id: p for p in rows} for name, rows in contenders.items()}
    name, first = next(iter(by_id.items()))
    common = [item for item in first if all(item in rows for rows in by_id.values())]
    if not common:
        lists = "; ".join(f"{n} was asked {len(rows)} items" for n, rows in by_id.items())
        raise RequestError(
            f"the runs share no item: {lists}", where="compare", remedy="compare runs on one test set, by its rows' ids"
        )
    for other, rows in by_id.items():
        for item in common:
            if rows[item].expected != first[item].expected:
                raise RequestError(
                    f"{name} and {other} want different answers of item {item!r}: their test sets only look alike",
                    where="compare",
                    remedy="evaluate both on one test set: run `evaluate` again for the older one",
                )
    notes = [
        f"{n}: {len(rows) - len(common)} of {len(rows)} items have no partner and are left out"
        for n, rows in by_id.items()
        if len(rows) > len(common)
    ]
    # The first contender's clusters hold for all: grouping may have changed between two runs.
    groups = {item: first[item].group for item in common}
    return {n: [replace(rows[item], group=groups[item]) for item in common] for n, rows in by_id.items()}, notes


# Drift: a model's score on fresh rows against the one it was registered with, two samples and one interval.

POWER = 0.8
DRIFTED, IMPROVED, STEADY, UNKNOWN = "drifted", "improved", "no drift", "unknown"
Cells = Mapping[str, Mapping[str, Any]]


def drift(
    registered: Cells, fresh: Cells, primary: str, *, registered_n: int, n: int, confidence: float
) -> dict[str, Any]:
    """The verdict: `drifted` when the whole interval of fresh minus registered lies below zero in the primary metric.

    `registered` and `fresh` are one arm's metrics as report.json has them. The rows are different ones, so the
    difference is that of two independent samples (Newcombe 1998, method 10), each interval with its own clusters in it.
    Returns `{"verdict", "sentence", "primary", "differences": [{"metric", "registered", "fresh", "delta", "ci_low",
    "ci_high", "mde"}]}`, the primary metric first.
    """
    names = [primary, *(name for name in fresh if name != primary)]
    rows = [row(name, registered[name], fresh[name], confidence) for name in names if measured(name, registered, fresh)]
    deciding = next((difference for difference in rows if difference["metric"] == primary), None)
    verdict = UNKNOWN if deciding is None else word(deciding)
    line = sentence(deciding, verdict, primary, registered_n, n, confidence)
    return {"verdict": verdict, "sentence": line, "primary": primary, "differences": rows}


def measured(name: str, registered: Cells, fresh: Cells) -> bool:
    """Whether both have the metric with an interval, and it is a share."""
    both = [cells.get(name, {}) for cells in (registered, fresh)]
    return describe(name)["kind"] == "share" and all(cell.get("ci_low") is not None for cell in both)


def row(metric: str, registered: Mapping[str, float], fresh: Mapping[str, float], confidence: float) -> dict[str, Any]:
    """One metric: fresh minus registered with its interval, and the change that these rows would have shown."""
    ends = [(cell["value"], cell["ci_low"], cell["ci_high"]) for cell in (fresh, registered)]
    difference = independent_difference(*ends[0], *ends[1])
    return {
        "metric": metric,
        "registered": dict(registered),
        "fresh": dict(fresh),
        "delta": difference.value,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "mde": detectable_apart(ends[0][2] - ends[0][1], ends[1][2] - ends[1][1], confidence),
    }


def detectable_apart(width_a: float, width_b: float, confidence: float, power: float = POWER) -> float:
    """Smallest difference of two independent values that intervals so wide would have shown with this power.

    (z_α/2 + z_β)·√(SE_a² + SE_b²), an interval's width being 2·z_α/2 standard errors (Bloom, Eval. Review 19, 1995).
    """
    z = quantile(confidence)
    error = math.hypot(width_a, width_b) / (2 * z)
    return min(1.0, (z + quantile(2 * power - 1)) * error)


def word(difference: Mapping[str, Any]) -> str:
    """The verdict of one metric, the higher the better."""
    if difference["ci_high"] < 0:
        return DRIFTED
    return IMPROVED if difference["ci_low"] > 0 else STEADY


def sentence(
    difference: Mapping[str, Any] | None, verdict: str, primary: str, registered_n: int, n: int, confidence: float
) -> str:
    """The verdict with its figures, for a person."""
    if difference is None:
        return f"{title(primary)} has no interval on one of the two sides: whether it drifted cannot be said"
    span = interval_in_points(difference["ci_low"], difference["ci_high"], confidence)
    now, then = percent(difference["fresh"]["value"]), percent(difference["registered"]["value"])
    both = f"{now} on {n:,} fresh rows against {then} on the {registered_n:,} it was registered with"
    if verdict == STEADY:
        return (
            f"no drift was detectable at n={n:,}: {title(primary)} is {both} "
            f"({points(difference['delta'], sign=True)} points, {span}); "
            f"it could have shown a change of {points(difference['mde'])} points"
        )
    verb = "fell" if verdict == DRIFTED else "rose"
    return f"{title(primary)} {verb} by {points(abs(difference['delta']))} points ({span}): {both}"


def drift_table(recheck: Mapping[str, Any], heading: str, confidence: float) -> Table:
    """One row a metric: registered, fresh, and their difference with its interval."""
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True)
    for name in ("registered", "fresh rows", "points", f"{100 * confidence:.3g} % interval", "detectable"):
        table.add_column(name, justify="right", no_wrap=True)
    for difference in recheck["differences"]:
        style = {DRIFTED: "red", IMPROVED: "green"}.get(word(difference), "dim")
        if describe(difference["metric"])["better"] == "lower":
            style = {"red": "green", "green": "red"}.get(style, style)
        name, kind = difference["metric"], describe(difference["metric"])["kind"]
        table.add_row(
            Text(title(name), style="bold" if name == recheck["primary"] else ""),
            amount(kind, difference["registered"]["value"]),
            amount(kind, difference["fresh"]["value"]),
            Text(points(difference["delta"], sign=True), style=style),
            f"{points(difference['ci_low'], sign=True)} to {points(difference['ci_high'], sign=True)}",
            DASH if difference["mde"] is None else points(difference["mde"]),
        )
    return table
