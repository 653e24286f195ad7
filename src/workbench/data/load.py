"""Files of rows become Examples: the layout found is said aloud, and a row that cannot be read is set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.data.containers import UnreadableError, kind, read_rows
from workbench.errors import RequestError, nearest
from workbench.files import write_whole
from workbench.privacy.secrets import masked, shows_key
from workbench.recipe import Columns, Data
from workbench.records import Example, Message, Role, digest, message_dicts

RAW_CHARACTERS = 500


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: where it starts (`file:line`), why not, and its first 500 characters."""

    where: str
    reason: str
    raw: str


@dataclass(frozen=True)
class Loaded:
    """What a file held: its examples, its bad rows, the layout it was read as, and what a user should hear."""

    examples: list[Example]
    bad: list[BadRow]
    format: str
    notes: list[str]


def load(path: Path, data: Data, *, part: str = "train", unanswered: bool = False) -> Loaded:
    """Read a local file, or a folder of files or of a saved `datasets` data set, as `data` lays it out.

    A folder that holds several splits gives the one called `part`. The line of a row is where it starts in
    the file, counted from 1; Parquet and `datasets` rows are counted from 1. With `unanswered`, a row without an
    answer gets the empty one: a teacher will be asked. Raises RequestError when the
    file, the layout or a mapped column is not there; a bad row never raises.
    """
    notes: list[str] = []
    raws = list(read_rows(path, part, notes))
    rows = [raw.row for raw in raws if raw.row is not None]
    if unanswered:
        data = with_blanks(rows, data)
    layout = data.format if raws and not rows else choose_layout(rows, data, path.name)
    examples, bad, ids = [], [], Ids()
    for raw in raws:
        try:
            if raw.row is None:
                raise UnreadableError(raw.reason)
            example = example_of(raw.row, raw.where, layout, data, ids)
            examples.append(without_blank(example) if unanswered else example)
        except UnreadableError as error:
            shown = raw.text or json.dumps(raw.row, ensure_ascii=False, default=str)
            shown = masked(shown.encode("utf-8", "backslashreplace").decode())[:RAW_CHARACTERS]
            bad.append(BadRow(raw.where, str(error), shown))
    notes.insert(0, f"{len(examples):,} rows as {layout} from {path.name}")
    if bad:
        notes.append(f"{len(bad):,} rows of {path.name} set aside; the first: {bad[0].where}: {bad[0].reason}")
    if ids.made:
        notes.append(f"{ids.made:,} rows of {path.name} have no id: a digest of the prompt stands in")
    if ids.secret:
        notes.append(f"{ids.secret:,} ids of {path.name} are keys or hold a password: digests stand in")
    if ids.repeats:
        notes.append(f"{ids.repeats:,} ids of {path.name} were taken already: -2, -3, … was added to each repeat")
    return Loaded(examples, bad, layout, notes)


