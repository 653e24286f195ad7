"""The kinds that train on rows' answers: their own, or a teacher's text, reasons and log-probabilities."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.chat import recipe_tokenizer, render
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe.methods import ANSWERS, JUDGED, PAIRS, PLAIN, Kind
from workbench.records import Example, Message, TokenRow
from workbench.stages.train.task import Start, Task, job_of, rendered, token_line
from workbench.stored_rows import pick
from workbench.stored_tokens import StoredTokens
from workbench.teacher.wire import read_parquet

if TYPE_CHECKING:
    from workbench.training.job import Job
    from workbench.training.targets import Target

MARK = "[rationale]"  # the task's prefix in the user's text (arXiv 2305.02301 trains on [label] and [rationale])


def text(task: Task, start: Start, out: Path) -> Job:
    """The rows' answers, whoever gave them."""
    return on_rows(task, start, out, answer_rows(task))


def sft(task: Task, start: Start, out: Path) -> Job:
    """The rows' own answers; of a pair the better one, and of judged answers the good ones, how many is said."""
    known_good = isinstance(task.tokens, StoredTokens) and not task.tokens.called_bad
    learned = task.examples if known_good else good_answers(task.examples)
    if len(learned) == len(task.examples):
        return text(task, start, out)
    task.event("said", text=f"sft learns {len(learned):,} of {len(task.examples):,} rows: the others are called bad")
    judges = good_answers(task.judges)
    only = replace(task, examples=learned, tokens=None, validation=rendered(task.recipe, task.base, judges))
    return text(only, start, out)


def good_answers(examples: Sequence[Example]) -> Sequence[Example]:
    """The rows whose answers nobody called bad. RequestError where there is none."""
    good = pick(examples, [number for number, example in enumerate(examples) if example.good is not False])
    if examples and not good:
        raise RequestError(
            f"all {len(examples):,} rows are called bad: there is nothing to learn as it stands",
            where="method.learn",
            remedy="method.learn=[kto], with good ones beside them",
        )
    return good


def rationale(task: Task, start: Start, out: Path) -> Job:
    """The answers, and beside each its reason as a row of its own."""
    return on_rows(task, start, out, [*answer_rows(task), *reason_rows(task)])


def logprobs(task: Task, start: Start, out: Path) -> Job:
    """The answers, each token against what else the teacher found likely there."""
    rows = answer_rows(task)
    return replace(on_rows(task, start, out, rows), targets=stored_targets(task, rows))


def on_rows(task: Task, start: Start, out: Path, rows: Sequence[TokenRow]) -> Job:
    """Training on these rows, whose tokens are counted aloud."""
    task.event("said", text=token_line(rows, task.recipe.method.max_length))
    return job_of(task, start, out, rows)


KINDS = [
    Kind(PLAIN, sft, answers=False, own=True, material=frozenset({ANSWERS, PAIRS, JUDGED}), conversations=good_answers),
    Kind("text", text),
    Kind("rationale", rationale, reasons=True),
    Kind("logprobs", logprobs, logprobs=True),
]


def answer_rows(task: Task) -> Sequence[TokenRow]:
    """The examples as they are learned, each with its weight."""
    if isinstance(task.tokens, StoredTokens) and not task.weights:
        return task.tokens
    return [replace(row, weight=row.weight * task.weights.get(row.id, 1.0)) for row in task.token_rows()]


def reason_rows(task: Task) -> list[TokenRow]:
    """The second task (Distilling step-by-step, arXiv 2305.02301): the same prompt, marked, asks for the reason.

    The paper adds both tasks' mean losses, so reasons, which are longer, are weighed down to the answers' sum.
    """
    marked = [marked_for_reason(e, task.reasons[e.id]) for e in task.examples if e.id in task.reasons]
    if not marked:
        raise WorkbenchError("no kept answer has a reason", where="label/labels.jsonl", remedy="teacher.rationale=true")
    rows = rendered(task.recipe, task.base, marked)
    of_answers = sum(sum(row.trained) for row in task.token_rows())
    of_reasons = sum(sum(row.trained) for row in rows)
    share = task.recipe.method.teach.rationale_weight * of_answers / of_reasons
    task.event(
        "said",
        text=f"{len(rows):,} rows ask for the reason, marked {MARK}: {of_reasons:,} tokens beside {of_answers:,} of "
        f"answers, each with weight {share:.3g}",
    )
    return [replace(row, id=f"{row.id}~why", weight=share * task.weights.get(row.id, 1.0)) for row in rows]


def marked_for_reason(example: Example, reason: str) -> Example:
    """The row with its last user text marked and the reason as the answer."""
    turns = list(example.prompt)
    last = max(n for n, turn in enumerate(turns) if turn.role == "user")
    turns[last] = Message("user", f"{MARK} {turns[last].content}")
    return replace(example, messages=(*turns, Message("assistant", reason)))


def stored_targets(task: Task, rows: Sequence[TokenRow]) -> dict[str, Target]:
    """The stored log-probabilities as targets for these rows; how many go which way is said."""
    from workbench.training.targets import answer_ids, targets_of, told_ways

    recipe = task.recipe
    tokenizer = recipe_tokenizer(task.base, recipe.model, recipe.method)
    first = task.examples[0]
    labels = {
        label: answer_ids(
            render(
                replace(first, messages=(*first.prompt, Message("assistant", label))),
                tokenizer,
                train_on="last_answer",
                max_length=sys.maxsize,
            )
        )
        for label in recipe.teacher.labels
    }
    stored = read_parquet(task.run.folder / "label" / "logprobs.parquet")
    targets, ways = targets_of(rows, stored, tokenizer, alignment=recipe.method.teach.alignment, labels=labels)
    task.event("said", text=told_ways(ways))
    if not targets:
        raise WorkbenchError(
            f"none of the {len(rows):,} rows has log-probabilities that fit its answer",
            where="method.teach.alignment",
            remedy="method.teach.alignment=auto, or method.distil=[text]",
        )
    return targets
