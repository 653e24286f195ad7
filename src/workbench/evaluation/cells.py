"""An estimate, and a paired difference, as report.json writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.evaluation import significance, statistics
from workbench.evaluation.statistics import Estimate, Floats, Ints

DIGITS = 6


def cell(estimate: Estimate) -> dict[str, Any]:
    """`{"value", "ci_low", "ci_high"}`."""
    return {"value": rounded(estimate.value), "ci_low": rounded(estimate.low), "ci_high": rounded(estimate.high)}


def rounded(value: float | None) -> float | None:
    """Six digits: equal on every machine, whatever order its BLAS adds in."""
    return None if value is None else round(float(value), DIGITS) + 0.0


def is_share(column: Floats) -> bool:
    """Whether every item is simply right or wrong."""
    return bool(np.isin(column, (0.0, 1.0)).all())


def item_estimate(column_n: Floats, draws_b: Floats, clusters_n: Ints, confidence: float) -> Estimate:
    """The mean of an item metric: Wilson's interval of right and wrong, the bootstrap's of graded scores."""
    if is_share(column_n):
        return statistics.share_interval(column_n, clusters_n, confidence)
    return bounded(float(column_n.mean()), draws_b, clusters_n, confidence)


def bounded(value: float, draws_b: Floats, clusters_n: Ints, confidence: float, *, ends: bool = True) -> Estimate:
    """The bootstrap's interval, or none where a single cluster leaves nothing to resample.

    A score of exactly 0 or 1 (with `ends` false: any) that no resample moves is not known exactly: it is widened by
    what G clusters can miss, at most 1 − (α/2)^(1/G) (Clopper & Pearson, Biometrika 26, 1934).
    """
    count = int(clusters_n.max()) + 1
    if count == 1:
        return Estimate(value, None, None)
    if np.ptp(draws_b) > 0 or (ends and value not in (0.0, 1.0)):
        return statistics.percentile(value, draws_b, confidence, clusters_n)
    unseen = 1 - ((1 - confidence) / 2) ** (1 / count)
    return Estimate(value, max(0.0 if ends else -1.0, value - unseen), min(1.0, value + unseen))


def item_row(a_n: Floats, b_n: Floats, draws_b: Floats, clusters_n: Ints, confidence: float) -> dict[str, Any]:
    """a − b of an item metric: `{"delta", "ci_low", "ci_high", "p_value", "test", "n", "mde"}`.

    p is McNemar's where both are right or wrong, else None; `mde` is the difference that so many items would have
    shown with 80 % power. `draws_b` are the resampled differences.
    """
    delta_n, alpha = a_n - b_n, 1 - confidence
    alone = int(clusters_n.max()) == 0
    if is_share(a_n) and is_share(b_n):
        delta = statistics.difference(delta_n, clusters_n, draws_b, confidence)
        effective = len(delta_n) / statistics.design_effect(delta_n, clusters_n)
        mde: float | None = significance.detectable(effective, float(np.mean(delta_n != 0)), alpha)
        return row(delta, significance.mcnemar(a_n, b_n), "mcnemar_exact", len(delta_n), mde)
    if alone:
        return row(Estimate(float(delta_n.mean()), None, None), None, "bootstrap", len(delta_n), None)
    delta = statistics.difference(delta_n, clusters_n, draws_b, confidence)
    return row(delta, None, "bootstrap", len(delta_n), significance.detectable_mean(draws_b, alpha))


def total_row(delta: float, draws_b: Floats, clusters_n: Ints, n: int, confidence: float) -> dict[str, Any]:
    """The same of a metric that is no item's, such as a macro-F1."""
    found = bounded(delta, draws_b, clusters_n, confidence, ends=False)
    mde = None if found.low is None else significance.detectable_mean(draws_b, 1 - confidence)
    return row(found, None, "bootstrap", n, mde)


def row(delta: Estimate, p_value: float | None, test: str, n: int, mde: float | None) -> dict[str, Any]:
    """A comparison without the names of what is compared."""
    found = cell(delta)
    return {"delta": found["value"], "ci_low": found["ci_low"], "ci_high": found["ci_high"]} | {
        "p_value": rounded(p_value), "test": test, "n": n, "mde": rounded(mde),
    }  # fmt: skip
