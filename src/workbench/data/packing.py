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


# What unpacks to so many times its size is no text of rows, which has a tenth of it: it is made to fill a memory.
SWOLLEN, FROM = 200, 4_000_000  # times, and from how many bytes on that matters
LONGEST_LINE, LONGEST_ARRAY = 64_000_000, 1_000_000_000  # characters; a .json may have its whole array on one line


class Unpacked(io.RawIOBase):
    """What a packed file holds, as it is unpacked: RequestError once it is out of all proportion to its size."""

    def __init__(self, path: Path, packed: BinaryIO, content: BinaryIO):
        self.path, self.packed, self.content, self.count = path, packed, content, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self.content.read(len(buffer))
        buffer[: len(piece)] = piece
        self.count += len(piece)
        taken = self.packed.tell()
        if self.count > max(FROM, SWOLLEN * taken):
            raise RequestError(
                f"its first {taken:,} bytes unpack to {self.count:,}: more than {SWOLLEN} times as many",
                where=str(self.path),
                remedy="unpack it yourself and look at it, if you trust where it comes from",
            )
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self.content.close()
            self.packed.close()
        super().close()


def unpacked(path: Path) -> BinaryIO:
    """A stream of the file's content, unpacked by its ending."""
    ending = path.suffix.lower()
    packed = path.open("rb")
    if ending not in PACKED:
        return packed
    match ending:
        case ".gz":
            content = cast(BinaryIO, gzip.open(packed))  # noqa: SIM115  (`Unpacked` closes it)
        case ".bz2":
            content = cast(BinaryIO, bz2.open(packed))  # noqa: SIM115
        case ".xz":
            content = cast(BinaryIO, lzma.open(packed))  # noqa: SIM115
        case _:
            import pyarrow  # which has Zstandard's decoder

            content = cast(BinaryIO, pyarrow.CompressedInputStream(packed, "zstd"))
    return cast(BinaryIO, io.BufferedReader(Unpacked(path, packed, content), 1 << 17))


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
            if known in UTF_8 and begin in (b"\xff\xfe", b"\xfe\xff"):
                raise RequestError(
                    "this file is UTF-16", where=str(path), remedy="data.encoding=utf-16, or save it as UTF-8"
                )
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        refuse_damaged(path, error)
    try:
        with closing(unpacked(path)) as stream:
            name = "utf-8-sig" if known in UTF_8 else known
            text = io.TextIOWrapper(stream, name, "surrogateescape", newline="" if universal else "\n")
            longest = LONGEST_ARRAY if suffix_of(path) == ".json" else LONGEST_LINE
            number = 0
            while line := text.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise RequestError(
                        f"line {number:,} is longer than {longest:,} characters",
                        where=str(path),
                        remedy="write one row a line; is it a file of rows?",
                    )
                yield line
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
