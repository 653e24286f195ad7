"""How far a judge can be believed: whether it says the same in both orders, and what people say of the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.evaluation.statistics import Floats, Ints, share_interval

WORDS = ("a", "tie", "b")  # who wins a pair
RESAMPLES = 2_000


def consistency(alike: Sequence[bool], confidence: float) -> dict[str, Any]:
    """The share of pairs judged alike in both orders, with Wilson's interval; None where no pair was asked."""
    if not alike:
        return {"consistency": None, "consistency_low": None, "consistency_high": None, "consistency_n": 0}
    found = share_interval(np.array(alike, dtype=np.float64), np.arange(len(alike)), confidence)
    ends = {"consistency_low": found.low, "consistency_high": found.high, "consistency_n": len(alike)}
    return {"consistency": found.value, **ends}


def agreement(people: Sequence[str], judge: Sequence[str], confidence: float, seed: int) -> dict[str, Any]:
    """Cohen's kappa of two verdicts a pair (Cohen 1960), its bootstrap interval, and the plain share of equal ones.

    Kappa is None without pairs, and where everybody always says one and the same: chance explains that.
    """
    if not people:
        return {"kappa": None, "kappa_low": None, "kappa_high": None, "kappa_n": 0, "agreement": None}
    told = {"kappa_n": len(people), "agreement": float(np.mean([p == j for p, j in zip(people, judge)]))}
    if len({*people, *judge}) == 1:
        return {"kappa": None, "kappa_low": None, "kappa_high": None, **told}
    pairs_n = np.array([3 * WORDS.index(p) + WORDS.index(j) for p, j in zip(people, judge)], dtype=np.int64)
    value = float(kappa(np.bincount(pairs_n, minlength=9).reshape(1, 3, 3))[0])
    low, high = (float(end) for end in resampled(pairs_n, confidence, seed))
    return {"kappa": value, "kappa_low": low, "kappa_high": high, **told}


def resampled(pairs_n: Ints, confidence: float, seed: int) -> Sequence[float]:
    """The ends of kappa's bootstrap interval; `pairs_n` numbers the cell of the 3 by 3 table that each pair is in."""
    rng, n = np.random.default_rng(seed), len(pairs_n)
    counts_b33 = np.array([np.bincount(rng.choice(pairs_n, n), minlength=9) for _ in range(RESAMPLES)]).reshape(
        -1, 3, 3
    )
    tail = (1 - confidence) / 2
    return np.quantile(kappa(counts_b33), [tail, 1 - tail]).tolist()


def kappa(counts_b33: Ints) -> Floats:
    """Kappa (B,) of tables of counts: how far the agreement seen goes beyond chance's, as a share of what it could."""
    shares_b33 = counts_b33 / counts_b33.sum(axis=(1, 2), keepdims=True)
    seen_b = np.trace(shares_b33, axis1=1, axis2=2)
    chance_b = (shares_b33.sum(2) * shares_b33.sum(1)).sum(1)
    # A resample of one single verdict agrees by chance alone.
    return np.where(chance_b < 1, (seen_b - chance_b) / np.maximum(1 - chance_b, math.ulp(1.0)), 0.0)
