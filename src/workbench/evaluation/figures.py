"""How a figure is written for people: shares in per cent, differences in points, bytes and seconds in units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUS, DASH = "−", "–"

KINDS = {  # metric: kind, better, meaning
    "validity": ("share", "higher", "answers that are one JSON object and nothing else"),
    "exact_match": ("share", "higher", "answers right in every scored part"),
    "macro_f1": ("share", "higher", "F1 averaged over the wanted answers, each counting alike"),
    "cut_short": ("share", "lower", "answers that hit the length limit before they ended"),
    "seconds_per_answer": ("seconds", "lower", "wall time an answer took in this arm's own engine"),
    "tokens_per_answer": ("number", None, "tokens generated, on average"),
    "bytes": ("bytes", "lower", "weights on disk"),
}


def describe(metric: str) -> dict[str, Any]:
    """A metric's `kind` (share, seconds, bytes, number), which way is `better`, and its `meaning`."""
    if metric in KINDS:
        kind, better, meaning = KINDS[metric]
    elif metric.endswith("_accuracy"):
        kind, better, meaning = "share", "higher", f"answers whose {metric.removesuffix('_accuracy')} is right"
    elif metric.endswith("_macro_f1"):
        name = metric.removesuffix("_macro_f1")
        kind, better, meaning = "share", "higher", f"F1 averaged over the wanted values of {name}, each counting alike"
    elif metric.endswith("_bytes"):
        kind, better, meaning = "bytes", "lower", metric.replace("_", " ")
    else:
        kind, better, meaning = "number", None, metric.replace("_", " ")
    return {"kind": kind, "better": better, "meaning": meaning}


def title(metric: str) -> str:
    """`category_macro_f1` as `category macro-F1`."""
    return metric.replace("macro_f1", "macro-F1").replace("_", " ").replace("seconds per answer", "seconds / answer")


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
        return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
    return f"{value:,.1f}"


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
