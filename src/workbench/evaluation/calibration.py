"""Does a model know when it is right? Its confidence in an answer against how often such answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.evaluation import statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.statistics import Estimate, Floats, Ints

BINS = 10
CHANCE = 1000  # answers drawn anew from the confidences, to see what ECE a calibrated model would show


def calibration(
    rows: Sequence[Prediction], right_n: Floats, clusters_n: Ints, confidence: float, resamples: int, seed: int
) -> dict[str, Any] | None:
    """`{"ece", "brier", "n", "bins"}` of one arm, `ece` and `brier` as Estimates; None where an answer has no logprob.

    Confidence is the probability of the whole answer, exp(logprob). ECE is the mean distance of confidence and share
    right over ten bins of as many answers each (Naeini, AAAI 2015, with equal mass: Nixon, CVPR workshops 2019); Brier
    the mean squared distance (Monthly Weather Review 78, 1950). Each bin: `{"low", "high", "n", "confidence",
    "right"}`.
    """
    if not np.isin(right_n, (0.0, 1.0)).all():
        return None
    known = [p.logprob for p in rows if p.logprob is not None]
    if len(known) != len(rows):
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
