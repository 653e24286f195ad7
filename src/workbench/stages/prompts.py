"""The prompts of a recipe with a teacher: which rows are asked, in what form they leave, and the labels read back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.data.prepare import Asked, Splits, describe
from workbench.evaluation.scorers import score
from workbench.files import read_json
from workbench.privacy.redact import redact, restore
from workbench.recipe import Recipe, source_text
from workbench.records import Example, Message, ToolCall, other_id
from workbench.runs import Run
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


def prompt_of(example: Example, privacy: str, rule: str, judging: Collection[str] = ()) -> Prompt:
    """The row as it may leave: with placeholders where the rule wants them. `judging` rows are never trained on."""
    judges, tools = example.id in judging, example.tools
    if rule != "redacted":
        return Prompt(example.id, example.prompt, privacy, gold=example.answer, judges=judges, tools=tools)
    # The arguments of calls hold what people wrote, as the texts do, and the same value has the same placeholder.
    arguments = [call.arguments for m in example.prompt for call in m.tool_calls]
    texts, originals, counts = redact([*(m.content for m in example.prompt), *arguments])
    rest = iter(texts[len(example.prompt) :])
    messages = tuple(
        replace(m, content=text, reasoning="", tool_calls=tuple(replace(c, arguments=next(rest)) for c in m.tool_calls))
        for m, text in zip(example.prompt, texts)
    )
    return Prompt(example.id, messages, privacy, counts, originals, example.answer, judges, tools)


def scorer(recipe: Recipe) -> Callable[[str, str], float] | None:
    """How an answer is held against the row's own, when the recipe wants that: right in every metric, or not."""
    name = recipe.teacher.gold_scorer
    if name is None:
        return None
    evaluate = replace(recipe.evaluate, scorer=name)

    def full_marks(answer: str, gold: str) -> float:
        return min(score(evaluate, gold, answer).values())

    return full_marks


def labelled(recipe: Recipe, run: Run, to_ask: Asked) -> Lessons:
    """Every kept answer as a row, gold rows mixed in as `method.teach.gold_share` says, and the rows that judge."""
    method = recipe.method
    rule = rule_for(recipe.teacher, recipe.data.privacy)
    labels = read_lines(run, "labels")
    rows, weights, reasons = [], {}, {}
    for example in to_ask.examples:
        if example.id not in labels or example.id in to_ask.judging:
            continue
        label = labels[example.id]
        for number, reply in enumerate([label, *label.get("others", [])]):
            row = answered(example, reply["answer"], recipe, rule, reply.get("tool_calls", ()))
            if recipe.teacher.thoughts and reply.get("reasoning"):
                thoughts = answered(example, reply["reasoning"], recipe, rule).answer
                row = replace(row, messages=(*row.prompt, replace(row.messages[-1], reasoning=thoughts)))
            row = replace(row, id=other_id(example.id, number))
            rows.append(row)
            if method.distil and method.teach.vote_weight:
                weights[row.id] = reply["agreement"]
            if reply["rationale"]:
                reasons[row.id] = answered(example, reply["rationale"], recipe, rule).answer
    notes = [*to_ask.notes, f"{len(rows):,} training rows carry the answers of {teacher_of(run)}"]
    if method.distil and method.teach.gold_share:
        rows, line = with_gold(rows, to_ask, method.teach.gold_share, recipe.seed)
        notes.append(line)
    validation = judging_rows(recipe, to_ask, labels, rule, notes)
    described = {
        "training": describe(rows, "train", "label/labels.jsonl", recipe.data),
        "validation": describe(
            validation, "validation", source_text(recipe.data.validation) or "label/labels.jsonl", recipe.data
        ),
    }
    datasets = [described.get(d["role"], d) for d in to_ask.splits.datasets]
    splits = replace(to_ask.splits, train=rows, validation=validation, datasets=datasets, notes=notes)
    return Lessons(splits, weights, reasons, development_rows(recipe, run, to_ask, labels, rule))


