"""The learning curve: the same training on a quarter and a half of the labels, to say what the next ones would buy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RequestError
from workbench.files import read_json, write_whole
from workbench.recipe import Recipe
from workbench.stages.train.guards import compared, interval
from workbench.stages.train.task import Start, Task, jobs

if TYPE_CHECKING:
    from workbench.training.development import Development

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
