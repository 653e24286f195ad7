"""What an interval lets one say: p values and their correction, margins, and how much these rows could have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from workbench.evaluation.statistics import Estimate, Floats, quantile


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
    found: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        found[place] = highest = max(highest, min(1.0, p * (len(known) - rank)))
    return found


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
