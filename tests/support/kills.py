"""Kill a tiny training at random moments with SIGKILL, go on, and count how often it ends with the very same weights.

    python tests/support/kills.py MODEL FOLDER KILLS SEED

In float32, with accumulation, dropout, and a LoRA adapter. The libraries are imported once: every training is a child
forked before anything is computed. Prints `12 of 12`, and each that ended otherwise.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads would not survive a fork

import peft  # noqa: F401
import torch

from token_rows import method, rows
from workbench.training.job import Job
from workbench.training.loop import train

STEPS = 8
PATIENCE_S = 120.0


def start(model: Path, out: Path, save_minutes: float) -> tuple[int, int]:
    """A child that trains: its process, and a pipe that gets a line a step."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    code = 1
    try:
        torch.set_num_threads(1)
        how = method(
            max_steps=STEPS, evaluations=2, dropout=0.1, micro_batch_size=2, sample_answers=0, save_minutes=save_minutes
        )

        def event(kind: str, **fields: Any) -> None:
            if fields.get("name") == "train/loss":
                os.write(writes, b"step\n")

        train(Job(model, how, rows(40), out, validation=rows(8, start=100), seed=3, dtype="float32", device="cpu",
                  threads=1, event=event))  # fmt: skip
        code = 0
    finally:
        os._exit(code)


def ends_well(child: int, reads: int) -> bool:
    """Wait for a child that is left alone."""
    while os.read(reads, 4096):
        pass
    os.close(reads)
    return os.waitpid(child, 0)[1] == 0


def killed(child: int, reads: int, step: int, delay_s: float) -> bool:
    """Kill the child so long after it has told of a step; False when it ended before."""
    deadline, seen = time.monotonic() + PATIENCE_S, 0
    while seen < step and select.select([reads], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reads, 4096)
        if not part:
            break
        seen += part.count(b"\n")
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.close(reads)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def weights_in(out: Path) -> str:
    """Digest of the adapter."""
    return hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Train once undisturbed, then again and again with kills."""
    model, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    begun = time.monotonic()
    assert ends_well(*start(model, folder / "whole", 1e-9))
    a_step = (time.monotonic() - begun) / STEPS
    whole, done, same = weights_in(folder / "whole"), 0, 0
    while done < kills:
        out = folder / f"cut{done}"
        save_minutes = chance.choice([1e-9, 1e9])  # after every step, or at evaluations alone
        told = []
        for _ in range(chance.choice([1, 1, 2])):
            step, delay_s = chance.randrange(STEPS), chance.uniform(0, a_step)
            told.append(f"step {step} + {1000 * delay_s:.0f} ms")
            if not killed(*start(model, out, save_minutes), step, delay_s):
                told[-1] += " (too late)"
        if all("too late" in one for one in told):
            continue
        done += 1
        if ends_well(*start(model, out, save_minutes)) and weights_in(out) == whole:
            same += 1
        else:
            print(f"{out.name}: killed at {', '.join(told)}: it ended otherwise", flush=True)
    print(f"{same} of {done}", flush=True)


if __name__ == "__main__":
    main()
