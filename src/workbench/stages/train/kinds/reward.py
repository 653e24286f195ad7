"""The kind grpo: the student's own answers to its rows' prompts, rewarded by the recipe's scorer.

What is rewarded is also what may be gamed. So another scorer looks at greedy answers to held-out rows beside it: when
those get worse while the held-out reward rises, the run stops, and the best checkpoint is kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import RequestError
from workbench.evaluation.scorers import planned_metric
from workbench.recipe import rewarded_by
from workbench.recipe.methods import ANSWERS, PAIRS, Kind, guard_of
from workbench.records import digest
from workbench.stages.train.kinds.on_policy import prompts_of
from workbench.stages.train.task import Start, Task, job_of

if TYPE_CHECKING:
    from workbench.training.development import Development
    from workbench.training.job import Job


def grpo(task: Task, start: Start, out: Path) -> Job:
    """Sample the student, and raise what scores above the other answers to its prompt."""
    from workbench.stages.train.guards import scores_of
    from workbench.training.grpo import on_rewards

    recipe, reward = task.recipe, task.recipe.method.reward
    rows = prompts_of(task.token_rows())
    if not rows:
        raise RequestError("there are no training rows", where="data.train")
    wanted = {example.id: example for example in task.examples}
    items = [*(wanted[row.id] for row in rows), *task.judges]

    def score(number: int, answer: str) -> float:
        return scores_of(recipe.evaluate, [items[number]], [answer])[0]

    task.event(
        "said",
        text=f"{len(rows):,} prompts; the student answers each {reward.samples} times, at temperature "
        f"{reward.temperature:g}, in at most {reward.max_new_tokens} tokens, for {planned_metric(recipe.evaluate)}",
    )
    job = job_of(task, start, out, rows)
    job = replace(job, development=guard(task), made_of=job.made_of + digest(rewarded_by(recipe)))
    return on_rewards(job, reward, score)


KINDS = [
    Kind(
        "grpo",
        grpo,
        answers=False,
        own=True,
        samples=True,
        replaces=True,
        material=frozenset({ANSWERS, PAIRS}),
        alone=True,
    )
]


def guard(task: Task) -> Development | None:
    """The held-out rows that another scorer looks at; None where the recipe wants none."""
    from workbench.stages.train.guards import scores_of
    from workbench.training.development import Development

    reward = task.recipe.method.reward
    rows, judges = task.validation[: reward.guard_rows], task.judges[: reward.guard_rows]
    if not rows:
        return None
    by = replace(task.recipe.evaluate, scorer=guard_of(task.recipe), primary=None)
    task.event("said", text=f"{by.scorer} looks at {len(rows):,} held-out answers beside the reward")

    def score(number: int, answer: str) -> float:
        return scores_of(by, [judges[number]], [answer])[0]

    return Development(
        rows, score, reward.max_new_tokens, reward.guard_drop, decides=False, key="method.reward.guard_drop",
        remedy="raise method.reward.kl, or look at what the scorer rewards",
    )  # fmt: skip
