"""A file or folder of rows, whatever it is packed in, becomes raw rows that know where they came from.

Lines, CSV rows and Parquet batches are read as they come, so that a file may be larger than the memory; one JSON value
over many lines is read whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.csv_rows import csv_rows
from workbench.data.json_rows import json_rows, lists_in
from workbench.data.packing import SUFFIXES, is_rows_file, suffix_of
from workbench.data.raw import PARTS, Raw, UnreadableError, checked, first_line, kind, part_of
from workbench.errors import RequestError, nearest
from workbench.recipe import Data
from workbench.sources.digests import refuse_hollow
from workbench.sources.places import files_below, is_systems_own
from workbench.sources.trial import objection

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Raw", "UnreadableError", "kind", "part_files", "read_rows", "splits_of"]


def read_rows(path: Path, part: str, notes: list[str], data: Data | None = None) -> Iterator[Raw]:
    """Every row of a file or folder with the place it starts at; what was guessed on the way goes into `notes`.

    `data` says the encoding and the quoting of text files; without it they are UTF-8, and quoted as they look.
    """
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return without_fillers(dataset_rows(path, part, notes), path.name, notes)
        files = part_files(path, part)
        notes.append(f"read {', '.join(str(file.relative_to(path)) for file in files)}")
        others = [str(file.relative_to(path)) for file in data_files(path) if file not in files]
        if others:
            notes.append(f"not among the {part} rows: {', '.join(others[:8])}{', …' if len(others) > 8 else ''}")
        return (raw for file in files for raw in read_rows(file, part, notes, data))
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*") if is_rows_file(p)] if path.parent.is_dir() else []
        raise RequestError(f"no such file: {path}", where="data", remedy=nearest(path.name, siblings))
    refuse_no_plain(path)
    encoding = data.encoding if data else "utf-8"
    match suffix_of(path):
        case ".jsonl" | ".ndjson" | ".json":
            return json_rows(path, encoding, part, notes)
        case ".csv" | ".tsv":
            return csv_rows(path, encoding, data.quoting if data else "auto", notes)
        case ".parquet":
            return without_fillers(parquet_rows(path), path.name, notes)
        case ".arrow":
            return without_fillers(arrow_rows(path), path.name, notes)
    raise other_suffix(path)


def refuse_no_plain(path: Path) -> None:
    """RequestError for a file that is nearly all a hole, or the system's own: neither has an end worth waiting for."""
    refuse_hollow(path)
    if is_systems_own(path):
        raise RequestError("this is no plain file", where=str(path), remedy="write its rows into a file")


def other_suffix(path: Path) -> RequestError:
    """The refusal of a file that is not read, with what makes one of it that is."""
    remedies = {
        ".xlsx": "save the sheet as CSV (UTF-8)",
        ".xls": "save the sheet as CSV (UTF-8)",
        ".zip": f"unpack it: unzip {path.name}",
        ".tar": f"unpack it: tar -xf {path.name}",
        ".tgz": f"unpack it: tar -xzf {path.name}",
        ".yaml": "write its rows as JSON lines",
        ".yml": "write its rows as JSON lines",
    }
    return RequestError(
        f"a data file ends in one of {', '.join(SUFFIXES)} (or .gz, .bz2, .xz, .zst after it), not "
        f"{path.suffix or 'nothing'!r}",
        where=str(path),
        remedy=remedies.get(suffix_of(path), "rename it after what it holds"),
    )


def data_files(folder: Path) -> list[Path]:
    """Every file of rows below a folder, sorted; RequestError for a link that leads out of it."""
    files = filter(is_rows_file, files_below(folder))
    return [p for p in files if p.name not in ("dataset_infos.json", "dataset_info.json", "source.json")]


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of a folder that belong to one split: named or foldered after it, or the only one there is.

    Files that are named after no split are the training rows, where none is named after those.
    """
    files = data_files(folder)
    named = [p for p in files if part_of(p.relative_to(folder)) == part]
    if named or len(files) == 1:
        return named or files
    unnamed = [p for p in files if not part_of(p.relative_to(folder))]
    if unnamed and part in ("train", "prompts"):
        return unnamed
    names = ", ".join(str(p.relative_to(folder)) for p in files[:8]) or "no data file"
    raise RequestError(
        f"which file of this folder holds the {part} rows? It has: {names}",
        where=str(folder),
        remedy=f"name the file itself: data.{part}=…",
    )


def splits_of(path: Path, encoding: str = "utf-8") -> set[str]:
    """The splits that a folder's files, its saved data sets or the lists of rows in a JSON file are named after."""
    if path.is_file() and suffix_of(path) == ".json":
        return lists_in(path, encoding)
    if not path.is_dir():
        return set()
    if (path / "dataset_dict.json").is_file():
        names = [Path(p.name) for p in path.iterdir() if p.is_dir()]
    else:
        names = [p.relative_to(path) for p in data_files(path)]
    return {part_of(name) for name in names} - {""}


BATCH = 1_000  # rows of a table that are held at once
# What a child may take to read a table through: seconds, bytes a second beside them, bytes of memory beside its own.
TRIAL_S, TRIAL_SPEED, TRIAL_MEMORY = 20, 5_000_000, 4_000_000_000


