"""json_fields: the answer is one JSON object whose named fields must be right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workbench.errors import RequestError
from workbench.evaluation.scorers.scorer import INVALID, Scorer, json_object
from workbench.recipe.schema import Evaluate


def metrics(evaluate: Evaluate) -> list[str]:
    """`<field>_accuracy` for each field, `exact_match` for all together, `field_share` for how many, `validity`."""
    return [*(f"{field}_accuracy" for field in evaluate.fields), "exact_match", "field_share", "validity"]


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """Validity, the accuracy of each field, the share of the fields that are right, and whether all are.

    Valid is an answer that is one JSON object from its first character to its last: a code fence, a
    word before it, a second object or a half sentence after it make it invalid, since the program that
    will read it would stumble there too. A name given twice is invalid as well. Every field of an
    invalid answer counts as wrong. Strings are equal after stripping, and case matters; other fields
    than the named ones are allowed.
    """
    wanted, got = expected_object(evaluate.fields, expected), json_object(answer)
    right = {field: got is not None and field in got and same(wanted[field], got[field]) for field in evaluate.fields}
    scores = {f"{field}_accuracy": float(hit) for field, hit in right.items()}
    share = sum(right.values()) / len(right) if right else 0.0
    valid = float(got is not None)
    return scores | {"exact_match": float(all(right.values())), "field_share": share, "validity": valid}


def classes(evaluate: Evaluate) -> list[str]:
    """`<field>_macro_f1` for each field."""
    return [f"{field}_macro_f1" for field in evaluate.fields]


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
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


def same(wanted: object, got: object) -> bool:
    """Strings equal after stripping; anything else equal and of a like type (3 is not "3", 1 is not true)."""
    if isinstance(wanted, str) and isinstance(got, str):
        return wanted.strip() == got.strip()
    return isinstance(wanted, bool) == isinstance(got, bool) and bool(wanted == got)


def as_label(value: object) -> str:
    """A field's value as a class name."""
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)


def check(evaluate: Evaluate) -> None:
    """There are fields to score."""
    if not evaluate.fields:
        raise RequestError(
            "json_fields needs the names of the fields", where="evaluate.fields", remedy="evaluate.fields=[category]"
        )


SCORER = Scorer(metrics, score, classes, labels, check=check, structured=True, handed_over=None)
