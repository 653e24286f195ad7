"""Token rows that are too many to hold: arrays in files, mapped into memory, each written once and sealed.

A shard is `tokens-NNNNN.npy`, the ids of its rows one after another (int32; a trained token's as ~id, which is below
0), and a sealed JSON beside it with what else its rows have. One that is there as it was written is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from workbench.errors import WorkbenchError
from workbench.files import file_sha256, flush_tree, read_sealed, write_sealed
from workbench.records import TokenRow, digest

SHARD = 20_000  # rows that are rendered before they are written


class StoredTokens(Sequence[TokenRow]):
    """The rows of sealed shards, each made into a TokenRow when it is asked for.

    `lengths` (rows,) are their tokens, `trained_tokens` those with a loss in all, `numbers` (rows,) which of the rows
    they were made from each is, `digest` names all of them, and `called_bad` counts those with an answer called bad.
    """

    def __init__(self, folder: Path, of: str, seals: Sequence[dict[str, Any]]):
        self.folder, self.of, self.shards = folder, of, len(seals)
        self.arrays = [np.load(shard_path(folder, number), mmap_mode="r") for number in range(len(seals))]
        self.lengths = np.array([length for seal in seals for length in seal["lengths"]], dtype=np.int64)
        self.numbers = np.array([number for seal in seals for number in seal["numbers"]], dtype=np.int64)
        counts = [len(seal["lengths"]) for seal in seals]
        self.last = np.cumsum(counts)
        ends = [np.cumsum(seal["lengths"]) for seal in seals]
        self.begins = np.concatenate([own - seal["lengths"] for own, seal in zip(ends, seals)]) if seals else self.last
        self.names = [tuple(name) for seal in seals for name in seal["names"]]
        self.weighed = {
            int(at) + int(self.last[number]) - counts[number]: own
            for number, seal in enumerate(seals)
            for at, own in seal["weighed"].items()
        }
        self.trained_tokens = sum(seal["trained"] for seal in seals)
        self.called_bad = sum(seal["called_bad"] for seal in seals)
        self.digest = digest([of, [seal["file"] for seal in seals]], 32)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, key: int) -> TokenRow: ...
    @overload
    def __getitem__(self, key: slice) -> list[TokenRow]: ...
    def __getitem__(self, key: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        at = range(len(self))[key]
        shard, begin = int(np.searchsorted(self.last, at, side="right")), int(self.begins[at])
        signed = self.arrays[shard][begin : begin + int(self.lengths[at])].tolist()
        weight, scales = self.weighed.get(at, (1.0, ()))
        ids, trained = tuple(i if i >= 0 else ~i for i in signed), tuple(i < 0 for i in signed)
        return TokenRow(self.names[at][0], ids, trained, self.names[at][1], weight, tuple(scales))


def opened_tokens(folder: Path, of: str, shards: int) -> StoredTokens:
    """The rows of so many sealed shards, for a process that is told where they lie. WorkbenchError if one is not so."""
    seals = [read_sealed(shard_path(folder, number).with_suffix(".json")) or {} for number in range(shards)]
    if any(seal.get("of") != of for seal in seals):
        raise WorkbenchError("its rows are not those that were rendered", where=str(folder))
    return StoredTokens(folder, of, seals)


class Both(Sequence[TokenRow]):
    """Rows and others behind them, without copying either."""

    def __init__(self, first: Sequence[TokenRow], second: Sequence[TokenRow]):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, key: int) -> TokenRow: ...
    @overload
    def __getitem__(self, key: slice) -> list[TokenRow]: ...
    def __getitem__(self, key: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        at = range(len(self))[key]
        return self.first[at] if at < len(self.first) else self.second[at - len(self.first)]


def lengths_of(rows: Sequence[TokenRow]) -> list[int]:
    """The tokens of each row."""
    return rows.lengths.tolist() if isinstance(rows, StoredTokens) else [len(row.input_ids) for row in rows]


def trained_in(rows: Sequence[TokenRow]) -> int:
    """The tokens with a loss in all rows."""
    return rows.trained_tokens if isinstance(rows, StoredTokens) else sum(sum(row.trained) for row in rows)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard's ids lie."""
    return folder / f"tokens-{number:05d}.npy"


def stored_tokens(
    folder: Path, of: str, count: int, make: Callable[[int, int], tuple[Iterable[tuple[int, TokenRow]], int]]
) -> StoredTokens:
    """The token rows of `count` rows, made shard by shard into `folder`; sealed shards of the same `of` are kept.

    `make(first, last)` renders the rows from one number to before another: each that is kept with its number, and how
    many have an answer that was called bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seals = []
    for number, first in enumerate(range(0, count, SHARD)):
        path, last = shard_path(folder, number), min(first + SHARD, count)
        sealed = read_sealed(path.with_suffix(".json")) or {}
        whole = sealed.get("of") == of and path.is_file() and file_sha256(path) == sealed["file"]
        seals.append(sealed if whole else write_shard(path, of, *make(first, last)))
    return StoredTokens(folder, of, seals)


def take_over(other: Path, folder: Path, of: str) -> None:
    """Copy the sealed shards of `of` that another folder has and this one has not."""
    folder.mkdir(parents=True, exist_ok=True)
    for seal in sorted(other.glob("tokens-*.json")) if other != folder else []:
        if (read_sealed(seal) or {}).get("of") == of and not (folder / seal.name).exists():
            for path in (seal.with_suffix(".npy"), seal):  # which is last, for it says that the other is whole
                shutil.copyfile(path, folder / path.name)


def write_shard(path: Path, of: str, rows: Iterable[tuple[int, TokenRow]], called_bad: int) -> dict[str, Any]:
    """Write a shard, and what seals it last; gives the latter."""
    parts, lengths, numbers, names, trained = [], list[int](), list[int](), list[list[str]](), 0
    weighed: dict[str, Any] = {}
    for number, row in rows:
        ids, on = np.array(row.input_ids, dtype=np.int32), np.array(row.trained, dtype=bool)
        if row.weight != 1.0 or row.scales:
            weighed[str(len(lengths))] = [row.weight, list(row.scales)]
        parts.append(np.where(on, ~ids, ids))
        lengths.append(len(ids))
        numbers.append(number)
        names.append([row.id, row.where])
        trained += int(on.sum())
    np.save(path, np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32))
    sealed = {
        "of": of, "file": file_sha256(path), "lengths": lengths, "numbers": numbers, "names": names,
        "trained": trained, "weighed": weighed, "called_bad": called_bad,
    }  # fmt: skip
    flush_tree(path.parent)
    write_sealed(path.with_suffix(".json"), sealed)
    return sealed
