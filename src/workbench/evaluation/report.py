"""`report.json`: every arm's metrics with their intervals, and the paired comparisons a verdict rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.figures import describe
from workbench.evaluation.statistics import Estimate, Floats, Ints
from workbench.recipe.nouns import Evaluate

STUDENT = "student"
BASELINES = ("base", "base_few_shot", "teacher", "adapter", "champion")  # what the student is held against
MOST_LABELS = 50  # beyond, a macro-F1 would average classes of one or two items
DIGITS = 6


@dataclass(frozen=True)
class Measured:
    """Everything measured of all arms on the same N items: item scores, and their resampled values.

    `items[arm][metric]` is (N,); `values[arm][metric]` a number; `draws[arm][metric]` is (B,).
    """

    clusters_n: Ints
    items: dict[str, dict[str, Floats]]
    values: dict[str, dict[str, float]]
    draws: dict[str, dict[str, Floats]]


def build_report(
    task: str,
    evaluate: Evaluate,
    predictions: Mapping[str, Sequence[Prediction]],
    facts: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, Any]:
    """The report of arms that answered the same items, in the same order; `facts` adds plain figures an arm.

    Shares carry Wilson's interval, means and macro-F1 the bootstrap's; seconds carry none, since the
    answers of a batch share their time and are no independent measurements. Equal input gives an equal
    report. The gate's verdict is added by whoever asks for it, under `gate`.
    """
    measured = measure(evaluate, predictions, seed)
    primary = scorers.primary_metric(evaluate)
    arms = {arm: arm_metrics(arm, rows, measured, evaluate.confidence) for arm, rows in predictions.items()}
    for arm, figures in facts.items():
        arms.setdefault(arm, {}).update({name: cell(Estimate(float(v), None, None)) for name, v in figures.items()})
    names = dict.fromkeys(name for metrics in arms.values() for name in metrics)
    if primary not in names:
        raise WorkbenchError(
            f"{primary} cannot be taken of these items: a macro-F1 needs 2 to {MOST_LABELS} distinct wanted answers",
            where="evaluate.primary",
            remedy="choose another, or leave it null",
        )
    pairs = [(STUDENT, arm) for arm in predictions if arm in BASELINES and STUDENT in predictions]
    pairs += [(arm, STUDENT) for arm in predictions if arm not in (*BASELINES, STUDENT) and STUDENT in predictions]
    pairs += [("adapter", "teacher")] if {"adapter", "teacher"} <= set(predictions) else []
    return {
        "task": task,
        "n": len(measured.clusters_n),
        "clusters": int(measured.clusters_n.max()) + 1,
        "primary": primary,
        "scorer": evaluate.scorer,
        "fields": list(evaluate.fields),
        "labels": list(evaluate.labels),
        "function": evaluate.function,
        "confidence": evaluate.confidence,
        "resamples": evaluate.resamples,
        "seed": seed,
        "metrics": {name: describe(name) for name in names},
        "arms": arms,
        "comparisons": [
            row for candidate, baseline in pairs for row in compare(measured, candidate, baseline, evaluate.confidence)
        ],
    }


def settings_of(report: Mapping[str, Any], primary: str | None = None) -> Evaluate:
    """How a report's answers were scored, for scoring others alike; `primary` takes another deciding metric."""
    return Evaluate(
        scorer=report["scorer"],
        fields=list(report["fields"]),
        labels=list(report.get("labels", ())),
        function=report.get("function"),
        primary=primary or report["primary"],
        confidence=report["confidence"],
        resamples=report["resamples"],
    )


def measure(evaluate: Evaluate, predictions: Mapping[str, Sequence[Prediction]], seed: int) -> Measured:
    """Score every answer and resample all arms' columns together, so that every difference is paired."""
    first = check_same_items(predictions)
    clusters_n = statistics.cluster_numbers([p.group for p in first])
    items = {arm: item_scores(evaluate, rows) for arm, rows in predictions.items()}
    columns: dict[tuple[str, str], Floats] = {
        (arm, name): column[:, None] for arm, metrics in items.items() for name, column in metrics.items()
    }
    values = {arm: {name: float(column.mean()) for name, column in metrics.items()} for arm, metrics in items.items()}
    for arm, rows in predictions.items():
        for name, wanted, answered, classes in labelled(evaluate, rows):
            columns[arm, name] = statistics.label_columns(wanted, answered, classes)
            values[arm][name] = macro_f1_of(wanted, answered, classes)
    stacked = np.concatenate([np.ones((len(first), 1)), *columns.values()], axis=1)
    totals_bk = statistics.resampled_totals(stacked, clusters_n, evaluate.resamples, seed)
    draws: dict[str, dict[str, Floats]] = {arm: {} for arm in predictions}
    start = 1
    for (arm, name), column in columns.items():
        part, start = totals_bk[:, start : start + column.shape[1]], start + column.shape[1]
        draws[arm][name] = part[:, 0] / totals_bk[:, 0] if name in items[arm] else statistics.macro_f1(part)
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


