"""What every scorer is: functions of the recipe's Evaluate section, and of what was wanted and answered; and facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

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

    `check(evaluate)` raises RequestError where the section lacks what the scorer needs: it is called before any work.
    `closed(evaluate, wanted)` is the section with what only the wanted answers tell filled in, and
    `opened(evaluate, wanted)` the closed section with what rows that came later want beside. `version(evaluate)` is
    whatever a score depends on beside the section; an installed package's own version always counts.
    `stays_behind(evaluate)` names what does not travel with the model, a judge or a user's code; answers are then
    held against the wanted ones by exact_match wherever the model goes.
    """

    metrics: Callable[[Evaluate], Sequence[str]]
    score: Callable[[Evaluate, str, str], Mapping[str, float]]
    classes: Callable[[Evaluate], Sequence[str]] = nothing
    labels: Callable[[Evaluate, str, str], Mapping[str, tuple[str, str]]] = lambda evaluate, expected, answer: {}
    counted: Callable[[Evaluate], Sequence[str]] = nothing
    counts: Callable[[Evaluate, str, str], Mapping[str, Counts]] = lambda evaluate, expected, answer: {}
    judged: Callable[[Evaluate], Sequence[str]] = nothing
    check: Callable[[Evaluate], None] = lambda evaluate: None
    closed: Callable[[Evaluate, Sequence[str]], Evaluate] = lambda evaluate, wanted: evaluate
    opened: Callable[[Evaluate, Sequence[str]], Evaluate] = lambda evaluate, wanted: evaluate
    version: Callable[[Evaluate], str] = lambda evaluate: ""
    stays_behind: Callable[[Evaluate], str] = lambda evaluate: ""
    # Answers are JSON: their schema is learned of the training rows, and one that breaks it is asked for within it.
    structured: bool = False
    # It runs the user's own code, which `evaluate.function` names: nobody else's file may name it.
    runs_function: bool = False
    # Of its metrics lm-evaluation-harness gets all (lm_eval_utils.py has its rules), those here, or none.
    handed_over: tuple[str, ...] | None = ()


# JSON as the program that will read an answer takes it: one value from the first character to the last.

BROKEN = object()  # what no JSON text means


def json_value(text: str) -> Any:
    """`text` as one JSON value and nothing else, or `BROKEN`.

    A code fence, a word before it, a second value after it or a name given twice break it.
    """
    try:
        return json.loads(text.strip(), object_pairs_hook=unique_names, parse_constant=refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: a model may open ten thousand brackets
        return BROKEN


def json_object(text: str) -> dict[str, Any] | None:
    """`text` as one JSON object and nothing else, or None."""
    value = json_value(text)
    return value if isinstance(value, dict) else None


def json_list(text: str) -> list[Any] | None:
    """`text` as one JSON list and nothing else, or None."""
    value = json_value(text)
    return value if isinstance(value, list) else None


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; a name given twice leaves open which was meant."""
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name is given twice")
    return named


def refuse_constant(word: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{word} is not JSON")
