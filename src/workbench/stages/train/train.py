"""Train: rows and a base model become an adapter (or, for full fine-tuning, a model), proven to have moved."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.compress.preflight import preflight
from workbench.data.load import write_quarantine
from workbench.errors import RequestError
from workbench.recipe import Recipe, has_open_teacher, has_teacher
from workbench.runs import Run, Staging, read_json, stage, write_whole
from workbench.stages.common import base_model, is_done, log_datasets, rows, say
from workbench.stages.prompts import Lessons, lessons
from workbench.stages.train import teacher_weights
from workbench.stages.train.guards import compared, headroom, interval, scores_of
from workbench.stages.train.task import Start, Task, jobs, rendered, start_model

if TYPE_CHECKING:
    from workbench.training.development import Development


def run(recipe: Recipe, run: Run) -> bool:
    """Train unless it is done. What a killed attempt has saved is gone on from."""
    if has_open_teacher(recipe):
        teacher_weights.permit(recipe)
    if is_done(run, "train", run.digest):
        return False
    base = base_model(recipe, run)
    refuse_impossible_formats(recipe, base)
    from workbench.training.loop import train  # with torch, which a request that is refused above must not wait for

    with stage(run, "train", run.digest, resume=True) as staging:
        start = start_model(recipe, run)
        if start != base:
            say(run, "train", f"the student starts with {recipe.model.shrink.layers} of the model's own layers")
        teacher = teacher_weights.opened(recipe, run, staging.folder) if has_open_teacher(recipe) else {}
        material = fitting(recipe, base, learned(recipe, run, staging.folder))
        splits = material.splits
        for line in splits.said:
            say(run, "train", line)
        if splits.bad:
            write_quarantine(splits.bad, staging.folder / "quarantine.jsonl")
            say(run, "train", f"{len(splits.bad)} rows set aside in {staging.final / 'quarantine.jsonl'}")
        log_datasets(run, "train", splits.datasets, ("training", "validation"))
        distils = recipe.method.distil and (has_teacher(recipe) or has_open_teacher(recipe))
        facts = headroom(recipe, run, base, material.development, staging.folder) if distils else {}
        task = task_of(recipe, run, start, material)
        for job in jobs(task, Start(start), staging.folder):
            staging.facts = train(job) | facts | teacher
        if recipe.method.teach.curve:
            write_curve(task, Start(start), [e.group for e, _ in material.development], staging.folder)
        tell_files(run, staging)
        staging.scratch = ["checkpoints", "before", "curve"]
        staging.artefacts = ["model" if recipe.method.kind == "full" else "adapter"]
    return True


def learned(recipe: Recipe, run: Run, folder: Path) -> Lessons:
    """The rows, with a served teacher's answers where there is one, and what gold rows any teacher is held against."""
    if recipe.method.distil and has_teacher(recipe):
        return lessons(recipe, run)
    own = rows(recipe, run)
    return Lessons(own, {}, {}, teacher_weights.answers(recipe, run, own, folder) if has_open_teacher(recipe) else [])


def fitting(recipe: Recipe, base: Path, material: Lessons) -> Lessons:
    """What is short enough to train on, where the recipe drops longer rows: how many were is said."""
    if recipe.method.too_long != "drop":
        return material
    splits, judged = material.splits, [item for item, _ in material.development]
    short = {row.id for row in rendered(recipe, base, [*splits.train, *splits.validation, *judged])}
    train, validation = ([e for e in part if e.id in short] for part in (splits.train, splits.validation))
    if not train:
        raise RequestError(
            f"all {len(splits.train):,} training rows are longer", where="method.max_length", remedy="raise it"
        )
    line = (
        f"left out, with more than {recipe.method.max_length:,} tokens: {len(splits.train) - len(train):,} of "
        f"{len(splits.train):,} training rows and {len(splits.validation) - len(validation):,} of "
        f"{len(splits.validation):,} validation rows"
    )
    development = [(item, answer) for item, answer in material.development if item.id in short]
    parts = replace(splits, train=train, validation=validation, said=[*splits.said, line])
    return replace(material, splits=parts, development=development)


def task_of(recipe: Recipe, run: Run, start: Path, material: Lessons) -> Task:
    """What is learned, rendered where every kind needs it alike, with the scorer for the student's development."""

    def event(kind: str, **fields: Any) -> None:
        if kind == "said":
            say(run, "train", fields["text"])
        else:
            run.event(kind, stage="train", **fields)

    judges = material.splits.validation[: recipe.method.validation_rows]
    judging = rendered(recipe, start, material.splits.validation)[: recipe.method.validation_rows]
    development = development_of(recipe, start, material)
    rows, weights, reasons = material.splits.train, material.weights, material.reasons
    return Task(recipe, run, start, rows, weights, reasons, judging, development, event, judges)


