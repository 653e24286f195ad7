"""JSON as the program that will read an answer takes it: one value from the first character to the last."""

from __future__ import annotations

import json
from typing import Any, NoReturn

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
