"""A row's fields become a conversation by its layout, with its tools, its weight, and what a person preferred.

Every column is used, or left over for the caller to name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from workbench.data.chat_text import asked_turns, chat_turns, way_of, without
from workbench.data.column_texts import filled
from workbench.data.containers import UnreadableError, kind
from workbench.data.layouts import FORMS, JUDGING, LAYOUTS, TABLES
from workbench.data.odd_texts import count_odd
from workbench.data.turns import (
    MEDIA,
    THOUGHTS,
    Fields,
    Leftovers,
    called,
    content_of,
    conversation,
    hermes_tools,
    is_empty,
    named_results,
    number_or_none,
    parsed,
    parted,
    shows,
    text_of,
    tools_of,
    written,
)
from workbench.data.vendor_turns import declared, geminis
from workbench.recipe import Data
from workbench.records import Example, Message, Role


@dataclass(frozen=True)
class Laid:
    """What a row holds: its conversation, and all else of it that is learned from."""

    turns: list[Message]
    tools: tuple[Mapping[str, Any], ...] = ()
    rejected: tuple[Message, ...] = ()
    good: bool | None = None
    weight: float = 1.0


def laid_out(row: Fields, layout: str, data: Data, left: Leftovers) -> Laid:
    """The conversation a row holds, checked: a user's turn, and the assistant's answer at the end.

    Raises UnreadableError with the reason why a row cannot be read.
    """
    values, (base, word) = row.values, JUDGING.get(layout, (layout, ""))
    column = data.columns.answer or "text"
    missing = [key for key in (LAYOUTS.get(layout, ()) if layout != "chat_text" else (column,)) if key not in values]
    if missing:
        raise UnreadableError(f"no {' and no '.join(missing)}; it has: {', '.join(map(str, values)) or 'nothing'}")
    media = next((name for name in MEDIA if not is_empty(values.get(name))), None)
    if media is not None and layout != "columns" and layout != "text":
        raise UnreadableError(f"it has {media!r}: only text can be learned")
    if layout == "text":
        text = text_of(row.take(column), "the text")
        left.mark(text)
        return Laid([Message("assistant", text)], weight=row_weight(row, layout, data))
    if layout in FORMS["preference"]:
        laid = preferred(row, layout, data, left)
    else:
        turns = turns_of(row, base, data, left)
        turns = with_thoughts(row, turns, base)
        laid = Laid(named_results(turns), good=judgement(row.take(word), word) if word else None)
    if base in TABLES:
        laid = replace(laid, tools=tools_beside(row, left))
    elif layout != "openai_preference":
        given = row.take("tools", "functions")
        laid = replace(laid, tools=tools_of(declared(given) if base == "gemini" else given, left))
    if layout != "columns" and laid.turns[0].role != "system":
        laid = replace(laid, turns=system_turn(row) + laid.turns)
    laid = with_hermes_tools(laid)
    turns, rejected = ([called(turn, laid.tools, left) for turn in part] for part in (laid.turns, laid.rejected))
    laid = replace(laid, turns=turns, rejected=tuple(rejected))
    count_odd(turns, rejected, laid.tools, left)
    check_turns(laid.turns)
    return replace(laid, weight=row_weight(row, layout, data))


def turns_of(row: Fields, layout: str, data: Data, left: Leftovers) -> list[Message]:
    """The turns of a row that has one answer."""
    columns = data.columns
    match layout:
        case "messages":
            return conversation(row.take("messages"), "messages", left)
        case "sharegpt":
            return conversation(row.take("conversations"), "conversations", left)
        case "chat_text":
            return chat_in(text_of(row.take(columns.answer or "text"), "the chat"), "the chat", left)
        case "gemini":
            turns, unused = geminis(row.take("contents"), "contents")
            left.add("contents[].parts[].", unused)
            return conversation(turns, "contents", left)
        case "prompt_completion":
            prompt, ends = asked(row.take("prompt"), left)
            return prompt + either(closed(row.take("completion"), ends), "assistant", "completion", left)
        case "alpaca":
            answer = written(row.take("output"), "answer (output)", left)
            return [*earlier(row), *instructed(row), assistant(answer, left)]
        case "query_response":
            question = Message("user", text_of(row.take("query"), "query"))
            return [*earlier(row), question, assistant(written(row.take("response"), "answer (response)", left), left)]
        case _:
            prompt_text = turns_in_cell(row, columns.prompt, left) or [
                Message("user", cell(row, data.prompt, columns.prompt, "prompt", left))
            ]
            return prompt_text + (
                turns_in_cell(row, columns.answer, left)
                or [assistant(cell(row, data.answer, columns.answer, "answer", left), left)]
            )


def turns_in_cell(row: Fields, column: str | None, left: Leftovers) -> list[Message]:
    """The turns that a mapped column holds; none where it holds no list of turns."""
    value = row.values.get(column or "")
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in value)
    ):
        return []
    row.used.add(column or "")
    return conversation(value, column or "", left)


def with_thoughts(row: Fields, turns: list[Message], base: str) -> list[Message]:
    """The turns, the last answer with the thoughts that a column of their own holds, where it has none itself."""
    columns = {"messages": THOUGHTS[:1], "sharegpt": THOUGHTS[:1], "prompt_completion": THOUGHTS, "alpaca": THOUGHTS,
               "query_response": THOUGHTS}.get(base, ())  # fmt: skip
    name = next((name for name in columns if isinstance(row.values.get(name), str) and row.values[name].strip()), None)
    if name is None or not turns or turns[-1].role != "assistant" or turns[-1].reasoning:
        return turns
    return [*turns[:-1], replace(turns[-1], reasoning=row.take(name))]


def tools_beside(row: Fields, left: Leftovers) -> tuple[Mapping[str, Any], ...]:
    """The functions that a column `tools` beside a prompt and its answer holds; none where it holds anything else."""
    for name in ("tools", "functions"):
        value = row.values.get(name)
        listed = isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] in ("[", "{"))
        if listed and name not in row.used:
            with suppress(UnreadableError):
                tools = tools_of(value, left)
                row.take(name)
                return tools
    return ()


def instructed(row: Fields) -> list[Message]:
    """Alpaca's prompt: the instruction, and the input below it where there is one."""
    text = text_of(row.take("instruction"), "instruction")
    more = row.take("input")
    return [Message("user", text if more is None else text + "\n\n" + text_of(more, "input"))]


