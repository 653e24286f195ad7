"""GGUF files, read fast: the package's own reader takes seconds for a vocabulary's strings, and is asked often."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError

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


def gguf_header(path: Path) -> dict[str, Any]:
    """Every key with its text or number; of an array only its length. WorkbenchError when the head is broken.

    A key that is there twice is refused: readers differ in which one they take.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read(content)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path.name} is no whole GGUF file: {error}", where=str(path)) from None


def read(content: bytes | mmap.mmap) -> dict[str, Any]:
    """The head's keys and values; ValueError or struct.error when it is broken."""
    if content[:4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, _tensors, count = struct.unpack_from("<IQQ", content, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not read here")
    fields: dict[str, Any] = {}
    at = 24
    for _ in range(count):
        key, at = text(content, at)
        if key in fields:
            raise ValueError(f"{key} is there twice")
        (kind,) = struct.unpack_from("<I", content, at)
        fields[key], at = value(content, at + 4, kind)
    return fields


def text(content: bytes | mmap.mmap, at: int) -> tuple[str, int]:
    """A string: its length in 8 bytes, then UTF-8."""
    (length,) = struct.unpack_from("<Q", content, at)
    end = at + 8 + length
    if end > len(content):
        raise ValueError("a text goes past the file's end")
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
    at += 12
    if inner in SCALARS:
        return length, at + length * struct.calcsize(f"<{SCALARS[inner]}")
    for _ in range(length):
        if inner == STRING:
            at += 8 + struct.unpack_from("<Q", content, at)[0]
        else:
            _, at = value(content, at, inner)
    return length, at
