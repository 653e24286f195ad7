"""Who may read what we write: the user alone. Rows, answers and ledgers lie in runs, and machines are shared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o077  # what others may not do: anything
USERS_OWN: list[int] = []  # the umasks that `keep_private` has set aside, the first being the user's


@contextlib.contextmanager
def keep_private() -> Iterator[None]:
    """Every file and folder made meanwhile, by this process or its children, is for the user alone."""
    before = os.umask(PRIVATE)
    USERS_OWN.append(before)
    try:
        yield
    finally:
        USERS_OWN.pop()
        os.umask(before)


def users_umask() -> int:
    """The umask that the user has set."""
    if USERS_OWN:
        return USERS_OWN[0]
    umask = os.umask(PRIVATE)
    os.umask(umask)
    return umask


def close_to_others(*paths: Path) -> None:
    """Take away from group and others what an earlier version gave them; what is not there, or another's, is left."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            mode = path.stat().st_mode
            if mode & PRIVATE:
                path.chmod(mode & 0o7700)


def hand_out(folder: Path) -> None:
    """Give a folder and all in it the rights that the user's own umask gives new files: it is meant for others.

    What its owner may execute, all may whom the umask lets.
    """
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            wanted = 0o777 if path.is_dir() or path.stat().st_mode & 0o100 else 0o666
            path.chmod(wanted & ~users_umask())
