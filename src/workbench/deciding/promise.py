"""The promise of a route: how many requests may be wrong at home that the teacher gets right, proven on fresh rows.

Harm is counted of all requests: H(t) = P(score ≥ t, student wrong, teacher right). It can only fall as the threshold
rises, so the longest kept prefix, by score, that the bound allows is the threshold: no correction over thresholds is
needed (risk-controlling prediction sets, arXiv 2101.02703).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SURE, ON_AVERAGE = "sure", "on_average"
PROMISES = (SURE, ON_AVERAGE)
MOST_ROWS = 10_000_000  # beyond so many rows nobody has them
SLACK = 1e-9  # an ε written in decimals is no exact fraction


@dataclass(frozen=True)
class Choice:
    """The threshold that a promise allows on n rows, and what it keeps of them at home.

    `threshold` is None where nothing may be kept; a request is kept when its score is at least the threshold.
    `allowed` is how many harmful rows might have been kept, −1 where even none is too many on so few rows.
    """

    threshold: float | None
    n: int
    kept: int
    harmful: int
    allowed: int


def upper_bound(harmful: int, n: int, certainty: float) -> float:
    """The one-sided upper end of a share of which `harmful` of `n` were seen (Clopper & Pearson, Biometrika 26, 1934).

    The share at which so few or fewer would be seen with probability 1 − certainty.
    """
    from scipy.special import betaincinv

    return 1.0 if harmful >= n else float(betaincinv(harmful + 1, n - harmful, certainty))


def harm_allowed(n: int, most_harm: float, promise: str, certainty: float) -> int:
    """How many of n rows may be harmful at home; −1 where even none is too many.

    `sure`: the bound above is at most `most_harm`. `on_average`: conformal risk control (arXiv 2208.02814, eq. 4 with
    losses of 0 and 1), k ≤ ε(n+1) − 1, which holds on average over draws of the rows, not for this one router.
    """
    if promise == ON_AVERAGE:
        return max(-1, math.floor(most_harm * (n + 1) - 1 + SLACK))
    # The upper bound of k harmful rows is at most ε where P(X ≤ k) ≤ 1 − certainty for X binomial in n and ε.
    share = most_harm + SLACK
    if share >= 1:
        return n
    odds = math.log(share) - math.log1p(-share)
    term = total = n * math.log1p(-share)  # the logarithm of P(X = 0)
    most = -1
    while most < n and total <= math.log1p(-certainty):
        most += 1
        if most < n:
            term += math.log(n - most) - math.log(most + 1) + odds
            total = max(total, term) + math.log1p(math.exp(-abs(total - term)))
    return most


def choose(
    scores: Sequence[float], harmful: Sequence[bool], most_harm: float, promise: str, certainty: float
) -> Choice:
    """The lowest threshold that the promise allows on these rows; rows of one score are kept or sent as a block.

    A row whose score is −inf is never kept. Raises ValueError on a score that is no number.
    """
    values, harms = np.asarray(scores, dtype=float), np.asarray(harmful, dtype=bool)
    if np.isnan(values).any():
        raise ValueError("a score is no number")
    n = len(values)
    most = harm_allowed(n, most_harm, promise, certainty)
    order = np.argsort(-values, kind="stable")
    ranked, total = values[order], np.cumsum(harms[order])
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)) if n else np.array([], dtype=int)
    fits = [end for end in ends if total[end] <= most and ranked[end] > -math.inf]
    if not fits:
        return Choice(None, n, 0, 0, most)
    end = fits[-1]
    return Choice(float(ranked[end]), n, int(end) + 1, int(total[end]), most)


def rows_for(harm: float, most_harm: float, promise: str, certainty: float) -> int | None:
    """The fewest rows on which a share of `harm` that is harmful would be allowed; None where no number would do."""
    if not 0 <= harm < most_harm:
        return None

    def enough(n: int) -> bool:
        return harm_allowed(n, most_harm, promise, certainty) >= math.ceil(harm * n - SLACK)

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2  # by halves: rounding makes single steps of `enough` uneven, and a few rows do not matter
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def shared(certainty: float, looks: int) -> float:
    """The certainty of each of several promises that are to hold together: each divides 1 − certainty (Bonferroni)."""
    return 1 - (1 - certainty) / max(1, looks)
