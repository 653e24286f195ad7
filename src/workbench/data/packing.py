"""The bytes of a file of rows: unpacked, decoded and cut into lines as they come."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

from workbench.errors import RequestError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".bz2", ".xz", ".zst")
UTF_8 = ("utf-8", "utf8", "utf-8-sig")


def suffix_of(path: Path) -> str:
    """What a file holds, by its name: `rows.jsonl.gz` is `.jsonl`."""
    name = Path(path.stem) if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def is_rows_file(path: Path) -> bool:
    """Whether a file's name says that it holds rows; tables are never packed."""
    return suffix_of(path) in SUFFIXES and not (
        path.suffix.lower() in PACKED and suffix_of(path) in (".parquet", ".arrow")
    )


def unpacked(path: Path) -> BinaryIO:
    """A stream of the file's content, unpacked by its ending."""
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            import pyarrow  # which has Zstandard's decoder

            return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd")))
    return path.open("rb")


def decoded_lines(path: Path, encoding: str = "utf-8", *, universal: bool = False) -> Iterator[str]:
    """A file's lines with their ends, cut at "\\n" alone, with `universal` at "\\r" too.

    Bytes that are not of the encoding come as lone surrogates, so that only their row is lost.
    """
    try:
        known = codecs.lookup(encoding).name
    except LookupError:
        raise RequestError(
            f"no such encoding {encoding!r}", where="data.encoding", remedy="utf-8, windows-1252, utf-16, gb18030, …"
        ) from None
    try:
        with closing(unpacked(path)) as stream:
            begin = stream.read(2)
            stream.seek(0) if stream.seekable() else None
            if known in UTF_8 and begin in (b"\xff\xfe", b"\xfe\xff"):
                raise RequestError(
                    "this file is UTF-16", where=str(path), remedy="data.encoding=utf-16, or save it as UTF-8"
                )
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        refuse_damaged(path, error)
    try:
        with closing(unpacked(path)) as stream:
            name = "utf-8-sig" if known in UTF_8 else known
            yield from io.TextIOWrapper(stream, name, "surrogateescape", newline="" if universal else "\n")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        refuse_damaged(path, error)
    except UnicodeDecodeError as error:
        raise RequestError(
            f"it is not {encoding}: {error.reason}", where=str(path), remedy="name its encoding: data.encoding=…"
        ) from None


def refuse_damaged(path: Path, error: Exception) -> None:
    """RequestError for a packed file that does not unpack; what a plain file's system says goes on."""
    if path.suffix.lower() not in PACKED:
        raise error
    raise RequestError(
        f"it cannot be unpacked: {(str(error).splitlines() or [type(error).__name__])[0]}",
        where=str(path),
        remedy="write it again: it is cut off, or not what its ending says",
    ) from None


def not_utf8(text: str) -> str:
    """Why a text with undecodable bytes (as lone surrogates) is not read, and its encoding where that is plain."""
    content = text.encode("utf-8", "surrogatepass" if not escaped(text) else "surrogateescape")
    try:
        read = content.decode("windows-1252")
    except UnicodeDecodeError:
        read = ""
    high = [i for i, sign in enumerate(read) if sign > "\x7f"]
    # In Western text single letters stand among ASCII ones; in Chinese or Cyrillic bytes most are high.
    if not escaped(text) or not read or len(high) > 0.3 * len(read):
        return "not UTF-8" + (": name its encoding, data.encoding=…" if escaped(text) else "")
    return "not UTF-8; it reads as Windows-1252: data.encoding=windows-1252, or save it as UTF-8"


def escaped(text: str) -> bool:
    """Whether all lone surrogates of a text stand for undecodable bytes."""
    return all("\udc80" <= sign <= "\udcff" for sign in text if "\ud800" <= sign <= "\udfff")
