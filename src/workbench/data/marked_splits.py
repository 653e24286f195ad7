"""Rows that say themselves which split they belong to keep it: what is marked as test is never learned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.data.column_texts import SLOT
from workbench.data.containers import data_files, read_rows, splits_of
from workbench.data.raw import PARTS, Raw, split_named
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

# Columns that are looked at for a split, in any capitals, where the recipe names none.
COLUMNS = ("split", "data_split", "dataset_split", "partition", "subset")
# Columns of true and false that are looked at likewise. A bare `val`, `dev` or `eval` may be anything; `is_valid` may
# say that a row is sound, and marks a split only beside another one.
WORDS = "|".join(word for words in PARTS.values() for word in words)
FLAG = re.compile(rf"(?:is|in|for)_?({WORDS})(?:_?(?:set|split|row))?|({WORDS})_?(?:set|split|row)")
BARE = ("train", "training", "validation", "test", "testing", "holdout", "held_out", "heldout")
DOUBTFUL = "valid"
TRUTHS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
OFF = "none"  # as `data.columns.split`: no column is one
LOOKED_AT = 64  # rows of a source by which such a column is seen
TRAINING = ("train", "prompts")  # what is read for these is learned


@dataclass(frozen=True)
class Mark:
    """What says a row's split: a column that names it, or columns of true and false.

    `parts` are what true in each of `columns` stands for; there are none where the column names the split.
    """

    columns: tuple[str, ...]
    parts: tuple[str, ...] = ()

    def part(self, row: Mapping[str, Any]) -> str:
        """The split of a row; '' where it names none, or several.

        Where no column says true it is the first of train, test and validation that has none of them.
        """
        if not self.parts:
            return split_named(row.get(self.columns[0]))
        truths = [truth(row.get(column)) for column in self.columns]
        if None in truths or truths.count(True) > 1:
            return ""
        if True in truths:
            return self.parts[truths.index(True)]
        return next((part for part in ("train", "test", "validation") if part not in self.parts), "")

    def values(self, row: Mapping[str, Any]) -> str:
        """What the columns say in a row, for people."""
        return " and ".join(f"{column!r} is {row.get(column)!r}" for column in self.columns)

    @property
    def name(self) -> str:
        """Its columns, for people."""
        return " and ".join(map(repr, self.columns))


@dataclass(frozen=True)
class Marks:
    """What says the splits of a source's rows, and how many rows are marked as which; None where nothing does."""

    mark: Mark | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    name: str = ""  # of the file, for people


def marks_of(paths: Sequence[Path], data: Data, part: str) -> Marks:
    """How the rows that `read_rows` gives for a part are marked.

    By `data.columns.split`, else by one of COLUMNS in which the first rows have the name of a split, else by columns of
    true and false that are called as splits are (`is_test`). Raises RequestError, naming file and row, for a row that
    they name no split of.
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
    return counted(tuple(paths), wanted, mapped(data), data.encoding, data.quoting, part, states)


def mapped(data: Data) -> frozenset[str]:
    """The columns that the recipe has another use for."""
    columns = {getattr(data.columns, one.name) for one in fields(Columns) if one.name != "split"}
    texts = {slot[2] for text in (data.prompt, data.answer) for slot in SLOT.finditer(text or "")}
    return frozenset((columns | texts) - {None})


@lru_cache(maxsize=64)
def counted(
    paths: tuple[Path, ...],
    wanted: str | None,
    others: frozenset[str],
    encoding: str,
    quoting: str,
    part: str,
    _states: tuple[object, ...],
) -> Marks:
    """`marks_of`, once while the files stay as they are."""
    data = Data(encoding=encoding, quoting=quoting)

    def rows() -> Iterator[Raw]:
        return (raw for path in paths for raw in read_rows(path, held_as(path, part, data), [], data) if raw.row)

    mark = marking([raw.row or {} for raw in islice(rows(), LOOKED_AT)], others, wanted)
    if mark is None:
        return Marks()
    counts: Counter[str] = Counter()
    strange, first, there = 0, Raw("", None, "", ""), False
    for raw in rows():
        there = there or any(column in (raw.row or {}) for column in mark.columns)
        own = mark.part(raw.row or {})
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
        way = f"write one of {known} into each row"
        if mark.parts:
            way = "write true or false into each row, true for one part at most"
            if len(mark.columns) > 1:
                way += f"; data.columns.split={mark.columns[0]} reads that column alone"
        others_too = f"; others are marked {listing(counts)}" if counts else ""
        raise RequestError(
            f"{mark.values(first.row or {})} there, and in {strange:,} rows it names no split{others_too}",
            where=first.where,
            remedy=f"{way}; data.columns.split={OFF} reads all rows alike",
        )
    return Marks(mark, dict(counts), paths[0].name if len(paths) == 1 else f"{paths[0].name}, …")


def marking(rows: Sequence[Mapping[str, Any]], others: frozenset[str], wanted: str | None = None) -> Mark | None:
    """What says the splits of these rows: the column `wanted`, or what is called as such columns are."""
    if wanted is not None:
        part = next((split_named(word) for word in snake(wanted).split("_") if split_named(word)), "")
        values = [row.get(wanted) for row in rows]
        flags = part and any(truth(value) is not None for value in values) and not any(map(split_named, values))
        return Mark((wanted,), (part,)) if flags else Mark((wanted,))
    names = dict.fromkeys(name for row in rows for name in row if name not in others)
    for name in names:
        if str(name).lower() in COLUMNS and any(split_named(row.get(name)) for row in rows):
            return Mark((name,))
    flagged = [n for n in names if called_after(n) and any(is_flag(n, row.get(n)) for row in rows)]
    sure = [name for name in flagged if not is_doubtful(name)]
    parts: dict[str, str] = {}  # of two columns that mean the same the second is only named as not used
    for name in [*sure, *(name for name in flagged if sure and is_doubtful(name))]:
        parts.setdefault(called_after(name), name)
    return Mark(tuple(parts.values()), tuple(parts)) if parts else None


@lru_cache(maxsize=4096)
def called_after(name: str) -> str:
    """The part that a column of true and false is called after (`is_test`, `isTrain`, `holdout`); else ''."""
    whole = snake(str(name))
    match = FLAG.fullmatch(whole)
    return split_named((match[1] or match[2]) if match else whole if whole in BARE else "")


def is_doubtful(name: str) -> bool:
    """Whether true in a column so called may as well mean that the row is sound."""
    return DOUBTFUL in snake(name).split("_")


def is_flag(name: str, value: object) -> bool:
    """Whether a column so called holds true or false; one called by the bare word alone may not hold 1 or 0 instead."""
    words = ("true", "false") if snake(name) in BARE else tuple(TRUTHS)
    return str(value).strip().lower() in words


def truth(value: object) -> bool | None:
    """True or false, also as 1 and 0 or as a CSV writes it; None for anything else."""
    return TRUTHS.get(str(value).strip().lower())


def snake(name: str) -> str:
    """A name in small letters, its words parted by `_`."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower().strip("_")


