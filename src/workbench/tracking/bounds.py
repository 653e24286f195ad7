"""How long a tracking server may take: every call to it ends in time, also one that is answered byte by byte.

MLflow's own timeouts hold for one read of a socket, so that a server which drips a byte now and then is waited for
without end. Here the whole call has its seconds. It runs in a thread, which is left behind when they are over.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from workbench.errors import WorkbenchError

Answer = TypeVar("Answer")

CALL_S = 8.0  # a question and its answer
SLOWEST_BYTES_S = 1_000_000  # files go up at this speed at least
LEAST_BYTES = 100_000  # of a file that is fetched, in CALL_S
# What MLflow's client does with files. Its other calls hold little more than their own words.
TRANSFERS = ("log_artifact", "log_artifacts", "log_model_artifacts", "download_artifacts", "log_text")

# Servers that were given up by this process: asked by nothing that can do without, until they have answered again.
GIVEN_UP: set[str] = set()


class AwayError(WorkbenchError):
    """The tracking server does not answer, not in time, or not as one."""


class Work(threading.Thread):
    """A function that runs in a thread which nobody has to wait for."""

    def __init__(self, what: str, function: Callable[[], object]):
        super().__init__(name=what, daemon=True)
        self.function = function
        self.answer: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run it, and keep what it gives or raises."""
        try:
            self.answer = self.function()
        except BaseException as error:
            self.error = error

    def result(self) -> object:
        """What it gave; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.answer


def within(seconds: float, what: str, function: Callable[[], Answer]) -> Answer:
    """What `function` gives or raises; AwayError naming `what` when it takes longer."""
    work = Work(what, function)
    work.start()
    work.join(seconds)
    if work.is_alive():
        raise AwayError(f"no answer to {what} in {seconds:.0f} s")
    return cast(Answer, work.result())


def while_growing(folder: Path, what: str, function: Callable[[], Answer]) -> Answer:
    """What `function` gives, which fetches files into `folder`; AwayError when hardly anything comes any more."""
    work = Work(what, function)
    work.start()
    size = size_of((folder,))
    while True:
        work.join(CALL_S)
        if not work.is_alive():
            return cast(Answer, work.result())
        before, size = size, size_of((folder,))
        if size - before < LEAST_BYTES:
            raise AwayError(f"{what}: {size - before:,} bytes came in {CALL_S:.0f} s")


@contextlib.contextmanager
def no_larger_file(most: int) -> Iterator[None]:
    """Meanwhile no file grows beyond so many bytes: whoever writes it in this process, a thread left behind too, fails.

    Nothing where the system knows no such limits.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if before < 0 else min(most, before), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def transfer_seconds(size: int) -> float:
    """How long a file of so many bytes may take."""
    return CALL_S + size / SLOWEST_BYTES_S


def size_of(paths: tuple[object, ...]) -> int:
    """The bytes of the arguments that are files or folders here."""
    size = 0
    for name in paths:
        with contextlib.suppress(OSError, ValueError):
            path = Path(str(name))
            if path.is_file():
                size += path.stat().st_size
            elif path.is_dir():
                size += sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
            else:
                size += len(str(name))
    return size


class Bounded:
    """MLflow's client, each of whose calls ends in time; after one that did not, the others fail at once."""

    def __init__(self, client: object, uri: str):
        self.client, self.uri, self.away = client, uri, ""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.client, name)
        return functools.partial(self.call, name, value) if callable(value) else value

    def call(self, name: str, function: Callable[..., Answer], *args: object, **options: object) -> Answer:
        """One call, within its seconds."""
        if self.away:
            raise AwayError(self.away)
        seconds = transfer_seconds(size_of(args)) if name in TRANSFERS else CALL_S
        try:
            with patience(seconds):
                return within(seconds, name, lambda: function(*args, **options))
        except AwayError as error:
            self.away = error.what
            raise


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Have MLflow's own client wait as long as the whole call may take, unless the user has said how long."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    if before is None or float(before) < seconds:
        os.environ[name] = str(max(1, round(seconds)))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
