"""What each metric is, its value with an interval for each arm, and how a figure is written for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation import scorers, statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.statistics import Floats, Ints
from workbench.recipe.schema import Evaluate

MINUS, DASH = "−", "–"
CONSTRAINED = "constrained_"

KINDS = {  # metric: kind, better, meaning
    "validity": (
        "share",
        "higher",
        "answers of the wanted form from end to end: one JSON object, one list, a known label",
    ),
    "exact_match": ("share", "higher", "answers right in every scored part"),
    "call_accuracy": ("share", "higher", "of the rows that want calls, those with all of them right"),
    "no_call_accuracy": ("share", "higher", "of the rows where no call is right, those answered without one"),
    "name_accuracy": ("share", "higher", "of the rows that want calls, those that call the wanted functions"),
    "argument_f1": ("share", "higher", "F1 of the arguments of all calls together, each counting alike"),
    "accuracy": ("share", "higher", "answers that are the wanted label"),
    "field_share": ("share", "higher", "fields of an answer that are right, averaged over the answers"),
    "item_f1": ("share", "higher", "F1 of the items found in one text, averaged over the answers"),
    "micro_f1": ("share", "higher", "F1 of the items found in all the texts together, each item counting alike"),
    "macro_f1": ("share", "higher", "F1 averaged over the wanted answers, each counting alike"),
    "cut_short": ("share", "lower", "answers that hit the length limit before they ended"),
    "preference": ("share", "higher", "pairs in which a judge held the answer better, a tie counting half"),
    "ece": ("share", "lower", "expected calibration error: how far confidence and being right lie apart"),
    "brier": ("number", "lower", "Brier score: the squared distance of confidence from being right"),
    "chrf": ("share", "higher", "chrF: shared runs of characters with the wanted answer"),
    "rouge_l": ("share", "higher", "ROUGE-L: longest common run of words with the wanted answer"),
    "length_ratio": ("number", None, "characters of an answer over those of the wanted one, averaged"),
    "seconds_per_answer": (
        "seconds",
        "lower",
        "work an answer: wall time in this arm's own engine over the answers made in it",
    ),
    "latency_p50": (
        "seconds",
        "lower",
        "as served: what one asker, alone in the engine, waits for a whole answer, the median",
    ),
    "latency_p95": (
        "seconds",
        "lower",
        "as served: what one asker, alone in the engine, waits for a whole answer, 95 of 100 times at most",
    ),
    "first_token_p50": ("seconds", "lower", "as served: until the first token of one asker's answer, the median"),
    "batch_seconds_p50": (
        "seconds",
        "lower",
        "work on the answers made together with one, the median: no asker's wait",
    ),
    "batch_seconds_p95": ("seconds", "lower", "work on the answers made together with one, 95 of 100 times at most"),
    "batch_first_token_p50": ("seconds", "lower", "reading the prompts of the answers made together, the median"),
    "tokens_in_per_answer": ("number", None, "tokens read, on average"),
    "tokens_per_answer": ("number", None, "tokens of an answer without its thoughts, on average"),
    "thought_tokens_per_answer": ("number", None, "tokens of the thoughts before an answer, on average"),
    "lost_in_thought": ("share", "lower", "answers that never began: their thoughts ate up the length allowed"),
    "answers_per_second": ("number", "higher", "answers a second, as many at once as the recipe allows"),
    "bytes": ("bytes", "lower", "weights on disk"),
    "peak_memory_bytes": ("bytes", "lower", "most memory the engine held at once"),
    "kwh_per_1000": ("kwh", "lower", "energy of 1,000 answers on this machine"),
    "usd_per_1000": (
        "usd",
        "lower",
        "dollars for 1,000 answers: as billed, or the machine's at saturation",
    ),
    "usd_per_1000_at_volume": (
        "usd",
        "lower",
        "dollars for 1,000 answers at your volume (cost.requests_a_month): whole machines, paid by the month",
    ),
}
TITLES = {
    "bytes": "size",
    "peak_memory_bytes": "peak memory",
    "seconds_per_answer": "seconds / answer",
    "latency_p50": "latency p50",
    "latency_p95": "latency p95",
    "first_token_p50": "first token p50",
    "batch_seconds_p50": "seconds / batch p50",
    "batch_seconds_p95": "seconds / batch p95",
    "batch_first_token_p50": "prompts read p50",
    "tokens_in_per_answer": "tokens in",
    "tokens_per_answer": "tokens out",
    "thought_tokens_per_answer": "tokens of thoughts",
    "answers_per_second": "answers / second",
    "kwh_per_1000": "energy / 1,000",
    "usd_per_1000": "dollars / 1,000",
    "usd_per_1000_at_volume": "dollars / 1,000 at your volume",
    "ece": "ECE",
    "brier": "Brier score",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}


def describe(metric: str) -> dict[str, Any]:
    """A metric's `kind` (share, seconds, bytes, usd, kwh, number), which way is `better`, and its `meaning`."""
    if metric in KINDS:
        kind, better, meaning = KINDS[metric]
    elif metric.startswith(CONSTRAINED):
        inner = describe(metric.removeprefix(CONSTRAINED))
        return inner | {"meaning": f"{inner['meaning']}, where the engine allowed nothing but the JSON schema"}
    elif metric.endswith("_accuracy"):
        kind, better, meaning = "share", "higher", f"answers whose {metric.removesuffix('_accuracy')} is right"
    elif metric.endswith("_macro_f1"):
        name = metric.removesuffix("_macro_f1")
        kind, better, meaning = "share", "higher", f"F1 averaged over the wanted values of {name}, each counting alike"
    elif metric.endswith("_f1"):
        name = metric.removesuffix("_f1").replace("_", " ")
        kind, better, meaning = "share", "higher", f"F1 of each answer's {name}, averaged"
    elif metric.endswith("_bytes"):
        kind, better, meaning = "bytes", "lower", metric.replace("_", " ")
    else:
        kind, better, meaning = "number", None, metric.replace("_", " ")
    return {"kind": kind, "better": better, "meaning": meaning}


