"""Texts that are near copies of each other, found exactly, in memory that does not grow with the texts' lengths.

Sets of shingles lie in a temporary file as 64-bit hashes; held are a count of how often shingles come, and of each text
only those of its shingles by which it is looked up and that another text has too.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from workbench.files import named_when_full
from workbench.words import runs_of, words_of

CHUNK = 1 << 20  # shingles that are looked at together
BUCKETS = 26  # bits of a shingle's hash by which it is counted, at most: 128 MB of counts
MANY, WIDE = 20_000, 1_000  # of more texts than MANY, at most the WIDE last ones with a shingle are looked at by it


def near_copies(texts: Iterable[str], words: int = 4, threshold: float = 0.6) -> list[int]:
    """The cluster of each text: 0, 1, …, in the order in which clusters first appear.

    Two texts are near copies when the Jaccard similarity |A ∩ B| / |A ∪ B| of their sets of `words`-word
    shingles reaches `threshold` (Broder 1997); a cluster is all that such pairs connect. A text with fewer
    words is one shingle. The answer is exact, not sampled: a pair can only reach the threshold if it
    shares one of each text's rarest |A| − ⌈threshold·|A|⌉ + 1 shingles (prefix filtering, Bayardo et al. 2007),
    so shingles that most rows have are never looked up, and pairs already connected are not compared. Beyond 20,000
    different texts there is one bound: of those that share a looked-up shingle the 1,000 nearest before are compared.
    """
    return clusters(texts, words, threshold).tolist()


def clusters(texts: Iterable[str], words: int = 4, threshold: float = 0.6) -> np.ndarray:
    """`near_copies` as an array (texts,)."""
    distinct: dict[int, int] = {}
    which = array("q")
    with named_when_full(Path(tempfile.gettempdir(), "near copies")), tempfile.TemporaryFile() as file:
        sizes = array("q")
        for text in texts:
            text_words = words_of(text)
            shingles = set(map(hash, runs_of(text_words, words))) or {hash(tuple(text_words) or text.strip())}
            numbers = np.array(sorted(shingles), dtype=np.int64)
            key = int.from_bytes(blake2b(numbers.tobytes(), digest_size=16).digest())
            which.append(distinct.setdefault(key, len(distinct)))
            if len(distinct) > len(sizes):
                file.write(numbers.tobytes())
                sizes.append(len(numbers))
        file.flush()
        del distinct
        if not sizes:
            return np.zeros(0, dtype=np.int64)
        labels = connect(Sets(file.fileno(), np.array(sizes)), threshold)
    return in_order(labels[np.array(which)])


def in_order(labels: np.ndarray) -> np.ndarray:
    """Labels numbered 0, 1, … as they first appear."""
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), dtype=np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[numbers]


class Sets:
    """Sorted sets of shingles in a file, one after another; `sizes` (sets,) are how many each has."""

    def __init__(self, file: int, sizes: np.ndarray):
        self.file, self.sizes = file, sizes
        self.ends = np.cumsum(sizes)
        self.begins = self.ends - sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, first: int, last: int) -> np.ndarray:
        """The shingles of the sets from `first` to before `last`."""
        begin, end = int(self.begins[first]), int(self.ends[last - 1])
        return np.frombuffer(os.pread(self.file, 8 * (end - begin), 8 * begin), dtype=np.int64)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first, last) of runs of sets that have about CHUNK shingles together."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.ends, self.begins[first] + CHUNK, side="right"))
            last = min(max(last, first + 1), len(self))
            yield first, last
            first = last


def connect(sets: Sets, threshold: float) -> np.ndarray:
    """A label for each set of shingles, equal where a chain of near copies joins two sets."""
    sizes, labels = sets.sizes, np.arange(len(sets))
    beyond = np.ceil(threshold * sizes - 1e-9).astype(np.int64) - 1  # shingles outside the prefix
    sharers, starts, owners, ends = postings(sets, beyond)
    wide = len(sets) if len(sets) <= MANY else WIDE
    for row, begin, end in zip(owners.tolist(), ends[:-1].tolist(), ends[1:].tolist()):
        places = sharers.places[begin:end]
        lows = np.maximum(starts[begin:end], places - wide)
        before = np.concatenate([sharers.sets[a:b] for a, b in zip(lows.tolist(), places.tolist())])
        candidates, shared = counted(before, row)
        most = shared + np.maximum(beyond[candidates], beyond[row])
        # Where a posting was cut off, what lies before the cut may share its shingle too.
        for cut in sharers.sets[lows[lows > starts[begin:end]]]:
            most = most + (candidates < cut)
        # In one order of all shingles, what two sets share outside both prefixes lies beyond one of them.
        likely = most >= threshold * (sizes[candidates] + sizes[row] - most) - 1e-9
        candidates = candidates[likely][np.argsort(-shared[likely], kind="stable")]
        mine: np.ndarray | None = None
        batch = 2  # the likeliest first: one hit in a large cluster spares comparing with the rest of it
        while len(candidates := candidates[roots(labels, candidates) != roots(labels, np.array([row]))]):
            head, candidates, batch = candidates[:batch], candidates[batch:], batch * 8
            mine = sets.of(row, row + 1) if mine is None else mine
            theirs = [sets.of(int(other), int(other) + 1) for other in head]
            shingles = np.concatenate(theirs)
            hits = mine[np.minimum(np.searchsorted(mine, shingles), len(mine) - 1)] == shingles
            edges = np.cumsum([0, *map(len, theirs[:-1])])
            common = np.add.reduceat(hits, edges, dtype=np.int64)
            for other in head[common >= threshold * (sizes[head] + sizes[row] - common) - 1e-9]:
                pair = roots(labels, np.array([row, other]))
                labels[pair.max()] = pair.min()
    return roots(labels, np.arange(len(sets)))


def roots(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The label that each row's label leads to."""
    here = labels[rows]
    while not np.array_equal(up := labels[here], here):
        here = up
    return here


