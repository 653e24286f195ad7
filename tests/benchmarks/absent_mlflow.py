"""What a training pays for an MLflow server that is not there: the loop's CPU seconds with one, and without feeding.

`python tests/benchmarks/absent_mlflow.py MODEL_FOLDER [--steps 200] [--times 5]`. Three ways take turns, each in a
process of its own: nobody feeds; a server that refuses every connection; one that takes it and is silent. The loop's
CPU seconds are those of the training process between its first and last step, so that a busy machine moves them
little; the feeder's are told beside. Then each run is fed into a store twice: all of it, and nothing.
"""

from __future__ import annotations

import argparse
import json
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
WAYS = ("nobody feeds", "refused", "silent")
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
    if way == WAYS[0]:
        life.feed_tracking = lambda recipe, run: None
    code = main(["train", "recipe=./mine.yaml", "until=train", *([f"tracking.uri={uri}"] if uri else [])])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps(seconds | {"code": code, "feeder": spent.ru_utime + spent.ru_stime}))


def refused() -> str:
    """The address of a port at which nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{nobody.getsockname()[1]}"


def measured(way: str, uri: str, folder: Path) -> dict[str, float]:
    """One training in a new process; its figures, and what a store gets of it afterwards."""
    from workbench.recipe import Tracking
    from workbench.tracking import catch_up

    command = [sys.executable, __file__, "--way", way, "--uri", uri, "unused"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"loop"')]
    if not lines:
        raise SystemExit(done.stderr)
    figures = json.loads(lines[-1])
    run = next((folder / "experiments" / "mine").iterdir())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    points = sum(event.get("kind") == "metric" or "value" in event for event in events)
    fed = [catch_up(run, Tracking(), folder / "experiments")["metrics"] for _ in range(2)]
    return figures | {"points": points, "fed": fed[0], "fed_again": fed[1]}


def main() -> None:
    """Print every way's figures, and the ratio to the way without feeding, run by run."""
    from hole_server import hole_server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--way", default="")
    parser.add_argument("--uri", default="")
    words = parser.parse_args()
    if words.way:
        one(words.way, words.uri)
        return
    ratios: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    with hole_server("silent") as silent:
        for number in range(words.times):
            loops = {}
            for way in WAYS if number % 2 else WAYS[::-1]:  # taken in turns: a machine warms up
                uri = {"refused": refused(), "silent": silent}.get(way, "")
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    rows = "".join(f"which item is number {n}?,item {n % 7}\n" for n in range(60))
                    (folder / "rows.csv").write_text(f"question,answer\n{rows}")
                    model = Path(words.model).resolve()
                    (folder / "mine.yaml").write_text(RECIPE.format(model=model, steps=words.steps))
                    figures = measured(way, uri, folder)
                loops[way] = figures["loop"]
                print(f"{way:<14}", json.dumps(figures), flush=True)
            for way, seen in ratios.items():
                seen.append(loops[way] / loops[WAYS[0]])
    for way, seen in ratios.items():
        print(f"{way}: {statistics.median(seen):.4f} of the loop's CPU seconds without feeding "
              f"({min(seen):.4f} to {max(seen):.4f}, {len(seen)} pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