def earlier(row: Fields) -> list[Message]:
    """The turns of `history`, a list of pairs of a question and its answer, which come before the row's own.

    In a CSV it is the JSON text of one.
    """
    turns, pairs = list[Message](), parsed(row.take("history") or [], "history")
    if not isinstance(pairs, list):
        raise UnreadableError(f"history is {kind(pairs)}, not a list of pairs")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnreadableError(f"entry {number} of history is no pair of a question and its answer")
        question, answer = (text_of(text, f"entry {number} of history") for text in pair)
        turns += [Message("user", question), assistant(answer)]
    return turns


def cell(row: Fields, template: str | None, column: str | None, what: str, left: Leftovers) -> str:
    """A prompt or an answer from its column, or from the template over several."""
    if template is not None:
        return filled(template, row, f"data.{what}", left)
    value = row.values.get(column or "")
    row.used.add(column or "")
    return written(value, f"{what} ({column})", left)


def assistant(text: str, left: Leftovers | None = None) -> Message:
    """An answer, its thoughts parted from it."""
    thoughts, answer = parted("", text)
    if left is not None:
        left.mark(answer)
    if not shows(answer):
        raise UnreadableError("the answer is empty")
    return Message("assistant", answer, thoughts)


def either(value: object, role: Role, what: str, left: Leftovers) -> list[Message]:
    """A prompt or completion given as text, as a turn, or as a list of turns."""
    if isinstance(value, dict) and ("content" in value or "value" in value):
        value = [value]
    if isinstance(value, list):
        return conversation(value, what, left)
    if role == "assistant":
        return [assistant(written(value, what, left), left)]
    return [Message(role, text_of(value, what))]


def chat_in(text: str, what: str, left: Leftovers) -> list[Message]:
    """The turns of a text that is a whole chat, which is counted by the way it is written."""
    way = way_of(text)
    if way is None:
        raise UnreadableError(f"{what} begins with no turn of a known layout, or has no answer in it: {text[:60]!r}")
    turns = conversation(chat_turns(text, way), what, left)
    left.chat(way.name)
    return turns


def asked(value: object, left: Leftovers) -> tuple[list[Message], tuple[str, ...]]:
    """(a prompt's turns, the marks that may close the answer to it): of one text where that is written as a chat."""
    chat = asked_turns(value) if isinstance(value, str) else None
    if chat is None:
        return either(value, "user", "prompt", left), ()
    turns, way = chat
    left.chat(way.name)
    return conversation(turns, "prompt", left), way.ends


def closed(value: object, ends: Sequence[str]) -> object:
    """An answer to a prompt that was written as a chat, without the mark that closes it there."""
    return without((), value, ends) if ends and isinstance(value, str) else value


def ending(value: object, prompt: Sequence[Message], ends: Sequence[str], what: str, left: Leftovers) -> list[Message]:
    """A pair's answer, or the whole conversation with it: turns, or a text that is a chat and begins as the prompt."""
    if isinstance(value, str) and way_of(value):
        if not prompt:
            return chat_in(value, what, left)
        with suppress(UnreadableError):
            turns = chat_in(value, what, Leftovers())
            if turns[: len(prompt)] == list(prompt):
                return turns
    return either(closed(value, ends), "assistant", what, left)


def system_turn(row: Fields) -> list[Message]:
    """The row's own `system` text, where it has one."""
    system = row.take("system", "system_prompt", "systemInstruction", "system_instruction")
    if isinstance(system, dict) and isinstance(system.get("parts"), list):  # Gemini's
        system = geminis([{"role": "system", "parts": system["parts"]}], "systemInstruction")[0][0]["content"]
    if isinstance(system, list):  # Claude's
        system = content_of(system, "system", Leftovers())
    return [] if system is None else [Message("system", text_of(system, "system"))]