def development_of(recipe: Recipe, start: Path, material: Lessons) -> Any:
    """What the student is scored on as it trains; None without gold development rows."""
    items = [item for item, _ in material.development]
    if not items:
        return None
    from workbench.training.development import Development

    def score(number: int, answer: str) -> float:
        return scores_of(recipe.evaluate, [items[number]], [answer])[0]

    shown = rendered(recipe, start, items)
    return Development(shown, score, recipe.evaluate.max_new_tokens, recipe.method.teach.hacking_drop)


def tell_files(run: Run, staging: Staging) -> None:
    """The learning curve, for MLflow."""
    if (staging.folder / "curve.json").is_file():
        run.event("file", stage="train", path="train/curve.json", title="learning curve")


def refuse_impossible_formats(recipe: Recipe, base: Path) -> None:
    """Before hours are spent: the wanted formats must be possible for this model's shapes and tokenizer."""
    shape = json.loads((base / "config.json").read_text())
    wanted = {name: q.format for name, q in recipe.quantize.items()}
    for verdict in preflight(shape, base / "tokenizer.json", list(wanted.values())):
        if not verdict.ok:
            raise RequestError(f"{verdict.format}: {verdict.why}", where="quantize", remedy=verdict.remedy)


# The learning curve: the same training on a quarter and a half of the labels, to say what the next ones would buy.

SHARES = (0.25, 0.5)


def write_curve(task: Task, start: Start, groups: Sequence[str], folder: Path) -> None:
    """Write `folder/curve.json`: `[{"labels", "value", "ci_low", "ci_high", "doubling"}]`, the whole training last.

    `labels` counts training rows, `value` is the score on the gold development rows, `groups` ties near copies of
    those together; `doubling` is what was gained since the point before for each doubling of the labels, row by row,
    with its interval. The smaller sets are drawn by the seed, each within the next. Raises RequestError without such
    rows.
    """
    if task.development is None:
        raise RequestError(
            "a learning curve is drawn on gold development rows, and there are none",
            where="method.teach.curve",
            remedy="give the validation rows answers of their own, or method.teach.development_rows above 0",
        )
    from workbench.training.loop import train

    order = random.Random(task.recipe.seed).sample(range(len(task.examples)), len(task.examples))
    made: list[tuple[int, list[float]]] = []
    for share in SHARES:
        count = max(1, round(share * len(order)))
        task.event("said", text=f"learning curve: {count:,} of {len(order):,} labels")
        part = [task.examples[i] for i in sorted(order[:count])]
        out = folder / "curve" / str(count)
        if not (out / "summary.json").is_file():
            quiet = replace(task, examples=part, event=spoken_only(task.event), development=unguarded(task.development))
            for job in jobs(quiet, start, out):
                train(job)
        made.append((count, scores_in(out)))
    made.append((len(order), scores_in(folder)))
    points = points_of(made, groups, task.recipe)
    for point in points:
        task.event("metric", name="curve/score", value=point["value"], step=point["labels"])
    write_whole(folder / "curve.json", json.dumps(points, indent=1))
    line = "; ".join(
        f"{p['labels']:,} labels {p['value']:.3f} ({p['ci_low']:.3f} to {p['ci_high']:.3f})" for p in points
    )
    task.event("said", text=f"learning curve on {len(groups)} gold development rows: {line}")


def unguarded(development: Development) -> Development:
    """The same development rows without the guard: a point of the curve may fall, that is what it shows."""
    return replace(development, drop=None)


def spoken_only(event: Callable[..., None]) -> Callable[..., None]:
    """Events without the metrics and samples, which belong to the run's own training."""

    def quiet(kind: str, **fields: Any) -> None:
        if kind == "said":
            event(kind, **fields)

    return quiet


def scores_in(folder: Path) -> list[float]:
    """A training's last development scores, row by row."""
    return list(read_json(folder / "development.json")["scores"])


def points_of(
    made: Sequence[tuple[int, Sequence[float]]], groups: Sequence[str], recipe: Recipe
) -> list[dict[str, Any]]:
    """The curve's points from (labels, scores) of each training, fewest labels first."""
    points: list[dict[str, Any]] = []
    for number, (labels, scores) in enumerate(made):
        point: dict[str, Any] = {"labels": labels} | interval(scores, groups, recipe)
        fewer, before = made[number - 1] if number else (labels, scores)
        if labels > fewer:
            lead, doublings = compared(scores, before, groups, recipe), math.log2(labels / fewer)
            ends = {"value": "lead", "ci_low": "lead_low", "ci_high": "lead_high"}
            point["doubling"] = {end: lead[name] / doublings for end, name in ends.items()}
        points.append(point)
    return points
