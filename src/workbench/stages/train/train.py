"""Train: rows and a base model become an adapter (or, for full fine-tuning, a model), proven to have moved."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.compress.preflight import preflight
from workbench.data.chat import recipe_tokenizer, refuse_marked, render_many, rendering_notes
from workbench.data.prepare import Splits, judges_by_given
from workbench.errors import RequestError
from workbench.evaluation.few_rows import too_few
from workbench.files import read_json, write_whole
from workbench.recipe import Launch, Recipe, has_open_teacher, has_teacher
from workbench.recipe.methods import against_folds
from workbench.records import Example, TokenRow
from workbench.runs import Run, Staging, kept_data, stage
from workbench.sources import left_unread, refuse_rows_beyond, refuse_untrainable
from workbench.stages.common import base_model, is_done, log_datasets, say
from workbench.stages.prompts import Lessons
from workbench.stages.rows import LEARNED, keep_learned, keep_prepared, keep_questions, lessons, quarantine_file
from workbench.stages.train import guards
from workbench.stages.train.guards import headroom, scores_of
from workbench.stages.train.intervals import compared, interval
from workbench.stages.train.task import (
    Start,
    Task,
    is_trained,
    jobs,
    keep_trained,
    many_rendered,
    notes_of,
    rendered,
    start_model,
)
from workbench.stored_rows import HELD, StoredRows, pick
from workbench.stored_tokens import StoredTokens, lengths_of
from workbench.training.adapter import start_adapter
from workbench.training.forecast import (
    Estimate,
    Forecast,
    as_facts,
    device_here,
    estimated,
    forecast,
    lines,
    measured,
)
from workbench.training.memory import shape_of
from workbench.training.model import available_memory

if TYPE_CHECKING:
    from workbench.training.development import Development
    from workbench.training.job import Job


def run(recipe: Recipe, run: Run) -> bool:
    """Train unless it is done. What a killed attempt has saved is gone on from."""
    if has_open_teacher(recipe):
        guards.permit(recipe)
    if is_done(run, "train", run.digest):
        return False
    base = base_model(recipe, run)
    refuse_untrainable(base, f"model.source={recipe.model.source}")
    refuse_impossible_formats(recipe, base)
    train = trainer(recipe.launch)
    with stage(run, "train", run.digest, resume=True) as staging:
        start = start_model(recipe, run)
        if start != base:
            say(run, "train", f"the student starts with {recipe.model.shrink.layers} of the model's own layers")
        teacher = guards.opened(recipe, run, staging.folder) if has_open_teacher(recipe) else {}
        material = material_of(recipe, run, base, staging.folder)
        splits = material.lessons.splits
        for line in splits.notes:
            say(run, "train", line)
        for line in too_few_to_judge(recipe, splits):
            say(run, "train", line)
        if splits.bad:
            say(run, "train", f"{len(splits.bad)} rows set aside in {quarantine_file(run)}")
        texts = chain(splits.train, splits.validation, splits.test)
        refuse_rows_beyond(base, texts, material.train or [], f"model.source={recipe.model.source}")
        refuse_marked(splits.test, recipe_tokenizer(base, recipe.model, recipe.method, light=True))
        if left_unread(base):
            say(run, "train", f"the base's safetensors are taken; unread: {', '.join(left_unread(base))}")
        log_datasets(run, "train", splits.datasets, ("training", "validation"))
        distils = recipe.method.distil and (has_teacher(recipe) or has_open_teacher(recipe))
        facts = headroom(recipe, run, base, material.lessons.development, staging.folder) if distils else {}
        task = task_of(recipe, run, start, material)
        adapter = start_adapter(recipe.model, recipe.method)
        if adapter:
            say(run, "train", f"training goes on from the adapter {recipe.model.adapter}")
        begin = Start(start, adapter, given=adapter is not None)
        for job in jobs(task, begin, staging.folder):
            estimate, seen = foreseen(recipe, run, start, job)
            done = train(job)
            say(run, "train", lines(estimate, seen, done["peak_memory_bytes"], done["seconds"]))
            staging.facts = done | facts | teacher | as_facts(estimate, seen)
        if recipe.method.teach.curve:
            write_curve(task, begin, [e.group for e, _ in material.lessons.development], staging.folder)
        tell_files(run, staging)
        staging.scratch = ["checkpoints", "before", "curve", "processes"]
        staging.artefacts = ["model" if recipe.method.kind == "full" else "adapter"]
    return True


def trainer(launch: Launch) -> Callable[[Job], dict[str, Any]]:
    """What trains a job: the loop in this process, or several processes that run it together.

    It comes with torch, which a request that is refused before must not wait for.
    """
    if launch.processes * launch.nodes > 1:
        from workbench.training.processes import train_together

        return partial(train_together, launch=launch)
    from workbench.training.loop import train

    return train


def foreseen(recipe: Recipe, run: Run, base: Path, job: Job) -> tuple[Estimate, Forecast]:
    """What a job would take, by the model's shapes and by what was measured here before."""
    device, lengths = device_here(recipe.launch.device), lengths_of(job.rows)
    steps = max(1, math.ceil(len(lengths) * job.method.epochs / job.method.batch_size))
    steps = min(steps, job.method.max_steps or steps)
    shape, free = shape_of(base), available_memory(device)
    several = recipe.launch.processes * recipe.launch.nodes
    estimate, _ = estimated(shape, job.method, recipe.model.dtype, device, lengths, steps, free, processes=several)
    return estimate, forecast(estimate, measured(run.folder.parents[1], estimate))