def read_lines(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """The label stage's `labels` or `rejected`, by row."""
    with (run.folder / "label" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        parsed = [json.loads(line) for line in lines]
    return {line["id"]: line for line in parsed}


def teacher_of(run: Run) -> str:
    """Who answered."""
    return read_json(run.folder / "label" / "summary.json")["teacher"]


def answered(
    example: Example, answer: str, recipe: Recipe, rule: str, calls: Sequence[Mapping[str, str]] = ()
) -> Example:
    """The row with this answer, and with the calls that it makes."""
    # Only an answer with a placeholder in it needs its originals, and finding those takes a while.
    arguments = [call["arguments"] for call in calls]
    if rule == "redacted" and any("[" in text for text in (answer, *arguments)):
        originals = prompt_of(example, recipe.data.privacy, rule).originals
        answer, *arguments = (put_back(text, originals) for text in (answer, *arguments))
    made = tuple(ToolCall(call["name"], text, call["id"]) for call, text in zip(calls, arguments, strict=True))
    return replace(example, messages=(*example.prompt, Message("assistant", answer, tool_calls=made)))


def with_gold(rows: list[Example], to_ask: Asked, share: float, seed: int) -> tuple[list[Example], str]:
    """The rows with so many gold ones that they are `share` of all, and a line that says how many there were.

    Drawn by the seed, prompts that have no answer of the teacher's first.
    """
    there = {e.id for e in rows}
    gold = [e for e in to_ask.splits.train if e.answer]
    random.Random(seed).shuffle(gold)
    gold.sort(key=lambda e: e.id in there)
    wanted = round(len(rows) * share / (1 - share))
    chosen = [replace(e, id=f"{e.id}~gold") for e in gold[:wanted]]
    lack = "" if len(chosen) == wanted else f", of {wanted:,} that method.teach.gold_share wants"
    return [*rows, *chosen], f"{len(chosen):,} rows with their own (gold) answers are mixed in{lack}"


def judging_rows(
    recipe: Recipe, to_ask: Asked, labels: Mapping[str, Any], rule: str, notes: list[str]
) -> list[Example]:
    """The validation rows of the evaluation loss: with their own answers, or the teacher's where no gold is trained on.

    Which they are is said.
    """

    def with_label(example: Example) -> Example:
        label = labels[example.id]
        return answered(example, label["answer"], recipe, rule, label.get("tool_calls", ()))

    own = to_ask.splits.validation
    if not recipe.method.distil or recipe.method.teach.gold_share:
        return [e if e.answer else with_label(e) for e in own if e.answer or e.id in labels]
    rows = [with_label(e) for e in own if e.id in labels]
    notes.append(
        f"no gold answer is trained on: the evaluation loss, by which the best step is chosen, is taken on the "
        f"teacher's answers to {min(len(rows), recipe.method.validation_rows):,} validation rows"
    )
    return rows


def development_rows(
    recipe: Recipe, run: Run, to_ask: Asked, labels: Mapping[str, Any], rule: str
) -> list[tuple[Example, str]]:
    """Gold validation rows with the teacher's answers, those it gave but that were not kept among them."""
    if not recipe.method.distil:
        return []
    refused = read_lines(run, "rejected")
    pairs = []
    for example in to_ask.splits.validation[: recipe.method.teach.development_rows]:
        reply = labels.get(example.id) or refused.get(example.id)
        if example.answer and reply is not None:
            pairs.append((example, answered(example, reply["answer"], recipe, rule).answer))
    return pairs


def put_back(answer: str, originals: Mapping[str, str]) -> str:
    """An answer with its originals; in JSON each value on its own, since an original may hold quotes."""
    try:
        values = json.loads(answer)
    except (ValueError, RecursionError):
        return restore(answer, originals)
    if not isinstance(values, dict):
        return restore(answer, originals)
    back = {key: restore(value, originals) if isinstance(value, str) else value for key, value in values.items()}
    return json.dumps(back, ensure_ascii=False)
