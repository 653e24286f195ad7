"""Rows from documents: the teacher asks about each passage and answers with a quote, which must stand there.

What it makes lies in `label/rows.jsonl`, and is then split, trained on and tested on as any rows are: by document, so
that a student is judged on documents that it has not learned from.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.privacy.redact import redact, restore
from workbench.recipe import Columns, Data, Teacher
from workbench.records import Label, Message
from workbench.sources import resolve
from workbench.teacher.labeller import Prompt, Rejected
from workbench.teacher.passages import Passage, read_passages

ROWS = "rows.jsonl"
FIELDS: dict[str, list[str]] = {"question": [], "answer": [], "quote": []}
REPEATS = "repeats_a_question"
SHORTEST_QUOTE = 12  # characters: fewer stand in any text
SYSTEM = """You write questions for an examination, each from one passage of a document.
Write one question that the passage answers, and its short answer. The question must be clear to one who has not been \
told which sentence it is about. The answer must follow from the passage alone. In `quote`, copy the words of the \
passage that show the answer, letter by letter: nothing left out, nothing added."""


@dataclass(frozen=True)
class Grounds:
    """The passage behind each prompt, by the prompt's id, as it was sent and as it stands in its document."""

    passages: Mapping[str, Passage]
    sent: Mapping[str, str]

    def fault(self, prompt: Prompt, answer: str) -> str:
        """Why an answer is not grounded in its passage; '' where it is."""
        if prompt.id not in self.sent:  # a batch's line, looked at again when its row is labelled
            return ""
        made = json.loads(answer)
        for name in FIELDS:
            if not made[name].strip():
                return f"{name} is empty"
        quote = bare(made["quote"])
        if len(quote) < SHORTEST_QUOTE:
            return f"the quote is too short to show anything: {quote!r}"
        if quote not in bare(self.sent[prompt.id]):
            return "the quote does not stand in the passage, word for word"
        return ""


def bare(text: str) -> str:
    """A text with its white space as single blanks, without the quotation marks that may surround it."""
    return " ".join(text.split()).strip("\"“”„«»'")


def asking(teacher: Teacher) -> Teacher:
    """The teacher as it is asked about passages: for a question, an answer and a quote."""
    return replace(teacher, fields=FIELDS, labels=[], rationale=False, samples=1, gold_scorer=None)


def passages_of(teacher: Teacher, seed: int) -> tuple[list[Passage], list[str]]:
    """The passages that are asked about, drawn down to `teacher.limit` by the seed, and what a user should hear."""
    folder: Path = resolve(teacher.documents or "", key="teacher.documents")
    passages, notes = read_passages(folder, teacher.passage_chars)
    if teacher.limit is not None and teacher.limit < len(passages):
        notes.append(f"teacher.limit keeps {teacher.limit:,} of {len(passages):,} passages, drawn by the seed")
        drawn = sorted(random.Random(seed).sample(range(len(passages)), teacher.limit))
        passages = [passages[i] for i in drawn]
    return passages, notes


def prompts_of(teacher: Teacher, passages: Sequence[Passage], privacy: str, rule: str) -> tuple[list[Prompt], Grounds]:
    """A prompt for each question that is wanted of each passage, about sentences spread over it, and their grounds."""
    prompts, behind, sent = [], {}, {}
    for passage in passages:
        text = passage.text
        originals: Mapping[str, str] = {}
        counts: Mapping[str, int] = {}
        if rule == "redacted":
            (text,), originals, counts = redact([passage.text])
        sentences = replace(passage, text=text).sentences or [text]
        wanted = min(teacher.questions, len(sentences))
        for number in range(wanted):
            about = sentences[number * len(sentences) // wanted]
            body = f"<passage>\n{text}\n</passage>\n\nAsk about this sentence of it:\n{about}"
            identity = f"{passage.id}?{number + 1}"
            messages = (Message("system", SYSTEM), Message("user", body))
            prompts.append(Prompt(identity, messages, privacy, counts, originals))
            behind[identity], sent[identity] = passage, text
    return prompts, Grounds(behind, sent)


def row_of(label: Label, prompt: Prompt, passage: Passage, with_passage: bool) -> dict[str, Any]:
    """A label as a row, the texts behind placeholders put back."""
    made = {name: restore(text, prompt.originals).strip() for name, text in json.loads(label.answer).items()}
    shown = f"{passage.text}\n\n{made['question']}" if with_passage else made["question"]
    return {"id": label.id, "prompt": shown, "document": passage.document, **made, "quote": bare(made["quote"])}


async def written_rows(
    outcomes: AsyncIterator[Label | Rejected],
    prompts: Sequence[Prompt],
    grounds: Grounds,
    folder: Path,
    whole: bool,
    count: Callable[[Label | Rejected], None],
) -> tuple[int, Counter[str]]:
    """Write `rows.jsonl` and `rejected.jsonl`; (rows kept, those set aside by reason). A repeated question is one.

    With `whole` a row shows the passage before the question.
    """
    kept, reasons, seen = 0, Counter[str](), set[str]()
    by_id = {prompt.id: prompt for prompt in prompts}
    with (folder / ROWS).open("w", encoding="utf-8") as rows, (folder / "rejected.jsonl").open("w") as rejected:
        async for outcome in outcomes:
            prompt = by_id[outcome.id]
            count(outcome)
            if isinstance(outcome, Label):
                row = row_of(outcome, prompt, grounds.passages[prompt.id], whole)
                question = " ".join(row["question"].lower().split())
                if question not in seen:
                    seen.add(question)
                    kept += 1
                    rows.write(json.dumps(row, ensure_ascii=False) + "\n")
                    continue
                outcome = Rejected(
                    outcome.id, REPEATS, "it was asked before, of this passage or another", outcome.answer
                )
            reasons[outcome.reason] += 1
            rejected.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
    return kept, reasons


def data_of(data: Data, rows: Path) -> Data:
    """The data section with the rows that a teacher has made as its source, which are parted by document."""
    columns = Columns(prompt="prompt", answer="answer", id="id", group="document")
    return replace(data, train=f"file:{rows}", format="columns", columns=columns)
