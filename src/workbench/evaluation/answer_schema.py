"""The JSON schema that wanted answers share, and the answers that break it: what constrained decoding is for.

A free answer that satisfies the schema stands; only those that break it are asked again within it. Constrained decoding
of every answer might say a few of them otherwise: a grammar allows less white space than JSON does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.answers import Prediction
from workbench.evaluation.scorers.strict_json import BROKEN, json_value
from workbench.recipe.schema import Evaluate

STRUCTURED = ("json_fields", "extraction")
MOST_VALUES = 30  # beyond so many distinct values a field is open: the next row may bring another
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def schema_of(evaluate: Evaluate, wanted: Sequence[str]) -> dict[str, Any] | None:
    """The schema of the training rows' answers; None where answers are no JSON, or evaluate.constrained is off.

    An object's properties are those that every answer holds, all required and no others allowed; a field with at most
    30 distinct texts among at least twice as many answers becomes an enum.
    """
    if evaluate.scorer not in STRUCTURED or not evaluate.constrained:
        return None
    values = [json_value(text) for text in wanted]
    if not values or any(value is BROKEN for value in values):
        return None
    schema = common(values, top=True)
    return schema if schema.get("type") in ("object", "array") else None


def common(values: Sequence[Any], *, top: bool = False) -> dict[str, Any]:
    """A schema that all these values satisfy, as narrow as their types; enums only for the fields of the answer."""
    if all(isinstance(value, dict) for value in values):
        first: dict[str, Any] = values[0]
        shared = [name for name in first if all(name in value for value in values)]
        properties = {name: field([value[name] for value in values], enum=top) for name in shared}
        return {"type": "object", "properties": properties, "required": shared, "additionalProperties": False}
    if all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        return {"type": "array"} | ({"items": common(items)} if items else {})
    kinds = {JSON_TYPES.get(type(value), "") for value in values}
    if "" in kinds:  # lists or objects beside plain values: anything may come
        return {}
    kinds -= {"integer"} if "number" in kinds else set()
    return {"type": kinds.pop()} if len(kinds) == 1 else {"type": sorted(kinds)}


def field(values: Sequence[Any], *, enum: bool) -> dict[str, Any]:
    """One field's schema: its type, or its values where they are texts and few."""
    distinct = dict.fromkeys(value for value in values if isinstance(value, str))
    few = len(distinct) <= MOST_VALUES and 2 * len(distinct) <= len(values)
    if enum and few and distinct and all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": sorted(distinct)}
    return common(values)


def satisfies(schema: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is JSON that the schema allows."""
    value = json_value(answer)
    return value is not BROKEN and fits(schema, value)


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits one of the schemas that `common` makes."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema.get("type"):
        case None:
            return True
        case "object":
            if not isinstance(value, dict) or set(value) != set(schema["required"]):
                return False
            return all(fits(part, value[name]) for name, part in schema["properties"].items())
        case "array":
            return isinstance(value, list) and all(fits(schema.get("items", {}), item) for item in value)
        case one:
            kinds = [one] if isinstance(one, str) else list(one)
            kinds += ["integer"] if "number" in kinds else []
            return JSON_TYPES.get(type(value)) in kinds


def broken(schema: Mapping[str, Any], predictions: Sequence[Prediction]) -> list[int]:
    """The places of the answers that the schema does not allow."""
    return [at for at, p in enumerate(predictions) if not satisfies(schema, p.answer)]


def shown(schema: Mapping[str, Any]) -> str:
    """A schema in one short line, for the screen."""
    if schema.get("type") != "object":
        return json.dumps(schema)[:120]
    parts = []
    for name, part in schema["properties"].items():
        parts.append(f"{name}: one of {len(part['enum'])}" if "enum" in part else f"{name}: {part.get('type', 'any')}")
    return "{" + ", ".join(parts) + "}"
