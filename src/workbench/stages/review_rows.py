"""The student's answers that people may look at and correct: `evaluate/review.jsonl`, which MLflow shows as traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
         "scores": score(evaluate, p.expected, p.answer), "seconds": round(p.seconds, 6)}
        for p in predictions
    ]  # fmt: skip
    worst_first = sorted(rows, key=lambda row: row["scores"].get(first, 0.0))[:MOST]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in worst_first)
    write_whole(folder / "review.jsonl", text, errors="backslashreplace")
    return len(worst_first)
