"""GGUF files, read fast: the package's own reader takes seconds for a vocabulary's strings, and is asked often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


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


def read_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader` of the file: its `fields` and `tensors`, mapped, not loaded."""
    return _reader()(path)


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
