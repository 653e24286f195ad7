"""Rows that are too many to hold: they lie in files as JSON lines, and each is read when it is asked for.

`line_of` and `example_of` are how a row is written and read; `StoredRows` is a sequence of such lines, of which only
where each begins is held (8 bytes a row). Rows up to `HELD` stay plain lists: `pick` and `changed` serve both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from workbench.files import Home, named_when_full, temporary_home
from workbench.records import Example, Message, ToolCall

HELD = 20_000  # rows of one file that are held in memory: about 60 MB of short ones
BLOCK = 1 << 24  # bytes that are looked through at once


def line_of(row: Example, **beside: object) -> str:
    """A row as a line of JSON, with what else is known of it; what is None is left out."""
    known: dict[str, object] = {
        "id": row.id,
        "messages": [turn_of(m) for m in row.messages],
        "group": row.group,
        "where": row.where,
        "meta": dict(row.meta),
        "own_text": row.own_text,
    }
    if row.tools:
        known["tools"] = list(row.tools)
    if row.rejected:
        known["rejected"] = [turn_of(m) for m in row.rejected]
    if row.weight != 1.0:
        known["row_weight"] = row.weight
    if row.good is not None:
        known["good"] = row.good
    return json.dumps(known | {key: value for key, value in beside.items() if value is not None}, ensure_ascii=False)


def example_of(line: Mapping[str, Any]) -> Example:
    """The row that `line_of` has written."""
    return Example(
        line["id"],
        tuple(map(message_of, line["messages"])),
        line["group"],
        line["where"],
        line["meta"],
        line["own_text"],
        tools=tuple(line.get("tools", ())),
        weight=line.get("row_weight", 1.0),
        rejected=tuple(map(message_of, line.get("rejected", ()))),
        good=line.get("good"),
    )


def turn_of(message: Message) -> list[Any]:
    """A message as its role and content, and a third part only where it has more to keep."""
    more = {
        name: getattr(message, name) for name, default in MORE if getattr(message, name) != default
    }  # an enumeration of the fields for each turn would take a third of the time
    if message.tool_calls:
        more["tool_calls"] = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    return [message.role, message.content, *([more] if more else [])]


MORE = [(f.name, f.default) for f in fields(Message) if f.name not in ("role", "content", "tool_calls")]


def message_of(turn: Sequence[Any]) -> Message:
    """The message that `turn_of` has written."""
    if len(turn) == 2:
        return Message(turn[0], turn[1])
    more = dict(turn[2])
    calls = tuple(ToolCall(*call) for call in more.pop("tool_calls", ()))
    return Message(turn[0], turn[1], tool_calls=calls, **more)


class StoredRows(Sequence[Example]):
    """Rows of files of JSON lines, in any order: a row is read, and changed by `change`, each time it is asked for.

    `places` (rows, 2) are the file's number and the byte at which each row begins. `home` is a temporary folder, which
    stays as long as any sequence of its rows.
    """

    def __init__(
        self,
        files: Sequence[Path],
        places: np.ndarray,
        change: Callable[[Example], Example] | None = None,
        home: Home | None = None,
    ):
        self.files, self.places, self.change, self.home = tuple(files), places, change, home

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, key: int) -> Example: ...
    @overload
    def __getitem__(self, key: slice) -> StoredRows: ...
    def __getitem__(self, key: int | slice) -> Example | StoredRows:
        if isinstance(key, slice):
            return StoredRows(self.files, self.places[key], self.change, self.home)
        (line,) = self.lines(self.places[[key]])
        return self.row(line)

    def __iter__(self) -> Iterator[Example]:
        return map(self.row, self.lines(self.places))

    def row(self, line: str) -> Example:
        """The row of a line."""
        example = example_of(json.loads(line))
        return example if self.change is None else self.change(example)

    def lines(self, places: np.ndarray) -> Iterator[str]:
        """The lines at some places, as they are written."""
        stream: IO[bytes] | None = None
        opened, at = -1, -1
        try:
            for start in range(0, len(places), 4096):
                for file, begin in places[start : start + 4096].tolist():
                    if file != opened or stream is None:
                        if stream is not None:
                            stream.close()
                        stream, opened, at = self.files[file].open("rb"), file, 0
                    if begin != at:
                        stream.seek(begin)
                    line = stream.readline()
                    at = begin + len(line)
                    yield line.decode("utf-8", "surrogatepass")
        finally:
            if stream is not None:
                stream.close()

    def written(self) -> Iterator[str]:
        """Every row as the line that `line_of` makes of it."""
        if self.change is None:
            return (line.removesuffix("\n") for line in self.lines(self.places))
        return map(line_of, self)


def rows_in(path: Path) -> StoredRows:
    """The rows of a file of JSON lines."""
    begins, at = [np.zeros(1, dtype=np.int64)], 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            begins.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + at + 1)
            at += len(block)
    starts = np.concatenate(begins)
    starts = starts[starts < at]  # the last line ends the file
    return StoredRows([path], np.stack([np.zeros_like(starts), starts], axis=1))


def spooled(rows: Iterable[Example]) -> StoredRows:
    """The rows, written into a temporary file as they come."""
    home = temporary_home()
    path = home.folder / "rows.jsonl"
    write_lines(path, map(line_of, rows))
    kept = rows_in(path)
    return StoredRows(kept.files, kept.places, home=home)


def joined_files(files: Sequence[Path], home: Home | None = None) -> StoredRows:
    """The rows of several files, one after another."""
    parts = [rows_in(path).places[:, 1] for path in files]
    numbers = np.repeat(np.arange(len(files)), [len(part) for part in parts])
    places = np.stack([numbers, np.concatenate(parts)], axis=1) if parts else np.zeros((0, 2), dtype=np.int64)
    return StoredRows(files, places, home=home)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the lines. A text may hold half of a surrogate pair: it is kept as it was read."""
    with named_when_full(path), path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def pick(rows: Sequence[Example], numbers: Sequence[int] | np.ndarray) -> Sequence[Example]:
    """The rows with these numbers, in this order: a list, or of rows in files no more than their places."""
    if isinstance(rows, StoredRows):
        return StoredRows(rows.files, rows.places[np.asarray(numbers, dtype=np.int64)], rows.change, rows.home)
    return [rows[number] for number in numbers]


def changed(rows: Sequence[Example], change: Callable[[Example], Example]) -> Sequence[Example]:
    """Every row as `change` makes it; of rows in files, when it is read."""
    if not isinstance(rows, StoredRows):
        return [change(row) for row in rows]
    before = rows.change
    return StoredRows(rows.files, rows.places, change if before is None else lambda row: change(before(row)), rows.home)
