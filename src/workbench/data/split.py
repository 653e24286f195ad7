"""Rows are parted so that what judges was never learned: near copies stay together, overlaps are found."""

from __future__ import annotations

import random
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from workbench.data.near_copies import clusters, in_order, near_copies
from workbench.errors import RequestError
from workbench.records import Example, canonical
from workbench.stored_rows import pick
from workbench.words import runs_of, without_unseen, words_of

__all__ = [
    "drop_overlaps",
    "drop_repeats",
    "joined",
    "near_copies",
    "normalised",
    "overlap_finder",
    "overlaps",
    "split",
    "tied",
]


def normalised(text: str) -> str:
    """The text for exact comparison: lower-cased, runs of white space as one space, letters in one way of writing.

    Signs that show nothing are left out, and curly quotes are straight ones.
    """
    if not text.isascii():
        text = without_unseen(text).translate(STRAIGHT)
    return unicodedata.normalize("NFC", " ".join(text.lower().split()))


STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def split(
    examples: Sequence[Example], validation_share: float, test_share: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example], Sequence[Example]]:
    """(train, validation, test), each in the order of `examples`; the same seed parts them the same way.

    Rows of one `group`, and near copies, are never parted. Groups are drawn at random and put where they
    still fit, so sizes come as near to the shares as the groups allow. A share of 0 gives an empty part.
    Raises RequestError when a part would be empty.
    """
    group = groups_of(examples)
    sizes = np.bincount(group, minlength=1) if len(group) else np.zeros(0, dtype=np.int64)
    order = list(range(len(sizes)))  # groups are numbered as they first appear
    random.Random(seed).shuffle(order)
    wanted = {"test": test_share, "validation": validation_share}
    targets = {part: max(1, round(share * len(examples))) for part, share in wanted.items() if share > 0}
    if len(sizes) < len(targets) + 1:
        raise RequestError(
            f"{len(examples):,} rows make {len(sizes)} groups of near copies, too few for {len(targets) + 1} parts",
            where="data",
            remedy="add rows that differ, or name files of their own: data.validation=… data.test=…",
        )
    parts: dict[str, list[int]] = {part: [] for part in (*targets, "train")}
    room = dict(targets)
    for i in order:
        size = int(sizes[i])
        part = next((part for part in targets if size <= room[part]), "train")
        parts[part].append(i)
        if part in room:
            room[part] -= size
    for chosen in parts.values():
        if not chosen:  # no group was small enough: take the smallest from the part with the most groups
            donor = max(parts.values(), key=len)
            chosen.append(min(donor, key=lambda i: int(sizes[i])))
            donor.remove(chosen[0])

    def rows(groups: Sequence[int]) -> Sequence[Example]:
        taken = np.zeros(len(sizes), dtype=bool)
        taken[np.array(groups, dtype=np.int64)] = True
        return pick(examples, np.flatnonzero(taken[group]))

    return rows(parts["train"]), rows(parts.get("validation", [])), rows(parts.get("test", []))


def groups_of(examples: Sequence[Example]) -> np.ndarray:
    """Each row's group (rows,), as `joined` puts them together, numbered as they first appear."""
    names, numbers = dict[str, int](), array("q")

    def texts() -> Iterator[str]:
        for example in examples:
            numbers.append(names.setdefault(example.group, len(names)) if example.group else -1)
            yield example.text

    cluster = clusters(texts())
    parent = list(range(int(cluster.max()) + 1)) if names else []

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    if not names:
        return cluster
    first: dict[int, int] = {}
    for number, own in zip(numbers, cluster.tolist()):
        if number >= 0:
            parent[root(own)] = root(first.setdefault(number, own))
    return in_order(np.array([root(number) for number in range(len(parent))])[cluster])


def joined(examples: Sequence[Example]) -> dict[int, list[int]]:
    """Row numbers by group: rows are together when they share `group`, are near copies, or both in a chain."""
    together: dict[int, list[int]] = {}
    for row, group in enumerate(groups_of(examples).tolist()):
        together.setdefault(group, []).append(row)
    return together


def tied(examples: Sequence[Example]) -> list[Example]:
    """The rows, with one group for those that share theirs or are near copies of each other."""
    rows = list(examples)
    for number, members in enumerate(joined(rows).values()):
        if len(members) > 1:
            for at in members:
                rows[at] = replace(rows[at], group=f"near-{number}")
    return rows


def drop_overlaps(
    train: Sequence[Example], evaluation: Sequence[Example], words: int = 13
) -> tuple[Sequence[Example], list[tuple[Example, str]]]:
    """(kept, dropped): a training row goes when it repeats an evaluation row; with it, that row's `where`.

    A repeat is the same text but for case and white space, or a run of `words` words that both have
    (the 13-gram of GPT-3, arXiv 2005.14165, appendix C). Judged on `Example.text`, so what the recipe puts
    before every row does not count.
    """
    gone = overlaps(train, evaluation, words)
    kept = pick(train, [row for row in range(len(train)) if row not in gone])
    return kept, [(train[row], where) for row, where in gone.items()]


def overlaps(train: Sequence[Example], evaluation: Sequence[Example], words: int) -> dict[int, str]:
    """The numbers of the training rows that repeat an evaluation row (see `drop_overlaps`), with that row's `where`."""
    exact: dict[int, str] = {}
    for example in evaluation:
        exact.setdefault(hash(normalised(example.text)), example.where or example.id)
    shared = overlap_finder(evaluation, words)
    gone: dict[int, str] = {}
    for row, example in enumerate(train):
        text = example.text
        where = exact.get(hash(normalised(text))) or shared(text)
        if where is not None:
            gone[row] = where
    return gone


def overlap_finder(evaluation: Sequence[Example], words: int) -> Callable[[str], str | None]:
    """A function that gives the `where` of an evaluation row with which a text shares a run of `words` words.

    Runs are held by their 64-bit hashes, 12 bytes each.
    """
    hashes, counts, places = array("q"), array("q"), list[str]()
    for example in evaluation:
        before = len(hashes)
        hashes.extend(map(hash, runs_of(words_of(example.text), words)))
        counts.append(len(hashes) - before)
        places.append(example.where or example.id)
    runs, first = np.unique(np.frombuffer(hashes, dtype=np.int64), return_index=True)
    row = np.searchsorted(np.cumsum(counts), first, side="right").astype(np.int32)
    del hashes

    def overlap_with(text: str) -> str | None:
        own = np.fromiter(map(hash, runs_of(words_of(text), words)), dtype=np.int64)
        if not len(own) or not len(runs):
            return None
        at = np.minimum(np.searchsorted(runs, own), len(runs) - 1)
        hits = np.flatnonzero(runs[at] == own)
        return places[row[at[hits[0]]]] if len(hits) else None

    return overlap_with


def drop_repeats(examples: Sequence[Example]) -> tuple[Sequence[Example], int]:
    """The rows without those whose whole conversation stood there before, and how many those were.

    Rows that differ in what may be called, in the answer not to give or in a person's word are no repeats.
    """
    kept = firsts((e.messages, canonical(e.tools) if e.tools else "", e.rejected, e.good) for e in examples)
    return pick(examples, kept), len(examples) - len(kept)


def firsts(values: Iterable[object]) -> array[int]:
    """The numbers of the values that are written as no earlier one, by 128 bits of a hash of each."""
    seen, kept = set[bytes](), array("q")
    for number, value in enumerate(values):
        key = blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in seen:
            seen.add(key)
            kept.append(number)
    return kept
