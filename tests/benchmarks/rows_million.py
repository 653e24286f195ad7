"""What many rows take until training can begin: seconds and peak memory of preparing and rendering, and again after.

    python tests/benchmarks/rows_million.py MODEL_FOLDER --rows 10000 100000 1000000

For each number generates so many short rows, prepares and renders them in a process of its own, and has a second one
begin with all of it there; with --kill others are killed in the midst and one goes on. Prints seconds a row beside the
first size's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 20_000


def write(path: Path, rows: int) -> None:
    """So many rows of 12 to 40 words that are no copies of each other, each with one of three answers."""
    draw, names = random.Random(5), [f"w{i}" for i in range(WORDS)]
    with path.open("w") as stream:
        for number in range(rows):
            text = f"Case {number}: " + " ".join(draw.choices(names, k=draw.randint(12, 40)))
            stream.write(json.dumps({"prompt": text, "completion": draw.choice(["yes", "no", "perhaps"])}) + "\n")


def until_training(folder: Path, model: str) -> None:
    """Prepare and render as the train stage does, up to its first step; print what it took as JSON."""
    from workbench.recipe import Data, Method, Model, Recipe, to_dict
    from workbench.runs import open_run
    from workbench.stages.train.train import material_of
    from workbench.training.job import Job, request_of

    begun, spent = time.perf_counter(), time.process_time()
    data = Data(train=str(folder / "rows.jsonl"))
    recipe = Recipe(name="many", model=Model(source=f"dir:{model}"), data=data, method=Method(max_length=512))
    with open_run(folder / "experiments", "many", "0" * 8, to_dict(recipe), fresh=False) as run:
        material = material_of(recipe, run, Path(model), folder)
        rows = material.train if material.train is not None else []
        request_of(Job(Path(model), recipe.method, rows, folder), "bfloat16")
        facts = {"train": len(material.lessons.splits.train), "tokens": sum(getattr(rows, "lengths", []))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = {"s": time.perf_counter() - begun, "cpu_s": time.process_time() - spent, "MiB": peak}
    print(json.dumps({key: float(value) for key, value in (facts | took).items()}))


def measured(folder: Path, model: str, kill_at: str | None = None) -> dict[str, float]:
    """A process of its own; killed once a file of this pattern is there."""
    command = [sys.executable, __file__, model, "--measure", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while kill_at and process.poll() is None:
            if list(folder.rglob(kill_at)):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        shown, _ = process.communicate()
    return dict(json.loads(shown)) if shown and not kill_at else {}


def main() -> None:
    """Write, measure, kill, measure again, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kill", action="store_true", help="also kill one in the midst, and let another go on")
    parser.add_argument("--measure", type=Path)
    options = parser.parse_args()
    if options.measure:
        until_training(options.measure, options.model)
        return
    first = 0.0
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder / "rows.jsonl", rows)
            whole = measured(folder, options.model)
            again = measured(folder, options.model)
        a_row = whole["cpu_s"] / rows
        first = first or a_row
        print(f"{rows:,} rows: {whole['cpu_s']:.0f} CPU s, {whole['s']:.0f} s, {whole['MiB']:.0f} MiB; "
              f"{1e3 * a_row:.2f} CPU ms a row, {a_row / first:.2f} times the first; "
              f"again {again['cpu_s']:.1f} CPU s, {again['s']:.1f} s", flush=True)  # fmt: skip
        if options.kill:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                write(folder / "rows.jsonl", rows)
                for place in ("rows-00001.json", "tokens-00001.json"):
                    measured(folder, options.model, kill_at=place)
                    kept = {path: path.stat().st_mtime_ns for path in folder.rglob(place.replace("00001", "0000?"))}
                    print(f"killed at {place}: {len(kept)} shards are there", flush=True)
                rest = measured(folder, options.model)
                print(f"gone on: {rest['cpu_s']:.0f} CPU s of {whole['cpu_s']:.0f}", flush=True)


if __name__ == "__main__":
    main()
