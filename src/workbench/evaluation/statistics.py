"""Values and their intervals: plain functions on arrays, no input or output.

Items that are near copies of each other share a cluster. Whole clusters are resampled, since copies
are right or wrong together and would make an interval too narrow (Miller, arXiv 2411.00640, section
2.2). Where every item is its own cluster, all of this is the ordinary bootstrap. Zeros and ones get
score intervals (Wilson's, Tango's) over the effective number of items: on few rows, few clusters or
few errors a bootstrap sees too little spread, and its 95 % would hold the truth 88 times of 100.
Shapes: N items, K columns, G clusters, B resamples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CELLS_AT_ONCE = 4_000_000  # resample weights held in memory at a time: 64 MB
HALVINGS = 50  # of a bracket at most 2 wide: past a double's last digit


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


def percentile(value: float, draws_b: Floats, confidence: float, clusters_n: Ints | None = None) -> Estimate:
    """The bootstrap's expanded percentile interval around `value` (Hesterberg, The American Statistician 69, 2015).

    Resampling G clusters spreads √((G−1)/G) too little and takes its spread for known: the percentiles are moved out
    to where a normal curve would have t's quantile times √(G/(G−1)). Of clusters of unequal size the effective number
    counts (Kish 1965, section 11.7), since the largest few decide. Without `clusters_n` the plain percentiles.
    """
    from scipy.special import ndtr

    tail = (1 - confidence) / 2
    if clusters_n is not None and int(clusters_n.max()) > 0:
        count = effective_clusters(clusters_n)
        tail = float(ndtr(-quantile(confidence, count - 1) * math.sqrt(count / (count - 1))))
    low, high = np.quantile(draws_b, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def effective_clusters(clusters_n: Ints) -> float:
    """How many clusters of equal size would tell as much: N² / Σ sizes²; G where all are alike."""
    sizes_g = np.bincount(clusters_n)
    return float(len(clusters_n) ** 2 / (sizes_g**2).sum())


def quantile(confidence: float, freedom: float = math.inf) -> float:
    """How many standard errors to each side: Student's t, or with endless degrees of freedom the normal curve's."""
    from scipy.special import ndtri, stdtrit

    level = (1 + confidence) / 2
    return float(ndtri(level) if math.isinf(freedom) else stdtrit(max(freedom, 1.0), level))


def share_interval(values_n: Floats, clusters_n: Ints, confidence: float) -> Estimate:
    """A share of zeros and ones with Wilson's interval (JASA 22, 1927), which stays honest near 0 and 1.

    A bootstrap of 600 right answers out of 600 would claim [1, 1]. With clusters, N is divided by the
    design effect first (Korn & Graubard, Survey Methodology 24, 1998), and t's quantile pays for that being
    estimated.
    """
    value = float(values_n.mean())
    effective = len(values_n) / design_effect(values_n, clusters_n)
    z = quantile(confidence, freedom(clusters_n, effective_clusters(clusters_n)))
    return Estimate(value, *wilson(value, effective, z))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Ends of Wilson's score interval of a share seen in `n` items, which need be no whole number; within 0 and 1."""
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))


def freedom(clusters_n: Ints, clusters: float) -> float:
    """Degrees of freedom of a design effect: endless where every item stands alone and none was estimated."""
    return math.inf if int(clusters_n.max()) + 1 == len(clusters_n) else clusters - 1


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
    """Mean of paired differences with its interval: of right and wrong Tango's, of graded scores the bootstrap's.

    `draws_b` are the resampled means, used for graded scores alone. With clusters, Tango's counts are divided by the
    design effect and t's quantile with G−1 degrees of freedom takes the normal one's place.
    """
    value = float(delta_n.mean())
    if not np.isin(delta_n, (-1.0, 0.0, 1.0)).all():
        return percentile(value, draws_b, confidence, clusters_n)
    effect = design_effect(delta_n, clusters_n)
    z = quantile(confidence, freedom(clusters_n, int(clusters_n.max()) + 1))
    gained, lost = float(np.sum(delta_n > 0)) / effect, float(np.sum(delta_n < 0)) / effect
    return Estimate(value, *tango(gained, lost, len(delta_n) / effect, z))


