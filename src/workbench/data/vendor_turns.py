"""Turns as Claude's, Gemini's and gpt-oss' files hold them, in OpenAI's words: what `data.turns` reads.

Claude's Messages API has calls, results and thoughts as parts of a turn's content; Gemini's tuning files have
`contents` with `parts`; harmony (gpt-oss) has the thoughts as a turn of their own, in the channel `analysis`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.data.raw import UnreadableError, kind

USED = {  # of the parts that are no text of the turn
    "tool_use": ("type", "id", "name", "input"),
    "tool_result": ("type", "tool_use_id", "content"),
    "thinking": ("type", "thinking"),
}
CLAUDES = tuple(USED)
GEMINIS = {  # a part's field, as REST and as Python write it
    "functionCall": "call", "function_call": "call", "functionResponse": "result", "function_response": "result",
}  # fmt: skip
SIGNATURES = ("thoughtSignature", "thought_signature")  # of thoughts; they open nothing elsewhere
TEXTS = ("text", "thought", *SIGNATURES)


def turns_in(value: object, what: str) -> list[Any]:
    """A list of turns; in a CSV cell, the JSON text of one, or as Python writes it; a table's lists, turn by turn.

    Raises UnreadableError for anything else.
    """
    if isinstance(value, str):
        value = listed(value, what)
    if isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
        # As `datasets` keeps a sequence of objects: a list for each of their keys.
        if len({len(one) for one in value.values()}) > 1:
            raise UnreadableError(f"{what} has lists of different lengths for the keys of its turns")
        value = [dict(zip(value, cells)) for cells in zip(*value.values())]
    if not isinstance(value, list) or not value:
        raise UnreadableError(f"{what} is {kind(value)}, not a list of turns" if value else f"{what} is empty")
    return value


LONGEST_LITERAL = 1_000_000  # characters that are read as Python writes a list


def listed(text: str, what: str) -> object:
    """The list of turns that a text is, as JSON or as Python writes it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if len(text) <= LONGEST_LITERAL and text.lstrip()[:1] == "[":
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise UnreadableError(f"{what} is text that is not a JSON list of turns")


def in_openai_words(turns: Sequence[Any], what: str) -> tuple[list[tuple[Any, str]], list[str]]:
    """The turns, each with what it is called in an error, those of Claude and of gpt-oss in OpenAI's words.

    And the fields of Claude's parts that hold something and are not used.
    """
    made: list[tuple[Any, str]] = []
    thoughts: list[str] = []
    unused: list[str] = []
    for number, turn in enumerate(turns, 1):
        name = f"turn {number} of {what}"
        if isinstance(turn, Mapping) and turn.get("channel") == "analysis" and not turn.get("tool_calls"):
            thoughts.append(analysis(turn, name))
            continue
        several = claudes(turn, name) if isinstance(turn, Mapping) else [turn]
        if thoughts:
            several[0] = thought_before(several[0], thoughts, name)
            thoughts = []
        made += [(one, name) for one in several]
        unused += [key for part in parts_of(turn) for key in part if key not in USED[part["type"]] and part[key]]
    if thoughts:
        raise UnreadableError(f"turn {len(turns)} of {what} is in the channel 'analysis', and no answer follows it")
    return [(without_channel(turn, name), name) for turn, name in made], list(dict.fromkeys(unused))


def parts_of(turn: object) -> list[Mapping[str, Any]]:
    """The parts of a turn's content that only Claude's files have."""
    content = turn.get("content") if isinstance(turn, Mapping) else None
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") in CLAUDES]


def analysis(turn: Mapping[str, Any], name: str) -> str:
    """The thoughts of a turn in harmony's channel of that name."""
    text = turn.get("content")
    if not isinstance(text, str) or not text.strip() or turn.get("role") != "assistant":
        raise UnreadableError(f"{name} is in the channel 'analysis', and is not the assistant's text")
    return text


def thought_before(turn: object, thoughts: Sequence[str], name: str) -> object:
    """The assistant's turn with the thoughts that stood before it."""
    if not isinstance(turn, Mapping) or turn.get("role") != "assistant" or turn.get("reasoning_content"):
        raise UnreadableError(f"{name} follows the channel 'analysis', and is not the answer to its thoughts")
    return {**turn, "reasoning_content": "\n".join(thoughts)}


def without_channel(turn: object, name: str) -> object:
    """The turn without the name of harmony's channel, where that says no more than its role."""
    if not isinstance(turn, Mapping) or "channel" not in turn:
        return turn
    if turn["channel"] not in (None, "", "final", "commentary", "analysis"):
        raise UnreadableError(f"{name} is in the channel {turn['channel']!r}; known are analysis, commentary, final")
    return {key: value for key, value in turn.items() if key != "channel"}