def write_quarantine(bad: Sequence[BadRow], path: Path) -> None:
    """Write bad rows as JSON lines `{"where", "reason", "raw"}`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"where": b.where, "reason": b.reason, "raw": b.raw}, ensure_ascii=False) for b in bad)
    write_whole(path, "".join(line + "\n" for line in lines))


# A raw row becomes an Example by its layout: chat messages, prompt and completion, Alpaca, ShareGPT or columns.

LAYOUTS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
BLANK = "\u241fno answer\u241f"  # stands for an answer that a teacher will give
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip


def choose_layout(rows: Sequence[Mapping[str, Any]], data: Data, name: str) -> str:
    """The layout the recipe names, the mapping, or the one whose columns most rows have."""
    present = list(dict.fromkeys(column for row in rows for column in row))
    columns, mapped = data.columns, {"prompt": data.columns.prompt, "answer": data.columns.answer}
    listing = f"{name} has: {', '.join(present)}" if present else f"{name} has no rows"
    for role in ("prompt", "answer", "system", "id", "group"):
        wanted = getattr(columns, role)
        if wanted is not None and wanted not in present:
            raise RequestError(
                f"no column {wanted!r}; {listing}", where=f"data.columns.{role}", remedy=nearest(wanted, present)
            )
    if data.format not in ("auto", "columns"):
        if any(mapped.values()):
            raise RequestError(
                f"data.columns.prompt and .answer say nothing to the format {data.format!r}",
                where="data.format",
                remedy="remove them, or set data.format=columns",
            )
        if rows and not any(all(key in row for key in LAYOUTS[data.format]) for row in rows):
            missing = " and ".join(LAYOUTS[data.format])
            raise RequestError(f"{data.format} rows have {missing}; {listing}", where="data.format", remedy="try auto")
        return data.format
    if all(mapped.values()):
        return "columns"
    fits = {k: sum(all(key in row for key in keys) for row in rows) for k, keys in LAYOUTS.items()}
    best = max(fits, key=lambda k: fits[k])
    if data.format == "auto" and not any(mapped.values()) and fits[best]:
        return best
    prompt, answer = guess(present)
    lines = f"data:\n      columns: {{prompt: {columns.prompt or prompt}, answer: {columns.answer or answer}}}"
    lacking = [f"data.columns.{role}" for role, column in mapped.items() if column is None]
    raise RequestError(
        f"which column is which? {listing}",
        where=" and ".join(lacking),
        remedy=f"say so in the recipe (put your own columns here):\n    {lines}" if present else "give it rows",
    )


def guess(columns: Sequence[str]) -> tuple[str, str]:
    """A likely (prompt, answer) pair of columns, only to fill in the lines an error shows."""
    likely_prompts = ("prompt", "text", "question", "input", "instruction", "document", "content")
    likely_answers = ("answer", "label", "output", "response", "completion", "target", "category")
    answer = next((c for w in likely_answers for c in columns if w in c.lower()), columns[-1] if columns else "")
    rest = [c for c in columns if c != answer and c.lower() != "id"] or list(columns)
    return next((c for w in likely_prompts for c in rest if w in c.lower()), rest[0] if rest else ""), answer


def example_of(row: dict[str, Any], where: str, layout: str, data: Data, ids: Ids) -> Example:
    """One row as an Example, the recipe's system prompt and instruction put in. Raises UnreadableError."""
    turns = turns_of(row, layout, data.columns)
    own_system = row.get(data.columns.system) if data.columns.system else None
    if turns[0].role == "system":
        given = [turns.pop(0)]
    else:
        system = text_of(own_system, f"system ({data.columns.system})") if own_system else data.system
        given = [Message("system", system)] if system else []
    own_text = "\n".join(m.content for m in turns[:-1] if m.role == "user")
    identity = ids.take(row.get(data.columns.id or "id"), turns[:-1])
    if data.instruction:
        first = next(i for i, m in enumerate(turns) if m.role == "user")
        turns[first] = Message("user", f"{data.instruction.strip()}\n\n{turns[first].content}")
    group = row.get(data.columns.group) if data.columns.group else None
    used = {*LAYOUTS.get(layout, ()), *vars(data.columns).values(), "id"}
    used |= {"input", "system"} if layout == "alpaca" else {"system"} if layout == "sharegpt" else set()
    meta = {str(k): jsonable(v) for k, v in row.items() if k not in used}
    group_text = "" if group is None else str(group)
    return Example(identity, tuple(given + turns), group_text, where, meta, own_text)


def turns_of(row: Mapping[str, Any], layout: str, columns: Columns) -> list[Message]:
    """The conversation a row holds, checked: a user turn, and the assistant's answer at the end."""
    missing = [key for key in LAYOUTS.get(layout, ()) if key not in row]
    if missing:
        raise UnreadableError(f"no {' and no '.join(missing)}; it has: {', '.join(map(str, row)) or 'nothing'}")
    match layout:
        case "messages":
            turns = conversation(row["messages"], "messages")
        case "sharegpt":
            turns = system_turn(row) + conversation(row["conversations"], "conversations")
        case "prompt_completion":
            turns = either(row["prompt"], "user", "prompt") + either(row["completion"], "assistant", "completion")
        case "alpaca":
            if row.get("history"):
                raise UnreadableError("alpaca's `history` is not read: lay the row out as messages")
            prompt = text_of(row["instruction"], "instruction")
            if row.get("input") not in (None, ""):
                prompt += "\n\n" + text_of(row["input"], "input")
            answer = text_of(row["output"], "answer (output)")
            turns = [*system_turn(row), Message("user", prompt), Message("assistant", answer)]
        case _:
            prompt = text_of(row.get(columns.prompt or ""), f"prompt ({columns.prompt})")
            answer = text_of(row.get(columns.answer or ""), f"answer ({columns.answer})")
            turns = [Message("user", prompt), Message("assistant", answer)]
    if any(m.role == "system" for m in turns[1:]):
        raise UnreadableError("a system message after the first turn")
    if not any(m.role == "user" for m in turns[:-1]):
        raise UnreadableError("no user turn before the answer")
    if turns[-1].role != "assistant":
        raise UnreadableError(f"the last turn is the {turns[-1].role}'s, not the assistant's answer")
    return turns