def check_turns(turns: Sequence[Message]) -> None:
    """A conversation can be learned from: a user's turn, the assistant's at the end, something with a weight."""
    if turns[-1].role != "assistant":
        raise UnreadableError(f"the last turn is the {turns[-1].role}'s, not the assistant's answer")
    if not any(m.role == "user" for m in turns[:-1]):
        raise UnreadableError("no user turn before the answer")
    for number, turn in enumerate(turns):
        if turn.role == "tool" and not any(before.role == "assistant" for before in turns[:number]):
            raise UnreadableError(f"turn {number + 1} has the role 'tool', and nothing was called before it")
    answers = [turn for turn in turns if turn.role == "assistant"]
    if all(turn.weight == 0 for turn in answers):
        raise UnreadableError("every turn of the assistant has weight 0: nothing would be trained")


def with_hermes_tools(laid: Laid) -> Laid:
    """The row with the tools that its system text names between `<tools>` and `</tools>` as tools."""
    first = laid.turns[0]
    if laid.tools or first.role != "system" or "<tools>" not in first.content:
        return laid
    system, tools = hermes_tools(first.content)
    rest = laid.turns[1:]
    return replace(laid, turns=[replace(first, content=system), *rest] if system else rest, tools=tools)


def row_weight(row: Fields, layout: str, data: Data) -> float:
    """How much the row counts: by the recipe's column; in a layout of its own, by `weight`."""
    plain = JUDGING.get(layout, (layout,))[0]
    column = data.columns.weight or (None if plain in (*TABLES, "text") else "weight")
    if column is None:
        return 1.0
    value = row.take(column)
    if value is None and data.columns.weight:
        raise UnreadableError(f"weight ({column}) is missing")
    weight = number_or_none(value, f"weight ({column})")
    if weight == 0:
        raise UnreadableError(f"weight ({column}) is 0: nothing of the row would be trained")
    return 1.0 if weight is None else weight


# What a person preferred: two endings of one conversation, or one with a word on it.


def preferred(row: Fields, layout: str, data: Data, left: Leftovers) -> Laid:
    """A pair: the conversation with the chosen ending, and the turns that end it instead."""
    tools: tuple[Mapping[str, Any], ...] = ()
    if layout == "openai_preference":
        asked_for = row.take("input")
        if not isinstance(asked_for, dict):
            raise UnreadableError(f"input is {kind(asked_for)}, not an object with messages")
        inner = Fields(asked_for)
        prompt = conversation(inner.take("messages"), "input.messages", left)
        tools = tools_of(inner.take("tools"), left)
        left.add("input.", inner.unused())
        chosen = conversation(row.take("preferred_output"), "preferred_output", left)
        rejected = conversation(row.take("non_preferred_output"), "non_preferred_output", left)
    elif layout == "swift_pairs":
        prompt, chosen = [], conversation(row.take("messages"), "messages", left)
        rejected = conversation(row.take("rejected_messages"), "rejected_messages", left)
    elif layout == "swift_preference":
        *prompt, answer = conversation(row.take("messages"), "messages", left)
        chosen, rejected = [answer], either(row.take("rejected_response"), "assistant", "rejected_response", left)
    else:
        given = row.take(data.columns.prompt or "prompt", "question", "conversations", "messages")
        prompt, ends = ([], ()) if given is None else asked(given, left)
        if given is None and row.values.get("instruction"):
            prompt = [*earlier(row), *instructed(row)]
        chosen = ending(row.take("chosen"), prompt, ends, "chosen", left)
        rejected = ending(row.take("rejected"), prompt, ends, "rejected", left)
    if any(turn.role == "user" for turn in chosen):  # both are whole conversations
        start = common(chosen, rejected)
        if prompt and chosen[: len(prompt)] != prompt and prompt[-1] not in chosen[:start]:
            raise UnreadableError("the prompt is not what the chosen conversation begins with")
        prompt, chosen, rejected = chosen[:start], chosen[start:], rejected[start:]
    if prompt and prompt[-1].role == "assistant":
        raise UnreadableError("the prompt ends with an answer already, beside the chosen and the rejected one")
    if not prompt:
        raise UnreadableError("chosen and rejected have no prompt: neither a column of its own nor turns they share")
    if chosen == rejected or not chosen or not rejected:
        raise UnreadableError("chosen and rejected are the same")
    if len(chosen) != 1 or any(turn.role == "user" for turn in rejected):
        raise UnreadableError("chosen and rejected part before the last answer")
    return Laid([*prompt, *chosen], tools, tuple(rejected))


def common(a: Sequence[Message], b: Sequence[Message]) -> int:
    """How many turns both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def judgement(value: object, column: str) -> bool:
    """A person's word on an answer: true or false, also as 1 and 0 or as a CSV writes it."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if str(value).strip().lower() not in words:
        raise UnreadableError(f"{column} is {value!r}, neither true nor false")
    return words[str(value).strip().lower()]


def chosen_alone(example: Example) -> Example | None:
    """The row with its good answer as the one to learn; None where its only answer was judged bad."""
    return None if example.good is False else replace(example, rejected=(), good=None)
