"""Curves over steps or rows, as wide as their place: the loss while training, and quality by the rows trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from workbench.evaluation.charts import Axis, axis_of, drawing
from workbench.evaluation.figures import points

HIGH = 200  # CSS pixels
SMOOTH = 20  # a running mean over a twentieth of the steps


def loss_curve(train: Sequence[Mapping[str, Any]]) -> Markup:
    """Training loss, faint as it came and plain as its running mean, and validation loss as dots; steps to the right.

    `train` is a list of `{"step", "loss"}` and `{"step", "eval_loss"}`, in nats a token.
    """
    own = [(float(row["step"]), float(row["loss"])) for row in train if row.get("loss") is not None]
    held = [(float(row["step"]), float(row["eval_loss"])) for row in train if row.get("eval_loss") is not None]
    if not own and not held:
        return Markup("")
    across = axis_of([x for x, _ in own + held], at_least=(0.0, 1.0))
    up = axis_of([y for _, y in own + held], at_least=(0.0, 0.1))
    lines = [("raw", own), ("mean", running_mean(own)), ("held", held)]
    return curve(across, up, lines, dots=held, told="loss by training step", words=lambda y: f"{y:.2g}")


def learning_curve(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """Quality by the rows trained on, with its intervals: `[{"rows", "value", "ci_low", "ci_high"}]`, shares."""
    spots = [(float(s["rows"]), float(s["value"])) for s in steps]
    if not spots:
        return Markup("")
    across = axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
    up = axis_of([v for s in steps for v in (s["value"], s.get("ci_low"), s.get("ci_high")) if v is not None])
    bars = [(float(s["rows"]), s["ci_low"], s["ci_high"]) for s in steps if s.get("ci_low") is not None]
    told = "quality by the rows trained on"
    return curve(across, up, [("held", spots)], dots=spots, bars=bars, told=told,
                 words=lambda y: points(y).removesuffix(".0"))  # fmt: skip


def running_mean(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value as the mean of its neighbours within a twentieth of the whole."""
    half = max(1, len(spots) // SMOOTH // 2)
    windows = [spots[max(0, i - half) : i + half + 1] for i in range(len(spots))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(spots, windows)]


def curve(
    across: Axis,
    up: Axis,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    dots: Sequence[tuple[float, float]],
    told: str,
    words: Any,
    bars: Sequence[tuple[float, float, float]] = (),
) -> Markup:
    """Lines over two axes; lines stretch with the page, words and dots keep their size."""

    def high(value: float) -> float:
        return 100 * (1 - (value - up.low) / (up.high - up.low))

    parts = []
    for tick in up.ticks:
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>').format(high(tick)))
        parts.append(Markup('<text class="tick" x="-8" y="{:.2f}%" dy="4" text-anchor="end">{}</text>').format(
            high(tick), words(tick)))  # fmt: skip
    for i, tick in enumerate(across.ticks):
        end = "start" if i == 0 else "end" if i == len(across.ticks) - 1 else "middle"
        thin = " thin" if i % 2 and i != len(across.ticks) - 1 else ""
        parts.append(Markup('<text class="tick{}" x="{}" y="100%" dy="18" text-anchor="{}">{:,.0f}</text>').format(
            thin, across.at(tick), end, tick))  # fmt: skip
    inner = Markup("")
    for css, spots in lines:
        way = " ".join(f"{across.at(x).rstrip('%')},{high(y):.3f}" for x, y in spots)
        inner += Markup('<polyline class="{}" points="{}"/>').format(css, way)
    parts.append(Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}</svg>')
                 .format(inner))  # fmt: skip
    for x, low, top in bars:
        parts.append(Markup('<line class="bar" x1="{0}" x2="{0}" y1="{1:.2f}%" y2="{2:.2f}%"/>').format(
            across.at(x), high(low), high(top)))  # fmt: skip
    for x, y in dots:
        parts.append(Markup('<circle cx="{}" cy="{:.2f}%" r="4"/>').format(across.at(x), high(y)))
    return drawing(parts, "curve", HIGH, told)
