"""A tiny project whose gate lets its random student ship, for tests of bundles through the door. No test lives here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data:
  train: file:mine.csv
  columns: {{prompt: question, answer: answer}}
  system: Answer in one word.
  privacy: {privacy}
method: {{learning_rate: 2e-2, epochs: 1000, max_steps: 12, evaluations: 1, sample_answers: 0}}
evaluate: {{few_shot: 2, max_new_tokens: 4, general: null, harmful: null, energy: false}}
gate: {{min_rows: 5, better_by: -1.0, quantized_margin: 1.0}}
bundle: {{parity_rows: 4, most_kl: 0.02}}
{more}"""


def new_project(folder: Path, model: Path, *, privacy: str = "public", more: str = "") -> Path:
    """Fifty rows in a table, and `mine.yaml`, whose gate any student passes."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = ["red", "blue", "green", "black", "white"]
    with (folder / "mine.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        for number in range(50):
            words = " ".join(f"w{(number * 7 + k * k) % 97}x{number}" for k in range(6))
            writer.writerow([f"Which colour has item {number}, {words}?", colours[number % 5]])
    (folder / "mine.yaml").write_text(RECIPE.format(model=model, privacy=privacy, more=more))
    return folder


def only_run(project: Path) -> Path:
    """The one run's folder."""
    (run,) = [p.parent for p in project.glob("experiments/mine/*/run.json")]
    return run


def stages(run: Path) -> dict[str, dict]:
    """What the manifest holds."""
    return json.loads((run / "run.json").read_text())["stages"]