def claudes(turn: Mapping[str, Any], name: str) -> list[Any]:
    """A turn of Claude's as one or several of OpenAI's; any other as it is."""
    parts = turn.get("content")
    if not isinstance(parts, list):
        return [turn]
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    if not set(kinds) & set(CLAUDES):
        return [turn]
    rest = {key: value for key, value in turn.items() if key != "content"}
    if turn.get("role") == "user":
        return results(rest, parts, kinds, name)
    if "tool_result" in kinds or turn.get("role") != "assistant":
        raise UnreadableError(f"{name} has a part 'tool_result' or 'tool_use' that is not its role's")
    first_call = kinds.index("tool_use") if "tool_use" in kinds else len(kinds)
    if any(one != "tool_use" for one in kinds[first_call:]):
        raise UnreadableError(f"{name} has text after a call: a chat template would move it before")
    texts = [part for part, one in zip(parts, kinds, strict=True) if one not in CLAUDES]
    thought = [str(part.get("thinking") or "") for part, one in zip(parts, kinds, strict=True) if one == "thinking"]
    calls = [
        {"id": part.get("id"), "type": "function",
         "function": {"name": part.get("name"), "arguments": part.get("input") or {}}}
        for part, one in zip(parts, kinds, strict=True) if one == "tool_use"
    ]  # fmt: skip
    made = {**rest, "content": texts or None}
    if calls:
        made["tool_calls"] = calls
    if any(thought):
        made["reasoning_content"] = "\n".join(filter(None, thought))
    return [made]


def results(rest: Mapping[str, Any], parts: Sequence[Any], kinds: Sequence[Any], name: str) -> list[Any]:
    """A user's turn with results of calls: each result a turn of the tool's, what stands between them the user's."""
    made: list[Any] = []
    for part, one in zip(parts, kinds, strict=True):
        if one in ("tool_use", "thinking"):
            raise UnreadableError(f"{name} has a part {one!r} that is not its role's")
        if one == "tool_result":
            content = part.get("content") or ""
            made.append({"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": content})
        elif made and made[-1]["role"] == "user":
            made[-1]["content"].append(part)
        else:
            made.append({**rest, "content": [part]})
    return made


def geminis(value: object, what: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The turns of Gemini's `contents` in OpenAI's words, and the fields of its parts that are not used.

    Raises UnreadableError with what cannot be read.
    """
    made: list[dict[str, Any]] = []
    unused: dict[str, None] = {}
    for number, turn in enumerate(turns_in(value, what), 1):
        name = f"turn {number} of {what}"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("parts"), list) or not turn["parts"]:
            raise UnreadableError(f"{name} has no list of parts")
        rest = {key: each for key, each in turn.items() if key != "parts"}
        made += gemini_turns({"role": "user", **rest}, turn["parts"], name)
        unused |= {key: None for part in turn["parts"] for key in SIGNATURES if part.get(key)}
    return made, list(unused)


def gemini_turns(rest: Mapping[str, Any], parts: Sequence[Any], name: str) -> list[dict[str, Any]]:
    """One turn of Gemini's: its texts, thoughts and calls together, each result a turn of its own."""
    texts, thoughts = list[str](), list[str]()
    calls, made = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, part in enumerate(parts, 1):
        field = next((key for key in part if key not in TEXTS), "text") if isinstance(part, Mapping) else ""
        value = part.get(field) if isinstance(part, Mapping) else None
        if field == "text" and isinstance(value, str):
            (thoughts if part.get("thought") is True else texts).append(value)
        elif field in GEMINIS and isinstance(value, Mapping):
            if GEMINIS[field] == "call":
                function = {"name": value.get("name"), "arguments": value.get("args") or {}}
                calls.append({"id": value.get("id"), "type": "function", "function": function})
            else:
                content = json.dumps(value.get("response"), ensure_ascii=False, default=str)
                made.append({"role": "tool", "name": value.get("name"), "content": content})
        else:
            raise UnreadableError(f"part {number} of {name} is {field or kind(part)!r}: only text and calls are read")
    if texts or thoughts or calls or not made:
        turn = {**rest, "content": "\n".join(texts) or None}
        turn |= {"tool_calls": calls} if calls else {}
        made.append(turn | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {}))
    return made


def declared(tools: object) -> object:
    """Gemini's `tools` as a list of functions, the types in their parameters as JSON Schema writes them."""
    if not isinstance(tools, list):
        return tools
    functions: list[Any] = []
    for tool in tools:
        within = (
            tool.get("functionDeclarations", tool.get("function_declarations")) if isinstance(tool, Mapping) else None
        )
        functions += [lower_types(one) for one in within] if isinstance(within, list) else [tool]
    return functions


def lower_types(value: object) -> object:
    """A schema with its types in small letters: Gemini's files may hold `OBJECT` where JSON Schema says `object`."""
    if isinstance(value, list):
        return [lower_types(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    lower = {key: lower_types(one) for key, one in value.items()}
    if isinstance(value.get("type"), str) and value["type"].isupper():
        lower["type"] = value["type"].lower()
    return lower
