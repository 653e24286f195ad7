"""One raw row becomes an Example as the recipe wants it, or is set aside; what came of many is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.data.containers import Raw, UnreadableError
from workbench.data.layouts import CHOSEN, Census, choose_layout
from workbench.data.row_turns import chosen_alone, laid_out
from workbench.data.turns import ROLES, Fields, Leftovers, text_of
from workbench.privacy.secrets import masked, shows_key
from workbench.recipe import Data
from workbench.records import Example, Message, digest, message_dicts

RAW_CHARACTERS = 500


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: where it starts (`file:line`), why not, and its first 500 characters."""

    where: str
    reason: str
    raw: str


@dataclass(frozen=True)
class Way:
    """How the rows of a source are read: its section, whether answers may be missing, and what it is called.

    `judged_by` are columns that an evaluation reads.
    """

    data: Data
    unanswered: bool
    name: str
    judged_by: frozenset[str] = frozenset()

    def filled(self, raws: Sequence[Raw]) -> list[dict[str, Any]]:
        """The rows that can be read, with stand-ins for answers that may be missing."""
        rows = [raw.row for raw in raws if raw.row is not None]
        if self.unanswered:
            with_blanks(rows, self.data)
        return rows

    def fitting(self) -> Way:
        """The way with the section that fits rows with stand-ins."""
        return replace(self, data=with_blanks([], self.data)) if self.unanswered else self

    def layout(self, census: Census, there: bool) -> str:
        """The layout of the rows that were counted; `there` says whether there was any, broken ones too."""
        return self.data.format if there and census.first is None else choose_layout(census, self.data, self.name)


@dataclass
class Shard:
    """What came of so many rows, beside the examples: those set aside, and what is to be said of the others."""

    raws: int = 0
    bad: list[BadRow] = field(default_factory=list)
    left: Leftovers = field(default_factory=Leftovers)
    judged_bad: int = 0
    weights: list[float] = field(default_factory=list)  # the least and the most
    weighing: int = 0
    examples: int = 0

    def example(self, raw: Raw, layout: str, way: Way, ids: Ids) -> Example | None:
        """The row as an Example; None where it is set aside or not learned, which is counted."""
        self.raws += 1
        try:
            if raw.row is None:
                raise UnreadableError(raw.reason)
            example = example_of(raw.row, raw.where, layout, way.data, ids, self.left)
        except UnreadableError as error:
            shown = raw.text or json.dumps(raw.row, ensure_ascii=False, default=str)
            shown = masked(shown.encode("utf-8", "backslashreplace").decode())[:RAW_CHARACTERS]
            self.bad.append(BadRow(raw.where, str(error), shown))
            return None
        good = chosen_alone(example) if way.data.format == CHOSEN else example
        if good is None:
            self.judged_bad += 1
            return None
        self.examples += 1
        self.weights = [min([*self.weights[:1], good.weight]), max([*self.weights[1:], good.weight])]
        self.weighing += any(m.weight is not None for m in good.messages)
        return without_blank(good) if way.unanswered else good

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Shard:
        """What `asdict` made a dictionary of."""
        bad, left = [BadRow(**row) for row in values["bad"]], Leftovers(**values["left"])
        return cls(**{**values, "bad": bad, "left": left})

    def add(self, other: Shard) -> None:
        """Count what came of further rows."""
        self.raws, self.examples = self.raws + other.raws, self.examples + other.examples
        self.bad += other.bad
        self.left.add("", list(other.left.fields))
        self.left.written += other.left.written
        for own, others in ((self.left.chats, other.left.chats), (self.left.marks, other.left.marks)):
            own.update({name: own.get(name, 0) + count for name, count in others.items()})
        for kind, (count, sign) in other.left.oddities.items():
            known = self.left.oddities.setdefault(kind, [0, sign])
            known[0] += count
        self.judged_bad, self.weighing = self.judged_bad + other.judged_bad, self.weighing + other.weighing
        both = [*self.weights, *other.weights]
        self.weights = [min(both), max(both)] if both else []


