"""The same rows learned in three ways, in one run: steps of one length, padded; sampled, padded; sampled, packed.

`python tests/benchmarks/packing_speed.py [steps] [seed …]` on `legal_lora`'s rows with its settings. Prints for each
seed and way steps a minute and CPU seconds a step, padding and loading left out, and the validation loss after the same
rows. Only the ratios travel, and those of the minutes from a quiet machine alone.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_speed import SHA256, SOURCE, token_rows

from workbench.recipe import Method
from workbench.sources import model_folder

WAYS = ("one length a step", "sampled, padded", "sampled, packed")
BATCH, WINDOW = 8, 16


def steps_of_one_length(lengths: list[int], steps: int, seed: int) -> list[list[int]]:
    """Rows sorted by length within windows of 16 steps, the steps of a window shuffled: how it was done before."""
    generator, order = random.Random(seed), list[int]()
    while len(order) < steps * BATCH:
        order += generator.sample(range(len(lengths)), len(lengths))
    made: list[list[int]] = []
    for start in range(0, steps * BATCH, BATCH * WINDOW):
        rows = sorted(order[start : min(start + BATCH * WINDOW, steps * BATCH)], key=lambda row: lengths[row])
        batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        generator.shuffle(batches)
        made += batches
    return made


def learned(way: str, steps: int, seed: int) -> str:
    """Train, and the line of the table."""
    from workbench.training import batches
    from workbench.training.job import Job
    from workbench.training.loop import train

    base = model_folder(SOURCE, SHA256)
    every = token_rows(base, BATCH * steps + 32)
    rows, judges = every[: BATCH * steps], every[BATCH * steps :]
    if way == WAYS[0]:
        lengths = [len(row.input_ids) for row in rows]
        batches.rows_of_steps = lambda count, size, steps, seed: steps_of_one_length(lengths, steps, seed)
    method = Method(
        rank=16, alpha=32, learning_rate=1e-3, max_steps=steps, epochs=100.0, batch_size=BATCH, evaluations=1,
        sample_answers=0, save_minutes=1e9, packing="on" if way == WAYS[2] else "off",
    )  # fmt: skip
    clock: dict[int, float] = {}  # CPU seconds: when the first step begins, and after each

    def event(kind: str, **fields: Any) -> None:
        if kind == "said" and len(clock) < 2:
            clock[0] = time.process_time()
        elif fields.get("name") == "train/loss":
            clock[fields["step"]] = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        summary = train(Job(base, method, rows, Path(folder), validation=judges, seed=seed, event=event))
    spent = (clock[steps] - clock[0]) / steps
    pace = f"{60 * steps / summary['seconds']:6.1f} steps a minute {spent:6.2f} CPU s a step"
    return f"{pace}   validation loss {summary['last_validation_loss']:.4f}"


def main() -> None:
    """Each way in a process of its own, so that none inherits another's memory or threads."""
    if sys.argv[1:2] == ["--way"]:
        print(learned(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    for seed in map(int, sys.argv[2:] or ["1", "2"]):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, str(steps), str(seed)]
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            print(f"seed {seed}  {way:18} {line}", flush=True)


if __name__ == "__main__":
    main()
