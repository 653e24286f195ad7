"""What a disk refuses (it is full, read-only, broken), as one error that names the folder and what is free."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import FAILED, WorkbenchError

FULL = "no space left on this disk"
ROOM = "make room there, and give the same command again: what is done is kept"
# What happened, and what to do, by the system's number.
KINDS = {
    errno.ENOSPC: (FULL, ROOM),
    errno.EDQUOT: ("no space left: your quota on this disk is used up", ROOM),
    errno.EFBIG: ("a file has reached the largest size allowed here", "raise `ulimit -f`, or use another disk"),
    errno.EROFS: ("this disk is read-only", "mount it writable, or name another folder: launch.experiments=FOLDER"),
    errno.EACCES: ("this may not be read or written by you", "give yourself the right, or name another folder"),
    errno.EPERM: ("this may not be changed by you", "give yourself the right, or name another folder"),
    errno.EIO: ("the disk failed to read or write", "look at the system's log; once the disk is well, go on from here"),
    errno.EMFILE: ("too many files are open in this process", "raise `ulimit -n`, and give the same command again"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs, and give the same command again"),
}
# Libraries that write by themselves leave the number out: what their errors say instead.
WORDS = {
    errno.ENOSPC: r"no space left on device|os error 28\b|(?:database or )?disk is full|not enough free disk space",
    errno.EDQUOT: r"disk quota exceeded|os error 122\b",
    errno.EFBIG: r"file too large|os error 27\b",
    errno.EROFS: r"read-only file system|os error 30\b|attempt to write a readonly database",
    errno.EIO: r"input/output error|os error 5\b|disk i/o error",
    errno.EMFILE: r"too many open files|os error 24\b",
}
# Torch's writer says only that it failed; and a child may have found no room to say anything.
UNSAID, NEARLY_FULL = r"PytorchStreamWriter failed|inline_container|iostream error|\(it printed nothing\)", 1 << 20


class DiskError(WorkbenchError):
    """A disk has refused: which folder, how much is free, what to do. The same command goes on once it takes more."""


@contextlib.contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses meanwhile into a DiskError, which names `folder` where the system names no file."""
    try:
        yield
    except Exception as error:
        refused = explained(error, folder)
        if refused is None or refused is error:
            raise
        raise refused from error


def explained(error: BaseException, folder: Path) -> WorkbenchError | None:
    """The error for a person, where a disk is what failed; None for any other. `folder` is where the work lay.

    What a room has said for a person is kept where it names a place already and no disk stands behind it.
    """
    if isinstance(error, DiskError):
        return error
    if isinstance(error, WorkbenchError) and error.exit_code != FAILED:
        return None
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno in KINDS:
            return refusal(cause.errno, place_of(cause, folder))
    if isinstance(error, WorkbenchError) and error.where:
        return None
    for cause in chain(error):
        number = number_in(str(cause), folder)
        if number:
            return refusal(number, folder)
    return None


def refusal(number: int, place: Path) -> DiskError:
    """What the system's number means at this place, with the bytes that are free there."""
    what, remedy = KINDS[number]
    free = free_bytes(place)
    return DiskError(f"{what} ({free / 1e6:,.1f} MB free)", where=str(place), remedy=remedy)


def number_in(text: str, folder: Path) -> int | None:
    """The system's number that a library's words stand for."""
    for number, words in WORDS.items():
        if re.search(words, text, re.IGNORECASE):
            return number
    return errno.ENOSPC if re.search(UNSAID, text) and free_bytes(folder) < NEARLY_FULL else None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, each once."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def place_of(error: OSError, folder: Path) -> Path:
    """The file that an error names, else the folder of the work: a full disk is one of folders, not of a file."""
    named = error.filename2 or error.filename
    if not isinstance(named, (str, os.PathLike)):
        return folder
    path = Path(named)
    return path.parent if error.errno in (errno.ENOSPC, errno.EDQUOT) else path


def free_bytes(place: Path) -> int:
    """The bytes that a user may still write there; of the nearest folder that exists, where this does not yet."""
    place = place.absolute()
    for folder in (place, *place.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return 0


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise DiskError when `what` would not fit: it needs so many bytes in `folder`, and fewer are free."""
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"no space left for {what}: it needs about {size(needed)} ({needed:,} bytes), and {size(free)} "
            f"({free:,} bytes) are free",
            where=str(folder),
            remedy=ROOM,
        )


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
