"""Rows are parted so that what judges was never learned: near copies stay together, overlaps are found."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from workbench.errors import RequestError
from workbench.records import Example, canonical
from workbench.words import runs_of, words_of


def normalised(text: str) -> str:
    """The text for exact comparison: lower-cased, runs of white space as one space, letters in one way of writing."""
    return unicodedata.normalize("NFC", " ".join(text.lower().split()))


def near_copies(texts: Sequence[str], words: int = 4, threshold: float = 0.6) -> list[int]:
    """The cluster of each text: 0, 1, …, in the order in which clusters first appear.

    Two texts are near copies when the Jaccard similarity |A ∩ B| / |A ∪ B| of their sets of `words`-word
    shingles reaches `threshold` (Broder 1997); a cluster is all that such pairs connect. A text with fewer
    words is one shingle. The answer is exact, not sampled: a pair can only reach the threshold if it
    shares one of each text's rarest |A| − ⌈threshold·|A|⌉ + 1 shingles (prefix filtering, Bayardo et al. 2007),
    so shingles that most rows have are never looked up, and pairs already connected are not compared.
    """
    distinct: dict[bytes, int] = {}
    sets: list[np.ndarray] = []  # of shingles by their 64-bit hashes: a tenth of the memory of their words
    which: list[int] = []
    for text in texts:
        text_words = words_of(text)
        shingles = set(map(hash, runs_of(text_words, words))) or {hash(tuple(text_words) or text.strip())}
        numbers = np.array(sorted(shingles), dtype=np.int64)
        which.append(distinct.setdefault(blake2b(numbers.tobytes(), digest_size=16).digest(), len(distinct)))
        if len(distinct) > len(sets):
            sets.append(numbers)
    vocabulary, places = np.unique(np.concatenate(sets), return_inverse=True) if sets else (np.array([]), np.array([]))
    cuts = np.cumsum([len(numbers) for numbers in sets])[:-1]
    labels = connect(np.split(places, cuts) if sets else [], len(vocabulary), threshold)
    order: dict[int, int] = {}
    return [order.setdefault(int(labels[i]), len(order)) for i in which]


def connect(sets: Sequence[np.ndarray], vocabulary: int, threshold: float) -> np.ndarray:
    """A label for each set of shingle numbers, equal where a chain of near copies joins two sets."""
    labels = np.arange(len(sets))
    if not len(sets):
        return labels
    everything, sizes = np.concatenate(sets), np.array([len(s) for s in sets])
    begins = np.cumsum(sizes) - sizes
    frequency = np.bincount(everything, minlength=vocabulary)
    beyond = np.ceil(threshold * sizes - 1e-9).astype(np.int64) - 1  # shingles outside the prefix
    prefixes = [rarest(shingles, frequency, out) for shingles, out in zip(sets, beyond)]
    owners = np.repeat(np.arange(len(sets)), [len(p) for p in prefixes])
    looked_up = np.concatenate(prefixes)
    by_shingle = owners[np.argsort(looked_up, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(looked_up, minlength=vocabulary))])
    marked = np.zeros(vocabulary, dtype=bool)
    for row, prefix in enumerate(prefixes):
        if not len(prefix):
            continue
        shared = np.bincount(np.concatenate([by_shingle[starts[s] : starts[s + 1]] for s in prefix]))[:row]
        candidates = np.flatnonzero(shared)
        # In one order of all shingles, what two sets share outside both prefixes lies beyond one of them.
        most = shared[candidates] + np.maximum(beyond[candidates], beyond[row])
        candidates = candidates[most >= threshold * (sizes[candidates] + sizes[row] - most) - 1e-9]
        candidates = candidates[np.argsort(-shared[candidates], kind="stable")]
        marked[sets[row]] = True
        batch = 2  # the likeliest first: one hit in a large cluster spares comparing with the rest of it
        while len(candidates := candidates[labels[candidates] != labels[row]]):
            head, candidates, batch = candidates[:batch], candidates[batch:], batch * 8
            ends = np.cumsum(sizes[head])
            shingles = everything[np.arange(ends[-1]) + np.repeat(begins[head] - ends + sizes[head], sizes[head])]
            common = np.add.reduceat(marked[shingles], ends - sizes[head], dtype=np.int64)
            for other in head[common >= threshold * (sizes[head] + sizes[row] - common) - 1e-9]:
                labels[labels == labels[other]] = labels[row]
        marked[sets[row]] = False
    return labels


def rarest(shingles: np.ndarray, frequency: np.ndarray, beyond: int) -> np.ndarray:
    """The shingles to look a set up by: all but its `beyond` commonest, less those that no other set has."""
    order = shingles[np.lexsort((shingles, frequency[shingles]))]
    prefix = order[: len(order) - beyond]
    return prefix[frequency[prefix] > 1]


def split(
    examples: Sequence[Example], validation_share: float, test_share: float, seed: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """(train, validation, test), each in the order of `examples`; the same seed parts them the same way.

    Rows of one `group`, and near copies, are never parted. Groups are drawn at random and put where they
    still fit, so sizes come as near to the shares as the groups allow. A share of 0 gives an empty part.
    Raises RequestError when a part would be empty.
    """
    members = list(joined(examples).values())
    order = sorted(range(len(members)), key=lambda i: members[i][0])
    random.Random(seed).shuffle(order)
    wanted = {"test": test_share, "validation": validation_share}
    targets = {part: max(1, round(share * len(examples))) for part, share in wanted.items() if share > 0}
    if len(members) < len(targets) + 1:
        raise RequestError(
            f"{len(examples):,} rows make {len(members)} groups of near copies, too few for {len(targets) + 1} parts",
            where="data",
            remedy="add rows that differ, or name files of their own: data.validation=… data.test=…",
        )
    parts: dict[str, list[int]] = {part: [] for part in (*targets, "train")}
    room = dict(targets)
    for i in order:
        size = len(members[i])
        part = next((part for part in targets if size <= room[part]), "train")
        parts[part].append(i)
        if part in room:
            room[part] -= size
    for chosen in parts.values():
        if not chosen:  # no group was small enough: take the smallest from the part with the most groups
            donor = max(parts.values(), key=len)
            chosen.append(min(donor, key=lambda i: len(members[i])))
            donor.remove(chosen[0])

    def rows(groups: Sequence[int]) -> list[Example]:
        return [examples[row] for row in sorted(row for i in groups for row in members[i])]

    return rows(parts["train"]), rows(parts.get("validation", [])), rows(parts.get("test", []))


def joined(examples: Sequence[Example]) -> dict[int, list[int]]:
    """Row numbers by group: rows are together when they share `group`, are near copies, or both in a chain."""
    parent = list(range(len(examples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, str | int], int] = {}
    for row, cluster in enumerate(near_copies([e.text for e in examples])):
        names: list[tuple[str, str | int]] = [("cluster", cluster)]
        if examples[row].group:
            names.append(("group", examples[row].group))
        for name in names:
            parent[root(row)] = root(first.setdefault(name, row))
    together: dict[int, list[int]] = {}
    for row in range(len(examples)):
        together.setdefault(root(row), []).append(row)
    return together


def drop_overlaps(
    train: Sequence[Example], evaluation: Sequence[Example], words: int = 13
) -> tuple[list[Example], list[tuple[Example, str]]]:
    """(kept, dropped): a training row goes when it repeats an evaluation row; with it, that row's `where`.

    A repeat is the same text but for case and white space, or a run of `words` words that both have
    (the 13-gram of GPT-3, arXiv 2005.14165, appendix C). Judged on `Example.text`, so what the recipe puts
    before every row does not count.
    """
    exact: dict[str, str] = {}
    for example in evaluation:
        exact.setdefault(normalised(example.text), example.where or example.id)
    shared = overlap_finder(evaluation, words)
    kept, dropped = [], []
    for example in train:
        where = exact.get(normalised(example.text)) or shared(example.text)
        if where is None:
            kept.append(example)
        else:
            dropped.append((example, where))
    return kept, dropped


def overlap_finder(evaluation: Sequence[Example], words: int) -> Callable[[str], str | None]:
    """A function that gives the `where` of an evaluation row with which a text shares a run of `words` words."""
    runs: dict[int, str] = {}  # by their 64-bit hashes
    for example in evaluation:
        for run in runs_of(words_of(example.text), words):
            runs.setdefault(hash(run), example.where or example.id)

    def overlap_with(text: str) -> str | None:
        return next((runs[run] for run in map(hash, runs_of(words_of(text), words)) if run in runs), None)

    return overlap_with


def drop_repeats(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The rows without those whose whole conversation stood there before, and how many those were.

    Rows that differ in what may be called, in the answer not to give or in a person's word are no repeats.
    """
    first: dict[tuple[object, ...], Example] = {}
    for example in examples:
        tools = canonical(example.tools) if example.tools else ""
        first.setdefault((example.messages, tools, example.rejected, example.good), example)
    return list(first.values()), len(examples) - len(first)
