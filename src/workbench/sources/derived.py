"""Folders in the cache that are made from others, once: unpacked weights, a model cut smaller. Hashed at each use."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from workbench.sources.digests import content_sha256


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder as `make` has filled it, made when it is not there, or is not as it was made.

    Its digest lies beside it, in `NAME.json`. `folder`'s name must say what it is made from, by content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    note = folder.with_name(f"{folder.name}.json")
    with FileLock(f"{folder}.lock"):
        if folder.is_dir() and noted(note) == content_sha256(folder):
            return folder
        if folder.is_dir() and note.is_file():
            print(f"{folder} has changed since it was made: made again …", file=sys.stderr)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        found = content_sha256(partial)
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)
        os.replace(partial, folder)
        draft = note.with_name(f".{note.name}.partial")
        draft.write_text(json.dumps({"sha256": found}), encoding="utf-8")
        os.replace(draft, note)
    return folder


def noted(note: Path) -> str | None:
    """The digest that a note holds."""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