def refuse_untrusted(path: Path) -> None:
    """RequestError for a table that a child process with limits could not read through, or that swells in it."""
    facts = path.stat()
    against = objection_to(path, facts.st_size, facts.st_mtime_ns)
    if against:
        raise RequestError(
            against, where=str(path), remedy="write it anew, as JSON lines if need be: nothing of it was read"
        )


@lru_cache(maxsize=64)
def objection_to(path: Path, size: int, _written: int) -> str:
    """What speaks against a table, tried once while it stays as it is."""
    script = Path(__file__).with_name("table_trial.py")
    return objection(script, [path], seconds=TRIAL_S + size // TRIAL_SPEED, memory=TRIAL_MEMORY + size)


def parquet_rows(path: Path) -> Iterator[Raw]:
    """Rows of a Parquet file, batch by batch; class labels come as their names."""
    import pyarrow.parquet

    refuse_untrusted(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        refuse_twins(schema, path)
        return batch_rows(file.iter_batches(BATCH), path, class_names(schema))
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"not a readable Parquet file: {first_line(error)}", where=str(path)) from None


def arrow_rows(path: Path) -> Iterator[Raw]:
    """Rows of an Arrow file, of either kind, batch by batch; class labels come as their names."""
    import pyarrow.ipc

    refuse_untrusted(path)
    try:
        source = pyarrow.memory_map(str(path))
        try:
            file = pyarrow.ipc.open_file(source)
            batches: Iterable[pyarrow.RecordBatch] = (file.get_batch(i) for i in range(file.num_record_batches))
            schema = file.schema
        except pyarrow.ArrowInvalid:
            stream = pyarrow.ipc.open_stream(source)
            batches, schema = stream, stream.schema
        refuse_twins(schema, path)
        return batch_rows(batches, path, class_names(schema))
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"not a readable Arrow file: {first_line(error)}", where=str(path)) from None


def batch_rows(batches: Iterable[Any], path: Path, names: Mapping[str, Sequence[str]]) -> Iterator[Raw]:
    """Rows of record batches, numbered on; a break in the file is the whole file's."""
    import pyarrow

    number = 1
    try:
        for batch in batches:
            for raw in table_rows(pyarrow.Table.from_batches([batch]), path.name, number):
                yield named(raw, names)
            number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"the file breaks after row {number - 1:,}: {first_line(error)}", where=str(path)) from None


def refuse_twins(schema: pyarrow.Schema, path: Path) -> None:
    """RequestError for a table that has two columns of one name: a row would keep one of them."""
    twins = sorted(name for name, count in Counter(schema.names).items() if count > 1)
    if twins:
        raise RequestError(
            f"columns with one name: {', '.join(twins)}", where=str(path), remedy="give each a name of its own"
        )


def class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names of class labels that `datasets` notes in a table's metadata, by column."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {k: f["names"] for k, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def named(raw: Raw, names: Mapping[str, Sequence[str]]) -> Raw:
    """The row with the names of its class labels in place of their numbers."""
    for column, labels in names.items():
        if raw.row and isinstance(raw.row.get(column), int):
            number = raw.row[column]
            raw.row[column] = labels[number] if 0 <= number < len(labels) else None
    return raw


CALLED = ("arguments", "parameters", "args", "input_schema")  # what a call is made with, and what a function takes


def without_fillers(raws: Iterable[Raw], name: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of a table without the nulls within calls and tools: a table gives every row the keys of all rows."""
    rows = 0
    for raw in raws:
        taken = sum(drop_fillers(value) for value in (raw.row or {}).values() if isinstance(value, list | dict))
        rows += taken > 0
        yield raw
    if rows:
        notes.append(f"{rows:,} rows of {name} have nulls within calls or tools, for the keys of other rows: left out")


def drop_fillers(value: Any, called: bool = False) -> int:
    """Take the nulls out of all that lies under CALLED within a value; how many there were."""
    if isinstance(value, list):
        return sum(drop_fillers(inner, called) for inner in value)
    if not isinstance(value, dict):
        return 0
    empty = [key for key, inner in value.items() if called and inner is None]
    for key in empty:
        del value[key]
    return len(empty) + sum(drop_fillers(inner, called or key in CALLED) for key, inner in value.items())


def dataset_rows(path: Path, part: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of a folder that `datasets` wrote with save_to_disk; class labels come as their names."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    for file in files_below(path):
        if file.suffix == ".arrow":
            refuse_untrusted(file)
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
        names = list(dataset)
        dataset = dataset[chosen]
        left = [name for name in names if name != chosen]
        if left:
            notes.append(f"not among the {part} rows: {', '.join(left)}")
    classes = {k: feature.names for k, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    tables = dataset.with_format("arrow")
    for start in range(0, len(dataset), BATCH):
        for raw in table_rows(tables[start : start + BATCH], path.name, start + 1):
            yield named(raw, classes)


def table_rows(table: pyarrow.Table, name: str, first: int) -> Iterator[Raw]:
    """Rows of an Arrow table, numbered from `first`."""
    try:
        rows: Iterable[Any] = table.to_pylist()
    except UnicodeDecodeError:  # one bad byte fails the whole column: go row by row to lose only that row
        rows = (table.slice(i, 1) for i in range(table.num_rows))
    for number, row in enumerate(rows, first):
        where = f"{name}:{number}"
        try:
            yield checked(where, row if isinstance(row, dict) else row.to_pylist()[0], "")
        except UnicodeDecodeError as error:
            yield Raw(where, None, f"not UTF-8: {first_line(error)}", repr(error.object))
