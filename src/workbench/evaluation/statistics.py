"""Intervals, paired tests and their reach: plain functions on arrays, no input or output.

Items that are near copies of each other share a cluster. Whole clusters are resampled, since copies
are right or wrong together and would make an interval too narrow (Miller, arXiv 2411.00640, section
2.2). Where every item is its own cluster, all of this is the ordinary bootstrap.
Shapes: N items, K columns, G clusters, B resamples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CELLS_AT_ONCE = 4_000_000  # resample weights held in memory at a time: 64 MB


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval; None where one item, or one cluster, cannot say."""

    value: float
    low: float | None
    high: float | None


def cluster_numbers(groups: Sequence[str]) -> Ints:
    """Number the clusters 0…G−1 in order of appearance; an item without a group is its own cluster."""
    names = [("group", group) if group else ("item", str(i)) for i, group in enumerate(groups)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def resampled_totals(columns_nk: Floats, clusters_n: Ints, resamples: int, seed: int) -> Floats:
    """Totals (B, K) of each column over B resamples of whole clusters, drawn with replacement.

    One seed gives one set of resamples, the same for every column: the difference of two arms' columns
    is therefore a paired bootstrap (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 8).
    """
    count = int(clusters_n.max()) + 1
    sums_gk = np.zeros((count, columns_nk.shape[1]))
    np.add.at(sums_gk, clusters_n, columns_nk)
    rng, totals_bk = np.random.default_rng(seed), np.empty((resamples, columns_nk.shape[1]))
    step = max(1, CELLS_AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights_bg = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        totals_bk[start : start + size] = weights_bg.astype(np.float64) @ sums_gk
    return totals_bk


def percentile(value: float, draws_b: Floats, confidence: float) -> Estimate:
    """The bootstrap's percentile interval around `value` (Efron & Tibshirani 1993, eq. 13.3)."""
    low, high = np.quantile(draws_b, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def share_interval(values_n: Floats, clusters_n: Ints, confidence: float) -> Estimate:
    """A share of zeros and ones with Wilson's interval (JASA 22, 1927), which stays honest near 0 and 1.

    A bootstrap of 600 right answers out of 600 would claim [1, 1]. With clusters, N is divided by the
    design effect first (Korn & Graubard, Survey Methodology 24, 1998).
    """
    from statsmodels.stats.proportion import proportion_confint

    value = float(values_n.mean())
    effective = len(values_n) / design_effect(values_n, clusters_n)
    low, high = proportion_confint(value * effective, effective, alpha=1 - confidence, method="wilson")
    return Estimate(value, max(0.0, float(low)), min(1.0, float(high)))


def design_effect(values_n: Floats, clusters_n: Ints) -> float:
    """How many times clusters widen the variance of a mean (Kish 1965, Survey Sampling, section 5.4); at least 1.

    Without any variance to compare, the worst case: clusters that are right or wrong as a whole.
    """
    n, sizes_g = len(values_n), np.bincount(clusters_n)
    residual_n = values_n - values_n.mean()
    plain = float((residual_n**2).sum()) / max(1, n - 1) / n
    if len(sizes_g) < 2 or plain == 0:
        return float((sizes_g**2).sum()) / n
    sums_g = np.bincount(clusters_n, weights=residual_n)
    clustered = len(sizes_g) / (len(sizes_g) - 1) * float((sums_g**2).sum()) / n**2
    return max(1.0, clustered / plain)


def difference(delta_n: Floats, clusters_n: Ints, draws_b: Floats, confidence: float) -> Estimate:
    """Mean of paired differences of zeros and ones, each in {−1, 0, 1}, with its bootstrap interval.

    `draws_b` are the resampled means. Where all pairs differ alike (most often: not at all) resampling
    shows no spread, which is not knowledge; then a rate seen 0 times in n, at most 1 − (α/2)^(1/n)
    (Clopper & Pearson, Biometrika 26, 1934), bounds what was missed, n being the clusters.
    """
    value = float(delta_n.mean())
    if np.ptp(delta_n) > 0:
        return percentile(value, draws_b, confidence)
    unseen = 1 - ((1 - confidence) / 2) ** (1 / (int(clusters_n.max()) + 1))
    return Estimate(value, max(-1.0, value - unseen), min(1.0, value + unseen))


def mcnemar(candidate_n: Floats, baseline_n: Floats) -> float:
    """Exact two-sided McNemar p: of the pairs where one alone is right, is either side chosen more than by chance?

    A binomial test with p = 1/2 on the discordant pairs (McNemar, Psychometrika 12, 1947); 1 when there
    are none. It takes items as independent: with clusters, go by the interval.
    """
    from scipy.stats import binomtest

    gained = int(np.sum(candidate_n > baseline_n))
    lost = int(np.sum(candidate_n < baseline_n))
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def detectable(n: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference of two paired shares that n items would show with this power, two-sided.

    Solves n = [z_α/2·√ψ + z_β·√(ψ − δ²)]² / δ² for δ (Connor, Biometrics 43, 1987, eq. 3), ψ being the
    share of discordant pairs. δ cannot exceed ψ: where so few pairs differ that the solution does,
    δ = ψ is solved instead, all differing pairs on one side. Returns at most 1.
    """
    from scipy.stats import norm

    z_alpha, z_beta = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    root = math.sqrt(discordance * max(0.0, n + z_beta**2 - z_alpha**2))
    delta = (z_alpha * math.sqrt(n * discordance) + z_beta * root) / (n + z_beta**2)
    if discordance > 0 and delta <= discordance:
        return min(1.0, delta)
    if n <= z_alpha**2:
        return 1.0
    # ψ = δ turns the equation into a quadratic in u = √(1 − δ).
    inner = (z_alpha * z_beta) ** 2 + (n + z_beta**2) * (n - z_alpha**2)
    u = (math.sqrt(inner) - z_alpha * z_beta) / (n + z_beta**2)
    return 1 - max(0.0, u) ** 2


def detectable_mean(draws_b: Floats, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference to be shown, by its standard error: (z_α/2 + z_β)·SE (Bloom, Eval. Review 19, 1995)."""
    from scipy.stats import norm

    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * draws_b.std(ddof=1))


def label_columns(wanted: Sequence[str], answered: Sequence[str], names: Sequence[str]) -> Floats:
    """Indicators (N, 3L) whose totals are, label by label, hits, wanted and answered: all that F1 needs."""
    wanted_nl = np.array(wanted)[:, None] == np.array(names)[None, :]
    answered_nl = np.array(answered)[:, None] == np.array(names)[None, :]
    return np.concatenate([wanted_nl & answered_nl, wanted_nl, answered_nl], axis=1).astype(np.float64)


def macro_f1(totals_bl3: Floats) -> Floats:
    """Macro-F1 (B,) from totals (B, 3L) of `label_columns`: the mean over labels of 2·hits / (wanted + answered).

    A label that a resample never drew has no F1 there and is left out of that resample's mean.
    """
    hits_bl, wanted_bl, answered_bl = np.split(totals_bl3, 3, axis=1)
    drawn_bl = wanted_bl > 0
    f1_bl = np.divide(2 * hits_bl, wanted_bl + answered_bl, out=np.zeros_like(hits_bl), where=drawn_bl)
    return f1_bl.sum(axis=1) / np.maximum(1, drawn_bl.sum(axis=1))
