"""What tuning broke or leaked: general questions, harmful prompts, and training rows that come back.

The answers are an arm's own, to questions that have nothing to do with the task; what counts is the difference from
base. How one answer is judged stands in mentions.py and refusing.py, and repeated training rows in memory.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import RequestError
from workbench.evaluation import statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.cells import cell, item_row
from workbench.evaluation.measured import check_same_items
from workbench.evaluation.memory import memorised
from workbench.evaluation.mentions import mentions
from workbench.evaluation.refusing import refuses
from workbench.evaluation.report import BASELINES
from workbench.recipe.nouns import Evaluate
from workbench.records import Example, Message

__all__ = ["general_report", "load_general", "load_harmful", "memorised", "refusals_report"]

BASE = "base"
ANSWER_TOKENS = 32  # room for a short answer, and for the beginning by which a refusal is told
LISTED = 20  # items told that an arm lost


def load_general(path: Path) -> list[Example]:
    """Questions of a JSONL file (id, prompt, answer, perhaps kind); what an answer may say: `mentions`."""
    return [example(row, where, row["answer"]) for row, where in read(path, ("id", "prompt", "answer"))]


def load_harmful(path: Path) -> list[Example]:
    """Prompts of a JSONL file (id, prompt, perhaps kind); nothing is wanted of an answer but that it refuses."""
    return [example(row, where, "") for row, where in read(path, ("id", "prompt"))]


def example(row: Mapping[str, Any], where: str, answer: str) -> Example:
    """One row as an Example, without a system turn: the arm is asked as anyone would ask it."""
    messages = (Message("user", row["prompt"]), Message("assistant", answer))
    return Example(row["id"], messages, where=where, meta={"kind": row.get("kind", "")}, own_text=row["prompt"])


def read(path: Path, names: Sequence[str]) -> list[tuple[dict[str, Any], str]]:
    """(row, `file:line`) of every line; RequestError where one lacks a field, or repeats an id."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RequestError(f"not a line of JSON: {error}", where=where) from None
        lacks = [n for n in names if not isinstance(row, dict) or not isinstance(row.get(n), str) or not row[n].strip()]
        if lacks:
            raise RequestError(f"the row has no text under {lacks[0]!r}", where=where, remedy=f"give it {list(names)}")
        if row["id"] in found:
            raise RequestError(f"the id {row['id']!r} is taken by {found[row['id']][1]}", where=where)
        found[row["id"]] = row, where
    if not found:
        raise RequestError("there is no row", where=str(path))
    return list(found.values())


def general_report(evaluate: Evaluate, predictions: Mapping[str, Sequence[Prediction]], seed: int) -> dict[str, Any]:
    """Answers to general questions: {"n", "arms": {arm: {"accuracy"}}, "comparisons", "lost"}; see `shares`."""
    return shares("accuracy", evaluate, predictions, lambda p: mentions(p.expected, p.answer), seed)


def refusals_report(evaluate: Evaluate, predictions: Mapping[str, Sequence[Prediction]], seed: int) -> dict[str, Any]:
    """Answers to harmful prompts: {"n", "arms": {arm: {"refusals"}}, "comparisons", "lost"}; see `shares`."""
    return shares("refusals", evaluate, predictions, lambda p: refuses(p.answer), seed)


def shares(
    metric: str,
    evaluate: Evaluate,
    predictions: Mapping[str, Sequence[Prediction]],
    right: Callable[[Prediction], bool],
    seed: int,
) -> dict[str, Any]:
    """Each arm's share of right answers, the paired differences of student and formats from base, and what was lost.

    Intervals as everywhere: Wilson's for a share, Tango's for a paired difference, both by groups of items. `lost` are
    the ids of items that base had right and the arm has not, at most 20. Raises WorkbenchError where arms
    answered different items.
    """
    first = check_same_items(predictions)
    clusters_n = statistics.cluster_numbers([p.group for p in first])
    hits = {arm: np.array([right(p) for p in rows], dtype=np.float64) for arm, rows in predictions.items()}
    held = [arm for arm in hits if arm not in BASELINES] if BASE in hits else []
    columns = np.stack([np.ones(len(first)), *(hits[arm] - hits[BASE] for arm in held)], axis=1)
    totals_bk = statistics.resampled_totals(columns, clusters_n, evaluate.resamples, seed)
    rows = {
        arm: item_row(hits[arm], hits[BASE], totals_bk[:, k] / totals_bk[:, 0], clusters_n, evaluate.confidence)
        for k, arm in enumerate(held, start=1)
    }
    # One metric a pair: Holm has nothing to correct.
    return {
        "n": len(first),
        "arms": {
            arm: {metric: cell(statistics.share_interval(hits_n, clusters_n, evaluate.confidence))}
            for arm, hits_n in hits.items()
        },
        "comparisons": [
            {"metric": metric, "candidate": arm, "baseline": BASE, **row, "p_holm": row["p_value"]}
            for arm, row in rows.items()
        ],
        "lost": {
            arm: [p.id for p, had, has in zip(first, hits[BASE], hits[arm]) if had > has][:LISTED] for arm in held
        },
    }
