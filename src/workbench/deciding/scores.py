"""What a route goes by: how sure the student was of an answer, as one number that is the higher the surer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Told(Protocol):
    """What an answer tells of itself; a prediction does."""

    @property
    def answer(self) -> str: ...
    @property
    def finish(self) -> str: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def mean_logprob(self) -> float | None: ...
    @property
    def least_logprob(self) -> float | None: ...
    @property
    def margin(self) -> float | None: ...


SCORES: dict[str, Callable[[Told], float | None]] = {
    "logprob": lambda a: a.logprob,
    "mean": lambda a: a.mean_logprob,
    "least": lambda a: a.least_logprob,
    "margin": lambda a: a.margin,
}
MEANING = {
    "logprob": "log-probability of the whole answer",
    "mean": "mean log-probability of its tokens",
    "least": "log-probability of its least likely token",
    "margin": "least lead of a token over the likeliest other one",
}
NEVER = -math.inf  # the score of an answer that is never kept


def score_of(answer: Told, name: str, *, valid: bool = True) -> float:
    """The score in nats; −inf, which no threshold keeps, where it is unknown, the answer was cut, or is not `valid`."""
    value = SCORES[name](answer)
    if value is None or not math.isfinite(value) or answer.finish != "stop" or not valid:
        return NEVER
    return float(value)


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """How often a right answer has the higher score than a wrong one, ties by halves; None where all are alike.

    The area under the receiver's operating curve by the Mann–Whitney statistic (Hanley & McNeil, Radiology 143, 1982).
    """
    from scipy.stats import rankdata

    values, good = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    many, few = int(good.sum()), int((~good).sum())
    if not many or not few:
        return None
    ranks = rankdata(values)
    return float((ranks[good].sum() - many * (many + 1) / 2) / (many * few))
