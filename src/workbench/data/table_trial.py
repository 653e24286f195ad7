"""Run as a script, in a child with limits: reads a Parquet or Arrow file through, and prints what speaks against it.

A few kilobytes of Parquet can stand for terabytes, and an Arrow file's offsets can point anywhere: only a file whose
every batch has been decoded and validated here is read by the process that works with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

ROWS, MOST_ROWS, PIECE = 64, 65_536, 64_000_000  # rows decoded at once: first, at most, and for so many bytes
MOST_COLUMNS = 10_000
A_VALUE = 8  # bytes
SWOLLEN, FROM = 400, 1_000_000_000  # times its size on the disk, and from how many bytes on that matters


def main(path: Path) -> str:
    """What speaks against a table; "" where nothing does. What the library raises is not caught."""
    import pyarrow

    pyarrow.set_cpu_count(1)
    size = path.stat().st_size
    decoded = rows = 0
    for batch in batches(path):
        if batch.num_columns > MOST_COLUMNS:
            return f"it has {batch.num_columns:,} columns, and {MOST_COLUMNS:,} are read"
        for column in batch.columns:
            validate(column)
        rows += batch.num_rows
        # A row of nothing is an object too.
        decoded += A_VALUE * batch.num_rows + sum(decoded_bytes(column) for column in batch.columns)
        if decoded > max(FROM, SWOLLEN * size):
            return (
                f"its first {rows:,} rows alone are {decoded / 1e9:.1f} GB, and the file has {size / 1e6:.3f} MB: more "
                f"than {SWOLLEN} times its size"
            )
    return ""


def validate(column: pyarrow.Array) -> None:
    """ArrowInvalid for a column that is not what it says; text that is no UTF-8 is a bad row's, and is told there."""
    import pyarrow

    if pyarrow.types.is_string(column.type):
        column = column.view(pyarrow.binary())
    elif pyarrow.types.is_large_string(column.type):
        column = column.view(pyarrow.large_binary())
    column.validate(full=True)


def decoded_bytes(column: pyarrow.Array) -> int:
    """The bytes of a column whose values are written out, each as often as it is named."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif pyarrow.types.is_run_end_encoded(column.type):
        from pyarrow import compute

        column = compute.run_end_decode(column)
    return int(column.nbytes)


def batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """The record batches of a file; of one with too many columns an empty one, which tells their number."""
    import pyarrow.ipc

    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path)
        if len(file.schema_arrow) > MOST_COLUMNS:
            yield pyarrow.RecordBatch.from_pylist([], schema=file.schema_arrow)
        else:
            first = next(file.iter_batches(ROWS, use_threads=False), None)
            yield from () if first is None else (first,)
            large = sum(map(decoded_bytes, first.columns)) if first is not None else 0
            rows = PIECE * ROWS // max(large, 1)
            yield from file.iter_batches(min(max(rows, ROWS), MOST_ROWS), use_threads=False)
        return
    source = pyarrow.memory_map(str(path))
    try:
        opened = pyarrow.ipc.open_file(source)
        yield from (opened.get_batch(number) for number in range(opened.num_record_batches))
    except pyarrow.ArrowInvalid as error:
        if "not an Arrow file" not in str(error).replace("Not", "not"):
            raise
        yield from pyarrow.ipc.open_stream(source)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