BLANK = "\u241fno answer\u241f"  # stands for an answer that a teacher will give


def example_of(row: dict[str, Any], where: str, layout: str, data: Data, ids: Ids, left: Leftovers) -> Example:
    """One row as an Example, the recipe's system prompt and instruction put in. Raises UnreadableError."""
    fields, columns = Fields(row), data.columns
    laid = laid_out(fields, layout, data, left)
    turns = list(laid.turns)
    raw_text = layout == "text"
    own_text = turns[0].content if raw_text else "\n".join(m.content for m in turns[:-1] if m.role == "user")
    given = [turns.pop(0)] if turns[0].role == "system" else system_of(fields, data) if not raw_text else []
    identity = ids.take(fields.take(columns.id or "id"), turns if raw_text else turns[:-1])
    if data.instruction and not raw_text:
        first = next(i for i, m in enumerate(turns) if m.role == "user")
        turns[first] = replace(turns[first], content=f"{data.instruction.strip()}\n\n{turns[first].content}")
    group = fields.take(columns.group) if columns.group else None
    left.add("", fields.unused())
    meta = {str(k): jsonable(v) for k, v in row.items() if k not in fields.known | fields.used}
    return Example(
        identity,
        tuple(given + turns),
        "" if group is None else str(group),
        where,
        meta,
        own_text,
        tools=laid.tools,
        weight=laid.weight,
        rejected=laid.rejected,
        good=laid.good,
    )


def system_of(row: Fields, data: Data) -> list[Message]:
    """The system prompt of a row that has no turn with one: its own column's, else the recipe's."""
    own = row.take(data.columns.system) if data.columns.system else None
    system = text_of(own, f"system ({data.columns.system})") if own else data.system
    return [Message("system", system)] if system else []


def with_blanks(rows: Sequence[dict[str, Any]], data: Data) -> Data:
    """Put a stand-in where a row has no answer, so that every layout can be read; the data section that fits it."""
    columns = data.columns
    by_column = columns.prompt or data.prompt
    if by_column and not columns.answer and not data.answer:
        data = replace(data, columns=replace(columns, answer="answer"))
    for row in rows:
        if by_column:
            if not data.answer:
                fill(row, data.columns.answer or "answer")
        elif "prompt" in row:
            fill(row, "completion")
        elif "instruction" in row:
            fill(row, "output")
        elif "query" in row:
            fill(row, "response")
        for turns in ("messages", "conversations"):
            conversation = row.get(turns)
            if isinstance(conversation, list) and conversation and isinstance(conversation[-1], dict):
                role = str(conversation[-1].get("role") or conversation[-1].get("from"))
                if ROLES.get(role.strip().lower()) != "assistant":
                    row[turns] = [*conversation, {"role": "assistant", "content": BLANK}]
        contents = row.get("contents")
        if isinstance(contents, list) and contents and model_is_silent(contents[-1]):
            row["contents"] = [*contents, {"role": "model", "parts": [{"text": BLANK}]}]
    return data


def model_is_silent(last: object) -> bool:
    """Whether the last of Gemini's turns is not the model's."""
    return isinstance(last, dict) and last.get("role") != "model"


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
        self.recent: list[str] = []  # those taken since `since` was asked
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
        self.recent.append(identity)
        return identity

    def since(self) -> dict[str, Any]:
        """The counts, and the ids that were taken since this was asked the last time."""
        recent, self.recent = self.recent, []
        return {"taken": recent, "made": self.made, "repeats": self.repeats, "secret": self.secret}

    def again(self, values: Mapping[str, Any]) -> None:
        """Take what `since` gave."""
        self.taken.update(values["taken"])
        self.made, self.repeats, self.secret = values["made"], values["repeats"], values["secret"]


def jsonable(value: object) -> object:
    """The value when strict JSON can hold it, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
