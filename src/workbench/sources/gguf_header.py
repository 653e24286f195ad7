"""GGUF files, read fast: the package's own reader takes seconds for a vocabulary's strings, and is asked often."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import RequestError, WorkbenchError
from workbench.sources.digests import refuse_hollow

if TYPE_CHECKING:
    from gguf import GGUFReader


@cache
def _reader() -> type:
    """gguf's reader over plain array views; the package is imported only when a file is read."""
    import numpy as np
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """A slice of a memory map costs several times one of an array, and a vocabulary takes a million of them."""

        @property
        def data(self) -> Any:
            return self.__dict__["data"]

        @data.setter
        def data(self, mapped: Any) -> None:
            self.__dict__["data"] = mapped.view(np.ndarray)

    return Reader


def read_gguf(path: Path) -> GGUFReader:
    """A `gguf.GGUFReader` of the file: its `fields` and `tensors`, mapped, not loaded."""
    reader: GGUFReader = _reader()(path)
    return reader


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers, while it unpacks a GGUF file, read its head once instead of four times.

    transformers 5.17 makes a reader for the config, the tokenizer (twice) and the weights, and a map of tensor names
    for every module of the model: of a small model that is most of the time that unpacking takes.
    """
    import gguf

    kept = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(_reader()), cache(kept[1])  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = kept  # type: ignore[misc]


# The head of a GGUF file: its names and values, arrays passed over. The `gguf` package reads every token for it.

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# By type number: struct's letter. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


# More of any of these is no model's: the largest vocabularies have some 300,000 entries, models a few thousand tensors.
MOST_FIELDS, MOST_ENTRIES, MOST_TENSORS, LONGEST_NAME, LONGEST_TEXT = 10_000, 10_000_000, 200_000, 10_000, 64_000_000
MOST_DIMENSIONS = 8
T = TypeVar("T")


def gguf_header(path: Path) -> dict[str, Any]:
    """Every key with its text or number; of an array only its length. WorkbenchError when the head is broken.

    A key that is there twice is refused: readers differ in which one they take.
    """
    return opened(path, lambda content: read(content)[0])


def refuse_broken(path: Path) -> None:
    """RequestError for a GGUF file whose head lies about its keys or its tensors, before a library reads it."""
    refuse_hollow(path)
    try:
        opened(path, check_tensors)
    except WorkbenchError as error:
        raise RequestError(error.what, where=str(path), remedy="fetch it anew") from None


def opened(path: Path, look: Callable[[mmap.mmap], T]) -> T:
    """What a look at the mapped file gives; WorkbenchError when its head is broken."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return look(content)
    except (ValueError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path.name} is no whole GGUF file: {error}", where=str(path)) from None


def read(content: bytes | mmap.mmap) -> tuple[dict[str, Any], int, int]:
    """The head's keys and values, how many tensors it speaks of, and where they are described.

    ValueError or struct.error when it is broken.
    """
    if content[:4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, count = struct.unpack_from("<IQQ", content, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not read here")
    if count > MOST_FIELDS or tensors > MOST_TENSORS:
        raise ValueError(f"it speaks of {count:,} keys and {tensors:,} tensors")
    fields: dict[str, Any] = {}
    at = 24
    for _ in range(count):
        key, at = text(content, at, LONGEST_NAME)
        if key in fields:
            raise ValueError(f"{key} is there twice")
        (kind,) = struct.unpack_from("<I", content, at)
        fields[key], at = value(content, at + 4, kind)
    return fields, tensors, at


def check_tensors(content: bytes | mmap.mmap) -> None:
    """ValueError or struct.error when a tensor's description is broken, or its bytes would lie beyond the file."""
    _, tensors, at = read(content)
    last = 0
    for _ in range(tensors):
        name, at = text(content, at, LONGEST_NAME)
        (dimensions,) = struct.unpack_from("<I", content, at)
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions:,} dimensions")
        *shape, _kind, offset = struct.unpack_from(f"<{dimensions}QIQ", content, at + 4)
        at += 4 + 8 * dimensions + 12
        # Two bits a number are the least that any type takes.
        last = max(last, offset + math.prod(shape) // 8)
    if at + last > len(content):
        raise ValueError(f"its tensors go past its end: {at + last:,} of {len(content):,} bytes")


def text(content: bytes | mmap.mmap, at: int, longest: int = LONGEST_TEXT) -> tuple[str, int]:
    """A string: its length in 8 bytes, then UTF-8."""
    (length,) = struct.unpack_from("<Q", content, at)
    end = at + 8 + length
    if length > longest or end > len(content):
        raise ValueError(f"a text of {length:,} bytes goes past its end")
    return content[at + 8 : end].decode(), end


def value(content: bytes | mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """A value and where the next thing begins."""
    if kind == STRING:
        return text(content, at)
    if kind in SCALARS:
        letter = f"<{SCALARS[kind]}"
        return struct.unpack_from(letter, content, at)[0], at + struct.calcsize(letter)
    if kind != ARRAY:
        raise ValueError(f"type {kind} is unknown")
    inner, length = struct.unpack_from("<IQ", content, at)
    if length > MOST_ENTRIES:
        raise ValueError(f"an array of {length:,} entries")
    at += 12
    if inner in SCALARS:
        end = at + length * struct.calcsize(f"<{SCALARS[inner]}")
    elif inner == STRING:
        end = at
        for _ in range(length):
            end += 8 + struct.unpack_from("<Q", content, end)[0]
    else:
        raise ValueError("an array of arrays, which no key has")
    if end > len(content):
        raise ValueError(f"an array of {length:,} entries goes past its end")
    return length, end