def conversation(value: object, what: str) -> list[Message]:
    """A list of `{"role", "content"}` or `{"from", "value"}` turns; in a CSV cell, the JSON text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnreadableError(f"{what} is text that is not a JSON list of turns") from None
    if not isinstance(value, list) or not value:
        raise UnreadableError(f"{what} is {kind(value)}, not a list of turns" if value else f"{what} is empty")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise UnreadableError(f"turn {number} of {what} is {kind(turn)}, not an object")
        said_role, content = turn.get("role") or turn.get("from"), turn.get("content", turn.get("value"))
        role = ROLES.get(said_role) if isinstance(said_role, str) else None
        if role is None:
            raise UnreadableError(f"turn {number} of {what} has the role {said_role!r}, not one of {', '.join(ROLES)}")
        if role == "system" and content in (None, ""):
            continue
        last = number == len(value) and role == "assistant"
        turns.append(Message(role, text_of(content, "the answer" if last else f"turn {number} of {what}")))
    if not turns:
        raise UnreadableError(f"{what} holds only an empty system message")
    return turns


def either(value: object, role: Role, what: str) -> list[Message]:
    """A prompt or completion given as text, or as a list of turns."""
    return conversation(value, what) if isinstance(value, list) else [Message(role, text_of(value, what))]


def system_turn(row: Mapping[str, Any]) -> list[Message]:
    """The row's own `system` text, where it has one."""
    return [Message("system", text_of(row["system"], "system"))] if row.get("system") else []


def text_of(value: object, what: str) -> str:
    """The value as it is, when it is text with something in it."""
    if isinstance(value, str) and value.strip():
        return value
    if value is None or isinstance(value, str):
        raise UnreadableError(f"{what} is {'missing' if value is None else 'empty'}")
    raise UnreadableError(f"{what} is {kind(value)}, not text")


def with_blanks(rows: Sequence[dict[str, Any]], data: Data) -> Data:
    """Put a stand-in where a row has no answer, so that every layout can be read; the data section that fits it."""
    columns = data.columns
    if columns.prompt and not columns.answer:
        data = replace(data, columns=replace(columns, answer="answer"))
    for row in rows:
        if columns.prompt:
            fill(row, data.columns.answer or "answer")
        elif "prompt" in row:
            fill(row, "completion")
        elif "instruction" in row:
            fill(row, "output")
        for turns in ("messages", "conversations"):
            conversation = row.get(turns)
            if isinstance(conversation, list) and conversation and isinstance(conversation[-1], dict):
                role = conversation[-1].get("role") or conversation[-1].get("from")
                if ROLES.get(str(role)) != "assistant":
                    row[turns] = [*conversation, {"role": "assistant", "content": BLANK}]
    return data


def fill(row: dict[str, Any], column: str) -> None:
    """Put the stand-in into an empty or missing column."""
    if row.get(column) in (None, ""):
        row[column] = BLANK


def without_blank(example: Example) -> Example:
    """The example with an empty answer in place of the stand-in."""
    if example.answer != BLANK:
        return example
    return replace(example, messages=(*example.prompt, Message("assistant", "")))


class Ids:
    """Ids that are unique within one file, and the counts of those made up or changed."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.made = self.repeats = self.secret = 0

    def take(self, given: object, prompt: Sequence[Message]) -> str:
        """The row's own id, else a digest of its prompt without the recipe's texts; a repeat gets a suffix.

        An id is written into every log, so that one which is a key or a URL with a password becomes a digest of itself.
        """
        own = "" if given is None or isinstance(given, dict | list) else str(given).strip()
        if own and shows_key(own):
            self.secret += 1
            own = digest(own, 16)
        self.made += not own
        base = own or digest(message_dicts(prompt), 16)
        identity, copy = base, 1
        while identity in self.taken:
            copy += 1
            identity = f"{base}-{copy}"
        self.repeats += copy > 1
        self.taken.add(identity)
        return identity


def jsonable(value: object) -> object:
    """The value when strict JSON can hold it, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
