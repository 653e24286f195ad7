"""Small SVG drawings for the report: intervals on one axis, drawn in per cent so that they fit any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from workbench.evaluation.figures import points

SERIF, DOT, AXIS_HEIGHT = 5, 5.5, 22  # CSS pixels


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, shares of one, with its tick marks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> str:
        """Where `value` lies from left to right, in per cent of the width."""
        place = (value - self.low) / (self.high - self.low)
        return f"{100 * min(1.0, max(0.0, place)):.3f}%"


def axis_of(values: Sequence[float], *, at_least: tuple[float, float] = (0.0, 0.01)) -> Axis:
    """An axis with round ticks that holds every value and the range `at_least`."""
    low, high = min([*values, at_least[0]]), max([*values, at_least[1]])
    step = round_step((high - low) / 5)
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return Axis(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def round_step(rough: float) -> float:
    """The first of 1, 2, 5, 10 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def interval_row(axis: Axis, value: float, low: float | None, high: float | None, kind: str, told: str) -> Markup:
    """One interval: whiskers from `low` to `high`, a dot at `value`. `kind` is its CSS class, `told` its words."""
    return drawing([*grid(axis), interval(axis, value, low, high)], f"mark {kind}", "100%", told)


def difference_row(
    axis: Axis, value: float, low: float | None, high: float | None, kind: str, told: str, limit: float | None
) -> Markup:
    """An interval beside a line at zero, and a dashed one at the gate's limit with the forbidden side shaded."""
    behind = [*grid(axis), upright(axis.at(0.0), "zero")]
    if limit is not None:
        shade = Markup('<rect class="forbidden" width="{}" height="100%"/>').format(axis.at(limit))
        behind = [shade, *behind, upright(axis.at(limit), "limit")]
    return drawing([*behind, interval(axis, value, low, high)], f"mark {kind}", "100%", told)


def interval(axis: Axis, value: float, low: float | None, high: float | None) -> Markup:
    """Whiskers with a dot on top of them, around the middle of a row of any height."""
    parts = Markup("")
    if low is not None and high is not None:
        start, end = axis.at(low), axis.at(high)
        parts += Markup('<line x1="{}" x2="{}" y1="0" y2="0"/>').format(start, end)
        for at in (start, end):
            parts += Markup('<line x1="{}" x2="{}" y1="{}" y2="{}"/>').format(at, at, -SERIF, SERIF)
    dot = Markup('<circle cx="{}" cy="0" r="{}"/>').format(axis.at(value), DOT)
    return Markup('<svg y="50%" width="100%" height="1" overflow="visible">') + parts + dot + Markup("</svg>")


def axis_row(axis: Axis, unit: str, *, signed: bool = False) -> Markup:
    """The tick labels of an axis; every second is marked so that a narrow screen may hide it."""
    parts = []
    zero = min(range(len(axis.ticks)), key=lambda i: abs(axis.ticks[i]))
    for i, tick in enumerate(axis.ticks):
        first, last = i == 0, i == len(axis.ticks) - 1
        anchor = "start" if first else "end" if last else "middle"
        words = points(tick, sign=signed).removesuffix(".0") + (unit if last else "")
        thin = " thin" if not last and ((i - zero) % 2 or i == len(axis.ticks) - 2) else ""
        parts.append(
            Markup('<text class="tick{}" x="{}" y="15" text-anchor="{}">{}</text>').format(
                thin, axis.at(tick), anchor, words
            )
        )
    return drawing(parts, "axis", AXIS_HEIGHT, "")


def grid(axis: Axis) -> list[Markup]:
    """Faint verticals at the ticks."""
    return [upright(axis.at(tick), "grid") for tick in axis.ticks]


def upright(at: str, css: str) -> Markup:
    """A vertical from the top of a row to its foot."""
    return Markup('<line class="{}" x1="{}" x2="{}" y1="0" y2="100%"/>').format(css, at, at)


def drawing(parts: Sequence[Markup], css: str, height: int | str, told: str) -> Markup:
    """An SVG as wide as its place; `told` is read aloud and shown under the pointer."""
    role = Markup('role="img"') if told else Markup('aria-hidden="true"')
    head = Markup('<svg class="{}" width="100%" height="{}" {}><title>{}</title>').format(css, height, role, told)
    return head + Markup("").join(parts) + Markup("</svg>")
