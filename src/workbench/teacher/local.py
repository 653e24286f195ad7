"""A teacher that is a GGUF file: llama.cpp's server on loopback, started for the run and stopped with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.engines.llamacpp import serve
from workbench.errors import RequestError
from workbench.recipe import Teacher
from workbench.records import file_sha256
from workbench.sources import resolve

CONTEXT = 4096  # tokens of one conversation, the answer included
MOST_AT_ONCE = 8  # slots; each holds a context of its own in memory


def gguf_of(teacher: Teacher) -> Path:
    """The GGUF that `teacher.source` names: a file, or a folder that holds one."""
    if not teacher.source:
        raise RequestError(
            "no GGUF is named",
            where="teacher.source",
            remedy="teacher.source=file:model.gguf, or mlflow:models:/NAME@champion",
        )
    path = resolve(teacher.source, sha256=teacher.sha256)
    if path.is_file():
        return path
    found = sorted(path.rglob("*.gguf"))
    if len(found) != 1:
        raise RequestError(
            f"{len(found)} GGUF files in {path}, where one is wanted",
            where="teacher.source",
            remedy="name the file itself",
        )
    return found[0]


@contextmanager
def local_server(teacher: Teacher, threads: int | None) -> Iterator[tuple[str, str]]:
    """(base URL, identity): the identity is the file's digest, so that a port that changes buys nothing anew."""
    gguf = gguf_of(teacher)
    with serve(gguf, parallel=min(teacher.concurrency, MOST_AT_ONCE), context=CONTEXT, threads=threads) as (url, _):
        yield f"{url}/v1", f"gguf:{file_sha256(gguf)[:32]}"
