"""The prompts of a recipe with a teacher: which rows are asked, in what form they leave, and the labels read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from workbench.data import prompts
from workbench.data.prepare import Splits, describe
from workbench.data.privacy import redact, restore
from workbench.data.prompts import Asked
from workbench.evaluation.scorers import score
from workbench.recipe import Recipe
from workbench.records import Example, Message
from workbench.runs import Run, read_json
from workbench.teacher.egress import rule_for
from workbench.teacher.labeller import Prompt


def has_teacher(recipe: Recipe) -> bool:
    """Whether a teacher answers the prompts."""
    return recipe.teacher.api != "none"


def gather(recipe: Recipe) -> Asked:
    """The rows that the teacher is asked."""
    return prompts.gather(recipe.data, recipe.teacher.prompts, recipe.teacher.limit, recipe.seed)


def prompt_of(example: Example, privacy: str, rule: str) -> Prompt:
    """The row as it may leave: with placeholders where the rule wants them."""
    if rule != "redacted":
        return Prompt(example.id, example.prompt, privacy, gold=example.answer)
    texts, originals, counts = redact([m.content for m in example.prompt])
    messages = tuple(Message(m.role, text) for m, text in zip(example.prompt, texts, strict=True))
    return Prompt(example.id, messages, privacy, counts, originals, example.answer)


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
    rule, asked = rule_for(recipe.teacher, recipe.data.privacy), gather(recipe)
    answers: dict[str, str] = {}
    with (run.folder / "label" / "labels.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            label = json.loads(line)
            answers[label["id"]] = label["answer"]

    def answered(example: Example) -> Example:
        answer = answers[example.id]
        # Only an answer with a placeholder in it needs its originals, and finding those takes a while.
        if rule == "redacted" and "[" in answer:
            answer = put_back(answer, prompt_of(example, recipe.data.privacy, rule).originals)
        return replace(example, messages=(*example.prompt, Message("assistant", answer)))

    judged = {e.id for e in asked.splits.validation}
    train = [answered(e) for e in asked.examples if e.id in answers and e.id not in judged]
    own = [e if e.answer else answered(e) for e in asked.splits.validation if e.answer or e.id in answers]
    summary = read_json(run.folder / "label" / "summary.json")
    told = {
        "training": describe(train, "train", "label/labels.jsonl", recipe.data),
        "validation": describe(own, "validation", recipe.data.validation or "label/labels.jsonl", recipe.data),
    }
    datasets = [told.get(d["role"], d) for d in asked.splits.datasets]
    said = [*asked.said, f"{len(train):,} training rows carry the answers of {summary['teacher']}"]
    return replace(asked.splits, train=train, validation=own, datasets=datasets, said=said)


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
