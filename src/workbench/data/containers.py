"""A file or folder of rows, whatever it is packed in, becomes raw rows that know where they came from."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.errors import RequestError, nearest

if TYPE_CHECKING:
    import pyarrow

PARTS = {"validation": ("validation", "valid", "val", "dev", "eval")}  # as folders and files call a split
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# Lone surrogates are how undecodable bytes arrive ("surrogateescape"), and how a broken JSON escape reads.
SPOILED = re.compile("[\x00\ud800-\udfff]")


class Raw(NamedTuple):
    """One row as its container gave it: a dictionary, or the reason why there is none."""

    where: str
    row: dict[str, Any] | None
    reason: str
    text: str


class UnreadableError(ValueError):
    """Why one row cannot become an Example; caught here and written into its BadRow."""


def read_rows(path: Path, part: str, notes: list[str]) -> Iterator[Raw]:
    """Every row of a file or folder with the place it starts at; what was guessed on the way goes into `said`."""
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return dataset_rows(path, part, notes)
        files = part_files(path, part)
        notes.append(f"read {', '.join(str(file.relative_to(path)) for file in files)}")
        return (raw for file in files for raw in read_rows(file, part, notes))
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES] if path.parent.is_dir() else []
        raise RequestError(f"no such file: {path}", where="data", remedy=nearest(path.name, siblings))
    match path.suffix.lower():
        case ".jsonl" | ".ndjson" | ".json":
            return json_rows(path)
        case ".csv" | ".tsv":
            return csv_rows(path, notes)
        case ".parquet":
            import pyarrow.parquet

            try:
                return table_rows(pyarrow.parquet.read_table(path), path.name)
            except (pyarrow.ArrowException, OSError) as error:
                raise RequestError(f"not a readable Parquet file: {first_line(error)}", where=str(path)) from None
    raise RequestError(
        f"a data file ends in one of {', '.join(SUFFIXES)}, not {path.suffix or 'nothing'!r}",
        where=str(path),
        remedy="rename it after what it holds",
    )


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of a folder that belong to one split: named or foldered after it, or the only one there is."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    files = [p for p in files if p.name not in ("dataset_infos.json", "dataset_info.json", "source.json")]
    called = re.compile(rf"({'|'.join(PARTS.get(part, (part,)))})(?![a-z])", re.I)
    named = [p for p in files if any(called.match(piece) for piece in p.relative_to(folder).parts)]
    if named or len(files) == 1:
        return named or files
    names = ", ".join(str(p.relative_to(folder)) for p in files[:8]) or "no data file"
    raise RequestError(
        f"which file of this folder holds the {part} rows? It has: {names}",
        where=str(folder),
        remedy=f"name the file itself: data.{part}=…",
    )


def decoded(path: Path) -> str:
    """A file's text; bytes that are not UTF-8 come as lone surrogates, so that only their row is lost."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RequestError("this file is UTF-16", where=str(path), remedy="save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def json_rows(path: Path) -> Iterator[Raw]:
    """Rows of JSON lines, or of one JSON array when the text begins with a bracket."""
    text = decoded(path)
    if text.lstrip()[:1] == "[":
        yield from array_rows(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 inside a string is no new line
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                if SPOILED.search(line):
                    raise UnreadableError(spoiled(line))
                yield checked(where, json.loads(line), line)
            except UnreadableError as error:
                yield Raw(where, None, str(error), line)
            except (ValueError, RecursionError) as error:
                yield Raw(where, None, f"broken JSON: {first_line(error)}", line)


def array_rows(text: str, path: Path) -> Iterator[Raw]:
    """Rows of one JSON array, each with the line it starts on."""
    decoder, gap = json.JSONDecoder(), re.compile(r"\s*")

    def after_gap(position: int) -> int:
        match = gap.match(text, position)
        return match.end() if match else position

    at = after_gap(after_gap(0) + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
            yield checked(f"{path.name}:{line}", value, text[at:end])
            at = after_gap(end)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = after_gap(at + 1) if text[at] == "," else at
        except (ValueError, RecursionError) as error:
            # Past a break nothing says where the next row begins, so rows would be lost uncounted.
            raise RequestError(
                f"the JSON array breaks in the row that starts on line {line}: {first_line(error)}",
                where=f"{path.name}:{line}",
                remedy="mend it, or write one object a line (JSONL), where a broken row is set aside",
            ) from None
    if text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise RequestError("something stands after the JSON array's end", where=f"{path.name}:{line}")


def csv_rows(path: Path, notes: list[str]) -> Iterator[Raw]:
    """Rows of a CSV with a header; after a row with a broken quote, reading goes on at the very next line."""
    csv.field_size_limit(sys.maxsize)
    lines = list(io.StringIO(decoded(path), newline=""))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else sniff(lines[:200])
    if delimiter not in (",", "\t"):
        notes.append(f"{path.name} is cut at {delimiter!r}")
    header: list[str] = []
    at = base = 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while at < len(lines):
        where = f"{path.name}:{at + 1}"
        try:
            cells = next(reader)
            start, at = at, base + reader.line_num
        except csv.Error as error:
            yield Raw(where, None, f"broken CSV: {first_line(error)}", lines[at].rstrip("\r\n"))
            at = base = at + 1
            rest = (lines[i] for i in range(base, len(lines)))
            reader = csv.reader(rest, delimiter=delimiter, strict=True)
            continue
        if not cells:
            continue
        text = "".join(lines[start:at]).rstrip("\r\n")
        if not header:
            header = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1)]
            repeated = {name for name in header if header.count(name) > 1}
            if repeated:
                raise RequestError(f"columns with one name: {', '.join(sorted(repeated))}", where=where)
        elif len(cells) != len(header):
            yield Raw(where, None, f"{len(cells)} fields where the header has {len(header)}", text)
        else:
            yield checked(where, dict(zip(header, cells)), text)


