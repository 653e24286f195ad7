"""exact_match: the answer is the wanted text."""

from __future__ import annotations

from workbench.evaluation.scorers.scorer import INVALID, Scorer
from workbench.recipe.schema import Evaluate


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """1 when both texts are equal after stripping."""
    return {"exact_match": float(expected.strip() == answer.strip())}


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """The whole answer as a class."""
    return {"macro_f1": (expected.strip(), answer.strip() or INVALID)}


SCORER = Scorer(lambda evaluate: ["exact_match"], score, lambda evaluate: ["macro_f1"], labels, handed_over=None)
