"""Rows of a CSV or TSV, in whatever way its cells are parted and quoted."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.packing import decoded_lines, suffix_of
from workbench.data.raw import MOST_COLUMNS, Raw, checked, first_line, spoiled
from workbench.errors import RequestError


class Quoting(NamedTuple):
    """How the cells of a CSV are quoted: by its name in `data.quoting`, and as the csv module says it."""

    name: str
    settings: Mapping[str, Any]


QUOTINGS = {
    "double": Quoting("double", {"doublequote": True}),
    "backslash": Quoting("backslash", {"doublequote": False, "escapechar": "\\"}),
    "none": Quoting("none", {"quoting": csv.QUOTE_NONE, "quotechar": None}),
}
SEP = re.compile(r'"?sep=([,;|\t])"?', re.I)
LOOKED_AT = 2_000  # lines by which a delimiter and a quoting are told


def csv_rows(path: Path, encoding: str, quoting: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of a CSV with a header; after a row with a broken quote, reading goes on at the very next line."""
    csv.field_size_limit(sys.maxsize)
    lines = decoded_lines(path, encoding, universal=True)
    head = list(islice(lines, LOOKED_AT))
    delimiter = "\t" if suffix_of(path) == ".tsv" else sniff(head[:200])
    if head and (named := SEP.fullmatch(head[0].strip())):  # Excel's line, which says what cells are cut at
        delimiter, head[0] = named[1], "\n"
    if delimiter not in (",", "\t"):
        notes.append(f"{path.name} is cut at {delimiter!r}")
    chosen = QUOTINGS[quoting] if quoting != "auto" else quoting_of(head, delimiter)
    if quoting == "auto" and chosen.name != "double":
        how = "are plain characters" if chosen.name == "none" else 'are written \\" within quotes'
        notes.append(f"the quotes of {path.name} {how} (data.quoting={chosen.name})")
    header: list[str] = []
    for number, text, cells, error in csv_cells(chain(head, lines), delimiter, chosen):
        where = f"{path.name}:{number}"
        if error:
            yield Raw(where, None, spoiled(text) or f"broken CSV: {error}", text)
        elif not header:
            header = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1)]
            if len(header) > MOST_COLUMNS:
                raise RequestError(
                    f"the header has {len(header):,} columns, and {MOST_COLUMNS:,} are read",
                    where=where,
                    remedy="write the columns that are learned from into a file of their own",
                )
            repeated = {name for name, count in Counter(header).items() if count > 1}
            if repeated:
                raise RequestError(f"columns with one name: {', '.join(sorted(repeated))}", where=where)
        elif len(cells) != len(header):
            yield Raw(where, None, f"{len(cells)} fields where the header has {len(header)}", text)
        else:
            yield checked(where, dict(zip(header, cells)), text)


def csv_cells(lines: Iterable[str], delimiter: str, quoting: Quoting) -> Iterator[tuple[int, str, list[str], str]]:
    """(first line's number, text, cells, '') of each row that is not empty, or what is broken in its first line."""
    waiting, coming = deque[str](), iter(lines)
    taken: list[str] = []

    def one_by_one() -> Iterator[str]:
        while True:
            line = waiting.popleft() if waiting else next(coming, None)
            if line is None:
                return
            taken.append(line)
            yield line

    number = 1
    reader = csv.reader(one_by_one(), delimiter=delimiter, strict=True, **quoting.settings)
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield number, taken[0].rstrip("\r\n"), [], first_line(error)
            number += 1
            waiting.extendleft(reversed(taken[1:]))
            reader = csv.reader(one_by_one(), delimiter=delimiter, strict=True, **quoting.settings)
            continue
        if cells is None:
            return
        if cells:
            yield number, "".join(taken).rstrip("\r\n"), cells, ""
        number += len(taken)


def quoting_of(lines: Sequence[str], delimiter: str) -> Quoting:
    """Doubled quotes, unless fewer rows break with backslashes before them.

    Quotes are plain characters where lines are cut at tabs, each has its cells, and in some they do not balance.
    """

    def broken(quoting: Quoting) -> int:
        rows = list(csv_cells(lines, delimiter, quoting))
        width = len(rows[0][2]) if rows else 0
        # The last row may be cut where the look ends.
        return sum(bool(error) or len(cells) != width for _, _, cells, error in rows[: -1 if len(rows) > 2 else None])

    if delimiter == "\t" and any(line.count('"') % 2 for line in lines) and not broken(QUOTINGS["none"]):
        return QUOTINGS["none"]
    escaped = any('\\"' in line for line in lines)
    return QUOTINGS["backslash" if escaped and broken(QUOTINGS["backslash"]) < broken(QUOTINGS["double"]) else "double"]


def sniff(lines: Sequence[str]) -> str:
    """The delimiter that cuts the first rows into the same number of fields, the more the better."""

    def fit(delimiter: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        same = sum(width == widths[0] for width in widths) if widths and widths[0] > 1 else 0
        return same, widths[0] if widths else 0

    return max(",;\t|", key=fit)
