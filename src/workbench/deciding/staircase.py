"""At which volumes each way is the cheapest: exact, for costs that step up with every further machine.

Between two steps every cost is a straight line, so the cheapest of three is found at both ends and where they cross.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from workbench.deciding.inputs import Floats
from workbench.deciding.ways import Way

FROM, TO = 1e4, 1e10  # requests a month
NARROW = 0.02  # of two stretches of volume: the logarithm of their end over their begin
MOST_STEPS = 100_000  # machines of one way; above that volume nothing is told


@dataclass(frozen=True)
class Interval:
    """The volumes, above `low` up to `high` requests a month, at which one way is the cheapest."""

    low: float
    high: float
    cheapest: str


def intervals(ways: Mapping[str, Way], low: float = FROM, high: float = TO) -> list[Interval]:
    """Intervals of volume with the cheapest way in each, neighbours of one way joined; the first named wins a tie.

    They end at `high`, or at the volume of a way's 100,000th machine where that is less.
    """
    names = list(ways)
    high = min([high, *(float(way.volume) * MOST_STEPS for way in ways.values())])
    if high <= low:
        return []
    every = np.sort(np.concatenate([[low, high], *(steps(way, low, high) for way in ways.values())]))
    bounds = every[np.diff(every, prepend=-np.inf) > 0]  # np.unique would import all of numpy.ma
    starts, ends = bounds[:-1], bounds[1:]
    middle = (starts + ends) / 2
    fixed = np.stack([way.fixed + way.per_machine * way.machines(middle) for way in ways.values()])
    slope = np.array([[float(way.per_request)] for way in ways.values()])
    first, last = (fixed + slope * starts).argmin(0), (fixed + slope * ends).argmin(0)
    whole: list[Interval] = []
    turns = np.flatnonzero((first != last) | np.append(True, first[1:] != last[:-1]))
    for i, after in zip(turns, np.append(turns[1:], len(starts))):
        # From a turn on, the same way stays the cheapest up to the next one.
        for piece in split(fixed[:, i], slope[:, 0], float(starts[i]), float(ends[i]), int(first[i]), int(last[i])):
            add(whole, Interval(piece[0], piece[1], names[piece[2]]))
        if after > i + 1:
            add(whole, Interval(float(ends[i]), float(ends[after - 1]), names[int(last[after - 1])]))
    return whole


def steps(way: Way, low: float, high: float) -> Floats:
    """The volumes between both ends at which a further machine is needed."""
    if np.isinf(way.volume):
        return np.array([])
    volume = float(way.volume)
    return np.arange(np.floor(low / volume) + 1, np.ceil(high / volume)) * volume


def split(
    fixed: Floats, slope: Floats, start: float, end: float, first: int, last: int
) -> Sequence[tuple[float, float, int]]:
    """The cheapest of some straight lines between two volumes: (from, to, line); `first` and `last` are it at the ends.

    The least of lines is concave, so a line that is the least at both ends is so in between.
    """
    if first == last:
        return [(start, end, first)]
    cross = float((fixed[last] - fixed[first]) / (slope[first] - slope[last]))
    cross = min(max(cross, start), end)
    least = int((fixed + slope * cross).argmin())
    apart = (fixed + slope * cross)[first] - (fixed + slope * cross)[least]
    if least in (first, last) or apart <= 1e-12 * abs(fixed[first] + slope[first] * cross):
        return [(start, cross, first), (cross, end, last)]
    return [*split(fixed, slope, start, cross, first, least), *split(fixed, slope, cross, end, least, last)]


def add(whole: list[Interval], more: Interval) -> None:
    """Append an interval, joined to the one before where that is of the same way; an empty one is nothing."""
    if more.high <= more.low:
        return
    if whole and whole[-1].cheapest == more.cheapest:
        more = Interval(whole.pop().low, more.high, more.cheapest)
    whole.append(more)


def cheapest_at(pieces: Sequence[Interval], requests: float) -> str | None:
    """The way of the interval that holds a volume."""
    return next((each.cheapest for each in pieces if each.low <= requests <= each.high), None)


def stretches(pieces: Sequence[Interval], most: int = 7) -> list[tuple[float, float, tuple[str, ...], int]]:
    """At most so many lines for people: (from, to, ways, turns). Where ways alternate, the shortest are told as one,
    and so are neighbours that together are narrower than NARROW, for both ends would be written alike.
    """
    lines: list[tuple[float, float, tuple[str, ...], int]] = [
        (each.low, each.high, (each.cheapest,), 0) for each in pieces
    ]
    while widths := [float(np.log(b[1] / a[0])) for a, b in pairwise(lines)]:
        i = int(np.argmin(widths))
        if len(lines) <= most and widths[i] >= NARROW:
            break
        a, b = lines[i], lines[i + 1]
        lines[i : i + 2] = [(a[0], b[1], tuple(dict.fromkeys(a[2] + b[2])), a[3] + b[3] + 1)]
    return lines
