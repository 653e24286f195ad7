"""Labels that people have read: written out to be looked at, and read back corrected and signed.

`label/to_review.jsonl` has a line a row: its id, the prompt as it was sent, the teacher's answer. A person corrects
`answer` (or sets it to null: the row is struck out), signs with `by` and `at`, and names the file in `teacher.review`.
What is signed is not asked again: in the next run it is the row's label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from workbench.data.containers import read_rows
from workbench.errors import RequestError
from workbench.recipe import Recipe, Teacher
from workbench.records import Label, Message, ToolCall
from workbench.sources import resolve
from workbench.teacher.labeller import Prompt, Rejected
from workbench.teacher.replies import MalformedError, parse

KEY, FILE = "teacher.review", "to_review.jsonl"
STRUCK = "struck_out"


@dataclass(frozen=True)
class Review:
    """A person's word on one row: the answer (None strikes the row out), who gave it, and when."""

    id: str
    answer: str | None
    by: str
    at: str
    tool_calls: tuple[ToolCall, ...] = ()

    def outcome(self) -> Label | Rejected:
        """The row's label, or why it has none."""
        if self.answer is None:
            return Rejected(self.id, STRUCK, f"by {self.by}, {self.at}")
        return Label(self.id, self.answer, f"reviewed by {self.by}, {self.at}", tool_calls=self.tool_calls)


def reviews_of(recipe: Recipe, asked_ids: Collection[str]) -> dict[str, Review]:
    """The signed rows of `teacher.review`, by id; RequestError naming file and row of one that cannot be taken."""
    teacher = recipe.teacher
    if not teacher.review:
        return {}
    path: Path = resolve(teacher.review, key=KEY)
    reviews: dict[str, Review] = {}
    unsigned = 0
    for raw in read_rows(path, "review", []):
        if raw.row is None:
            raise RequestError(f"{raw.where}: {raw.reason}", where=KEY, remedy="mend the row")
        if not str(raw.row.get("by") or "").strip():
            unsigned += 1
            continue
        review = review_in(raw.where, raw.row, teacher)
        if review.id in reviews:
            raise RequestError(f"{raw.where}: {review.id!r} is signed twice", where=KEY, remedy="leave one of them")
        if review.id not in asked_ids:
            raise RequestError(
                f"{raw.where}: no row of this recipe is called {review.id!r}", where=KEY,
                remedy="review the labels of this recipe's own rows",
            )  # fmt: skip
        reviews[review.id] = review
    if not reviews:
        raise RequestError(
            f"none of its {unsigned:,} rows is signed",
            where=KEY,
            remedy="write your name into `by` and the day into `at`",
        )
    return reviews


def review_in(where: str, row: Mapping[str, Any], teacher: Teacher) -> Review:
    """One signed row. RequestError where a part is missing, or the answer has not the shape that is wanted."""
    answer, calls = row.get("answer"), row.get("tool_calls") or ()
    if not isinstance(row.get("id"), str) or not (answer is None or isinstance(answer, str)):
        raise RequestError(f"{where}: a review needs an id and an answer that is a text or null", where=KEY)
    try:
        day = datetime.fromisoformat(str(row.get("at") or "").strip())
        made = tuple(map(call_in, calls))
    except ValueError:
        raise RequestError(
            f"{where}: `at` is no day: {row.get('at')!r}", where=KEY, remedy="write it as 2026-11-28"
        ) from None
    except (TypeError, KeyError, AttributeError):
        raise RequestError(f"{where}: tool_calls are not as in labels.jsonl", where=KEY) from None
    if answer is not None and not made and not teacher.rationale:
        try:
            answer = parse(teacher, answer).answer
        except MalformedError as error:
            raise RequestError(f"{where}: {error}", where=KEY, remedy="give the answer as the teacher has to") from None
    return Review(row["id"], answer, " ".join(str(row["by"]).split()), day.isoformat(), made)


def call_in(call: Mapping[str, Any]) -> ToolCall:
    """One call as labels.jsonl has it; arguments that are an object become its text. TypeError for others."""
    arguments = call.get("arguments", "{}")
    parts = (call["name"], json.dumps(arguments) if isinstance(arguments, dict) else arguments, call.get("id") or "")
    if not all(isinstance(part, str) for part in parts):
        raise TypeError
    return ToolCall(*parts)


def signers(reviews: Iterable[Review]) -> str:
    """Who has signed how many, in words."""
    counts = Counter(review.by for review in reviews)
    return ", ".join(f"{name} {n:,}" for name, n in counts.most_common())


def write_line(stream: TextIO, prompt: Prompt, outcome: Label | Rejected, review: Review | None) -> None:
    """One row to be looked at, as it was sent; `by` and `at` are for who reads it, or say who has."""
    struck = review is not None and review.answer is None
    line: dict[str, object] = {
        "id": prompt.id, "prompt": asked_text(prompt.messages), "answer": None if struck else outcome.answer,
        "by": review.by if review else "", "at": review.at if review else "",
        "rejected": outcome.reason if isinstance(outcome, Rejected) else None,
    }  # fmt: skip
    if isinstance(outcome, Label) and outcome.tool_calls:
        line["tool_calls"] = [{"name": c.name, "arguments": c.arguments, "id": c.id} for c in outcome.tool_calls]
    if isinstance(outcome, Label) and outcome.reasoning:
        line["reasoning"] = outcome.reasoning
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def asked_text(messages: Iterable[Message]) -> str:
    """A conversation as one text: a lone user's turn as it stands, else each with its role before it."""
    turns = list(messages)
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
