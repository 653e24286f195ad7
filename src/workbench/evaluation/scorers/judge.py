"""judge: a model says which of two answers is the better one; two texts alone only show whether they are equal.

The verdicts come from `evaluation.judge`, as `preference`: 1 better than the baseline's answer, 0 worse, 0.5 alike.
"""

from __future__ import annotations

from workbench.evaluation.scorers import exact_match
from workbench.evaluation.scorers.scorer import Scorer

PREFERENCE = "preference"
SCORER = Scorer(
    lambda evaluate: ["exact_match"],
    exact_match.score,
    judged=lambda evaluate: [PREFERENCE],
    stays_behind=lambda evaluate: "the judge",
    handed_over=("exact_match",),
)
