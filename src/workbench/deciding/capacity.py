"""The highest rate at which 95 of 100 askers wait no longer than the objective: by raising, then by halving."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

STEP = 1.6  # each rate over the one before, until the objective is passed
CLOSE = 1.1  # the passing and the failing rate lie within this factor in the end
MOST_TRIES = 24


@dataclass(frozen=True)
class Capacity:
    """Answers a second within the objective: the highest rate that kept it, and the lowest that did not.

    `kept` is 0 where even the first rate did not keep it.
    """

    kept: float
    passed: float


def capacity(p95_at: Callable[[float], float], objective: float, start: float) -> Capacity:
    """Search from `start`, in requests a second; `p95_at` measures the 95th percentile of the waits at a rate.

    A rate that failed by chance does not end it: each is only taken as passed when it fails twice.
    """
    kept, passed, rate = 0.0, math.inf, start
    for _ in range(MOST_TRIES):
        if p95_at(rate) <= objective or p95_at(rate) <= objective:
            kept = rate
        else:
            passed = rate
        if passed == math.inf:
            rate = kept * STEP
        elif kept == 0.0:
            if passed < start / 16:
                break
            rate = passed / STEP
        elif passed / kept <= CLOSE:
            break
        else:
            rate = math.sqrt(kept * passed)
    return Capacity(kept, passed)
