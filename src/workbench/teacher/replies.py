"""What an answer must look like: the schema that is asked for, the check, the plea to mend it, the vote. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from workbench.recipe import Teacher
from workbench.records import Message, ToolCall, canonical

BROKEN = "\ufffd"  # what stands in an answer for no character
BEGINNINGS = 64  # places in an answer at which an object may begin: beyond them nothing is looked for


class MalformedError(ValueError):
    """The answer is not what was asked for; the message says how, for the teacher to mend it."""


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as it is learned, the reason the teacher gave for it, and what it calls."""

    answer: str
    rationale: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def wants_json(teacher: Teacher) -> bool:
    """Whether the answer travels as a JSON object."""
    return bool(teacher.fields or teacher.labels or teacher.rationale)


@lru_cache(maxsize=32)
def shape(fields: tuple[tuple[str, tuple[str, ...]], ...], labels: tuple[str, ...], rationale: bool) -> type[BaseModel]:
    """The pydantic model of the JSON object; extra keys are refused, every key is required."""
    kinds: dict[str, Any] = {}
    if rationale:
        kinds["rationale"] = (str, Field(min_length=1))
    if fields:
        for name, allowed in fields:
            kinds[name] = (Literal[allowed] if allowed else str, ...)
    elif labels:
        kinds["label"] = (Literal[labels], ...)
    else:
        kinds["answer"] = (str, Field(min_length=1))
    return create_model("Answer", __config__=ConfigDict(extra="forbid", strict=True), **kinds)


def model_of(teacher: Teacher) -> type[BaseModel]:
    """The shape this teacher's answers must have."""
    fields = tuple((name, tuple(allowed)) for name, allowed in teacher.fields.items())
    return shape(fields, tuple(teacher.labels), teacher.rationale)


