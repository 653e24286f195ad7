"""What a file of rows seems to be: which column is asked, which the answer, and how such answers are scored."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.data.containers import read_rows
from workbench.data.layouts import guess
from workbench.data.load import load
from workbench.errors import RequestError, nearest
from workbench.recipe import Data

MOST_LABELS, LONGEST_LABEL, LABEL_ROWS = 20, 60, 3  # distinct answers, characters, rows an answer on average
JSON_SHARE, FIELD_SHARE, LONGEST_VALUE = 0.9, 0.5, 60  # of the rows, of the rows, characters


@dataclass(frozen=True)
class Look:
    """What a file of rows seems to be: how it is laid out, how it is scored, and how long its rows are."""

    rows: int
    layout: str
    columns: dict[str, str]
    scorer: str
    labels: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    longest_row: int = 0  # characters
    longest_answer: int = 0


def looked_at(path: Path) -> Look:
    """What a file holds. RequestError where there is no such file or nothing in it can be read."""
    if not path.exists():
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise RequestError(f"no such file: {path}", where="data", remedy=nearest(path.name, near))
    rows = [raw.row for raw in read_rows(path, "train", []) if raw.row]
    if not rows:
        raise RequestError("there are no rows in it", where=str(path), remedy="a table with a header, or JSON lines")
    present = list(dict.fromkeys(str(column) for row in rows for column in row))
    columns: dict[str, str] = {}
    try:
        loaded = load(path, Data(train=str(path)))
        layout = loaded.format
        pairs = [("\n".join(turn.content for turn in e.prompt), e.answer) for e in loaded.examples]
    except RequestError as error:
        # No layout that is known: a table, unless what rows hold is known not to be a text and its answer.
        if error.where.startswith("data.columns.") and "columns: {" not in error.remedy and len(present) > 1:
            raise
        columns, layout = columns_of(rows, present, path), "columns"
        pairs = [(str(row.get(columns["prompt"]) or ""), text_of(row.get(columns["answer"]))) for row in rows]
    pairs = [(prompt, answer) for prompt, answer in pairs if prompt.strip() and answer.strip()]
    if not pairs:
        raise RequestError(
            "no row has a text and an answer", where=str(path), remedy="configs/data/README.md has the layouts"
        )
    scorer, labels, fields = scorer_of([answer for _, answer in pairs])
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    return Look(len(rows), layout, columns, scorer, labels, fields, max(lengths), max(len(a) for _, a in pairs))


def text_of(value: object) -> str:
    """An answer as text; a label that is a number is its digits."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def columns_of(rows: Sequence[Mapping[str, Any]], present: Sequence[str], path: Path) -> dict[str, str]:
    """Which column is asked and which is the answer: by their names, else by length and how few values there are."""
    if len(present) < 2:
        remedy = "two columns at least: a text, and its answer"
        raise RequestError(f"there is one column only: {', '.join(present)}", where=str(path), remedy=remedy)
    values = {column: [text_of(row.get(column)) for row in rows] for column in present}
    mean = {column: sum(map(len, texts)) / len(texts) for column, texts in values.items()}
    distinct = {column: len(set(texts)) for column, texts in values.items()}
    prompt, answer, _ = guess(present)
    named = [word for word in ("answer", "label", "output", "response", "completion", "target", "category")
             if word in answer.lower()]  # fmt: skip
    if not named:  # no name tells: the answer repeats itself, and the text is long
        prompt = max(present, key=lambda column: mean[column])
        rest = [c for c in present if c != prompt and 1 < distinct[c] < len(rows) and not c.lower().endswith("id")]
        answer = min(rest, key=lambda c: distinct[c]) if rest else next(c for c in present if c != prompt)
    elif mean[prompt] < max(mean[c] for c in present if c != answer) / 4:
        prompt = max((c for c in present if c != answer), key=lambda column: mean[column])
    return {"prompt": prompt, "answer": answer}


def scorer_of(answers: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(scorer, labels, fields): labels where few short answers repeat, fields where answers are objects, else text."""
    objects = [value for answer in answers if isinstance(value := parsed(answer), dict)]
    if len(objects) >= JSON_SHARE * len(answers):
        counts = Counter(key for value in objects for key, v in value.items() if len(text_of(v)) <= LONGEST_VALUE)
        fields = [key for key, count in counts.items() if count >= FIELD_SHARE * len(objects)]
        if fields:
            return "json_fields", [], fields
    counts = Counter(answer.strip() for answer in answers)
    short = max(map(len, counts)) <= LONGEST_LABEL
    if short and len(counts) <= MOST_LABELS and len(answers) >= LABEL_ROWS * len(counts) and len(counts) > 1:
        return "label", [label for label, _ in counts.most_common()], []
    return "generation", [], []


def parsed(text: str) -> object:
    """The JSON value of a text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def quoted(text: str) -> str:
    """A text as YAML inside a flow mapping would have it: plain where it may be."""
    plain = re.fullmatch(r"[A-Za-z_][\w./:-]*", text) and text.lower() not in (
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
        "null",
    )
    return text if plain and not text.endswith(":") else json.dumps(text, ensure_ascii=False)
