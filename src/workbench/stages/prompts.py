"""The prompts of a recipe with a teacher: which rows are asked, in what form they leave, and the labels read back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.data import prepare
from workbench.data.prepare import Asked, Splits, describe
from workbench.evaluation.scorers import score
from workbench.files import read_json
from workbench.privacy.redact import redact, restore
from workbench.recipe import Recipe
from workbench.records import Example, Message, other_id
from workbench.runs import Run
from workbench.stages.common import row_contents
from workbench.teacher.egress import rule_for
from workbench.teacher.labeller import Prompt


@dataclass(frozen=True)
class Lessons:
    """The recipe's rows as they are learned.

    `splits.train` holds a row an answer (`records.other_id`); `weights` and `reasons` are told by the rows' ids.
    `development` are the gold validation rows, each with what the teacher said to it ("" where it said nothing).
    """

    splits: Splits
    weights: Mapping[str, float]
    reasons: Mapping[str, str]
    development: list[tuple[Example, str]]


def gather(recipe: Recipe, run: Run) -> Asked:
    """The rows that the teacher is asked, of the bytes that this run is for."""
    teacher, method = recipe.teacher, recipe.method
    contents = row_contents(recipe, run)
    return prepare.gather(recipe.data, teacher.prompts, teacher.limit, recipe.seed, method.validation_asked, contents)


def prompt_of(example: Example, privacy: str, rule: str, judging: Collection[str] = ()) -> Prompt:
    """The row as it may leave: with placeholders where the rule wants them. `judging` rows are never trained on."""
    judges = example.id in judging
    if rule != "redacted":
        return Prompt(example.id, example.prompt, privacy, gold=example.answer, judges=judges)
    texts, originals, counts = redact([m.content for m in example.prompt])
    messages = tuple(Message(m.role, text) for m, text in zip(example.prompt, texts, strict=True))
    return Prompt(example.id, messages, privacy, counts, originals, example.answer, judges)


def scorer(recipe: Recipe) -> Callable[[str, str], float] | None:
    """How an answer is held against the row's own, when the recipe wants that: right in every metric, or not."""
    name = recipe.teacher.gold_scorer
    if name is None:
        return None
    evaluate = replace(recipe.evaluate, scorer=name)

    def full_marks(answer: str, gold: str) -> float:
        return min(score(evaluate, gold, answer).values())

    return full_marks


def labelled(recipe: Recipe, run: Run) -> Splits:
    """The recipe's rows with the kept labels as answers; originals are put back in memory only."""
    return lessons(recipe, run).splits


def lessons(recipe: Recipe, run: Run) -> Lessons:
    """Every kept answer as a row, gold rows mixed in as `method.teach.gold_share` says, and the rows that judge."""
    asked, method = gather(recipe, run), recipe.method
    rule = rule_for(recipe.teacher, recipe.data.privacy)
    told = read_lines(run, "labels")
    rows, weights, reasons = [], {}, {}
    for example in asked.examples:
        if example.id not in told or example.id in asked.judging:
            continue
        label = told[example.id]
        for number, one in enumerate([label, *label.get("others", [])]):
            row = replace(answered(example, one["answer"], recipe, rule), id=other_id(example.id, number))
            rows.append(row)
            if method.distil and method.teach.vote_weight:
                weights[row.id] = one["agreement"]
            if one["rationale"]:
                reasons[row.id] = answered(example, one["rationale"], recipe, rule).answer
    said = [*asked.said, f"{len(rows):,} training rows carry the answers of {teacher_of(run)}"]
    if method.distil and method.teach.gold_share:
        rows, line = with_gold(rows, asked, method.teach.gold_share, recipe.seed)
        said.append(line)
    validation = judging_rows(recipe, asked, told, rule, said)
    described = {
        "training": describe(rows, "train", "label/labels.jsonl", recipe.data),
        "validation": describe(validation, "validation", recipe.data.validation or "label/labels.jsonl", recipe.data),
    }
    datasets = [described.get(d["role"], d) for d in asked.splits.datasets]
    splits = replace(asked.splits, train=rows, validation=validation, datasets=datasets, said=said)
    return Lessons(splits, weights, reasons, development_rows(recipe, run, asked, told, rule))


def read_lines(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """The label stage's `labels` or `rejected`, by row."""
    with (run.folder / "label" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return {line["id"]: line for line in found}


def teacher_of(run: Run) -> str:
    """Who answered."""
    return read_json(run.folder / "label" / "summary.json")["teacher"]


def answered(example: Example, answer: str, recipe: Recipe, rule: str) -> Example:
    """The row with this answer."""
    # Only an answer with a placeholder in it needs its originals, and finding those takes a while.
    if rule == "redacted" and "[" in answer:
        answer = put_back(answer, prompt_of(example, recipe.data.privacy, rule).originals)
    return replace(example, messages=(*example.prompt, Message("assistant", answer)))


def with_gold(rows: list[Example], asked: Asked, share: float, seed: int) -> tuple[list[Example], str]:
    """The rows with so many gold ones that they are `share` of all, and a line that says how many there were.

    Drawn by the seed, prompts that have no answer of the teacher's first.
    """
    there = {e.id for e in rows}
    gold = [e for e in asked.splits.train if e.answer]
    random.Random(seed).shuffle(gold)
    gold.sort(key=lambda e: e.id in there)
    wanted = round(len(rows) * share / (1 - share))
    chosen = [replace(e, id=f"{e.id}~gold") for e in gold[:wanted]]
    lack = "" if len(chosen) == wanted else f", of {wanted:,} that method.teach.gold_share wants"
    return [*rows, *chosen], f"{len(chosen):,} rows with their own (gold) answers are mixed in{lack}"


def judging_rows(recipe: Recipe, asked: Asked, told: Mapping[str, Any], rule: str, said: list[str]) -> list[Example]:
    """The validation rows of the evaluation loss: with their own answers, or the teacher's where no gold is trained on.

    Which they are is said.
    """

    def taught(example: Example) -> Example:
        return answered(example, told[example.id]["answer"], recipe, rule)

    own = asked.splits.validation
    if not recipe.method.distil or recipe.method.teach.gold_share:
        return [e if e.answer else taught(e) for e in own if e.answer or e.id in told]
    rows = [taught(e) for e in own if e.id in told]
    said.append(
        f"no gold answer is trained on: the evaluation loss, by which the best step is chosen, is taken on the "
        f"teacher's answers to {min(len(rows), recipe.method.validation_rows):,} validation rows"
    )
    return rows


def development_rows(
    recipe: Recipe, run: Run, asked: Asked, told: Mapping[str, Any], rule: str
) -> list[tuple[Example, str]]:
    """Gold validation rows with the teacher's answers, those it gave but that were not kept among them."""
    if not recipe.method.distil:
        return []
    refused = read_lines(run, "rejected")
    found = []
    for example in asked.splits.validation[: recipe.method.teach.development_rows]:
        said = told.get(example.id) or refused.get(example.id)
        if example.answer and said is not None:
            found.append((example, answered(example, said["answer"], recipe, rule).answer))
    return found


def put_back(answer: str, originals: Mapping[str, str]) -> str:
    """An answer with its originals; in JSON each value on its own, since an original may hold quotes."""
    try:
        told = json.loads(answer)
    except ValueError:
        return restore(answer, originals)
    if not isinstance(told, dict):
        return restore(answer, originals)
    back = {key: restore(value, originals) if isinstance(value, str) else value for key, value in told.items()}
    return json.dumps(back, ensure_ascii=False)
