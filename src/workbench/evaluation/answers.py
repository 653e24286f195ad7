"""Answers: each question is asked of an arm once and kept at once; and the schema that wanted answers share."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.scorers import find
from workbench.evaluation.scorers.scorer import BROKEN, json_value
from workbench.files import write_whole
from workbench.progress_bar import progress
from workbench.recipe.schema import Evaluate
from workbench.records import Answer, Example, Message, Tools, calls_text, canonical, digest, message_dicts

# Engines' `Ask`; one that is never given a schema need not take one.
Asking = Callable[..., Iterator[tuple[int, Answer]]]
LONE = "backslashreplace"  # half a surrogate pair cannot be UTF-8; as \\ud83d it is an escape JSON knows


@dataclass(frozen=True)
class Prediction:
    """One arm's answer to one item, with what was wanted; one JSON line of `predictions/<arm>.jsonl`.

    `key` names the question as this arm was asked it; `seconds` is wall time, shared evenly among the answers made at
    once; `group` ties near copies together, so that intervals do not count them as independent. `latency` and
    `first_token` are those of all that was made at once (seconds, as in `records.Answer`); `logprob` and the three at
    the end say how likely the engine found the answer's tokens, the one that ends it left out (nats): None where it
    does not tell. `thoughts` came before the answer, and took `tokens_thought` of the `tokens_out`.
    """

    id: str
    key: str
    answer: str
    expected: str
    finish: str
    tokens_in: int
    tokens_out: int
    seconds: float
    group: str = ""
    latency: float | None = None
    first_token: float | None = None
    logprob: float | None = None
    usd: float = 0.0
    thoughts: str = ""
    tokens_thought: int = 0
    mean_logprob: float | None = None
    least_logprob: float | None = None
    margin: float | None = None

    @property
    def is_scored(self) -> bool:
        """Whether its log-probability is by this definition; an earlier one counted the token that ends an answer."""
        return (self.logprob is None) == (self.mean_logprob is None)

    @property
    def lost_in_thought(self) -> bool:
        """Whether the length allowed was used up before the answer began."""
        return self.finish == "length" and bool(self.thoughts) and not self.answer.strip()


def question_key(
    arm_digest: str,
    prompt: Sequence[Message],
    max_new_tokens: int,
    schema: Mapping[str, Any] | None = None,
    tools: Tools = (),
) -> str:
    """What an answer depends on: weights, words, functions, the length allowed, the schema, and greedy decoding."""
    question = {"arm": arm_digest, "messages": message_dicts(prompt), "max_new_tokens": max_new_tokens}
    question |= {"schema": schema} if schema else {}
    question |= {"tools": list(tools)} if tools else {}
    return digest(question | {"decoding": "greedy"}, 32)


def ask_arm(
    arm: str,
    arm_digest: str,
    ask: Asking,
    items: Sequence[Example],
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    out: Path,
    cached: Path | None = None,
    schema: Mapping[str, Any] | None = None,
    seed: int = 0,
    acceptable: str | None = None,
) -> list[Prediction]:
    """Predictions of one arm in the order of `items`, asking only what neither `out` nor `cached` holds.

    An item's functions go with its prompt. `acceptable` is the column that `wanted_of` reads.

    What is asked is shuffled by the seed, so that a machine that slows down does not slow the last rows alone.

    Each answer is appended to `out` as it comes, so a killed call loses at most the one being written;
    at the end `out` holds exactly one line an item, in order. Raises WorkbenchError when the engine
    leaves questions unanswered.
    """
    if len(items) != len(prompts):
        raise WorkbenchError(f"{len(items)} items came with {len(prompts)} prompts", where=f"arm {arm}")
    keys = [
        question_key(arm_digest, prompt, max_new_tokens, schema, item.tools)
        for item, prompt in zip(items, prompts, strict=True)
    ]
    known = {p.key: p for path in (cached, out) if path is not None for p in read_predictions(path) if p.is_scored}
    # Items that ask the very same thing are asked once.
    missing = {key: index for index, key in enumerate(keys) if key not in known}
    out.parent.mkdir(parents=True, exist_ok=True)
    drop_broken_end(out)
    if missing:
        waiting = list(missing.values())
        random.Random(seed).shuffle(waiting)
        options: dict[str, Any] = {"schema": schema} if schema else {}
        if any(items[i].tools for i in waiting):
            options["tools"] = [items[i].tools for i in waiting]
        before = len(items) - len(waiting)
        with (
            out.open("a", encoding="utf-8", errors=LONE) as stream,
            progress(arm, len(items), done=before) as move,
        ):
            answers = ask([prompts[i] for i in waiting], max_new_tokens, **options)
            for done, (position, answer) in enumerate(answers, before + 1):
                index = waiting[position]
                wanted = wanted_of(items[index], acceptable)
                known[keys[index]] = prediction = predict(items[index], keys[index], answer, wanted)
                stream.write(canonical(asdict(prediction)) + "\n")
                stream.flush()
                move(done)
    silent = [item.id for item, key in zip(items, keys) if key not in known]
    if silent:
        raise WorkbenchError(
            f"the engine answered all but {len(silent)} of {len(items)} items, the first {silent[0]!r}",
            where=f"arm {arm}",
            remedy="run the same command again: only these are asked",
        )
    predictions = [retold(known[key], item, wanted_of(item, acceptable)) for item, key in zip(items, keys)]
    write_predictions(predictions, out)
    return predictions


def predict(item: Example, key: str, answer: Answer, wanted: str) -> Prediction:
    """An engine's answer beside what the item wants."""
    return Prediction(
        item.id, key, answer.text, wanted, answer.finish,
        answer.tokens_in, answer.tokens_out, answer.seconds, item.group,
        answer.latency, answer.first_token, answer.logprob, answer.usd, answer.thoughts, answer.tokens_thought,
        answer.mean_logprob, answer.least_logprob, answer.margin,
    )  # fmt: skip


