"""Every question that one arm is asked, in one start of its engine: the test, the schema, what may be forgotten.

The general and the harmful set are put to base and student alone, with at most 32 new tokens: what tuning broke is the
difference of these two. A format is held against the student by its answers to the test and its distance (KL) instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.data.chat import few_shot
from workbench.evaluation.answer_schema import broken, schema_of
from workbench.evaluation.answers import Prediction, ask_arm, write_predictions
from workbench.evaluation.behaviours import ANSWER_TOKENS, load_general, load_harmful
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.resources import facts_of, metered, read_spent
from workbench.recipe import Recipe
from workbench.records import Answer, Example, Message
from workbench.runs import Run
from workbench.sources import resolve
from workbench.stages.common import say
from workbench.stages.evaluate.arms import Arm

FREE_ONLY = ("teacher",)  # it is asked in its own way, and paid for
BESIDE_THE_TEST = ("base", STUDENT)  # these are asked the general and the harmful set too


@dataclass(frozen=True)
class Questions:
    """What is asked: the test rows, the examples shown first, the schema of their answers, and the other sets."""

    items: Sequence[Example]
    shots: Sequence[Example]
    schema: Mapping[str, Any] | None
    general: Sequence[Example]
    harmful: Sequence[Example]


@dataclass
class Told:
    """What all arms have told, by arm; of the general and harmful sets only base and student."""

    free: dict[str, list[Prediction]] = field(default_factory=dict)
    constrained: dict[str, list[Prediction]] = field(default_factory=dict)
    general: dict[str, list[Prediction]] = field(default_factory=dict)
    harmful: dict[str, list[Prediction]] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)


def questions_of(recipe: Recipe, train: Sequence[Example], items: Sequence[Example], shots: Sequence[Example]) -> Any:
    """The questions of this recipe."""
    evaluate = recipe.evaluate
    return Questions(
        items,
        shots,
        schema_of(evaluate, [e.answer for e in train]),
        load_general(resolve(evaluate.general)) if evaluate.general else [],
        load_harmful(resolve(evaluate.harmful)) if evaluate.harmful else [],
    )


def ask_all(recipe: Recipe, run: Run, arm: Arm, asked: Questions, folder: Path, told: Told) -> None:
    """Put all of an arm's answers into `told`; the engine is only started when an answer is missing."""
    evaluate, name = recipe.evaluate, arm.name
    prompts: list[tuple[Message, ...]] = [few_shot(e.prompt, asked.shots if arm.few_shot else []) for e in asked.items]
    spent, spent_before = (place / f"{name}.resources.json" for place in (folder, kept(run)))
    with opened(arm) as ask:

        def answers(
            ask: Any, rows: Sequence[Example], texts: Any, longest: int, suffix: str, schema: Any = None
        ) -> Any:
            out, earlier = folder / f"{name}{suffix}.jsonl", kept(run) / f"{name}{suffix}.jsonl"
            return ask_arm(
                name + suffix, arm.digest, ask, rows, texts, max_new_tokens=longest, out=out,
                cached=earlier if earlier.exists() else None, schema=schema, seed=recipe.seed,
            )  # fmt: skip

        timed = metered(ask, spent, spent_before, energy=evaluate.energy)
        free = answers(timed, asked.items, prompts, evaluate.max_new_tokens, "")
        told.free[name] = free
        account = read_spent(spent, spent_before)
        told.facts[name] = facts_of(arm.bytes, account, free, recipe.launch.usd_per_hour)
        if asked.schema and name not in FREE_ONLY:
            again = broken(asked.schema, free)
            whole = list(free)
            if again:
                say(run, "evaluate", f"{name}: {len(again)} of {len(free)} answers break the schema, asked again in it")
                asked_again, texts = [asked.items[i] for i in again], [prompts[i] for i in again]
                within = answers(ask, asked_again, texts, evaluate.max_new_tokens, ".constrained", asked.schema)
                for at, prediction in zip(again, within, strict=True):
                    whole[at] = prediction
            write_predictions(whole, folder / f"{name}.constrained.jsonl")
            told.constrained[name] = whole
        if name in BESIDE_THE_TEST:
            for rows, suffix, into in (
                (asked.general, ".general", told.general), (asked.harmful, ".harmful", told.harmful)
            ):  # fmt: skip
                if rows:
                    into[name] = answers(ask, rows, [e.prompt for e in rows], ANSWER_TOKENS, suffix)


def kept(run: Run) -> Path:
    """The predictions of the last whole evaluation."""
    return run.folder / "evaluate" / "predictions"


@contextlib.contextmanager
def opened(arm: Arm) -> Iterator[Any]:
    """The arm's ask function; its engine starts with the first question and ends with the block."""
    with contextlib.ExitStack() as stack:
        running: list[Any] = []

        def ask(
            prompts: Sequence[Sequence[Message]], max_new_tokens: int, schema: Mapping[str, Any] | None = None
        ) -> Iterator[tuple[int, Answer]]:
            if not running:
                running.append(stack.enter_context(arm.engine()))
            return running[0](prompts, max_new_tokens, schema)

        yield ask
