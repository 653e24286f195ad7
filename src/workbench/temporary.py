"""Temporary folders that outlive a killed process only until the next command looks: a living owner holds a lock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = ".workbench-", ".lock"
YOUNG_S = 10.0  # a folder that is younger may not have its lock yet


@contextmanager
def temporary_folder(inside: Path | None = None) -> Iterator[Path]:
    """A new folder in `inside` (made where it is missing; None: the system's), removed at the end.

    Those that killed processes left in the same place are removed first.
    """
    place = inside or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    sweep(place)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as name, FileLock(Path(name) / LOCK):
        yield Path(name)


def sweep(place: Path) -> None:
    """Remove this user's temporary folders in a place whose owners are dead."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            facts = folder.lstat()
            old = time.time() - facts.st_mtime > YOUNG_S
            if old and facts.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
