"""label: the answer is one of a closed set of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench.errors import RequestError
from workbench.evaluation.scorers.scorer import INVALID, Scorer
from workbench.recipe.schema import Evaluate


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """Whether the label is right, and whether the answer is a label at all.

    Labels are equal after stripping, and case matters. The set is `evaluate.labels`, which `closed` fills from the
    wanted answers; without one, any answer that is not empty passes for a label.
    """
    wanted, got = expected_label(evaluate, expected), answer.strip()
    return {"accuracy": float(wanted == got), "validity": float(is_label(evaluate, got))}


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """The label as a class; an answer that is none of the set is INVALID."""
    got = answer.strip()
    return {"macro_f1": (expected_label(evaluate, expected), got if is_label(evaluate, got) else INVALID)}


def is_label(evaluate: Evaluate, text: str) -> bool:
    """Whether a stripped text is one of the set."""
    return bool(text) and (not evaluate.labels or text in (known.strip() for known in evaluate.labels))


def expected_label(evaluate: Evaluate, expected: str) -> str:
    """The wanted label: where the set lacks it, no answer could ever be right."""
    wanted = expected.strip()
    if not is_label(evaluate, wanted):
        raise RequestError(
            f"a wanted answer is none of the labels: {expected[:120]!r}" if wanted else "a wanted answer is empty",
            where="evaluate.labels",
            remedy="add it, or leave the list empty: the labels of the test rows are taken then",
        )
    return wanted


def closed(evaluate: Evaluate, wanted: Sequence[str]) -> Evaluate:
    """The set of labels: those of the wanted answers where the recipe names none."""
    return evaluate if evaluate.labels else replace(evaluate, labels=sorted({text.strip() for text in wanted}))


def opened(evaluate: Evaluate, wanted: Sequence[str]) -> Evaluate:
    """The set with the labels that only these wanted answers have; without a set there is nothing to add to."""
    new = sorted({text.strip() for text in wanted} - {label.strip() for label in evaluate.labels})
    return replace(evaluate, labels=[*evaluate.labels, *new]) if evaluate.labels else evaluate


SCORER = Scorer(
    lambda evaluate: ["accuracy", "validity"],
    score,
    lambda evaluate: ["macro_f1"],
    labels,
    closed=closed,
    opened=opened,
    handed_over=None,
)