def labelled(evaluate: Evaluate, rows: Sequence[Prediction]) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """(metric, wanted labels, answered labels, the distinct wanted ones) where a macro-F1 makes sense."""
    pairs = [scorers.labels(evaluate, p.expected, p.answer) for p in rows]
    for name in pairs[0]:
        wanted, answered = [pair[name][0] for pair in pairs], [pair[name][1] for pair in pairs]
        classes = sorted(set(wanted))
        if 2 <= len(classes) <= MOST_LABELS:
            yield name, wanted, answered, classes


def macro_f1_of(wanted: Sequence[str], answered: Sequence[str], classes: Sequence[str]) -> float:
    """Macro-F1 over the wanted classes; an answer outside them, an invalid one too, is simply wrong."""
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, answered, labels=list(classes), average="macro", zero_division=0))


def arm_metrics(
    arm: str, rows: Sequence[Prediction], measured: Measured, confidence: float
) -> dict[str, dict[str, float | None]]:
    """One arm's metrics: the scorer's, macro-F1, and what its answers took."""
    clusters_n = measured.clusters_n
    found = {}
    for name, value in measured.values[arm].items():
        column = measured.items[arm].get(name)
        if column is not None and is_share(column):
            found[name] = statistics.share_interval(column, clusters_n, confidence)
        else:
            found[name] = bounded(value, measured.draws[arm][name], clusters_n, confidence)
    cut = np.array([p.finish == "length" for p in rows], dtype=np.float64)
    found["cut_short"] = statistics.share_interval(cut, clusters_n, confidence)
    found["tokens_per_answer"] = Estimate(float(np.mean([p.tokens_out for p in rows])), None, None)
    found["seconds_per_answer"] = Estimate(float(np.mean([p.seconds for p in rows])), None, None)
    return {name: cell(estimate) for name, estimate in found.items()}


def compare(measured: Measured, candidate: str, baseline: str, confidence: float) -> list[dict[str, Any]]:
    """Paired rows, candidate minus baseline, one a metric; p is McNemar's where the metric is right or wrong.

    `mde` is the difference that this many items would have shown with 80 % power.
    """
    rows = []
    clusters_n, n, alpha = measured.clusters_n, len(measured.clusters_n), 1 - confidence
    for name, value in measured.values[candidate].items():
        draws_b = measured.draws[candidate][name] - measured.draws[baseline][name]
        a, b = measured.items[candidate].get(name), measured.items[baseline].get(name)
        if a is not None and b is not None and is_share(a) and is_share(b):
            delta = statistics.difference(a - b, clusters_n, draws_b, confidence)
            p, test = statistics.mcnemar(a, b), "mcnemar_exact"
            effective = n / statistics.design_effect(a - b, clusters_n)
            mde: float | None = statistics.detectable(effective, float(np.mean(a != b)), alpha)
        else:
            delta = bounded(value - measured.values[baseline][name], draws_b, clusters_n, confidence)
            p, test = None, "bootstrap"
            mde = None if delta.low is None else statistics.detectable_mean(draws_b, alpha)
        ends = cell(delta)
        rows.append(
            {"metric": name, "candidate": candidate, "baseline": baseline, "delta": ends["value"]}
            | {"ci_low": ends["ci_low"], "ci_high": ends["ci_high"], "p_value": rounded(p), "test": test}
            | {"n": n, "mde": rounded(mde)}
        )
    return rows


def is_share(column: Floats) -> bool:
    """Whether every item is simply right or wrong."""
    return bool(np.isin(column, (0.0, 1.0)).all())


def bounded(value: float, draws_b: Floats, clusters_n: Ints, confidence: float) -> Estimate:
    """The bootstrap's interval, or none where a single cluster leaves nothing to resample."""
    if int(clusters_n.max()) == 0:
        return Estimate(value, None, None)
    return statistics.percentile(value, draws_b, confidence)


def cell(estimate: Estimate) -> dict[str, Any]:
    """An estimate as report.json writes it."""
    return {"value": rounded(estimate.value), "ci_low": rounded(estimate.low), "ci_high": rounded(estimate.high)}


def rounded(value: float | None) -> float | None:
    """Six digits: equal on every machine, whatever order its BLAS adds in."""
    return None if value is None else round(float(value), DIGITS) + 0.0