@lru_cache(maxsize=32)
def allowed_in(answer: type[BaseModel]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each key of an answer's shape with the values it may have, none where any will do: asked for with every row."""
    specs = answer.model_json_schema()["properties"].items()
    return tuple(
        (name, tuple(spec.get("enum") or ([spec["const"]] if "const" in spec else ()))) for name, spec in specs
    )


def schema_of(teacher: Teacher) -> dict[str, Any] | None:
    """The JSON schema to ask for, in the subset that strict modes take; None when plain text is wanted."""
    if not wants_json(teacher):
        return None
    properties = {
        name: {"type": "string", "enum": list(allowed)} if allowed else {"type": "string"}
        for name, allowed in allowed_in(model_of(teacher))
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def instruction(teacher: Teacher) -> str:
    """The wanted shape in words, for an endpoint that takes no schema."""
    schema = schema_of(teacher)
    if schema is None:
        return ""
    lines = []
    for name, spec in schema["properties"].items():
        lines.append(f"- {name}: " + (f"one of {', '.join(spec['enum'])}" if "enum" in spec else "text"))
    return "Answer with one JSON object and nothing else. Its keys:\n" + "\n".join(lines)


def conversation(teacher: Teacher, messages: Sequence[Message], in_words: bool) -> tuple[Message, ...]:
    """The conversation to send: with the shape in words where the endpoint takes no schema, or a reason is wanted."""
    added = instruction(teacher) if in_words else ""
    if teacher.rationale and not in_words:
        added = "Give the reason first, in `rationale`, then the answer."
    if not added:
        return tuple(messages)
    if messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{added}"), *messages[1:])
    return (Message("system", added), *messages)


def parse(teacher: Teacher, text: str) -> ParsedAnswer:
    """The answer in the text; MalformedError when it is not what was asked for."""
    if not text.strip():
        raise MalformedError("the answer is empty")
    if BROKEN in text:
        raise MalformedError("the answer holds a broken character")
    if not wants_json(teacher):
        return ParsedAnswer(text.strip())
    bare = bare_label(teacher, text)
    try:
        content = (
            model_of(teacher)
            .model_validate({"label": bare} if bare else as_written(teacher, the_object(text)))
            .model_dump()
        )
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the text'}: {e['msg']}" for e in error.errors()[:3])
        raise MalformedError(faults) from None
    rationale = content.pop("rationale", "")
    if teacher.fields:
        return ParsedAnswer(json.dumps(content, ensure_ascii=False), rationale)
    return ParsedAnswer(next(iter(content.values())).strip(), rationale)


def bare_label(teacher: Teacher, text: str) -> str:
    """The label that is the whole of a text which is no JSON; '' where it is none, or more is wanted than a label."""
    if not teacher.labels or teacher.fields or teacher.rationale:
        return ""
    return canonical_choice(text.strip().strip("\"'`*.").strip(), teacher.labels, "")


def canonical_choice(value: str, allowed: Sequence[str], otherwise: str) -> str:
    """The allowed value that this is in other capitals; `otherwise` where none or several are."""
    if value in allowed:
        return value
    same = [choice for choice in allowed if choice.casefold() == value.strip().casefold()]
    return same[0] if len(same) == 1 else otherwise


def as_written(teacher: Teacher, content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its closed values written as the recipe writes them: capitals make no other label."""
    choices = teacher.fields if teacher.fields else {"label": teacher.labels}
    return {
        name: canonical_choice(value, choices.get(name) or (), value) if isinstance(value, str) else value
        for name, value in content.items()
    }


def the_object(text: str) -> dict[str, Any]:
    """The one JSON object in a text, whether bare, fenced or amid prose; MalformedError where it is none or several."""
    objects = list(objects_in(text))
    if not objects:
        raise MalformedError("Invalid JSON: there is no JSON object in it")
    if any(other != objects[0] for other in objects[1:]):
        raise MalformedError(f"there are {len(objects)} different JSON objects in it, and one is wanted")
    return objects[0]


def objects_in(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that stands in a text, one within another left out."""
    decoder = json.JSONDecoder(object_pairs_hook=without_doubles)
    place = 0
    for _ in range(BEGINNINGS):
        place = text.find("{", place)
        if place < 0:
            return
        try:
            content, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        yield content


def without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values; MalformedError where a key stands twice with different values."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if content.setdefault(name, value) != value:
            raise MalformedError(f"the key {name!r} stands in it twice")
    return content


def with_calls(text: str, calls: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]) -> ParsedAnswer:
    """An answer that calls; MalformedError where it calls what is not there, or not as it wants to be called."""
    functions = {function["name"]: function for tool in tools if (function := tool.get("function", tool))}
    for call in calls:
        if call.name not in functions:
            raise MalformedError(f"it calls {call.name!r}, and may call {', '.join(functions) or 'nothing'}")
        schema = functions[call.name].get("parameters") or {}
        given, known = json.loads(call.arguments), schema.get("properties") or {}
        missing = [name for name in schema.get("required") or () if name not in given]
        if missing:
            raise MalformedError(f"the call of {call.name} lacks {', '.join(missing)}")
        stray = [name for name in given if name not in known]
        if known and stray:
            raise MalformedError(f"the call of {call.name} has no argument {', '.join(stray)}")
    return ParsedAnswer(text.strip(), tool_calls=tuple(calls))


def plea(why: str) -> Message:
    """The user turn that asks to mend a malformed answer."""
    return Message("user", f"That answer cannot be used: {why}. Give the whole answer again, mended, nothing else.")


def ranked(answers: Sequence[ParsedAnswer]) -> list[tuple[ParsedAnswer, int]]:
    """Different answers (white space and case aside) with how many gave each: the commonest first, then the earliest.

    Of equal answers the first is the one that stands for them.
    """
    counts = Counter(alike(answer) for answer in answers)
    first = {alike(answer): answer for answer in reversed(answers)}
    return [(first[name], votes) for name, votes in counts.most_common()]


def alike(answer: ParsedAnswer) -> str:
    """What equal answers have in common: what they call, in any order, or their words where they call nothing."""
    if not answer.tool_calls:
        return normal(answer.answer)
    return canonical(sorted([call.name, canonical(json.loads(call.arguments))] for call in answer.tool_calls))


def normal(answer: str) -> str:
    """An answer for comparison: JSON by its content, text without case and idle white space."""
    try:
        return json.dumps(json.loads(answer), sort_keys=True).lower()
    except (ValueError, RecursionError):  # a text of ten thousand brackets
        return " ".join(answer.lower().split())
