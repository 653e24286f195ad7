"""Rows that say themselves which split they belong to keep it: what is marked as test is never learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.data.containers import data_files, read_rows, splits_of
from workbench.data.raw import PARTS, Raw, split_named
from workbench.errors import RequestError
from workbench.recipe import Data

# Columns that are looked at for a split, in any capitals, where the recipe names none.
COLUMNS = ("split", "data_split", "dataset_split", "partition", "subset")
OFF = "none"  # as `data.columns.split`: no column is one
LOOKED_AT = 64  # rows of a source by which such a column is seen
TRAINING = ("train", "prompts")  # what is read for these is learned


@dataclass(frozen=True)
class Marks:
    """The column that says a row's split, and how many rows it marks as which; None where no column does."""

    column: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    name: str = ""  # of the file, for people


def marks_of(paths: Sequence[Path], data: Data, part: str) -> Marks:
    """How the rows that `read_rows` gives for a part are marked.

    The column is `data.columns.split`, else one of COLUMNS in which the first rows have the name of a split. Raises
    RequestError, naming file and row, for a value of it that names none.
    """
    wanted = data.columns.split
    if wanted == OFF:
        return Marks()
    states = tuple(
        (file, file.stat().st_size, file.stat().st_mtime_ns)
        for path in paths
        for file in (data_files(path) if path.is_dir() else [path])
        if file.exists()
    )
    return counted(tuple(paths), wanted, data.encoding, data.quoting, part, states)


@lru_cache(maxsize=64)
def counted(
    paths: tuple[Path, ...], wanted: str | None, encoding: str, quoting: str, part: str, _states: tuple[object, ...]
) -> Marks:
    """`marks_of`, once while the files stay as they are."""
    data = Data(encoding=encoding, quoting=quoting)

    def rows() -> Iterator[Raw]:
        return (raw for path in paths for raw in read_rows(path, held_as(path, part, data), [], data) if raw.row)

    column = wanted or next((name for raw in islice(rows(), LOOKED_AT) if (name := marking(raw.row or {}))), None)
    if column is None:
        return Marks()
    counts: Counter[str] = Counter()
    strange, first, there = 0, Raw("", None, "", ""), False
    for raw in rows():
        there = there or column in (raw.row or {})
        own = split_named((raw.row or {}).get(column))
        if own:
            counts[own] += 1
        else:
            strange += 1
            first = first if strange > 1 else raw
    if not there:
        # Rows that are named beside the training rows need no such column; of those `layouts` says that it is missing.
        return Marks()
    if strange:
        known = ", ".join(word for words in PARTS.values() for word in words)
        others = f"; others are marked {listing(counts)}" if counts else ""
        raise RequestError(
            f"{column!r} is {(first.row or {}).get(column)!r} there, and in {strange:,} rows it names no split{others}",
            where=first.where,
            remedy=f"write one of {known} into each row; data.columns.split={OFF} reads all rows alike",
        )
    return Marks(column, dict(counts), paths[0].name if len(paths) == 1 else f"{paths[0].name}, …")


def marking(row: Mapping[str, Any]) -> str | None:
    """The column of a row that names its split by one of the usual words."""
    return next((str(name) for name in row if str(name).lower() in COLUMNS and split_named(row[name])), None)


def held_as(path: Path, part: str, data: Data) -> str:
    """Under which split a folder or a file with several lists of rows holds the rows of a part: its own, else train."""
    return part if part in splits_of(path, data.encoding) else "train"


def own_splits(paths: Sequence[Path], data: Data) -> set[str]:
    """The splits that a source of training rows brings along: its folder's, its file's lists', or its rows' own."""
    marks = marks_of(paths, data, "train")
    return splits_of(paths[0], data.encoding) | set(marks.counts if len(marks.counts) > 1 else ())


def of_part(raws: Iterable[Raw], part: str, marks: Marks) -> Iterator[Raw]:
    """The rows of one part. A row that cannot be read belongs to the training rows.

    Raises RequestError where rows are not marked as this part, or are marked as another after LOOKED_AT rows that
    are not marked at all.
    """
    if marks.column is None:
        yield from unmarked(raws, part)
        return
    own = "train" if part in TRAINING else part
    if own not in marks.counts:
        if part in TRAINING or len(marks.counts) > 1:
            raise RequestError(
                f"no row is marked {own}: the column {marks.column!r} says {listing(marks.counts)}",
                where=marks.name,
                remedy=f"name other rows; data.columns.split={OFF} reads all of them alike",
            )
        yield from raws  # a file that was named for this part and holds one split: the recipe goes before
        return
    for raw in raws:
        if part in TRAINING if raw.row is None else split_named(raw.row.get(marks.column)) == own:
            yield raw


def unmarked(raws: Iterable[Raw], part: str) -> Iterator[Raw]:
    """All rows; RequestError for one that is marked as another part's, which a look at the first rows did not show."""
    own = "train" if part in TRAINING else part
    for raw in raws:
        column = marking(raw.row) if raw.row else None
        if raw.row and column and split_named(raw.row[column]) != own:
            raise RequestError(
                f"{column!r} is {raw.row[column]!r}, and the first {LOOKED_AT} rows are not marked: it was taken for "
                f"no column of splits, and the row would be among the {own} rows",
                where=raw.where,
                remedy=f"data.columns.split={column} keeps each row's own split; data.columns.split={OFF} reads all "
                "rows alike",
            )
        yield raw


def notes_of(marks: Marks, part: str) -> list[str]:
    """What a user should hear of rows that are marked."""
    if marks.column is None:
        return []
    own = "train" if part in TRAINING else part
    if own not in marks.counts:
        return [
            f"the rows of {marks.name} are marked {listing(marks.counts)} ({marks.column}): the recipe names them as "
            f"{own} rows, which they are"
        ]
    others = {name: count for name, count in marks.counts.items() if name != own}
    if not others:
        return []
    return [f"not among the {own} rows, by the column {marks.column!r} of {marks.name}: {listing(others)} rows"]


def listing(counts: Mapping[str, int]) -> str:
    """Splits with how many rows each has."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
