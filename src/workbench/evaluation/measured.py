"""Every answer scored, and all arms' scores resampled together, so that every difference between arms is paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import CONSTRAINED
from workbench.evaluation.statistics import Floats, Ints
from workbench.recipe.schema import Evaluate

MOST_LABELS = 50  # beyond, a macro-F1 would average classes of one or two items
VALIDITY = "validity"

Verdicts = Mapping[str, Mapping[str, Mapping[str, float]]]  # metric → arm → item id → 0, 0.5 or 1


@dataclass(frozen=True)
class Measured:
    """Everything measured of all arms on the same N items: item scores, and their resampled values.

    `items[arm][metric]` is (N,); `values[arm][metric]` a number; `draws[arm][metric]` is (B,). Metrics that are in
    `values` and not in `items` belong to no single item: macro-F1, micro-F1.
    """

    clusters_n: Ints
    items: dict[str, dict[str, Floats]]
    values: dict[str, dict[str, float]]
    draws: dict[str, dict[str, Floats]]


def measure(
    evaluate: Evaluate,
    predictions: Mapping[str, Sequence[Prediction]],
    seed: int,
    constrained: Mapping[str, Sequence[Prediction]] | None = None,
    judged: Verdicts | None = None,
) -> Measured:
    """Score every answer and resample all arms' columns together.

    `constrained` answers become `constrained_<metric>` of their arm, a judge's verdicts metrics of their own name.
    """
    first = check_same_items(predictions)
    check_same_items({"free": first, **{f"{arm}, constrained": rows for arm, rows in (constrained or {}).items()}})
    clusters_n = statistics.cluster_numbers([p.group for p in first])
    items = {arm: item_scores(evaluate, rows) for arm, rows in predictions.items()}
    for arm, rows in (constrained or {}).items():
        forced = item_scores(evaluate, rows)
        items[arm] |= {CONSTRAINED + name: column for name, column in forced.items() if name != VALIDITY}
    for metric, by_arm in (judged or {}).items():
        for arm, verdicts in by_arm.items():
            items[arm] = {metric: verdicts_of(arm, metric, verdicts, first), **items[arm]}
    columns: dict[tuple[str, str], Floats] = {
        (arm, name): column[:, None] for arm, metrics in items.items() for name, column in metrics.items()
    }
    values = {arm: {name: float(column.mean()) for name, column in metrics.items()} for arm, metrics in items.items()}
    for arm, rows in predictions.items():
        for name, wanted, answered, classes in labelled(evaluate, rows):
            columns[arm, name] = statistics.label_columns(wanted, answered, classes)
            values[arm][name] = macro_f1_of(wanted, answered, classes)
        for name, counts_n3 in counted(evaluate, rows).items():
            columns[arm, name] = counts_n3
            values[arm][name] = float(statistics.micro_f1(counts_n3.sum(axis=0, keepdims=True))[0])
    micro = set(scorers.counted_names(evaluate))
    stacked = np.concatenate([np.ones((len(first), 1)), *columns.values()], axis=1)
    totals_bk = statistics.resampled_totals(stacked, clusters_n, evaluate.resamples, seed)
    draws: dict[str, dict[str, Floats]] = {arm: {} for arm in predictions}
    start = 1
    for (arm, name), column in columns.items():
        part, start = totals_bk[:, start : start + column.shape[1]], start + column.shape[1]
        if name in items[arm]:
            draws[arm][name] = part[:, 0] / totals_bk[:, 0]
        else:
            draws[arm][name] = statistics.micro_f1(part) if name in micro else statistics.macro_f1(part)
    return Measured(clusters_n, items, values, draws)


def check_same_items(predictions: Mapping[str, Sequence[Prediction]]) -> Sequence[Prediction]:
    """The first arm's predictions, once every arm is known to have answered the same items in the same order."""
    if not predictions or not next(iter(predictions.values())):
        raise WorkbenchError("there is no answer to report on", where="evaluate", remedy="give it a test row")
    name, first = next(iter(predictions.items()))
    for arm, rows in predictions.items():
        if [(p.id, p.expected) for p in rows] != [(p.id, p.expected) for p in first]:
            raise WorkbenchError(f"arms {name} and {arm} did not answer the same items", where="evaluate")
    return first


def item_scores(evaluate: Evaluate, rows: Sequence[Prediction]) -> dict[str, Floats]:
    """The scorer's metrics as columns (N,)."""
    scored = [scorers.score(evaluate, p.expected, p.answer) for p in rows]
    names = scorers.metric_names(evaluate)
    return {name: np.array([row[name] for row in scored], dtype=np.float64) for name in names}


def verdicts_of(arm: str, metric: str, verdicts: Mapping[str, float], rows: Sequence[Prediction]) -> Floats:
    """A judge's verdicts (N,) in the items' order; WorkbenchError where one is missing, since leaving it out biases."""
    silent = [p.id for p in rows if p.id not in verdicts]
    if silent:
        raise WorkbenchError(
            f"{len(silent)} of {len(rows)} items have no {metric}, the first {silent[0]!r}", where=f"arm {arm}",
            remedy="run evaluate again: only these are asked",
        )  # fmt: skip
    return np.array([verdicts[p.id] for p in rows], dtype=np.float64)


def labelled(evaluate: Evaluate, rows: Sequence[Prediction]) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """(metric, wanted labels, answered labels, the distinct wanted ones) where a macro-F1 makes sense."""
    pairs = [scorers.labels(evaluate, p.expected, p.answer) for p in rows]
    for name in pairs[0]:
        wanted, answered = [pair[name][0] for pair in pairs], [pair[name][1] for pair in pairs]
        classes = sorted(set(wanted))
        if 2 <= len(classes) <= MOST_LABELS:
            yield name, wanted, answered, classes


def counted(evaluate: Evaluate, rows: Sequence[Prediction]) -> dict[str, Floats]:
    """Hits, wanted and answered (N, 3) for each metric a micro-F1 can be taken of."""
    found = [scorers.counts(evaluate, p.expected, p.answer) for p in rows]
    return {name: np.array([row[name] for row in found], dtype=np.float64) for name in found[0]}


def macro_f1_of(wanted: Sequence[str], answered: Sequence[str], classes: Sequence[str]) -> float:
    """Macro-F1 over the wanted classes; an answer outside them, an invalid one too, is simply wrong."""
    totals = statistics.label_columns(wanted, answered, classes).sum(axis=0, keepdims=True)
    return float(statistics.macro_f1(totals)[0])
