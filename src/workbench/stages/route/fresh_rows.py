"""Rows that a threshold may be chosen on: neither trained on, nor judged on, nor used to choose the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.data.load import load
from workbench.data.split import joined, normalised
from workbench.errors import RequestError
from workbench.recipe import Recipe
from workbench.records import Example
from workbench.runs import Run
from workbench.sources import resolve
from workbench.stages.rows import asked_rows, lessons


@dataclass(frozen=True)
class Fresh:
    """The rows, one a cluster of near copies, and what was left out."""

    rows: list[Example]
    notes: list[str]


def fresh_rows(recipe: Recipe, run: Run) -> Fresh:
    """The rows of `route.rows`, else the validation rows as they were given; everything left out is a note.

    Raises RequestError where none is left.
    """
    source = recipe.route.rows or "data.validation"
    splits, notes = asked_rows(recipe, run).splits, list[str]()
    if recipe.route.rows:
        loaded = load(resolve(recipe.route.rows, key="route.rows"), recipe.data, part="validation")
        rows, notes = loaded.examples, list(loaded.notes)
        known = {normalised(e.text) for part in (splits.train, splits.validation, splits.test) for e in part}
        rows = without(rows, [e for e in rows if normalised(e.text) in known], "this run knows them already", notes)
    else:
        rows = list(splits.validation)
        rows = without(rows, steering(recipe, run, rows), "the weights were chosen by them", notes)
    rows = without(rows, [e for e in rows if not e.prompt], "they ask nothing", notes)
    if recipe.route.against == "gold":
        gone = [e for e in rows if not e.answer or e.good is False]
        rows = without(rows, gone, "they have no right answer", notes)
    alone = one_a_cluster(rows, recipe.seed)
    rows = without(rows, [e for e in rows if e.id not in alone], "they are near copies of one that is asked", notes)
    if not rows:
        raise RequestError(
            f"no row of {source} is left to choose a threshold on: {'; '.join(notes) or 'there is none'}",
            where="route.rows",
            remedy="name rows that were neither trained nor judged on: route.rows=FILE",
        )
    return Fresh(rows, [f"{len(rows):,} rows of {source} decide", *notes])


def without(rows: Sequence[Example], gone: Sequence[Example], why: str, notes: list[str]) -> list[Example]:
    """The rows without those that are gone, which is noted."""
    ids = {e.id for e in gone}
    if ids:
        notes.append(f"{len(ids):,} left out: {why}")
    return [e for e in rows if e.id not in ids]


def steering(recipe: Recipe, run: Run, rows: Sequence[Example]) -> list[Example]:
    """The validation rows by which the weights were chosen: those of the losses where more than one was looked at (the
    best step stays, `method.patience` ends), the teacher's development rows, and those of a reward's guard.
    """
    method = recipe.method
    ids: set[str] = set()
    if method.evaluations > 1 or method.patience is not None:
        ids |= {e.id for e in lessons(recipe, run).splits.validation[: method.validation_rows]}
    if method.distil:
        ids |= {e.id for e in rows[: method.teach.development_rows]}
    if method.learn:
        ids |= {e.id for e in rows[: method.reward.guard_rows]} if "grpo" in method.learn else set()
    return [e for e in rows if e.id in ids]


def one_a_cluster(rows: Sequence[Example], seed: int) -> set[str]:
    """The id of one row of each cluster, drawn by the seed: copies are right or wrong together, and count once."""
    draw = random.Random(seed)
    return {rows[draw.choice(members)].id for members in joined(list(rows)).values()}


def halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """The places of a half that a router before the student learns from, and of the other, by the seed."""
    places = list(range(count))
    random.Random(seed).shuffle(places)
    middle = len(places) // 2
    return sorted(places[:middle]), sorted(places[middle:])
