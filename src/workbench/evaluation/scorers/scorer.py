"""What every scorer is: four functions of the recipe's Evaluate section, and of what was wanted and answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workbench.recipe.schema import Evaluate

INVALID = "\0invalid"  # the label of an answer that has none: no real label can equal it
Counts = tuple[float, float, float]


def nothing(evaluate: Evaluate) -> Sequence[str]:
    """No metric of that kind."""
    return ()


@dataclass(frozen=True)
class Scorer:
    """What an entry point in `workbench.scorers` gives.

    `metrics(evaluate)` names the scores, the primary first; `score(evaluate, expected, answer)` gives each a
    number (0 or 1 for a share; the higher the better). `classes(evaluate)` names the macro-F1 metrics, if
    any, and `labels(evaluate, expected, answer)` gives each its (wanted, answered) class. `counted(evaluate)`
    names the micro-F1 metrics, and `counts(evaluate, expected, answer)` gives each its (hits, wanted, answered),
    whose sums over all rows make 2·hits/(wanted+answered). `judged(evaluate)` names the metrics that no function
    of two texts can give: a judge's verdicts, which decide before all others.
    """

    metrics: Callable[[Evaluate], Sequence[str]]
    score: Callable[[Evaluate, str, str], Mapping[str, float]]
    classes: Callable[[Evaluate], Sequence[str]] = nothing
    labels: Callable[[Evaluate, str, str], Mapping[str, tuple[str, str]]] = lambda evaluate, expected, answer: {}
    counted: Callable[[Evaluate], Sequence[str]] = nothing
    counts: Callable[[Evaluate, str, str], Mapping[str, Counts]] = lambda evaluate, expected, answer: {}
    judged: Callable[[Evaluate], Sequence[str]] = nothing
