"""Every share that could stay at home, with its harm and how often the cascade is right, beside a random mix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

POINTS = 60  # of a curve that is drawn


class Point(TypedDict):
    """One threshold: the share kept at home, harm of all requests, and how often the answers are right."""

    threshold: float
    share: float
    harm: float
    cascade: float
    mix: float


def curve(
    scores: Sequence[float], home: Sequence[float], away: Sequence[float], most: int | None = POINTS
) -> list[Point]:
    """A point a threshold, from the fewest kept to all that may be; `home` and `away` say whether each was right.

    The random mix keeps the same share by chance: share × home + (1 − share) × away. At most `most` points, evenly.
    """
    values, own, theirs = (np.asarray(part, dtype=float) for part in (scores, home, away))
    n = len(values)
    order = np.argsort(-values, kind="stable")
    ranked, gain = values[order], (own - theirs)[order]
    harm = ((own == 0) & (theirs > 0))[order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)) if n else np.array([], dtype=int)
    ends = ends[ranked[ends] > -math.inf] if n else ends
    if most is not None and len(ends) > most:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, most).round().astype(int))]
    points: list[Point] = []
    for end in ends:
        share = (end + 1) / n
        points.append(
            {
                "threshold": float(ranked[end]),
                "share": round(float(share), 6),
                "harm": round(float(harm[: end + 1].sum() / n), 6),
                "cascade": round(float(theirs.mean() + gain[: end + 1].sum() / n), 6),
                "mix": round(float(share * own.mean() + (1 - share) * theirs.mean()), 6),
            }
        )  # fmt: skip
    return points


def share_at(points: Sequence[Point], most_harm: float) -> float:
    """The largest share whose harm was at most so much: what was seen on these rows, no promise."""
    return max((point["share"] for point in points if point["harm"] <= most_harm), default=0.0)


# What an answer costs on the way: a cascade asks the student first, a router before it asks one of the two.


def usd_of(kind: str, home: float, away: float, escalated: float) -> float:
    """Dollars of a request where `escalated` of them go to the teacher; `home` and `away` are an answer's price."""
    return (home if kind == "cascade" else home * (1 - escalated)) + escalated * away


def even_ratio(cascade: float, before: float) -> float | None:
    """The price of a student's answer over a teacher's at which both kinds cost the same, by what each escalates.

    Above it the router before the student is cheaper, for it saves the student's answers that are thrown away: with r
    the ratio, r + c = r(1 − b) + b gives r = (b − c)/b. None where the router before escalates nothing.
    """
    return (before - cascade) / before if before > 0 else None
