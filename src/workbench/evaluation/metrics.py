"""What each metric is and which arms are held against which; and how a figure is written for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUS, DASH = "−", "–"
CONSTRAINED = "constrained_"

KINDS = {  # metric: kind, better, meaning
    "validity": (
        "share",
        "higher",
        "answers of the wanted form from end to end: one JSON object, one list, a known label",
    ),
    "exact_match": ("share", "higher", "answers right in every scored part"),
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
    "seconds_per_answer": ("seconds", "lower", "wall time an answer took in this arm's own engine"),
    "latency_p50": ("seconds", "lower", "what one asker waits for a whole answer, the median"),
    "latency_p95": ("seconds", "lower", "what one asker waits for a whole answer, 95 of 100 times at most"),
    "first_token_p50": ("seconds", "lower", "what one asker waits for the first token, the median"),
    "tokens_in_per_answer": ("number", None, "tokens read, on average"),
    "tokens_per_answer": ("number", None, "tokens generated, on average"),
    "answers_per_second": ("number", "higher", "answers a second, as many at once as the recipe allows"),
    "bytes": ("bytes", "lower", "weights on disk"),
    "peak_memory_bytes": ("bytes", "lower", "most memory the engine held at once"),
    "kwh_per_1000": ("kwh", "lower", "energy of 1,000 answers on this machine"),
    "usd_per_1000": ("usd", "lower", "dollars for 1,000 answers"),
}
TITLES = {
    "bytes": "size",
    "peak_memory_bytes": "peak memory",
    "seconds_per_answer": "seconds / answer",
    "latency_p50": "latency p50",
    "latency_p95": "latency p95",
    "first_token_p50": "first token p50",
    "tokens_in_per_answer": "tokens in",
    "tokens_per_answer": "tokens out",
    "answers_per_second": "answers / second",
    "kwh_per_1000": "energy / 1,000",
    "usd_per_1000": "dollars / 1,000",
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
