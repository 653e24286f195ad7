"""Where a model is better or worse: the deciding metric of one part of the rows at a time, the worst parts first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.cells import cell, is_share, item_estimate, item_row, rounded
from workbench.evaluation.measured import Measured
from workbench.evaluation.significance import holm, p_against
from workbench.evaluation.statistics import Estimate, Floats, Ints
from workbench.recipe.nouns import Evaluate

LENGTH, LABEL, UNTOLD = "length", "label", "(none)"
AGAINST = ("champion", "base_few_shot", "base", "teacher")  # whom the worst slices are worst against
PARTS, DISTINCT = 4, 10  # a number with more values than ten is looked at in quarters

Members = dict[tuple[str, str], list[int]]


def slices(
    evaluate: Evaluate,
    metric: str,
    measured: Measured,
    rows: Sequence[Prediction],
    pairs: Sequence[tuple[str, str]],
    meta: Mapping[str, Mapping[str, Any]],
    lengths: Mapping[str, int],
    seed: int,
) -> list[dict[str, Any]]:
    """Each part of at least `evaluate.slice_rows` rows, with its rows' ids, its arms, and the paired differences.

    `rows` are any arm's, in the items' order; `pairs` are (candidate, baseline). Every difference has its p, and
    `p_holm` over all the slices of its pair: of forty slices two would look lost by chance.
    """
    columns = {arm: items[metric] for arm, items in measured.items.items() if metric in items}
    paired = [(a, b) for a, b in pairs if a in columns and b in columns]
    found = []
    for (field, value), members in parts(evaluate, rows, meta, lengths).items():
        if evaluate.slice_rows <= len(members) < len(rows):
            index = np.array(members, dtype=np.int64)
            clusters_n = np.unique(measured.clusters_n[index], return_inverse=True)[1].astype(np.int64)
            part = one_slice({arm: c[index] for arm, c in columns.items()}, clusters_n, paired, evaluate, seed)
            ids = [rows[i].id for i in members]
            found.append({"field": field, "value": value, "n": len(members), "items": ids, **part})
    for place in range(len(paired)):
        compared = [part["comparisons"][place] for part in found]
        for row, p in zip(compared, holm([row["p_value"] for row in compared])):
            row["p_holm"] = rounded(p)
    return sorted(found, key=lambda part: worst(part, columns))


def one_slice(
    columns: Mapping[str, Floats],
    clusters_n: Ints,
    pairs: Sequence[tuple[str, str]],
    evaluate: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """`{"arms", "comparisons"}` of the rows of one slice."""
    draws = dict.fromkeys(columns, np.zeros(1))  # right or wrong needs no resampling
    if not all(is_share(column_n) for column_n in columns.values()):
        stacked = np.column_stack([np.ones(len(clusters_n)), *columns.values()])
        totals_bk = statistics.resampled_totals(stacked, clusters_n, evaluate.resamples, seed)
        draws = {arm: totals_bk[:, k] / totals_bk[:, 0] for k, arm in enumerate(columns, start=1)}
    arms = {
        arm: cell(item_estimate(column_n, draws[arm], clusters_n, evaluate.confidence))
        for arm, column_n in columns.items()
    }
    comparisons = []
    for a, b in pairs:
        row = item_row(columns[a], columns[b], draws[a] - draws[b], clusters_n, evaluate.confidence)
        ends = {name: row[name] for name in ("delta", "ci_low", "ci_high")}
        p = row["p_value"]
        if p is None:
            p = rounded(p_against(Estimate(*ends.values()), 0.0, evaluate.confidence))
        comparisons.append({"candidate": a, "baseline": b, **ends, "p_value": p, "p_holm": None})
    return {"arms": arms, "comparisons": comparisons}


def worst(part: Mapping[str, Any], arms: Mapping[str, Any]) -> tuple[float, str, str]:
    """Sorts by the lower end of what the student gained there, else by the lower end of its own score."""
    against = next((arm for arm in AGAINST if arm in arms), "")
    rows = [r for r in part["comparisons"] if (r["candidate"], r["baseline"]) == ("student", against)]
    ends = [r["ci_low"] for r in rows] or [part["arms"].get("student", {}).get("ci_low")]
    return (float("inf") if ends[0] is None else ends[0], part["field"], part["value"])


def parts(
    evaluate: Evaluate,
    rows: Sequence[Prediction],
    meta: Mapping[str, Mapping[str, Any]],
    lengths: Mapping[str, int],
) -> Members:
    """(field, value) → places of its rows: by length, by wanted label, and by what `evaluate.slices` names."""
    members: Members = {}
    if lengths:
        members |= by_value(LENGTH, [lengths.get(p.id) for p in rows], " characters")
    wanted = [next(iter(scorers.labels(evaluate, p.expected, p.answer).values()), (None, None))[0] for p in rows]
    if any(label is not None for label in wanted):
        members |= by_value(LABEL, wanted)
    for field in evaluate.slices:
        members |= by_value(field, [meta.get(p.id, {}).get(field) for p in rows])
    return members


def by_value(field: str, values: Sequence[Any], unit: str = "") -> Members:
    """Rows by their value, a number with more than ten by quarters; a row with a list is in each of its parts."""
    known = [v for v in values if v is not None and v != ""]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    names = quarters(values, unit) if known and numbers and len(set(known)) > DISTINCT else list(values)
    members: Members = defaultdict(list)
    for place, value in enumerate(names):
        for one in value if isinstance(value, list | tuple | set) else [value]:
            members[field, UNTOLD if one is None or one == "" else f"{one}"].append(place)
    return dict(members)


def quarters(values: Sequence[Any], unit: str) -> list[str | None]:
    """Each number as the quarter it lies in: `up to 212 characters`, `over 212 to 340 characters`."""
    known = [v for v in values if v is not None]
    edges = sorted(set(np.quantile(known, [k / PARTS for k in range(1, PARTS)], method="lower").tolist()))
    names = [f"up to {edges[0]:,}{unit}"]
    names += [f"over {low:,} to {high:,}{unit}" for low, high in pairwise(edges)]
    names += [f"over {edges[-1]:,}{unit}"]
    return [None if v is None else names[int(np.searchsorted(edges, v))] for v in values]