def held_as(path: Path, part: str, data: Data) -> str:
    """Under which split a folder or a file with several lists of rows holds the rows of a part: its own, else train."""
    return part if part in splits_of(path, data.encoding) else "train"


def own_splits(paths: Sequence[Path], data: Data) -> set[str]:
    """The splits that a source of training rows brings along: its folder's, its file's lists', or its rows' own."""
    marks = marks_of(paths, data, "train")
    return splits_of(paths[0], data.encoding) | set(marks.counts if len(marks.counts) > 1 else ())


def of_part(raws: Iterable[Raw], part: str, marks: Marks, others: frozenset[str] = frozenset()) -> Iterator[Raw]:
    """The rows of one part, without what marked them. A row that cannot be read belongs to the training rows.

    `others` are columns that mark nothing, as `mapped` gives them.

    Raises RequestError where rows are not marked as this part, or are marked as another after LOOKED_AT rows that
    are not marked at all.
    """
    mark = marks.mark
    if mark is None:
        yield from unmarked(raws, part, others)
        return
    own = "train" if part in TRAINING else part
    # A file that was named for this part and holds one other split: the recipe goes before.
    every = own not in marks.counts
    if every and (part in TRAINING or len(marks.counts) > 1):
        raise RequestError(
            f"no row is marked {own}: the column {mark.name} says {listing(marks.counts)}",
            where=marks.name,
            remedy=f"name other rows; data.columns.split={OFF} reads all of them alike",
        )
    for raw in raws:
        if raw.row is None:
            if every or part in TRAINING:
                yield raw
        elif every or mark.part(raw.row) == own:
            for column in mark.columns:
                raw.row.pop(column, None)
            yield raw


def unmarked(raws: Iterable[Raw], part: str, others: frozenset[str]) -> Iterator[Raw]:
    """All rows; RequestError for one that is marked as another part's, which a look at the first rows did not show."""
    own = "train" if part in TRAINING else part
    for raw in raws:
        mark = marking([raw.row], others) if raw.row else None
        if raw.row and mark and mark.part(raw.row) != own:
            raise RequestError(
                f"{mark.values(raw.row)}, and the first {LOOKED_AT} rows are not marked: it was taken for "
                f"no column of splits, and the row would be among the {own} rows",
                where=raw.where,
                remedy=f"data.columns.split={mark.columns[0]} keeps each row's own split; data.columns.split={OFF} "
                "reads all rows alike",
            )
        yield raw


def notes_of(marks: Marks, part: str) -> list[str]:
    """What a user should hear of rows that are marked."""
    if marks.mark is None:
        return []
    own = "train" if part in TRAINING else part
    if own not in marks.counts:
        return [
            f"the rows of {marks.name} are marked {listing(marks.counts)} ({', '.join(marks.mark.columns)}): the "
            f"recipe names them as {own} rows, which they are"
        ]
    others = {name: count for name, count in marks.counts.items() if name != own}
    if not others:
        return []
    return [f"not among the {own} rows, by the column {marks.mark.name} of {marks.name}: {listing(others)} rows"]


def listing(counts: Mapping[str, int]) -> str:
    """Splits with how many rows each has."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
