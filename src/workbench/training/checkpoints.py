"""Checkpoints that are whole or not there: a mark written last says that all the rest has reached the disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

MARK = "whole.json"


def mark(folder: Path, facts: dict[str, Any]) -> None:
    """Flush a checkpoint's files, then write its mark."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    partial = folder / f".{MARK}"
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(facts, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, folder / MARK)


def last_whole(folder: Path) -> tuple[Path, int] | None:
    """The newest marked checkpoint and its step; what has no mark is deleted."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / MARK).is_file():
            found.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path)
    if not found:
        return None
    step, path = max(found)
    return path, step


def save_best(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Replace the best weights so far: written beside, marked, then swapped in."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(partial)
    (partial / "README.md").unlink(missing_ok=True)
    mark(partial, facts)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_best(folder: Path) -> dict[str, Any] | None:
    """The facts of the best weights so far; a swap that was cut in half is finished."""
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and (old / MARK).is_file():
        os.replace(old, folder)
    return json.loads((folder / MARK).read_text()) if (folder / MARK).is_file() else None