def too_few_to_judge(recipe: Recipe, splits: Splits) -> list[str]:
    """What is said before training where the verdict will lack rows."""
    share = None if judges_by_given(recipe.data, splits) else recipe.data.test_share
    every = len(splits.train) + len(splits.validation) + len(splits.test)
    judging = every - recipe.evaluate.few_shot if recipe.evaluate.folds else len(splits.test)
    n = min(judging, recipe.evaluate.limit or judging)
    folds = bool(recipe.evaluate.folds)
    return too_few(n, every, recipe.gate, share, by_folds=folds, against=against_folds(recipe))


@dataclass(frozen=True)
class Material:
    """What is learned, and of it what has been rendered on the way: None where nothing has been."""

    lessons: Lessons
    train: Sequence[TokenRow] | None = None
    validation: list[TokenRow] | None = None


def material_of(recipe: Recipe, run: Run, base: Path, folder: Path) -> Material:
    """What is learned, as an earlier attempt has written it into the run's `data/`, or else written there now.

    It is written where it is not what the sources gave: a teacher's answers, or rows left out for their length. The
    answers of a teacher whose weights are here stay in `folder`, from which they are read again.
    """
    keep_prepared(recipe, run)
    keep_questions(recipe, run)
    known = kept_data(run, LEARNED) is not None
    material = Material(lessons(recipe, run), many_rendered(recipe, run, base))
    if not known and recipe.method.too_long == "drop":
        material = fitting(recipe, base, material)
    if not known and (has_teacher(recipe) or recipe.method.too_long == "drop"):
        keep_learned(run, material.lessons)
    if has_open_teacher(recipe) and not has_teacher(recipe):
        answers = guards.answers(recipe, run, material.lessons.splits, folder)
        material = replace(material, lessons=replace(material.lessons, development=answers))
    return material


def fitting(recipe: Recipe, base: Path, material: Material) -> Material:
    """What is short enough to train on: how many rows were longer is said."""
    if isinstance(material.train, StoredTokens):
        return many_fitting(recipe, base, material, material.train)
    whole = material.lessons
    splits, judged = whole.splits, [item for item, _ in whole.development]
    examples = [*splits.train, *splits.validation, *judged]
    # By their numbers: two files may give the same id to two rows.
    numbered = [replace(example, id=str(number)) for number, example in enumerate(examples)]
    short = {int(row.id): replace(row, id=examples[int(row.id)].id) for row in rendered(recipe, base, numbered)}
    first_judging, first_judged = len(splits.train), len(splits.train) + len(splits.validation)
    train = [row for number, row in short.items() if number < first_judging]
    validation = [row for number, row in short.items() if first_judging <= number < first_judged]
    if not train:
        raise RequestError(
            f"all {len(splits.train):,} training rows are longer", where="method.max_length", remedy="raise it"
        )
    parts = shorter(
        recipe,
        splits,
        [example for number, example in enumerate(splits.train) if number in short],
        [e for number, e in enumerate(splits.validation, first_judging) if number in short],
    )
    development = [pair for number, pair in enumerate(whole.development, first_judged) if number in short]
    return Material(replace(whole, splits=parts, development=development), train, validation)


