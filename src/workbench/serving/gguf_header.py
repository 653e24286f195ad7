"""The head of a GGUF file: its names and values, arrays passed over. The `gguf` package reads every token for it."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

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


def read(content: Any) -> dict[str, Any]:
    """The head's keys and values; ValueError or struct.error when it is broken."""
    if content[:4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, _tensors, count = struct.unpack_from("<IQQ", content, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not read here")
    found: dict[str, Any] = {}
    at = 24
    for _ in range(count):
        key, at = text(content, at)
        if key in found:
            raise ValueError(f"{key} is there twice")
        (kind,) = struct.unpack_from("<I", content, at)
        found[key], at = value(content, at + 4, kind)
    return found


def text(content: Any, at: int) -> tuple[str, int]:
    """A string: its length in 8 bytes, then UTF-8."""
    (length,) = struct.unpack_from("<Q", content, at)
    end = at + 8 + length
    if end > len(content):
        raise ValueError("a text goes past the file's end")
    return content[at + 8 : end].decode(), end


def value(content: Any, at: int, kind: int) -> tuple[Any, int]:
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
