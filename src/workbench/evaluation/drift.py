"""Drift: a model's score on fresh rows against the one it was registered with, two samples and one interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from workbench.evaluation.metrics import DASH, amount, describe, interval_in_points, percent, points, title
from workbench.evaluation.statistics import independent_difference, quantile

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
    deciding = next((found for found in rows if found["metric"] == primary), None)
    verdict = UNKNOWN if deciding is None else word(deciding)
    told = sentence(deciding, verdict, primary, registered_n, n, confidence)
    return {"verdict": verdict, "sentence": told, "primary": primary, "differences": rows}


def measured(name: str, registered: Cells, fresh: Cells) -> bool:
    """Whether both have the metric with an interval, and it is a share."""
    both = [cells.get(name, {}) for cells in (registered, fresh)]
    return describe(name)["kind"] == "share" and all(cell.get("ci_low") is not None for cell in both)


def row(metric: str, registered: Mapping[str, float], fresh: Mapping[str, float], confidence: float) -> dict[str, Any]:
    """One metric: fresh minus registered with its interval, and the change that these rows would have shown."""
    ends = [(cell["value"], cell["ci_low"], cell["ci_high"]) for cell in (fresh, registered)]
    found = independent_difference(*ends[0], *ends[1])
    return {
        "metric": metric,
        "registered": dict(registered),
        "fresh": dict(fresh),
        "delta": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "mde": detectable_apart(ends[0][2] - ends[0][1], ends[1][2] - ends[1][1], confidence),
    }


def detectable_apart(width_a: float, width_b: float, confidence: float, power: float = POWER) -> float:
    """Smallest difference of two independent values that intervals so wide would have shown with this power.

    (z_α/2 + z_β)·√(SE_a² + SE_b²), an interval's width being 2·z_α/2 standard errors (Bloom, Eval. Review 19, 1995).
    """
    z = quantile(confidence)
    error = math.hypot(width_a, width_b) / (2 * z)
    return min(1.0, (z + quantile(2 * power - 1)) * error)


def word(found: Mapping[str, Any]) -> str:
    """The verdict of one metric, the higher the better."""
    if found["ci_high"] < 0:
        return DRIFTED
    return IMPROVED if found["ci_low"] > 0 else STEADY


def sentence(
    found: Mapping[str, Any] | None, verdict: str, primary: str, registered_n: int, n: int, confidence: float
) -> str:
    """The verdict with its figures, for a person."""
    if found is None:
        return f"{title(primary)} has no interval on one of the two sides: whether it drifted cannot be said"
    span = interval_in_points(found["ci_low"], found["ci_high"], confidence)
    now, then = percent(found["fresh"]["value"]), percent(found["registered"]["value"])
    both = f"{now} on {n:,} fresh rows against {then} on the {registered_n:,} it was registered with"
    if verdict == STEADY:
        return (
            f"no drift was detectable at n={n:,}: {title(primary)} is {both} "
            f"({points(found['delta'], sign=True)} points, {span}); "
            f"it could have shown a change of {points(found['mde'])} points"
        )
    verb = "fell" if verdict == DRIFTED else "rose"
    return f"{title(primary)} {verb} by {points(abs(found['delta']))} points ({span}): {both}"


def drift_table(told: Mapping[str, Any], heading: str, confidence: float) -> Table:
    """One row a metric: registered, fresh, and their difference with its interval."""
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True)
    for name in ("registered", "fresh rows", "points", f"{100 * confidence:.3g} % interval", "detectable"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in told["differences"]:
        style = {DRIFTED: "red", IMPROVED: "green"}.get(word(found), "dim")
        if describe(found["metric"])["better"] == "lower":
            style = {"red": "green", "green": "red"}.get(style, style)
        name, kind = found["metric"], describe(found["metric"])["kind"]
        table.add_row(
            Text(title(name), style="bold" if name == told["primary"] else ""),
            amount(kind, found["registered"]["value"]),
            amount(kind, found["fresh"]["value"]),
            Text(points(found["delta"], sign=True), style=style),
            f"{points(found['ci_low'], sign=True)} to {points(found['ci_high'], sign=True)}",
            DASH if found["mde"] is None else points(found["mde"]),
        )
    return table
