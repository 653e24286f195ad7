"""Compare one answer with the wanted one: named scorers, open to others through `workbench.scorers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NoReturn

from workbench.errors import RequestError, nearest
from workbench.recipe.nouns import Evaluate

INVALID = "\0invalid"  # the label of an answer that has none: no real label can equal it


@dataclass(frozen=True)
class Scorer:
    """What an entry point in `workbench.scorers` gives.

    `metrics(evaluate)` names the scores, the primary first; `score(evaluate, expected, answer)` gives each a
    number (0 or 1 for a share; the higher the better). `classes(evaluate)` names the macro-F1 metrics, if
    any, and `labels(evaluate, expected, answer)` gives each its (wanted, answered) class.
    """

    metrics: Callable[[Evaluate], Sequence[str]]
    score: Callable[[Evaluate, str, str], Mapping[str, float]]
    classes: Callable[[Evaluate], Sequence[str]] = lambda evaluate: ()
    labels: Callable[[Evaluate, str, str], Mapping[str, tuple[str, str]]] = lambda evaluate, expected, answer: {}


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """The scorer's metrics for one answer, each a number, 1 right and 0 wrong."""
    return dict(find(evaluate.scorer).score(evaluate, expected, answer))


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """(wanted, answered) class for each metric a macro-F1 can be taken of; an invalid answer is `INVALID`."""
    return dict(find(evaluate.scorer).labels(evaluate, expected, answer))


def metric_names(evaluate: Evaluate) -> list[str]:
    """The item-level metrics of a scorer, the primary one first."""
    return list(find(evaluate.scorer).metrics(evaluate))


def primary_metric(evaluate: Evaluate) -> str:
    """The metric the gate decides by: `evaluate.primary`, or the scorer's first. RequestError on an unknown one."""
    names = metric_names(evaluate)
    if evaluate.primary is None:
        return names[0]
    possible = [*names, *find(evaluate.scorer).classes(evaluate)]
    if evaluate.primary not in possible:
        raise RequestError(
            f"{evaluate.scorer} does not measure {evaluate.primary!r}",
            where="evaluate.primary",
            remedy=nearest(evaluate.primary, possible),
        )
    return evaluate.primary


def deciding_score(evaluate: Evaluate, expected: str, answer: str) -> float:
    """The metric the gate decides by, of one answer; the scorer's first where that one is no single answer's."""
    found = score(evaluate, expected, answer)
    return found.get(primary_metric(evaluate), next(iter(found.values())))


def find(name: str) -> Scorer:
    """The scorer of that name, ours or an installed package's. RequestError with the nearest name otherwise."""
    if name in SCORERS:
        return SCORERS[name]
    plugins = {point.name: point for point in entry_points(group="workbench.scorers")}
    if name not in plugins:
        remedy = nearest(name, [*SCORERS, *plugins])
        raise RequestError(f"no scorer is called {name!r}", where="evaluate.scorer", remedy=remedy)
    return plugins[name].load()


# json_fields: the answer is one JSON object whose named fields must be right.


def json_metrics(evaluate: Evaluate) -> list[str]:
    """`<field>_accuracy` for each field, `exact_match` for all of them together, `validity`."""
    return [*(f"{field}_accuracy" for field in evaluate.fields), "exact_match", "validity"]


def json_score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """Validity, the accuracy of each field, and whether all fields are right.

    Valid is an answer that is one JSON object from its first character to its last: a code fence, a
    word before it, a second object or a half sentence after it make it invalid, since the program that
    will read it would stumble there too. A name given twice is invalid as well. Every field of an
    invalid answer counts as wrong. Strings are equal after stripping, and case matters; other fields
    than the named ones are allowed.
    """
    wanted, got = expected_object(evaluate.fields, expected), json_object(answer)
    right = {field: got is not None and field in got and same(wanted[field], got[field]) for field in evaluate.fields}
    scores = {f"{field}_accuracy": float(hit) for field, hit in right.items()}
    return scores | {"exact_match": float(all(right.values())), "validity": float(got is not None)}


def json_classes(evaluate: Evaluate) -> list[str]:
    """`<field>_macro_f1` for each field."""
    return [f"{field}_macro_f1" for field in evaluate.fields]


def json_labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """Each field as a class: its text, or INVALID where the answer holds none."""
    wanted, got = expected_object(evaluate.fields, expected), json_object(answer)
    return {
        f"{field}_macro_f1": (
            as_label(wanted[field]),
            INVALID if got is None or field not in got else as_label(got[field]),
        )
        for field in evaluate.fields
    }


def expected_object(fields: Sequence[str], expected: str) -> dict[str, Any]:
    """The wanted answer as an object that holds every field: when it does not, the data or the fields are wrong."""
    wanted = json_object(expected)
    absent = [field for field in fields if wanted is None or field not in wanted]
    if wanted is None or absent:
        lack = "is not a JSON object" if wanted is None else f"has no field {absent[0]!r}"
        raise RequestError(
            f"a wanted answer {lack}: {expected[:120]!r}",
            where="evaluate.fields",
            remedy="name fields that every wanted answer holds, or use evaluate.scorer=exact_match",
        )
    return wanted


def json_object(text: str) -> dict[str, Any] | None:
    """`text` as one JSON object and nothing else, or None."""
    try:
        value = json.loads(text.strip(), object_pairs_hook=unique_names, parse_constant=refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: a model may open ten thousand brackets
        return None
    return value if isinstance(value, dict) else None


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; a name given twice leaves open which was meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def refuse_constant(word: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{word} is not JSON")


def same(wanted: Any, got: Any) -> bool:
    """Strings equal after stripping; anything else equal and of a like type (3 is not "3", 1 is not true)."""
    if isinstance(wanted, str) and isinstance(got, str):
        return wanted.strip() == got.strip()
    return isinstance(wanted, bool) == isinstance(got, bool) and bool(wanted == got)


def as_label(value: Any) -> str:
    """A field's value as a class name."""
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)


# exact_match: the answer is the wanted text.


def exact_score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """1 when both texts are equal after stripping."""
    return {"exact_match": float(expected.strip() == answer.strip())}


def exact_labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """The whole answer as a class."""
    return {"macro_f1": (expected.strip(), answer.strip() or INVALID)}


SCORERS: dict[str, Scorer] = {
    "json_fields": Scorer(json_metrics, json_score, json_classes, json_labels),
    "exact_match": Scorer(lambda evaluate: ["exact_match"], exact_score, lambda evaluate: ["macro_f1"], exact_labels),
}
