"""Files of rows become Examples: the layout found is said aloud, and a row that cannot be read is set aside."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.data.containers import Raw, UnreadableError, read_rows
from workbench.data.layouts import ANSWERS, CHOSEN, MATERIAL, choose_layout, chosen_alone, laid_out
from workbench.data.turns import ROLES, Fields, Leftovers, text_of
from workbench.files import write_whole
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
class Loaded:
    """What a file held: its examples, its bad rows, the layout it was read as, and what a user should hear.

    `material` is what can be learned of its rows: answers, pairs, judged answers or text, as `data.layouts` names them.
    """

    examples: list[Example]
    bad: list[BadRow]
    format: str
    notes: list[str]
    material: str = ANSWERS


def load(
    path: Path | Sequence[Path],
    data: Data,
    *,
    part: str = "train",
    unanswered: bool = False,
    most: int | None = None,
    seed: int = 0,
) -> Loaded:
    """Read a local file, or a folder of files or of a saved `datasets` data set, as `data` lays it out; or several.

    A folder that holds several splits gives the one called `part`. The line of a row is where it starts in
    the file, counted from 1; Parquet and `datasets` rows are counted from 1. With `unanswered`, a row without an
    answer gets the empty one: a teacher will be asked. Raises RequestError when the
    file, the layout or a mapped column is not there; a bad row never raises. Of more than `most` rows so many are
    drawn by the seed as they are read, and no others are held.
    """
    notes: list[str] = []
    paths = [path] if isinstance(path, Path) else list(path)
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files, {paths[0].name} to {paths[-1].name}"
    raws = drawn((raw for one in paths for raw in read_rows(one, part, notes, data)), most, seed, notes)
    rows = [raw.row for raw in raws if raw.row is not None]
    if unanswered:
        data = with_blanks(rows, data)
    layout = data.format if raws and not rows else choose_layout(rows, data, name)
    examples, bad, ids, left, judged_bad = [], [], Ids(), Leftovers(), 0
    for raw in raws:
        try:
            if raw.row is None:
                raise UnreadableError(raw.reason)
            example = example_of(raw.row, raw.where, layout, data, ids, left)
            good = chosen_alone(example) if data.format == CHOSEN else example
            judged_bad += good is None
            if good is not None:
                examples.append(without_blank(good) if unanswered else good)
        except UnreadableError as error:
            shown = raw.text or json.dumps(raw.row, ensure_ascii=False, default=str)
            shown = masked(shown.encode("utf-8", "backslashreplace").decode())[:RAW_CHARACTERS]
            bad.append(BadRow(raw.where, str(error), shown))
    notes.insert(0, f"{len(examples):,} rows as {layout} from {name}")
    notes += told_of(examples, left, name)
    if data.format == CHOSEN:
        bad_ones = f"; {judged_bad:,} rows whose answer was judged bad are left out" if layout == "kto" else ""
        notes.append(f"data.format={CHOSEN}: the good answers of {name} are learned, no other{bad_ones}")
    if bad:
        share = f"{len(bad) / (len(examples) + len(bad)):.1%} of its {len(examples) + len(bad):,}"
        notes.append(f"{len(bad):,} rows of {name} set aside, {share}; the first: {bad[0].where}: {bad[0].reason}")
    if ids.made:
        notes.append(f"{ids.made:,} rows of {name} have no id: a digest of the prompt stands in")
    if ids.secret:
        notes.append(f"{ids.secret:,} ids of {name} are keys or hold a password: digests stand in")
    if ids.repeats:
        notes.append(f"{ids.repeats:,} ids of {name} were taken already: -2, -3, … was added to each repeat")
    return Loaded(examples, bad, layout, notes, ANSWERS if data.format == CHOSEN else MATERIAL.get(layout, ANSWERS))


def drawn(raws: Iterable[Raw], most: int | None, seed: int, notes: list[str]) -> list[Raw]:
    """All rows, or `most` of them, each as likely as any other, in their order (algorithm R, Vitter 1985)."""
    if most is None:
        return list(raws)
    draw, kept, count = random.Random(seed), list[tuple[int, Raw]](), 0
    for count, raw in enumerate(raws, 1):
        if count <= most:
            kept.append((count, raw))
        elif (place := draw.randrange(count)) < most:
            kept[place] = (count, raw)
    if count > most:
        notes.append(f"{most:,} of {count:,} rows drawn by the seed as they were read; the others were not looked at")
    return [raw for _, raw in sorted(kept, key=lambda pair: pair[0])]


def told_of(examples: Sequence[Example], left: Leftovers, name: str) -> list[str]:
    """What of a file's rows is not used, is weighed, or was taken in another form: a line for each that there is."""
    lines = []
    if left.fields:
        lines.append(f"not used of {name}: {', '.join(left.fields)}")
    weights = {e.weight for e in examples}
    if weights - {1.0}:
        lines.append(f"the rows of {name} are weighed, from {min(weights):g} to {max(weights):g}")
    turns = sum(any(m.weight is not None for m in e.messages) for e in examples)
    if turns:
        lines.append(f"{turns:,} rows of {name} weigh their own turns: 0 is context, any other weight is trained")
    if left.written:
        lines.append(
            f"{left.written:,} texts of {name} were numbers, true or false, or objects: taken as JSON writes them"
        )
    return lines


def write_quarantine(bad: Sequence[BadRow], path: Path) -> None:
    """Write bad rows as JSON lines `{"where", "reason", "raw"}`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"where": b.where, "reason": b.reason, "raw": b.raw}, ensure_ascii=False) for b in bad)
    write_whole(path, "".join(line + "\n" for line in lines))


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
        for turns in ("messages", "conversations"):
            conversation = row.get(turns)
            if isinstance(conversation, list) and conversation and isinstance(conversation[-1], dict):
                role = str(conversation[-1].get("role") or conversation[-1].get("from"))
                if ROLES.get(role.strip().lower()) != "assistant":
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
