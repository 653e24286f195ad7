"""What a training pays for an MLflow server that is not there: its time beside one whose MLflow takes all.

`python tests/benchmarks/absent_mlflow.py MODEL_FOLDER [--steps 400] [--times 6]`. Two trainings run at the same time,
each with its feeder on a core of its own, and change cores every time: what slows the machine slows both. One is fed
into the store here; the other finds a server that refuses every connection, or one that takes it and is silent, or is
not fed at all. The seconds are those of the loop, between its first step and its last. Then each run is fed into a
store twice: all of it, and nothing. Linux, two cores at least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
WAYS = ("refused", "silent", "nobody feeds")
HERE = "fed here"
RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: "file:rows.csv", columns: {{prompt: question, answer: answer}}}}
method: {{learning_rate: 1e-3, epochs: 100000, max_steps: {steps}, evaluations: 2, sample_answers: 1}}
"""


def one(way: str, uri: str) -> None:
    """In a process of its own: train, and print what that took."""
    import workbench.stages.lifecycle as life
    import workbench.stages.train.train as stage
    from workbench.__main__ import main

    seconds: dict[str, float] = {}
    made = stage.trainer

    def timed(launch: Any) -> Any:
        train = made(launch)

        def run(job: Any) -> Any:
            started, wall = time.process_time(), time.monotonic()
            done = train(job)
            seconds["loop"], seconds["wall"] = time.process_time() - started, time.monotonic() - wall
            return done

        return run

    stage.trainer = timed  # type: ignore[assignment]
    if way == WAYS[2]:
        life.feed_tracking = lambda recipe, run: None
    code = main(["train", "recipe=./mine.yaml", "until=train", *([f"tracking.uri={uri}"] if uri else [])])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps(seconds | {"code": code, "feeder": spent.ru_utime + spent.ru_stime}))


def refused() -> str:
    """The address of a port at which nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{nobody.getsockname()[1]}"


def begun(way: str, uri: str, core: int, folder: Path, words: argparse.Namespace) -> subprocess.Popen[str]:
    """One training in a new process on that core."""
    folder.mkdir()
    rows = "".join(f"which item is number {n}?,item {n % 7}\n" for n in range(60))
    (folder / "rows.csv").write_text(f"question,answer\n{rows}")
    (folder / "mine.yaml").write_text(RECIPE.format(model=Path(words.model).resolve(), steps=words.steps))
    command = ["taskset", "-c", str(core), sys.executable, __file__, "--way", way, "--uri", uri, "unused"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], folder: Path) -> dict[str, float]:
    """Its figures, and what a store gets of it afterwards."""
    from workbench.recipe import Tracking
    from workbench.tracking import catch_up

    out, err = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith('{"loop"')]
    if not lines:
        raise SystemExit(err)
    run = next((folder / "experiments" / "mine").iterdir())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    points = sum(event.get("kind") == "metric" or "value" in event for event in events)
    fed = [catch_up(run, Tracking(), folder / "experiments")["metrics"] for _ in range(2)]
    return json.loads(lines[-1]) | {"points": points, "fed": fed[0], "fed_again": fed[1]}


def main() -> None:
    """Print every pair's figures, and each way's ratio to being fed here."""
    from hole_server import hole_server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--way", default="")
    parser.add_argument("--uri", default="")
    words = parser.parse_args()
    if words.way:
        one(words.way, words.uri)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    ratios: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with hole_server("silent") as silent:
        for number in range(words.times):
            for way in WAYS:
                uri = {"refused": refused(), "silent": silent}.get(way, "")
                with tempfile.TemporaryDirectory() as name:
                    folders = [Path(name) / "here", Path(name) / "other"]
                    places = cores if number % 2 else cores[::-1]
                    pair = [
                        begun(HERE, "", places[0], folders[0], words),
                        begun(way, uri, places[1], folders[1], words),
                    ]
                    here, other = (ended(process, folder) for process, folder in zip(pair, folders, strict=True))
                print(f"{way:<14}", json.dumps({HERE: here, way: other}), flush=True)
                ratios[way].append((other["wall"] / here["wall"], other["loop"] / here["loop"]))
    for way, seen in ratios.items():
        wall, cpu = (sorted(each) for each in zip(*seen, strict=True))
        print(f"{way}: {statistics.median(wall):.4f} of the loop's time where MLflow takes all ({wall[0]:.4f} to "
              f"{wall[-1]:.4f}, {len(seen)} pairs), {statistics.median(cpu):.4f} of its CPU seconds")  # fmt: skip


if __name__ == "__main__":
    main()