def title(metric: str) -> str:
    """`category_macro_f1` as `category macro-F1`."""
    if metric in TITLES:
        return TITLES[metric]
    if metric.startswith(CONSTRAINED):
        return f"{title(metric.removeprefix(CONSTRAINED))}, constrained"
    return metric.replace("macro_f1", "macro-F1").replace("_f1", " F1").replace("_", " ")


def points(share: float, *, sign: bool = False) -> str:
    """A share or a difference of shares in points: 0.0425 as `4.2`, with its sign when asked."""
    rounded = round(100 * share, 1) + 0.0  # + 0.0 turns −0.0 into 0.0
    mark = MINUS if rounded < 0 else "+" if sign and rounded > 0 else ""
    return f"{mark}{abs(rounded):.1f}"


def against(delta: float, other: str) -> str:
    """`4.2 points better than base`, `4.2 points worse than base`, `the same as base` where it rounds to nothing."""
    size = points(abs(delta))
    if size == points(0.0):
        return f"the same as {other}"
    return f"{size} points {'better' if delta > 0 else 'worse'} than {other}"


def percent(share: float) -> str:
    """A share in per cent: 0.685 as `68.5 %`."""
    return f"{points(share)} %"


def amount(kind: str, value: float | None) -> str:
    """A metric's value with its unit."""
    if value is None:
        return DASH
    if kind == "share":
        return percent(value)
    if kind == "seconds":
        return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"
    if kind == "bytes":
        return of_bytes(value)
    if kind == "usd":
        return f"${value:,.2f}" if value >= 1 or value == 0 else f"${significant(value)}"
    if kind == "kwh":
        return f"{significant(value)} kWh"
    return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else significant(value)


def of_bytes(value: float) -> str:
    """Bytes in the unit that keeps one to three digits before the point."""
    if value >= 1e9:
        return f"{value / 1e9:,.1f} GB"
    return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"


def significant(value: float) -> str:
    """Two significant digits, never in powers of ten: `0.0042`."""
    if value == 0:
        return "0"
    digits = max(0, 1 - next(p for p in range(12, -13, -1) if abs(value) >= 10.0**p or p == -12))
    return f"{value:,.{digits}f}"


def span(kind: str, cell: Mapping[str, float | None]) -> str:
    """The interval of a value, without its unit: `64.7 – 72.1`, or nothing when there is none."""
    low, high = cell["ci_low"], cell["ci_high"]
    if low is None or high is None:
        return ""
    if kind == "share":
        return f"{points(low)} {DASH} {points(high)}"
    return f"{low:,.1f} {DASH} {high:,.1f}"


def interval_in_points(low: float | None, high: float | None, confidence: float) -> str:
    """`95 % interval −7.2 to −0.8`."""
    if low is None or high is None:
        return "no interval"
    return f"{100 * confidence:.3g} % interval {points(low, sign=True)} to {points(high, sign=True)}"


def p_text(p: float | None) -> str:
    """A p value: `0.004`, `< 0.001`, or a dash."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


STUDENT = "student"

# What the student is held against.
BASELINES = ("base", "base_few_shot", "teacher", "gold_student", "adapter", "champion")


# Every answer scored, and all arms' scores resampled together, so that every difference between arms is paired.

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
            f"{len(silent)} of {len(rows)} items have no {metric}, the first {silent[0]!r}",
            where=f"arm {arm}",
            remedy="run evaluate again: only these are asked",
        )
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
    """Hits, wanted and answered (N, 3) for each metric a micro-F1 can be taken of; no accuracy of no rows."""
    counts = [scorers.counts(evaluate, p.expected, p.answer) for p in rows]
    columns = {name: np.array([row[name] for row in counts], dtype=np.float64) for name in counts[0]}
    return {name: column for name, column in columns.items() if column[:, 1].any() or not name.endswith("_accuracy")}


def macro_f1_of(wanted: Sequence[str], answered: Sequence[str], classes: Sequence[str]) -> float:
    """Macro-F1 over the wanted classes; an answer outside them, an invalid one too, is simply wrong."""
    totals = statistics.label_columns(wanted, answered, classes).sum(axis=0, keepdims=True)
    return float(statistics.macro_f1(totals)[0])
