"""`report.json`: every arm's metrics with their intervals, and the paired comparisons a verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.attribution import kept_of
from workbench.evaluation.breakdown import calibration, confusion, slices
from workbench.evaluation.metrics import (
    BASELINES,
    MOST_LABELS,
    STUDENT,
    Measured,
    Verdicts,
    check_same_items,
    describe,
    labelled,
    measure,
)
from workbench.evaluation.statistics import Estimate, bounded, cell, holm, item_estimate, item_row, rounded, total_row
from workbench.recipe.schema import Evaluate

LEAST_RIGHT = 10  # right answers of an arm whose confidence is held against them


def build_report(
    task: str,
    evaluate: Evaluate,
    predictions: Mapping[str, Sequence[Prediction]],
    facts: Mapping[str, Mapping[str, float]],
    seed: int,
    *,
    constrained: Mapping[str, Sequence[Prediction]] | None = None,
    judged: Verdicts | None = None,
    meta: Mapping[str, Mapping[str, Any]] | None = None,
    lengths: Mapping[str, int] | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """The report of arms that answered the same items, in the same order; `facts` adds plain figures an arm.

    `constrained` are answers of some arms under the answer's schema, `judged` a judge's verdicts (metric → arm → item
    id → 0, 0.5 or 1), `meta` each item's columns that `evaluate.slices` may name, `lengths` its own text's characters.
    Where a teacher was asked, `distillation` tells which share of its gain over the arm `baseline` was kept.
    Shares carry Wilson's interval, paired differences of shares Tango's, all else the bootstrap's; seconds carry
    none, since the answers of a batch share their time and are no independent measurements. Equal input gives an
    equal report. The gate's verdict is added by whoever asks for it, under `gate`.
    """
    evaluate = scorers.closed(evaluate, [p.expected for p in next(iter(predictions.values()), ())])
    measured = measure(evaluate, predictions, seed, constrained, judged)
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
    pairs = pairs_of(list(predictions))
    first = check_same_items(predictions)
    item_metric = primary if any(primary in m for m in measured.items.values()) else scorers.metric_names(evaluate)[0]
    students = [arm for arm in predictions if arm not in BASELINES]
    calibrated, uncalibrated = calibrations(evaluate, item_metric, predictions, measured, seed)
    kept = kept_of(measured, students, baseline, primary, evaluate.confidence) if baseline else None
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
        "slices": slices(evaluate, item_metric, measured, first, pairs, meta or {}, lengths or {}, seed),
        "calibration": calibrated,
        "uncalibrated": uncalibrated,
        "confusion": confusions(evaluate, predictions),
    } | ({"distillation": kept} if kept else {})


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(candidate, baseline): the student against each baseline, each format against it, adapter against teacher."""
    if STUDENT not in arms:
        return [("adapter", "teacher")] if {"adapter", "teacher"} <= set(arms) else []
    pairs = [(STUDENT, arm) for arm in arms if arm in BASELINES]
    pairs += [(arm, STUDENT) for arm in arms if arm not in (*BASELINES, STUDENT)]
    return pairs + [("adapter", "teacher")] * ({"adapter", "teacher"} <= set(arms))


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


def arm_metrics(
    arm: str, rows: Sequence[Prediction], measured: Measured, confidence: float
) -> dict[str, dict[str, float | None]]:
    """One arm's metrics: the scorer's, macro-F1, and what its answers took."""
    clusters_n, draws = measured.clusters_n, measured.draws[arm]
    estimates = {}
    for name, value in measured.values[arm].items():
        column = measured.items[arm].get(name)
        if column is not None:
            estimates[name] = item_estimate(column, draws[name], clusters_n, confidence)
        else:
            estimates[name] = bounded(value, draws[name], clusters_n, confidence)
    cut = np.array([p.finish == "length" for p in rows], dtype=np.float64)
    estimates["cut_short"] = statistics.share_interval(cut, clusters_n, confidence)
    if thinks(rows):
        lost = np.array([p.lost_in_thought for p in rows], dtype=np.float64)
        estimates["lost_in_thought"] = statistics.share_interval(lost, clusters_n, confidence)
    plain = {name: Estimate(value, None, None) for name, value in taken(rows).items()}
    return {name: cell(estimate) for name, estimate in (estimates | plain).items()}


