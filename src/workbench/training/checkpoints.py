"""Checkpoints that survive a kill and show damage: written aside, hashed, flushed, renamed; only sound ones are used.

A checkpoint is a folder `step-<step>` with the weights as safetensors, `state.pt` (optimizer, schedule, random
generators), and, written last, `progress.json`: what was counted so far, the SHA-256 of every file, and its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.files import changed_since, flush_tree, hashes_of, read_sealed, sync_folder, write_sealed

KEEP = 2
EVERY_STEP = 1e-4  # minutes: 6 ms
WRITING = 0.05  # of the time, at most, goes into checkpoints that are written because time has passed
PROGRESS, STATE = "progress.json", "state.pt"


def pause(minutes: float, took: float) -> float:
    """Seconds of training until the next checkpoint: so many minutes, more where one took long to write (seconds).

    So few that hardly a step is as short ask for one after every step, whatever it takes.
    """
    return max(60 * minutes, took / WRITING) if minutes > EVERY_STEP else 0.0


def step_of(folder: Path) -> int:
    """The step a checkpoint was taken at."""
    return int(folder.name.removeprefix("step-"))


def folder_of(root: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return root / f"step-{step:08d}"


def write_checkpoint(
    root: Path, step: int, progress: dict[str, Any], write: Callable[[Path], None], keep: Collection[int] = ()
) -> Path:
    """Let `write` fill a staging folder, then make it `step-<step>` at once; older ones beyond KEEP go.

    Those of the steps named in `keep` stay. `progress` is written last, with every file's hash.
    """
    staging, final = root / f".writing-{step}", folder_of(root, step)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(staging)
        write_sealed(staging / PROGRESS, {**progress, "step": step, "files": hashes_of(staging)})
        flush_tree(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # on a full disk it would only be in the way
        raise
    discard(final)  # a step that is saved once more after resuming
    staging.rename(final)
    sync_folder(root)
    for old in checkpoints_in(root)[:-KEEP]:
        if step_of(old) not in keep:
            discard(old)
    return final


def checkpoints_in(root: Path) -> list[Path]:
    """What stands in a checkpoint's place, oldest first, sound or not; what a kill left half-written is removed."""
    if not root.is_dir():
        return []
    for leftover in [*root.glob(".writing-*"), *root.glob(".going-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    return sorted((p for p in root.glob("step-*") if p.name.removeprefix("step-").isdecimal()), key=step_of)


def last_sound(root: Path, request: str, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of this request that can be gone on from: it and the best step's are as they were written.

    What is damaged is said. Everything newer than the one returned is removed: those steps are taken once more.
    """
    folders = checkpoints_in(root)
    faults = {path: damage(path) for path in folders}
    for path, fault in faults.items():
        if fault:
            say(f"checkpoint {path.name} is damaged and left out: {fault}")
    ours = [path for path in folders if not faults[path] and progress_of(path)["request"] == request]
    steps = {None, *map(step_of, ours)}
    usable = [path for path in ours if progress_of(path)["progressed"]["best_step"] in steps]
    last = usable[-1] if usable else None
    if folders and not ours:
        others = sum(not fault for fault in faults.values())
        say(
            f"{others} checkpoints were made from other rows or settings: starting over"
            if others
            else "no checkpoint is sound: starting over"
        )
    elif ours and last != ours[-1]:
        say(f"the best step's checkpoint is damaged: going back to {last.name if last else 'the start'}")
    for path in folders:
        if last is None or path not in ours or step_of(path) > step_of(last):
            discard(path)
    return last


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None when every file is the one that was written."""
    progress = read_sealed(folder / PROGRESS)
    if progress is None:
        return f"{PROGRESS} is missing or not as it was written"
    if not {"request", "progressed", "step", "files"} <= progress.keys() or progress["step"] != step_of(folder):
        return f"{PROGRESS} is another checkpoint's"
    return changed_since(folder, progress["files"])


def progress_of(folder: Path) -> dict[str, Any]:
    """What was written last into a sound checkpoint."""
    return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))


def weights_in(folder: Path) -> list[Path]:
    """A checkpoint's files of weights: those that were written, whatever else lies beside them."""
    return [folder / name for name in progress_of(folder)["files"] if name.endswith(".safetensors")]


def discard(path: Path) -> None:
    """Remove a checkpoint so that a kill in the middle leaves nothing that looks whole."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    going = path.with_name(f".going-{path.name}")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def random_state(device: str) -> dict[str, Any]:
    """The state of every random generator that training may draw from."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if device == "cuda" else {})


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator where `random_state` found it."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