def counted(rows: np.ndarray, below: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that come, all of them below a number, and how often each does."""
    if below <= max(4 * len(rows), 4096):
        times = np.bincount(rows, minlength=1)
        there = np.flatnonzero(times)
        return there, times[there]
    there, times = np.unique(rows, return_counts=True)
    return there, times


class Sharers:
    """By what sets are looked up: `sets` of each shingle, ascending; `places` are where a set's own entries stand."""

    def __init__(self, sets: np.ndarray, places: np.ndarray):
        self.sets, self.places = sets, places


def postings(sets: Sets, beyond: np.ndarray) -> tuple[Sharers, np.ndarray, np.ndarray, np.ndarray]:
    """The sets by the shingles of their prefixes that an earlier set's prefix has too.

    Gives the entries, for each place where its shingle's entries begin, the sets that have places, and where in
    `places` each of those begins (one more than there are sets: the end).
    """
    bits = max(12, min(BUCKETS, int(4 * sets.ends[-1]).bit_length()))
    mask, counts = (1 << bits) - 1, np.zeros(1 << bits, dtype=np.uint16)
    for first, last in sets.chunks():
        buckets, times = np.unique(sets.of(first, last) & mask, return_counts=True)
        counts[buckets] = np.minimum(counts[buckets] + times, np.iinfo(np.uint16).max)
    keys, members = [], []
    for first, last in sets.chunks():
        shingles, sizes = sets.of(first, last), sets.sizes[first:last]
        owner = np.repeat(np.arange(first, last), sizes)
        often = counts[shingles & mask]
        order = np.lexsort((shingles, often, owner))  # rare ones first, in one order that holds for all sets
        place = np.arange(len(shingles)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = order[(place < np.repeat(sizes - beyond[first:last], sizes)) & (often[order] > 1)]
        keys.append(shingles[kept])
        members.append(owner[kept].astype(np.int32))
    del counts
    everything, holders = np.concatenate(keys), np.concatenate(members)
    del keys, members
    order = np.argsort(everything, kind="stable")
    everything, holders = everything[order], holders[order]
    new = np.empty(len(everything), dtype=bool)
    new[:1], new[1:] = True, everything[1:] != everything[:-1]
    several = ~(new & np.append(new[1:], True))  # a shingle that one prefix alone has joins nothing
    new, holders = new[several], holders[several]
    del everything, order
    begins = np.flatnonzero(new)
    start = np.repeat(begins, np.diff(np.append(begins, len(holders))))
    later = np.flatnonzero(~new)  # the first of a shingle has none before it
    later = later[np.argsort(holders[later], kind="stable")]
    owners, ends = np.unique(holders[later], return_index=True)
    return Sharers(holders, later), start[later], owners, np.append(ends, len(later))
