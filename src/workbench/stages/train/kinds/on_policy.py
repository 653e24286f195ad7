"""The kind on_policy: the student's own answers, scored token by token by a teacher whose weights are here.

The rows' prompts are all that is read of them. Whether the teacher has the student's vocabulary or another decides how
the two are compared, and is said before anything is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.chat import load_tokenizer, prompt_ids, render
from workbench.errors import RequestError
from workbench.recipe.methods import Kind
from workbench.records import TokenRow
from workbench.stages.train.task import Start, Task, job_of, rendered

if TYPE_CHECKING:
    from workbench.training.job import Job
    from workbench.training.own_answers import OtherWords


def job(task: Task, start: Start, out: Path) -> Job:
    """Sample the student and train it on what the teacher says of its answers."""
    from workbench.stages.train.guards import weights_of
    from workbench.training.own_answers import on_own_answers

    teach, weights = task.recipe.method.teach, weights_of(task.recipe, task.run)
    other = other_words(task, weights)
    rows = prompts_of(task.token_rows())
    if not rows:
        raise RequestError("there are no training rows", where="data.train")
    task.event(
        "said",
        text=f"{len(rows):,} prompts; the student answers each {teach.samples} times an epoch, at temperature "
        f"{teach.sample_temperature:g}, in at most {teach.max_new_tokens} tokens",
    )
    return on_own_answers(job_of(task, start, out, rows), weights, other)


KINDS = [Kind("on_policy", job, answers=False, weights=True, samples=True, replaces=True, alone=True)]


def prompts_of(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows, each prompt once: a teacher that is served as well may have given several answers to it."""
    return list({row.input_ids[: row.answer_start]: row for row in reversed(rows)}.values())[::-1]


def other_words(task: Task, weights: Path) -> OtherWords | None:
    """None for a teacher with the student's vocabulary, else what GOLD needs; which of the two it is, is said."""
    from workbench.training.own_answers import OtherWords, beta_of, shared_words, tokenizer_of

    recipe, own = task.recipe, tokenizer_of(task.base).get_vocab()
    teach = recipe.method.teach
    if tokenizer_of(weights).get_vocab() == own:
        task.event(
            "said",
            text=f"the teacher has the student's own vocabulary ({len(own):,} tokens): {teach.divergence} at every "
            "token of the student's answers",
        )
        return None
    beta, (shared, words) = beta_of(teach), shared_words(task.base, weights)
    task.event(
        "said",
        text=f"the teacher's vocabulary is another, {shared:,} of its {words:,} tokens are the student's too: GOLD "
        f"(trl.experimental.gold, beta {beta:g}) aligns the answers by their bytes",
    )
    examples = [*task.examples, *task.judges]
    tokenizer = load_tokenizer(weights, None)
    ours = [row.input_ids[: row.answer_start] for row in rendered(recipe, task.base, examples)]
    theirs = [tuple(prompt_ids(example.prompt, tokenizer)) for example in examples]
    answered = render(examples[0], tokenizer, train_on="last_answer", max_length=sys.maxsize)
    return OtherWords(dict(zip(ours, theirs, strict=True)), answered.input_ids[-1])
