"""The highest rate at which 95 of 100 askers wait no longer than the objective: by raising, then by halving."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

CLOSE = 1.1  # rates are whole powers of it, the same in every measurement; the search ends between two neighbours
RAISED = 5  # powers, until the objective is passed
LOWERED = 30  # powers below the first rate: one that slow is no capacity any more
MOST_TRIES = 24


@dataclass(frozen=True)
class Capacity:
    """Answers a second within the objective: the highest rate that kept it, and the lowest that did not.

    `kept` is 0 where even the slowest rate that was tried did not keep it.
    """

    kept: float
    passed: float


def capacity(p95_at: Callable[[float], float], objective: float, start: float) -> Capacity:
    """Search from about `start`, in requests a second; `p95_at` measures the 95th percentile of the waits at a rate.

    A rate that failed by chance does not end it: each is only taken as passed when it fails twice.
    """
    first = power = math.floor(math.log(start, CLOSE))
    kept: int | None = None
    passed: int | None = None
    for _ in range(MOST_TRIES):
        rate = CLOSE**power
        if p95_at(rate) <= objective or p95_at(rate) <= objective:
            kept = power
        else:
            passed = power
        if kept is None:
            power -= RAISED
            if power < first - LOWERED:
                break
        elif passed is None:
            power += RAISED
        elif passed - kept <= 1:
            break
        else:
            power = (kept + passed) // 2
    return Capacity(0.0 if kept is None else CLOSE**kept, math.inf if passed is None else CLOSE**passed)