def thinks(rows: Sequence[Prediction]) -> bool:
    """Whether anything was thought before an answer."""
    return any(p.thoughts or p.tokens_thought for p in rows)


def taken(rows: Sequence[Prediction]) -> dict[str, float]:
    """What the answers took: tokens each, seconds of work each, and those of the batches they were made in.

    A batch of a hundred prompts is answered whole, so its wall time is nobody's wait: that is measured as served.
    """
    figures = {
        "tokens_in_per_answer": float(np.mean([p.tokens_in for p in rows])),
        "tokens_per_answer": float(np.mean([p.tokens_out - p.tokens_thought for p in rows])),
        "seconds_per_answer": float(np.mean([p.seconds for p in rows])),
    }
    if thinks(rows):
        figures["thought_tokens_per_answer"] = float(np.mean([p.tokens_thought for p in rows]))
    latency = [p.latency for p in rows if p.latency is not None]
    if len(latency) == len(rows):
        figures |= {f"batch_seconds_p{q}": float(np.percentile(latency, q)) for q in (50, 95)}
    first = [p.first_token for p in rows if p.first_token is not None]
    if len(first) == len(rows):
        figures["batch_first_token_p50"] = float(np.percentile(first, 50))
    return figures


def compare(measured: Measured, candidate: str, baseline: str, confidence: float) -> list[dict[str, Any]]:
    """Paired rows, candidate minus baseline, one a metric that both have; p is McNemar's of right and wrong.

    `p_holm` is p corrected for the number of metrics of this pair that have one; `mde` the difference that this many
    items would have shown with 80 % power.
    """
    rows = []
    clusters_n, n = measured.clusters_n, len(measured.clusters_n)
    for name, value in measured.values[candidate].items():
        if name not in measured.values[baseline]:
            continue
        draws_b = measured.draws[candidate][name] - measured.draws[baseline][name]
        a, b = measured.items[candidate].get(name), measured.items[baseline].get(name)
        if a is not None and b is not None:
            difference = item_row(a, b, draws_b, clusters_n, confidence)
        else:
            difference = total_row(value - measured.values[baseline][name], draws_b, clusters_n, n, confidence)
        rows.append({"metric": name, "candidate": candidate, "baseline": baseline, **difference})
    for row, p in zip(rows, holm([row["p_value"] for row in rows])):
        row["p_holm"] = rounded(p)
    return rows


def calibrations(
    evaluate: Evaluate, metric: str, predictions: Mapping[str, Sequence[Prediction]], measured: Measured, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Calibration of each arm whose every answer has a probability and is simply right or wrong; and why not, by arm.

    An arm that is hardly ever right is unsure of its whole answers as well, and its ECE would praise it for that.
    """
    by_arm, left_out = {}, {}
    for arm, rows in predictions.items():
        right_n = measured.items[arm].get(metric)
        if right_n is None or not np.isin(right_n, (0.0, 1.0)).all():
            continue
        if right_n.sum() < LEAST_RIGHT and any(p.logprob is not None for p in rows):
            left_out[arm] = (
                f"{int(right_n.sum())} of {len(rows)} answers are right, too few to say whether it knows when it is"
            )
            continue
        calibrated = calibration(rows, right_n, measured.clusters_n, evaluate.confidence, evaluate.resamples, seed)
        if calibrated is not None:
            bins = [{name: rounded(v) if name != "n" else v for name, v in part.items()} for part in calibrated["bins"]]
            by_arm[arm] = calibrated | {
                "ece": cell(calibrated["ece"]),
                "brier": cell(calibrated["brier"]),
                "bins": bins,
            }
    return by_arm, left_out


def confusions(evaluate: Evaluate, predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    """What each arm answered where what was wanted, for each metric that a macro-F1 is taken of."""
    by_metric: dict[str, dict[str, tuple[list[str], list[str]]]] = {}
    for arm, rows in predictions.items():
        for name, wanted, answered, _ in labelled(evaluate, rows):
            by_metric.setdefault(name, {})[arm] = (wanted, answered)
    return {name: confusion(labels) for name, labels in by_metric.items()}