def tango(gained: float, lost: float, n: float, z: float) -> tuple[float, float]:
    """Ends of the score interval of a difference of paired shares (Tango, Statistics in Medicine 17, 1998).

    All the differences δ that a score test would not reject at `z`: |gained − lost − nδ| ≤ z·√(n(2q + δ(1−δ))), where
    q, the share of lost pairs, is the likeliest one under δ. Never empty, even where no pair differs: ±z²/(n + z²).
    """

    def score(delta: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * delta
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (4 * n)
        return (gained - lost - n * delta) / math.sqrt(max(n * (2 * q + delta * (1 - delta)), 1e-300))

    def end(low: float, high: float, wanted: float) -> float:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > wanted else (low, middle)
        return (low + high) / 2

    seen = (gained - lost) / n
    return end(-1.0, seen, z), end(seen, 1.0, -z)


def independent_difference(
    value_a: float, low_a: float | None, high_a: float | None, value_b: float, low_b: float | None, high_b: float | None
) -> Estimate:
    """a − b of two shares measured on different rows, from their own intervals (Newcombe, Stat. Med. 17, 1998, no. 10).

    Each end moves by the root of the squared distances of the two ends that are furthest apart. No interval where one
    of the two has none.
    """
    delta = value_a - value_b
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return Estimate(delta, None, None)
    low = delta - math.hypot(value_a - low_a, high_b - value_b)
    return Estimate(delta, low, delta + math.hypot(high_a - value_a, value_b - low_b))


def label_columns(wanted: Sequence[str], answered: Sequence[str], names: Sequence[str]) -> Floats:
    """Indicators (N, 3L) whose totals are, label by label, hits, wanted and answered: all that F1 needs."""
    place = {name: number for number, name in enumerate(names)}  # numpy's own texts lose a NUL at their end
    wanted_nl, answered_nl = (
        np.array([place.get(label, -1) for label in labels])[:, None] == np.arange(len(names))[None, :]
        for labels in (wanted, answered)
    )
    return np.concatenate([wanted_nl & answered_nl, wanted_nl, answered_nl], axis=1).astype(np.float64)


def macro_f1(totals_bl3: Floats) -> Floats:
    """Macro-F1 (B,) from totals (B, 3L) of `label_columns`: the mean over labels of 2·hits / (wanted + answered).

    A label that a resample never drew has no F1 there and is left out of that resample's mean.
    """
    hits_bl, wanted_bl, answered_bl = np.split(totals_bl3, 3, axis=1)
    drawn_bl = wanted_bl > 0
    f1_bl = np.divide(2 * hits_bl, wanted_bl + answered_bl, out=np.zeros_like(hits_bl), where=drawn_bl)
    return f1_bl.sum(axis=1) / np.maximum(1, drawn_bl.sum(axis=1))


def micro_f1(totals_b3: Floats) -> Floats:
    """Micro-F1 (B,) from totals (B, 3) of hits, wanted and answered; 1 where nothing was wanted and nothing said."""
    hits_b, all_b = totals_b3[:, 0], totals_b3[:, 1] + totals_b3[:, 2]
    return np.divide(2 * hits_b, all_b, out=np.ones_like(hits_b), where=all_b > 0)


# What an interval lets one say: p values and their correction, margins, and how much these rows could have shown.


def mcnemar(candidate_n: Floats, baseline_n: Floats) -> float:
    """Exact two-sided McNemar p: of the pairs where one alone is right, is either side chosen more than by chance?

    A binomial test with p = 1/2 on the discordant pairs (McNemar, Psychometrika 12, 1947); 1 when there
    are none. It takes items as independent: with clusters, go by the interval.
    """
    from scipy.stats import binomtest

    gained = int(np.sum(candidate_n > baseline_n))
    lost = int(np.sum(candidate_n < baseline_n))
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for the company it keeps (Holm, Scand. J. Statistics 6, 1979); None stays None, uncounted.

    Below α, it is significant although so many were looked at: the chance of one false find among all is at most α.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        adjusted[place] = highest = max(highest, min(1.0, p * (len(known) - rank)))
    return adjusted


def not_inferior(estimate: Estimate, margin: float) -> bool:
    """Whether a loss of more than `margin` is ruled out: the interval's lower end is at or above −margin.

    At a true loss of exactly the margin a 95 % interval lets this pass falsely about 2.5 times of 100. Without an
    interval nothing is ruled out.
    """
    return estimate.low is not None and estimate.low >= -margin


def p_against(estimate: Estimate, at: float, confidence: float) -> float | None:
    """Two-sided p of the true value being `at`, read back from the interval: below α just where it leaves `at` out.

    The nearer side's length over its quantile is taken as standard error (Altman & Bland, BMJ 343, 2011); None
    without an interval.
    """
    from scipy.special import ndtr

    if estimate.low is None or estimate.high is None:
        return None
    side = estimate.value - estimate.low if at < estimate.value else estimate.high - estimate.value
    if side <= 0:
        return 1.0 if at == estimate.value else 0.0
    return 2 * float(ndtr(-abs(at - estimate.value) / side * quantile(confidence)))


def rows_needed(n: int, value: float, end: float, limit: float) -> int | None:
    """About how many rows would put this `end` on the good side of `limit`, were `value` the truth; None: no number.

    An interval shrinks with the root of its rows. Never fewer than one more than there were.
    """
    room, side = abs(value - limit), abs(value - end)
    reached = value > limit if end < value else value < limit
    if not reached or room == 0:
        return None
    return max(n + 1, math.ceil(round(n * (side / room) ** 2, 6)))


def detectable(n: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference of two paired shares that n items would show with this power, two-sided.

    Solves n = [z_α/2·√ψ + z_β·√(ψ − δ²)]² / δ² for δ (Connor, Biometrics 43, 1987, eq. 3), ψ being the
    share of discordant pairs. δ cannot exceed ψ: where so few pairs differ that the solution does,
    δ = ψ is solved instead, all differing pairs on one side. Returns at most 1.
    """
    from scipy.special import ndtri

    z_alpha, z_beta = float(ndtri(1 - alpha / 2)), float(ndtri(power))
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
    from scipy.special import ndtri

    return float((ndtri(1 - alpha / 2) + ndtri(power)) * draws_b.std(ddof=1))


# An estimate, and a paired difference, as report.json writes them.

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
        return share_interval(column_n, clusters_n, confidence)
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
        return percentile(value, draws_b, confidence, clusters_n)
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
        delta = difference(delta_n, clusters_n, draws_b, confidence)
        effective = len(delta_n) / design_effect(delta_n, clusters_n)
        mde: float | None = detectable(effective, float(np.mean(delta_n != 0)), alpha)
        return row(delta, mcnemar(a_n, b_n), "mcnemar_exact", len(delta_n), mde)
    if alone:
        return row(Estimate(float(delta_n.mean()), None, None), None, "bootstrap", len(delta_n), None)
    delta = difference(delta_n, clusters_n, draws_b, confidence)
    return row(delta, None, "bootstrap", len(delta_n), detectable_mean(draws_b, alpha))


def total_row(delta: float, draws_b: Floats, clusters_n: Ints, n: int, confidence: float) -> dict[str, Any]:
    """The same of a metric that is no item's, such as a macro-F1."""
    estimate = bounded(delta, draws_b, clusters_n, confidence, ends=False)
    mde = None if estimate.low is None else detectable_mean(draws_b, 1 - confidence)
    return row(estimate, None, "bootstrap", n, mde)


def row(delta: Estimate, p_value: float | None, test: str, n: int, mde: float | None) -> dict[str, Any]:
    """A comparison without the names of what is compared."""
    ends = cell(delta)
    return {"delta": ends["value"], "ci_low": ends["ci_low"], "ci_high": ends["ci_high"]} | {
        "p_value": rounded(p_value), "test": test, "n": n, "mde": rounded(mde),
    }  # fmt: skip
