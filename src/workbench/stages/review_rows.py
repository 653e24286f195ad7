"""Answers of a stage that people may look at and correct: `STAGE/review.jsonl`, which tracking shows in MLflow."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.evaluation.answers import Prediction
from workbench.evaluation.scorers import metric_names, score
from workbench.files import write_whole
from workbench.recipe.schema import Evaluate
from workbench.records import Example

MOST = 200  # rows: as many as a person may look at


def write_answers(evaluate: Evaluate, items: Sequence[Example], predictions: Sequence[Prediction], folder: Path) -> int:
    """Write an arm's answers with the scorer's word on each, those that it finds worst first; gives how many."""
    prompts = {item.id: item.text for item in items}
    first = metric_names(evaluate)[0]
    rows: list[dict[str, Any]] = [
        {"id": p.id, "prompt": prompts.get(p.id, ""), "answer": p.answer, "expected": p.expected,
         "scores": score(evaluate, p.expected, p.answer)}
        for p in predictions
    ]  # fmt: skip
    return write_rows(sorted(rows, key=lambda row: row["scores"].get(first, 0.0)), folder)


def write_labels(examples: Sequence[Example], folder: Path, seed: int) -> int:
    """Write a teacher's kept answers, drawn by the seed where they are many; gives how many."""
    prompts = {example.id: example.text for example in examples}
    lines = (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    if len(lines) > MOST:
        lines = random.Random(seed).sample(lines, MOST)
    labels = [json.loads(line) for line in lines]
    return write_rows(
        ({"id": label["id"], "prompt": prompts.get(label["id"], ""), "answer": label["answer"]} for label in labels),
        folder,
    )


def write_rows(rows: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """Write at most MOST rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows][:MOST]
    write_whole(folder / "review.jsonl", "".join(f"{line}\n" for line in lines), errors="backslashreplace")
    return len(lines)
