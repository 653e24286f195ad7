"""Checkpoints that survive a kill: written aside, flushed, renamed; only whole ones are ever seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

KEEP = 2
PROGRESS = "progress.json"


def step_of(folder: Path) -> int:
    """The step a checkpoint was taken at."""
    return int(folder.name.removeprefix("step-"))


def write_checkpoint(
    root: Path, step: int, progress: dict[str, Any], write: Callable[[Path], None], best_step: int | None,
    also: Collection[int] = (),
) -> Path:  # fmt: skip
    """Let `write` fill a staging folder, then make it `step-<step>` at once; older ones beyond KEEP go.

    The best step's stays, and those of the steps named in `also`.

    `progress` is what resuming needs beside Hugging Face's own files; it is written last, with every file's size.
    """
    staging, final = root / f".writing-{step}", root / f"step-{step:08d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write(staging)
    files = [p for p in staging.rglob("*") if p.is_file()]
    sizes = {str(p.relative_to(staging)): p.stat().st_size for p in files}
    (staging / PROGRESS).write_text(json.dumps({**progress, "step": step, "files": sizes}))
    for path in [*files, staging / PROGRESS, staging]:
        flush(path)
    if final.exists():  # a step that is evaluated and saved once more after resuming
        discard(final)
    staging.rename(final)
    flush(root)
    for old in whole_checkpoints(root)[:-KEEP]:
        if step_of(old) != best_step and step_of(old) not in also:
            discard(old)
    return final


def whole_checkpoints(root: Path) -> list[Path]:
    """Every whole checkpoint, oldest first; what a kill left half-written is removed."""
    if not root.is_dir():
        return []
    for leftover in [*root.glob(".writing-*"), *root.glob(".going-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    return sorted((p for p in root.glob("step-*") if is_whole(p)), key=step_of)


def is_whole(folder: Path) -> bool:
    """Whether every file that was written is there in its full size."""
    try:
        sizes = progress_of(folder)["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def progress_of(folder: Path) -> dict[str, Any]:
    """What was written beside Hugging Face's files."""
    return json.loads((folder / PROGRESS).read_text())


def discard(folder: Path) -> None:
    """Remove a checkpoint so that a kill in the middle leaves nothing that looks whole."""
    going = folder.with_name(f".going-{folder.name}")
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)


def flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
