"""The kinds that learn which answer is the better one: dpo and orpo from pairs, kto from answers called good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.chat import recipe_tokenizer, render_all
from workbench.errors import RequestError
from workbench.recipe.methods import JUDGED, PAIRS, Kind
from workbench.records import Example, TokenRow
from workbench.stages.train.task import Start, Task, group_of, job_of

if TYPE_CHECKING:
    from workbench.training.dpo import Pair
    from workbench.training.job import Job
    from workbench.training.kto import Judged

LOSES = "~rejected"  # ends the id of a pair's other half, where the two are rows of their own
JUDGES = "validation:"  # begins the ids of the rows that judge: one file may repeat another's


def dpo(task: Task, start: Start, out: Path) -> Job:
    """The chosen answers against the rejected ones, held to where the student starts."""
    from workbench.training.dpo import on_pairs

    made, judging = pairs_of(task, task.examples), pairs_of(task, task.judges, JUDGES)
    task.event("said", text=line_of(made, judging))
    groups = groups_of(task, [pair.chosen for pair in judging])
    return on_pairs(job_of(task, start, out, [], groups), made, judging, task.recipe.method.prefer.beta)


def orpo(task: Task, start: Start, out: Path) -> Job:
    """The chosen answers as text, and their odds against the rejected ones'."""
    from workbench.training.orpo import on_odds

    made, judging = pairs_of(task, task.examples), pairs_of(task, task.judges, JUDGES)
    task.event("said", text=line_of(made, judging))
    groups = groups_of(task, [pair.chosen for pair in judging])
    return on_odds(job_of(task, start, out, [], groups), made, judging, task.recipe.method.prefer.beta)


def kto(task: Task, start: Start, out: Path) -> Job:
    """Answers that are called good or bad; a pair is one of each."""
    from workbench.training.kto import on_judged

    made, judging = judged_of(task, task.examples), judged_of(task, task.judges, JUDGES)
    good = sum(one.good for one in made)
    task.event("said", text=f"{good:,} rows are called good, {len(made) - good:,} bad; {len(judging):,} rows judge")
    groups = groups_of(task, [one.row for one in judging])
    return on_judged(job_of(task, start, out, [], groups), made, judging, task.recipe.method.prefer)


def both_ends(examples: Sequence[Example]) -> list[Example]:
    """Every answer as a row of its own: a pair's rejected one follows the chosen one."""
    return [row for example in examples for row in (example, *([rejected(example)] if example.rejected else []))]


KINDS = [
    Kind("dpo", dpo, answers=False, own=True, material=frozenset({PAIRS}), conversations=both_ends, alone=True),
    Kind("orpo", orpo, answers=False, own=True, material=frozenset({PAIRS}), conversations=both_ends, alone=True),
    Kind("kto", kto, answers=False, own=True, material=frozenset({JUDGED, PAIRS}), conversations=both_ends, alone=True),
]


def rejected(example: Example) -> Example:
    """The row as it ends otherwise, called bad."""
    return replace(
        example, id=example.id + LOSES, messages=(*example.prompt, *example.rejected), rejected=(), good=False
    )


def pairs_of(task: Task, examples: Sequence[Example], mark: str = "") -> list[Pair]:
    """Each row's two answers as tokens; `mark` begins their ids.

    A pair of which one half is too long is left out, where `method.too_long` is drop.
    """
    from workbench.training.dpo import Pair

    for example in examples:
        if not example.rejected:
            raise RequestError(
                "the row has no rejected answer, and a pair has two", where=example.where or example.id,
                remedy="give it one, or method.learn=[kto] where rows say good or bad",
            )  # fmt: skip
    halves = tokens_of(task, both_ends(examples))
    made = []
    for example in examples:
        chosen, other = halves.get(example.id), halves.get(example.id + LOSES)
        if chosen and other:
            name = mark + example.id
            made.append(Pair(replace(chosen, id=name), replace(other, id=name, weight=chosen.weight)))
    return made


def judged_of(task: Task, examples: Sequence[Example], mark: str = "") -> list[Judged]:
    """Each row with the word on it; a pair becomes a good row and a bad one."""
    from workbench.training.kto import Judged

    rows = []
    for example in both_ends(examples):
        good = True if example.rejected else example.good
        if good is None:
            raise RequestError(
                "the row does not say whether its answer is good or bad", where=example.where or example.id,
                remedy="give it a label, or method.learn=[sft] where every answer is good",
            )  # fmt: skip
        rows.append((example, good))
    tokens = tokens_of(task, [example for example, _ in rows])
    kept = [(tokens[example.id], good) for example, good in rows if example.id in tokens]
    return [Judged(replace(row, id=mark + row.id), good) for row, good in kept]


def tokens_of(task: Task, examples: Sequence[Example]) -> dict[str, TokenRow]:
    """The rows as the student reads them, by id, with their last answer trained: earlier turns are in both halves."""
    method = replace(task.recipe.method, train_on="last_answer")
    tokenizer = recipe_tokenizer(task.base, task.recipe.model, task.recipe.method)
    return {row.id: row for row in render_all(examples, tokenizer, method)}


def groups_of(task: Task, rows: Sequence[TokenRow]) -> list[str]:
    """What ties the rows that judge together: near copies, and a pair's two halves."""
    groups = {JUDGES + example.id: group_of(example) for example in task.judges}
    return [groups[row.id.removesuffix(LOSES)] for row in rows]


def line_of(made: Sequence[Pair], judging: Sequence[Pair]) -> str:
    """One line with the counts."""
    tokens = sum(len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in made)
    return f"{len(made):,} pairs with {tokens:,} tokens; {len(judging):,} pairs judge"
