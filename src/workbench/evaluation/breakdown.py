"""Where a model is better or worse: the deciding metric of one part of the rows at a time, the worst parts first."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import Measured
from workbench.evaluation.scorers import INVALID
from workbench.evaluation.statistics import (
    Estimate,
    Floats,
    Ints,
    cell,
    holm,
    is_share,
    item_estimate,
    item_row,
    p_against,
    rounded,
)
from workbench.recipe.schema import Evaluate
from workbench.records import DATA_SOURCE

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
    looked_at = []
    for (field, value), members in parts(evaluate, rows, meta, lengths).items():
        if evaluate.slice_rows <= len(members) < len(rows):
            index = np.array(members, dtype=np.int64)
            clusters_n = np.unique(measured.clusters_n[index], return_inverse=True)[1].astype(np.int64)
            part = one_slice({arm: c[index] for arm, c in columns.items()}, clusters_n, paired, evaluate, seed)
            ids = [rows[i].id for i in members]
            looked_at.append({"field": field, "value": value, "n": len(members), "items": ids, **part})
    for place in range(len(paired)):
        compared = [part["comparisons"][place] for part in looked_at]
        for row, p in zip(compared, holm([row["p_value"] for row in compared])):
            row["p_holm"] = rounded(p)
    return sorted(looked_at, key=lambda part: worst(part, columns))


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
    """(field, value) → places of its rows: by length, wanted label, what `evaluate.slices` names, and source."""
    members: Members = {}
    if lengths:
        members |= by_value(LENGTH, [lengths.get(p.id) for p in rows], " characters")
    wanted = [next(iter(scorers.labels(evaluate, p.expected, p.answer).values()), (None, None))[0] for p in rows]
    if any(label is not None for label in wanted):
        members |= by_value(LABEL, wanted)
    sources = {meta.get(p.id, {}).get(DATA_SOURCE) for p in rows} - {None}
    for field in [*evaluate.slices, *([DATA_SOURCE] if len(sources) > 1 else [])]:
        members |= by_value(field, [meta.get(p.id, {}).get(field) for p in rows])
    return members


def by_value(field: str, values: Sequence[Any], unit: str = "") -> Members:
    """Rows by their value, a number with more than ten by quarters; a row with a list is in each of its parts."""
    known = [v for v in values if v is not None and v != ""]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    names = quarters(values, unit) if known and numbers and len(set(known)) > DISTINCT else list(values)
    members: Members = defaultdict(list)
    for place, value in enumerate(names):
        for each in value if isinstance(value, list | tuple | set) else [value]:
            members[field, UNTOLD if each is None or each == "" else f"{each}"].append(place)
    return dict(members)


def quarters(values: Sequence[Any], unit: str) -> list[str | None]:
    """Each number as the quarter it lies in: `up to 212 characters`, `over 212 to 340 characters`."""
    known = [v for v in values if v is not None]
    edges = sorted(set(np.quantile(known, [k / PARTS for k in range(1, PARTS)], method="lower").tolist()))
    names = [f"up to {edges[0]:,}{unit}"]
    names += [f"over {low:,} to {high:,}{unit}" for low, high in pairwise(edges)]
    names += [f"over {edges[-1]:,}{unit}"]
    return [None if v is None else names[int(np.searchsorted(edges, v))] for v in values]


# What was answered where what was wanted: counts for each label.

MOST, OTHER, NONE = 15, "other", "(none)"


def confusion(labels: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
    """`{"labels", "arms": {arm: counts, wanted by row, answered by column}}` from (wanted, answered) labels by arm.

    The labels are the most often wanted 15; `other` gathers the rest, and answers that nobody wants; `(none)` is an
    answer without a label. Those two are there only where they are needed.
    """
    wanted = next(iter(labels.values()))[0]
    kept = [label for label, _ in sorted(Counter(wanted).items(), key=lambda item: (-item[1], item[0]))[:MOST]]
    shown = set(kept)

    def called(label: str) -> str:
        return label if label in shown else NONE if label == INVALID else OTHER

    pairs = {
        arm: Counter((called(w), called(a)) for w, a in zip(ours, theirs)) for arm, (ours, theirs) in labels.items()
    }
    used = {name for counts in pairs.values() for pair in counts for name in pair}
    names = kept + [name for name in (OTHER, NONE) if name in used and name not in kept]
    return {
        "labels": names,
        "arms": {arm: [[counts[row, column] for column in names] for row in names] for arm, counts in pairs.items()},
    }


# Does a model know when it is right? Its confidence in an answer against how often such answers are right.

BINS = 10
CHANCE = 1000  # answers drawn anew from the confidences, to see what ECE a calibrated model would show


def calibration(
    rows: Sequence[Prediction], right_n: Floats, clusters_n: Ints, confidence: float, resamples: int, seed: int
) -> dict[str, Any] | None:
    """`{"ece", "brier", "n", "bins"}` of one arm, `ece` and `brier` as Estimates; None where an answer has no logprob.

    Confidence is the probability of the whole answer, exp(logprob); of one without a token nobody is sure. ECE is the
    mean distance of confidence and share right over ten bins of as many answers each (Naeini, AAAI 2015, with equal
    mass: Nixon, CVPR workshops 2019); Brier the mean squared distance (Monthly Weather Review 78, 1950). Each bin:
    `{"low", "high", "n", "confidence", "right"}`.
    """
    if not np.isin(right_n, (0.0, 1.0)).all():
        return None
    if all(p.logprob is None for p in rows):
        return None
    known = [-math.inf if p.logprob is None and not p.answer else p.logprob for p in rows]
    if None in known:
        return None
    sure_n = np.exp(np.minimum(0.0, np.array(known, dtype=np.float64)))
    parts = [part for part in np.array_split(np.argsort(sure_n, kind="stable"), BINS) if len(part)]
    member_nb = np.zeros((len(rows), len(parts)))
    for b, part in enumerate(parts):
        member_nb[part, b] = 1.0
    squared_n = (sure_n - right_n) ** 2
    columns_nk = np.column_stack([np.ones(len(rows)), squared_n, member_nb * (sure_n - right_n)[:, None]])
    totals_bk = statistics.resampled_totals(columns_nk, clusters_n, resamples, seed)
    draws_b = np.abs(totals_bk[:, 2:]).sum(axis=1) / totals_bk[:, 0]
    brier_b = totals_bk[:, 1] / totals_bk[:, 0]
    value = float(np.abs(columns_nk[:, 2:].sum(axis=0)).sum() / len(rows))
    bins = [
        {"low": float(sure_n[part].min()), "high": float(sure_n[part].max()), "n": len(part)}
        | {"confidence": float(sure_n[part].mean()), "right": float(right_n[part].mean())}
        for part in parts
    ]
    return {
        "ece": ece_interval(value, draws_b, by_chance(sure_n, member_nb, clusters_n, confidence, seed), confidence),
        "brier": statistics.percentile(float(squared_n.mean()), brier_b, confidence, clusters_n),
        "n": len(rows),
        "bins": bins,
    }


def by_chance(sure_n: Floats, member_nb: Floats, clusters_n: Ints, confidence: float, seed: int) -> float:
    """The ECE that a perfectly calibrated model would stay below: even it never shows 0 on so many rows.

    Its answers are drawn from its own confidences (consistency resampling: Bröcker & Smith, Weather and Forecasting
    22, 2007), near copies right or wrong together.
    """
    rng, count = np.random.default_rng(seed), int(clusters_n.max()) + 1
    right_sn = rng.random((CHANCE, count))[:, clusters_n] < sure_n
    shown_s = np.abs((sure_n - right_sn) @ member_nb).sum(axis=1) / len(sure_n)
    return float(np.quantile(shown_s, (1 + confidence) / 2))


def ece_interval(value: float, draws_b: Floats, chance: float, confidence: float) -> Estimate:
    """ECE's bootstrap interval, corrected for its bias: a sum of distances grows with noise, in each resample again.

    The wider of the reflected interval (Davison & Hinkley 1997, eq. 5.6) and the one shifted by the resamples' own
    bias; from 0 where a calibrated model would show as much by chance.
    """
    low, high = np.quantile(draws_b, [(1 - confidence) / 2, (1 + confidence) / 2])
    bias = float(draws_b.mean()) - value
    lower = 0.0 if value <= chance else max(0.0, min(2 * value - high, low - bias))
    return Estimate(value, min(value, lower), min(1.0, max(value, 2 * value - low, high - bias)))