def sniff(lines: Sequence[str]) -> str:
    """The delimiter that cuts the first rows into the same number of fields, the more the better."""

    def fit(delimiter: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        same = sum(width == widths[0] for width in widths) if widths and widths[0] > 1 else 0
        return same, widths[0] if widths else 0

    return max(",;\t|", key=fit)


def dataset_rows(path: Path, part: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of a folder that `datasets` wrote with save_to_disk; class labels come as their names."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # what datasets raises on a damaged folder depends on the file that is damaged
        raise RequestError(f"not a readable `datasets` folder: {first_line(error)}", where=str(path)) from None
    if isinstance(dataset, DatasetDict):
        chosen = next((name for name in PARTS.get(part, (part,)) if name in dataset), "")
        if not chosen and len(dataset) > 1:
            remedy = f"name one of its folders: {', '.join(str(path / name) for name in dataset)}"
            raise RequestError(f"this data set has no split {part!r}", where=str(path), remedy=remedy)
        chosen = chosen or next(iter(dataset))
        notes.append(f"read the split {chosen!r} of {', '.join(map(repr, dataset))}")
        dataset = dataset[chosen]
    names = {k: feature.names for k, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    for raw in table_rows(dataset.with_format("arrow")[:], path.name):
        for column, labels in names.items():
            if raw.row and isinstance(raw.row[column], int):
                raw.row[column] = labels[raw.row[column]] if raw.row[column] >= 0 else None
        yield raw


def table_rows(table: pyarrow.Table, name: str) -> Iterator[Raw]:
    """Rows of an Arrow table, numbered from 1."""
    names = class_names(table)
    try:
        rows: Iterable[Any] = table.to_pylist()
    except UnicodeDecodeError:  # one bad byte fails the whole column: go row by row to lose only that row
        rows = (table.slice(i, 1) for i in range(table.num_rows))
    for number, row in enumerate(rows, 1):
        where = f"{name}:{number}"
        try:
            values = row if isinstance(row, dict) else row.to_pylist()[0]
            for column, labels in names.items():
                if isinstance(label := values[column], int):
                    values[column] = labels[label] if 0 <= label < len(labels) else None
            yield checked(where, values, "")
        except UnicodeDecodeError as error:
            yield Raw(where, None, f"not UTF-8: {first_line(error)}", repr(error.object))


def class_names(table: pyarrow.Table) -> dict[str, list[str]]:
    """The names of classes that are stored as numbers, by column, as `datasets` writes them into Parquet and Arrow."""
    written = (table.schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(written or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in table.column_names
    }


def checked(where: str, row: object, text: str) -> Raw:
    """A parsed row as Raw: an object whose texts hold no NUL and no undecodable byte."""
    if not isinstance(row, dict):
        return Raw(where, None, f"a row is an object with named values, not {kind(row)}", text)
    broken = spoiled(row)
    return Raw(where, None if broken else row, broken, text)


def spoiled(value: object) -> str:
    """Why a text, or any text inside a value, cannot be used: a NUL or bytes that are not UTF-8; else ''."""
    if isinstance(value, str):
        match = SPOILED.search(value)
        return "" if match is None else "a NUL character" if match[0] == "\x00" else "not UTF-8"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((why for pair in inner for item in pair if (why := spoiled(item))), "")


def kind(value: object) -> str:
    """What a value is, in a reader's words."""
    words = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else words.get(type(value), type(value).__name__)


def first_line(error: BaseException) -> str:
    """An error's first line, or its type when it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
