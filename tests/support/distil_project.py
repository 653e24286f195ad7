"""Small settings and answers for distillations through the door, and what such a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

from teacher_project import Project

SMALL = [
    "method.max_steps=4", "method.evaluations=2", "evaluate.max_new_tokens=4", "evaluate.few_shot=2", "gate.min_rows=5",
    "model.sha256=null", "model.name=tiny", "model.family=phi", "method.learning_rate=1e-3", "recipe=./mine.yaml",
]  # fmt: skip

RIGHT = [["validation question", "yes"], ["test question", "yes"]]


def run_of(made: Project) -> Path:
    (run,) = [p.parent for p in made.folder.glob("experiments/mine/*/run.json")]
    return run


def with_answers(made: Project, answer: str = "gold") -> None:
    """Give every prompt an answer of its own."""
    path = made.folder / "prompts.jsonl"
    rows = [json.loads(line) | {"answer": answer} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
