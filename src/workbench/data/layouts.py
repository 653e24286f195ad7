"""A raw row becomes a conversation by its layout, with its tools, its weight, and what a person preferred.

Every column is used, or left over for the caller to name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from workbench.data.chat_text import asked_turns, chat_turns, way_of, without
from workbench.data.column_texts import check_template, filled
from workbench.data.containers import UnreadableError, kind
from workbench.data.turns import (
    MEDIA,
    Fields,
    Leftovers,
    content_of,
    conversation,
    hermes_tools,
    is_empty,
    named_results,
    number_or_none,
    parted,
    text_of,
    tools_of,
    written,
)
from workbench.data.vendor_turns import declared, geminis
from workbench.errors import RequestError, nearest
from workbench.recipe import Columns, Data
from workbench.records import Example, Message, Role

# What a layout's rows must have. Of two that fit equally many rows the first here is taken: the one that says more.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "swift_preference": ("messages", "rejected_response"),
    "preference": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "swift_kto": ("messages", "label"),
    "alpaca_kto": ("instruction", "output", "kto_tag"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "gemini": ("contents",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "query_response": ("query", "response"),
    "chat_text": ("text",),
}
# The layouts that one `data.format` covers, and the column with a person's word on the answer.
FORMS = {
    "preference": ("preference", "openai_preference", "swift_preference"), "kto": ("kto", "swift_kto", "alpaca_kto")
}  # fmt: skip
JUDGING = {"kto": "label", "swift_kto": "label", "alpaca_kto": "kto_tag"}
ONE_COLUMN = ("text", "chat_text")  # `text`, or the column that the recipe assigns as the answer
TABLES = ("columns", "alpaca", "alpaca_kto", "query_response")  # a column each for prompt and answer
# What can be learned of a layout's rows; of any other, its answers.
ANSWERS, PAIRS, JUDGED, TEXT = "answers", "pairs", "judged answers", "text"
MATERIAL = dict.fromkeys(FORMS["preference"], PAIRS) | dict.fromkeys(FORMS["kto"], JUDGED) | {"text": TEXT}
CHOSEN = "chosen"  # the format under which of pairs and judged answers the good ones are learned, and no other
RENDERED = ("<|im_start|>", "<|start_header_id|>", "[INST]", "<start_of_turn>", "<|start|>", "### Response:")


@dataclass(frozen=True)
class Laid:
    """What a row holds: its conversation, and all else of it that is learned from."""

    turns: list[Message]
    tools: tuple[Mapping[str, Any], ...] = ()
    rejected: tuple[Message, ...] = ()
    good: bool | None = None
    weight: float = 1.0


class Census:
    """What is known of the columns of a file's rows: how many rows each layout fits, which columns there are."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.columns: dict[str, None] = {}
        self.fits = dict.fromkeys(LAYOUTS, 0)
        self.whole = set[str]()  # the layouts whose columns some row has
        self.first: Mapping[str, Any] | None = None
        self.rows = 0
        self.add(rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count further rows."""
        if self.first is None and rows:
            self.first = rows[0]
        for row in rows:
            self.columns.update(dict.fromkeys(row))
        for layout in LAYOUTS:
            if layout != "chat_text" or self.fits[layout] == self.rows:  # of those every row must be a chat
                self.fits[layout] += sum(fits_layout(row, layout) for row in rows)
            if layout not in self.whole and any(all(key in row for key in LAYOUTS[layout]) for row in rows):
                self.whole.add(layout)
        self.rows += len(rows)

    def likely(self) -> str | None:
        """The layout that most rows have; None where none has any, or what might be chats have answers beside them."""
        best = max(self.fits, key=lambda layout: self.fits[layout])
        if best == "chat_text" and (self.fits[best] < self.rows or beside_text(self.columns)):
            return None
        return best if self.fits[best] else None


def choose_layout(census: Census, data: Data, name: str) -> str:
    """The layout the recipe names, the mapping, or the one whose columns most rows have."""
    present, fits, rows = list(census.columns), census.fits, census.first is not None
    columns = data.columns
    mapped = {"prompt": columns.prompt or data.prompt, "answer": columns.answer or data.answer}
    listing = f"{name} has: {', '.join(present)}" if present else f"{name} has no rows"
    for role in ("prompt", "answer", "system", "id", "group", "weight", "split"):
        wanted = getattr(columns, role)
        if wanted is not None and wanted not in present:
            raise RequestError(
                f"no column {wanted!r}; {listing}", where=f"data.columns.{role}", remedy=nearest(wanted, present)
            )
    for role in ("prompt", "answer"):
        check_template(getattr(data, role), getattr(columns, role), present, role, listing)
    if data.format in ONE_COLUMN:
        text_column(data, present, listing)
        return data.format
    if data.format == CHOSEN:
        wanted = max(MATERIAL.keys() & LAYOUTS.keys(), key=lambda layout: fits[layout])
        if rows and not fits[wanted]:
            raise RequestError(
                f"rows with a chosen answer have chosen and rejected, or prompt, completion and label; {listing}",
                where="data.format",
                remedy="try auto",
            )
        return wanted
    if data.format not in ("auto", "columns"):
        if any(mapped.values()):
            raise RequestError(
                f"data.columns.prompt and .answer say nothing to the format {data.format!r}",
                where="data.format",
                remedy="remove them, or set data.format=columns",
            )
        wanted = max(FORMS.get(data.format, (data.format,)), key=lambda form: (fits[form], form in census.whole))
        if rows and wanted not in census.whole:
            missing = " and ".join(LAYOUTS[wanted])
            raise RequestError(f"{wanted} rows have {missing}; {listing}", where="data.format", remedy="try auto")
        return wanted
    if all(mapped.values()):
        return "columns"
    likely = census.likely()
    if data.format == "auto" and not any(mapped.values()) and likely:
        return likely
    raise RequestError(
        f"which column is which? {listing}",
        where=" and ".join(f"data.columns.{role}" for role, column in mapped.items() if column is None),
        remedy=which_column(census.first or {}, present, columns),
    )


def fits_layout(row: Mapping[str, Any], layout: str) -> bool:
    """Whether a row has a layout's columns; a word on the answer is true or false, else it is anybody's column."""
    word = JUDGING.get(layout)
    if layout == "chat_text":
        return way_of(row.get("text")) is not None
    return all(key in row for key in LAYOUTS[layout]) and (word is None or isinstance(row[word], bool))


def which_column(row: Mapping[str, Any], present: Sequence[str], columns: Columns) -> str:
    """What to write into the recipe: the likely columns, or what can be done with the only one there is."""
    if not present:
        return "give it rows"
    texts = [name for name in present if name.lower() != "id"]
    if len(texts) == 1 and columns.prompt is None and columns.answer is None:
        column = texts[0]
        begins = str(row.get(column))
        if way := way_of(begins):
            named = "" if column == "text" else f" data.columns.answer={column}"
            return f"{column} holds chats as {way.name} writes them: data.format=chat_text{named} reads their turns"
        mark = next((mark for mark in RENDERED if mark in begins), None)
        if mark is not None:
            return (
                f"{column} holds whole chats as one model's template writes them ({mark}): give their turns as "
                "`messages`, and the model's own template writes them"
            )
        if isinstance(row.get(column), dict | list):
            return (
                f"{column} is the only column, and holds {kind(row[column])}: give its texts as a prompt and a "
                "completion, or the turns as `messages`, each with its role and content"
            )
        return (
            f"{column} is the only column, and no text is its own answer: add a column with the answers; to learn "
            "the texts themselves (continued pretraining) set data.format=text"
        )
    prompt, answer, beside = guess(present)
    prompt, answer = columns.prompt or prompt, columns.answer or answer
    lines = [f"columns: {{prompt: {prompt}, answer: {answer}}}"]
    if beside and columns.prompt is None:
        lines = [f'prompt: "{{{beside}}}\\n\\n{{{prompt}}}"', f"columns: {{answer: {answer}}}"]
    shown = "".join(f"\n      {line}" for line in lines)
    note = ""
    if isinstance(row.get(answer), dict | list):
        note = f"\n    {answer} holds {kind(row[answer])}: as an answer it is learned as JSON writes it"
    if chat := next((name for name in present if way_of(row.get(name))), None):
        named = "" if chat == "text" else f" data.columns.answer={chat}"
        note += f"\n    {chat} holds whole chats: data.format=chat_text{named} learns their answers"
    return f"say so in the recipe (put your own columns here):\n    data:{shown}{note}"


LIKELY_ANSWERS = ("answer", "label", "output", "response", "completion", "target", "category")


def beside_text(columns: Iterable[str]) -> bool:
    """Whether a column beside `text` is called as answers are."""
    return any(word in name.lower() for name in columns if name != "text" for word in LIKELY_ANSWERS)


def guess(columns: Sequence[str]) -> tuple[str, str, str]:
    """A likely prompt, answer, and text beside the prompt ('' for none), only to fill in the lines an error shows."""
    likely_prompts = ("prompt", "question", "instruction", "query", "text", "input", "document", "content")
    besides = ("context", "passage", "document", "article", "background", "input")
    answer = next((c for w in LIKELY_ANSWERS for c in columns if w in c.lower()), columns[-1] if columns else "")
    rest = [c for c in columns if c != answer and c.lower() != "id"] or list(columns)
    # A column of the very name goes before one whose name only holds it: `text` before `context`.
    named = [c for w in likely_prompts for c in rest if w == c.lower()]
    named += [c for w in likely_prompts for c in rest if w in c.lower() and c.lower() not in besides]
    prompt = next(iter(named), rest[0] if rest else "")
    return prompt, answer, next((c for w in besides for c in rest if c.lower() == w and c != prompt), "")


def text_column(data: Data, present: Sequence[str], listing: str) -> str:
    """The column of raw text, or of chats: the one that the recipe assigns, else `text`."""
    column = data.columns.answer or "text"
    if present and column not in present:
        raise RequestError(
            f"no column {column!r} with {'raw text' if data.format == 'text' else 'chats'}; {listing}",
            where="data.format",
            remedy=f"data.columns.answer={present[0]} names it",
        )
    return column


def laid_out(row: Fields, layout: str, data: Data, left: Leftovers) -> Laid:
    """The conversation a row holds, checked: a user's turn, and the assistant's answer at the end.

    Raises UnreadableError with the reason why a row cannot be read.
    """
    values = row.values
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
        turns = turns_of(row, layout, data, left)
        word = JUDGING.get(layout)
        good = None if word is None else judgement(row.take(word), word)
        laid = Laid(named_results(turns), good=good)
    if layout not in (*TABLES, "openai_preference"):
        given = row.take("tools", "functions")
        laid = replace(laid, tools=tools_of(declared(given) if layout == "gemini" else given))
    if layout != "columns" and laid.turns[0].role != "system":
        laid = replace(laid, turns=system_turn(row) + laid.turns)
    laid = with_hermes_tools(laid)
    check_turns(laid.turns)
    return replace(laid, weight=row_weight(row, layout, data))


def turns_of(row: Fields, layout: str, data: Data, left: Leftovers) -> list[Message]:
    """The turns of a row that has one answer."""
    columns = data.columns
    match layout:
        case "messages" | "swift_kto":
            return conversation(row.take("messages"), "messages", left)
        case "sharegpt":
            return conversation(row.take("conversations"), "conversations", left)
        case "chat_text":
            return chat_in(text_of(row.take(columns.answer or "text"), "the chat"), "the chat", left)
        case "gemini":
            turns, unused = geminis(row.take("contents"), "contents")
            left.add("contents[].parts[].", unused)
            return conversation(turns, "contents", left)
        case "prompt_completion" | "kto":
            prompt, ends = asked(row.take("prompt"), left)
            return prompt + either(closed(row.take("completion"), ends), "assistant", "completion", left)
        case "alpaca" | "alpaca_kto":
            answer = written(row.take("output"), "answer (output)", left)
            return [*earlier(row), *instructed(row), assistant(answer, left)]
        case "query_response":
            question = Message("user", text_of(row.take("query"), "query"))
            return [*earlier(row), question, assistant(written(row.take("response"), "answer (response)", left), left)]
        case _:
            prompt_text = cell(row, data.prompt, columns.prompt, "prompt", left)
            answer = cell(row, data.answer, columns.answer, "answer", left)
            return [Message("user", prompt_text), assistant(answer, left)]


def instructed(row: Fields) -> list[Message]:
    """Alpaca's prompt: the instruction, and the input below it where there is one."""
    text = text_of(row.take("instruction"), "instruction")
    more = row.take("input")
    return [Message("user", text if more is None else text + "\n\n" + text_of(more, "input"))]


def earlier(row: Fields) -> list[Message]:
    """The turns of `history`, a list of pairs of a question and its answer, which come before the row's own."""
    turns = []
    for number, pair in enumerate(row.take("history") or [], 1):
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
    if not answer.strip():
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
    if not any(m.role == "user" for m in turns[:-1]):
        raise UnreadableError("no user turn before the answer")
    if turns[-1].role != "assistant":
        raise UnreadableError(f"the last turn is the {turns[-1].role}'s, not the assistant's answer")
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
    column = data.columns.weight or (None if layout in (*TABLES, "text") else "weight")
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
        tools = tools_of(inner.take("tools"))
        left.add("input.", inner.unused())
        chosen = conversation(row.take("preferred_output"), "preferred_output", left)
        rejected = conversation(row.take("non_preferred_output"), "non_preferred_output", left)
    elif layout == "swift_preference":
        *prompt, answer = conversation(row.take("messages"), "messages", left)
        chosen, rejected = [answer], either(row.take("rejected_response"), "assistant", "rejected_response", left)
    else:
        given = row.take(data.columns.prompt or "prompt", "question", "conversations")
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