def many_fitting(recipe: Recipe, base: Path, material: Material, tokens: StoredTokens) -> Material:
    """`fitting` where the training rows are many, and rendered: of rows without a teacher."""
    splits, kept = material.lessons.splits, list[int]()
    for first in range(0, len(splits.validation), HELD):
        part = enumerate(splits.validation[first : first + HELD], first)
        numbered = [replace(example, id=str(number)) for number, example in part]
        tokenizer = recipe_tokenizer(base, recipe.model, recipe.method, light=True)
        kept += [int(row.id) for row in render_many(numbered, tokenizer, recipe.method)]
    parts = shorter(recipe, splits, pick(splits.train, tokens.numbers), pick(splits.validation, kept))
    return Material(replace(material.lessons, splits=parts), tokens)


def shorter(recipe: Recipe, splits: Splits, train: Sequence[Example], validation: Sequence[Example]) -> Splits:
    """The splits with those rows that are short enough, and a line that counts the others."""
    line = (
        f"left out, with more than {recipe.method.max_length:,} tokens: {len(splits.train) - len(train):,} of "
        f"{len(splits.train):,} training rows and {len(splits.validation) - len(validation):,} of "
        f"{len(splits.validation):,} validation rows"
    )
    return replace(splits, train=train, validation=validation, notes=[*splits.notes, line])


def task_of(recipe: Recipe, run: Run, start: Path, material: Material) -> Task:
    """What is learned, rendered where every kind needs it alike, with the scorer for the student's development."""

    def event(kind: str, **fields: Any) -> None:
        if kind == "said":
            say(run, "train", fields["text"])
        else:
            run.event(kind, stage="train", **fields)

    learned, most = material.lessons, recipe.method.validation_rows
    train, tokens = learned.splits.train, material.train
    if isinstance(tokens, StoredTokens):
        lines = notes_of(recipe, run, start, train, tokens)
    else:
        tokenizer = recipe_tokenizer(start, recipe.model, recipe.method, light=True)
        lines = rendering_notes(train, tokenizer, recipe.method)
    for line in lines:
        event("said", text=line)
    validation = learned.splits.validation
    if isinstance(validation, StoredRows):
        validation = list(validation[:most])
    return Task(
        recipe,
        run,
        start,
        train,
        learned.weights,
        learned.reasons,
        (material.validation or rendered(recipe, start, validation))[:most],
        development_of(recipe, start, learned),
        event,
        validation[:most],
        tokens,
    )


def development_of(recipe: Recipe, start: Path, learned: Lessons) -> Development | None:
    """What the student is scored on as it trains; None without gold development rows."""
    items = [item for item, _ in learned.development]
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
    train = trainer(task.recipe.launch)
    order = random.Random(task.recipe.seed).sample(range(len(task.examples)), len(task.examples))
    made: list[tuple[int, list[float]]] = []
    for share in SHARES:
        count = max(1, round(share * len(order)))
        task.event("said", text=f"learning curve: {count:,} of {len(order):,} labels")
        part = [task.examples[i] for i in sorted(order[:count])]
        out = folder / "curve" / str(count)
        if not is_trained(out, f"the student of {count:,} labels", task.event):
            quiet = replace(
                task,
                examples=part,
                tokens=None,
                event=spoken_only(task.event),
                development=unguarded(task.development),
            )
            for job in jobs(quiet, start, out):
                train(job)
            keep_trained(out)
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

    def quiet(kind: str, **fields: object) -> None:
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