def retold(kept: Prediction, item: Example, wanted: str) -> Prediction:
    """A kept answer for this item: the key covers the question only, so id, group and the wanted answer are new."""
    return Prediction(**(asdict(kept) | {"id": item.id, "expected": wanted, "group": item.group}))


def wanted_of(item: Example, acceptable: str | None = None) -> str:
    """What an item's answer is scored against: its own answer; beside its calls what a column says is acceptable too.

    RequestError where that column holds anything else than a list with an object a call.
    """
    given, calls = item.meta.get(acceptable or ""), item.messages[-1].tool_calls
    if given is None or not calls:
        return item.answer
    fits = isinstance(given, list) and len(given) == len(calls)
    if not fits or not all(isinstance(o, dict) and all(isinstance(v, list) for v in o.values()) for o in given):
        raise RequestError(
            f"{acceptable} is no list with an object of lists for each of its {len(calls)} calls",
            where=item.where or item.id,
            remedy=f'write it as [{{"argument": [value, …]}}, …], or set evaluate.acceptable to another column than '
            f"{acceptable}",
        )
    return "\n".join(filter(None, [item.messages[-1].content, calls_text(calls, given)]))


def read_predictions(path: Path) -> list[Prediction]:
    """Every whole line of a predictions file; a line cut off by a kill is left out, a missing file is empty."""
    if not path.is_file():
        return []
    rows = (parse_line(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [row for row in rows if row is not None]


def parse_line(line: str) -> Prediction | None:
    """One line as a Prediction, or None when it is not one: it is then asked again."""
    try:
        row = json.loads(line)
        if not isinstance(row, Mapping):
            return None
        return Prediction(**{f.name: row[f.name] for f in fields(Prediction) if f.name in row})
    except (ValueError, TypeError):
        return None


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Replace `path` by these lines in one step."""
    write_whole(path, "".join(canonical(asdict(p)) + "\n" for p in predictions), errors=LONE)


def drop_broken_end(path: Path) -> None:
    """Cut a last line without its newline, so that the next answer does not continue it."""
    if path.is_file():
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole != len(raw):
            os.truncate(path, whole)


# The JSON schema that wanted answers share, and the answers that break it: what constrained decoding is for.
#
# A free answer that satisfies the schema stands; only those that break it are asked again within it. Constrained
# decoding of every answer might say a few of them otherwise: a grammar allows less white space than JSON does.

MOST_VALUES = 30  # beyond so many distinct values a field is open: the next row may bring another
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def schema_of(evaluate: Evaluate, wanted: Sequence[str]) -> dict[str, Any] | None:
    """The schema of the training rows' answers; None where answers are no JSON, or evaluate.constrained is off.

    An object's properties are those that every answer holds, all required and no others allowed; a field with at most
    30 distinct texts among at least twice as many answers becomes an enum.
    """
    if not find(evaluate.scorer).structured or not evaluate.constrained:
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


def fits(schema: Mapping[str, Any], value: object) -> bool:
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
        case kind:
            kinds = [kind] if isinstance(kind, str) else list(kind)
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
