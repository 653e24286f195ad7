"""SVG drawings for the report: intervals on an axis, points in two dimensions, and curves over steps or rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from workbench.evaluation.metrics import amount, points

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


def interval_row(axis: Axis, value: float, low: float | None, high: float | None, kind: str, label: str) -> Markup:
    """One interval: whiskers from `low` to `high`, a dot at `value`. `kind` is its CSS class, `told` its words."""
    return drawing([*grid(axis), interval(axis, value, low, high)], f"mark {kind}", "100%", label)


def difference_row(
    axis: Axis, value: float, low: float | None, high: float | None, kind: str, label: str, limit: float | None
) -> Markup:
    """An interval beside a line at zero, and a dashed one at the gate's limit with the forbidden side shaded."""
    behind = [*grid(axis), upright(axis.at(0.0), "zero")]
    if limit is not None:
        shade = Markup('<rect class="forbidden" width="{}" height="100%"/>').format(axis.at(limit))
        behind = [shade, *behind, upright(axis.at(limit), "limit")]
    return drawing([*behind, interval(axis, value, low, high)], f"mark {kind}", "100%", label)


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


def drawing(parts: Sequence[Markup], css: str, height: int | str, label: str) -> Markup:
    """An SVG as wide as its place; `told` is read aloud and shown under the pointer."""
    role = Markup('role="img"') if label else Markup('aria-hidden="true"')
    head = Markup('<svg class="{}" width="100%" height="{}" {}><title>{}</title>').format(css, height, role, label)
    return head + Markup("").join(parts) + Markup("</svg>")


# Drawings in two dimensions: quality against cost with its Pareto front, reliability, and curves over steps.

WIDTH, HEIGHT = 340, 264  # of a scatter, in its own units, which are CSS pixels on a phone
LEFT, RIGHT, TOP, FOOT = 30, 14, 16, 28  # its margins
LETTER, LINE = 6.9, 13.0  # a label's letter and line, wide and high
SQUARE = 220  # of a reliability diagram
LOG_FROM = 20.0  # a cost that spans more than this factor is drawn on a logarithmic scale


@dataclass(frozen=True)
class Spot:
    """One arm in two dimensions: its cost `x` and its quality `y`, a share, with its interval."""

    arm: str
    role: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Box:
    """A rectangle that a label, a dot or a whisker takes."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """The area that both take."""
        wide = min(self.x1, other.x1) - max(self.x0, other.x0)
        high = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0.0, wide) * max(0.0, high)


def pareto_front(spots: Sequence[Spot]) -> list[Spot]:
    """Those that no other beats in quality at the same or a lower cost, cheapest first."""
    front: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.x, -s.y)):
        if not front or spot.y > front[-1].y:
            front.append(spot)
    return front


def scatter(spots: Sequence[Spot], kind: str, label: str) -> Markup:
    """Quality (up) against a cost of this kind (to the right), the front as a step line, each dot with its name."""
    ys = [v for s in spots for v in (s.y, s.low, s.high) if v is not None]
    up = axis_of(ys, at_least=(max(0.0, min(ys)), min(1.0, max(ys) + 0.02)))
    scale = log_scale(spots) if needs_log(spots) else linear_scale(spots)
    floor, right = HEIGHT - FOOT, WIDTH - RIGHT

    def x_of(value: float) -> float:
        return LEFT + (right - LEFT) * scale.at(value)

    def y_of(value: float) -> float:
        return floor - (floor - TOP) * (value - up.low) / (up.high - up.low)

    parts = []
    for tick in up.ticks:
        parts.append(line("grid", LEFT, y_of(tick), right, y_of(tick)))
        parts.append(text("tick", LEFT - 6, y_of(tick) + 4, points(tick).removesuffix(".0"), "end"))
    for i, tick in enumerate(scale.ticks):
        last = i == len(scale.ticks) - 1
        anchor = "end" if last else "start" if i == 0 else "middle"
        parts.append(line("grid", x_of(tick), TOP, x_of(tick), floor))
        parts.append(text("tick", x_of(tick), floor + 16, amount(kind, tick) if tick else "0", anchor))
    front = pareto_front(spots)
    path = f"M{x_of(front[0].x):.1f} {floor}" + "".join(f"H{x_of(s.x):.1f}V{y_of(s.y):.1f}" for s in front)
    parts.append(Markup('<path class="front" d="{}H{}"/>').format(path, right))
    for s in spots:
        inner = Markup("")
        if s.low is not None and s.high is not None:
            inner = line("", x_of(s.x), y_of(s.low), x_of(s.x), y_of(s.high))
        inner += Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5"/>').format(x_of(s.x), y_of(s.y))
        parts.append(Markup('<g class="dot {}">{}</g>').format(s.role, inner))
    lines = [Box(x_of(s.x) - 1, y_of(s.high), x_of(s.x) + 1, y_of(s.low))
             for s in spots if s.low is not None and s.high is not None]  # fmt: skip
    lines += [Box(x_of(s.x), y_of(s.y) - 1, x_of(after.x), y_of(s.y) + 1) for s, after in pairwise(front)]
    lines.append(Box(x_of(front[-1].x), y_of(front[-1].y) - 1, right, y_of(front[-1].y) + 1))
    parts += labels([(s.arm, s.role, x_of(s.x), y_of(s.y)) for s in spots], lines)
    return canvas(WIDTH, HEIGHT, "scatter", label, parts)


def labels(dots: Sequence[tuple[str, str, float, float]], lines: Sequence[Box]) -> list[Markup]:
    """Each dot's name, with a line to it where there was only room further off."""
    drawn = []
    frame = Box(LEFT, TOP - 12, WIDTH - 2, HEIGHT - FOOT)
    boxes = places([(name, x, y) for name, _, x, y in dots], lines, frame)
    for (name, role, x, y), box in zip(dots, boxes):
        middle, left = (box.y0 + box.y1) / 2, box.x1 < x
        if is_far(box, x, y):
            drawn.append(line("leader", x, y, box.x1 + 2 if left else box.x0 - 2, middle))
        # Anchored on the dot's side, so that a wider font grows away from it.
        drawn.append(text(f"label {role}", box.x1 if left else box.x0, middle + 4, name, "end" if left else "start"))
    return drawn


def places(dots: Sequence[tuple[str, float, float]], lines: Sequence[Box], frame: Box) -> list[Box]:
    """Where each dot's name covers the least: beside it, above, below, or further off; in pixels, y either way up."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for _, x, y in dots]
    chosen: dict[int, Box] = {}
    for i in sorted(range(len(dots)), key=lambda i: dots[i][2]):
        name, x, y = dots[i]
        wide = LETTER * len(name)
        tried = [(x + 10, y, 0.0), (x - 10 - wide, y, 0.0)]
        tried += [(x - wide / 2, y + step, 6.0) for step in (-15, 15)]
        tried += [(at, y + step, 10.0 + abs(step) / 4)
                  for step in (-14, 14, -28, 28, -42, 42, -56, 56) for at in (x + 12, x - 12 - wide)]  # fmt: skip
        boxes = [(Box(at, mid - LINE / 2, at + wide, mid + LINE / 2), extra) for at, mid, extra in tried]
        chosen[i] = min(boxes, key=lambda box: crowding(box[0], taken, lines, frame) + box[1])[0]
        taken.append(chosen[i])
    return [chosen[i] for i in range(len(dots))]


def is_far(box: Box, x: float, y: float) -> bool:
    """Whether a name stands so far from its dot that a line must lead to it."""
    return abs((box.y0 + box.y1) / 2 - y) > LINE and not box.x0 < x < box.x1


def crowding(box: Box, taken: Sequence[Box], lines: Sequence[Box], frame: Box) -> float:
    """How much of what is already drawn a name here would cover, and how far it would leave the frame."""
    outside = max(0.0, frame.x0 - box.x0) + max(0.0, box.x1 - frame.x1)
    outside += max(0.0, frame.y0 - box.y0) + max(0.0, box.y1 - frame.y1)
    return sum(box.overlap(other) for other in taken) + 2 * sum(box.overlap(line) for line in lines) + 40 * outside


@dataclass(frozen=True)
class Scale:
    """A cost from left to right: where zero (or the least) and the most lie, and its tick marks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def needs_log(spots: Sequence[Spot]) -> bool:
    """Whether the costs are so far apart that a linear scale would press the small ones together."""
    least, most = min(s.x for s in spots), max(s.x for s in spots)
    return least > 0 and most / least > LOG_FROM


def linear_scale(spots: Sequence[Spot]) -> Scale:
    """From zero to a round value above the most, with about four ticks."""
    most = max(s.x for s in spots) * 1.05 or 1.0
    step = round_step(most / 4)
    count = math.ceil(round(most / step, 6))
    return Scale(0.0, count * step, tuple(i * step for i in range(count + 1)))


def log_scale(spots: Sequence[Spot]) -> Scale:
    """Whole powers of ten around all costs."""
    low = math.floor(math.log10(min(s.x for s in spots)))
    high = math.ceil(math.log10(max(s.x for s in spots) * 1.01))
    return Scale(10.0**low, 10.0**high, tuple(10.0**p for p in range(low, high + 1)), log=True)


def reliability(bins: Sequence[Mapping[str, float]], role: str, label: str) -> Markup:
    """How often an arm was right (up) where it was so sure (to the right); on the diagonal it knows what it knows.

    `bins` as in report.json: `confidence` and `right` are shares, `n` the answers of a bin, shown as its dot's area.
    """
    left, foot = 26, 22
    side = SQUARE - left - 8
    floor = SQUARE - foot

    def x_of(share: float) -> float:
        return left + side * share

    def y_of(share: float) -> float:
        return floor - (floor - 8) * share

    parts = []
    for share in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        parts += [
            line("grid", left, y_of(share), x_of(1), y_of(share)),
            line("grid", x_of(share), 8, x_of(share), floor),
        ]
        parts.append(text("tick", left - 5, y_of(share) + 4, f"{100 * share:.0f}", "end"))
        parts.append(text("tick", x_of(share), floor + 15, f"{100 * share:.0f}", anchor))
    parts.append(line("ideal", x_of(0), y_of(0), x_of(1), y_of(1)))
    full = [b for b in bins if b["n"]]
    most = max((b["n"] for b in full), default=1)
    way = "L".join(f"{x_of(b['confidence']):.1f} {y_of(b['right']):.1f}" for b in full)
    inner = Markup('<path d="M{}"/>').format(way) if way else Markup("")
    for b in full:
        size = 2.5 + 5.5 * math.sqrt(b["n"] / most)
        dot = (x_of(b["confidence"]), y_of(b["right"]), size)
        inner += Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(*dot)
    parts.append(Markup('<g class="dot trace {}">{}</g>').format(role, inner))
    return canvas(SQUARE, SQUARE, "square", label, parts)


def line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    form = '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
    return Markup(form).format(css, x1, y1, x2, y2)


def text(css: str, x: float, y: float, words: str, anchor: str) -> Markup:
    """Words at a place."""
    form = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(form).format(css, x, y, anchor, words)


def canvas(width: int, height: int, css: str, label: str, parts: Sequence[Markup]) -> Markup:
    """An SVG of this size in its own units; `told` is read aloud and shown under the pointer."""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(css, width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


# Curves over steps or rows, as wide as their place: the loss while training, and quality by the rows trained on.

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
    return curve(across, up, lines, dots=held, label="loss by training step", words=lambda y: f"{y:.2g}")


def learning_curve(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """Quality by the rows trained on, with its intervals: `[{"rows", "value", "ci_low", "ci_high"}]`, shares."""
    spots = [(float(s["rows"]), float(s["value"])) for s in steps]
    if not spots:
        return Markup("")
    across = axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
    up = axis_of([v for s in steps for v in (s["value"], s.get("ci_low"), s.get("ci_high")) if v is not None])
    bars = [(float(s["rows"]), s["ci_low"], s["ci_high"]) for s in steps if s.get("ci_low") is not None]
    label = "quality by the rows trained on"
    return curve(
        across, up, [("held", spots)], dots=spots, bars=bars, label=label, words=lambda y: points(y).removesuffix(".0")
    )


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
    label: str,
    words: Callable[[float], str],
    bars: Sequence[tuple[float, float, float]] = (),
) -> Markup:
    """Lines over two axes; lines stretch with the page, words and dots keep their size."""

    def high(value: float) -> float:
        return 100 * (1 - (value - up.low) / (up.high - up.low))

    parts = []
    for tick in up.ticks:
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>').format(high(tick)))
        parts.append(
            Markup('<text class="tick" x="-8" y="{:.2f}%" dy="4" text-anchor="end">{}</text>').format(
                high(tick), words(tick)
            )
        )
    for i, tick in enumerate(across.ticks):
        end = "start" if i == 0 else "end" if i == len(across.ticks) - 1 else "middle"
        thin = " thin" if i % 2 and i != len(across.ticks) - 1 else ""
        parts.append(
            Markup('<text class="tick{}" x="{}" y="100%" dy="18" text-anchor="{}">{:,.0f}</text>').format(
                thin, across.at(tick), end, tick
            )
        )
    inner = Markup("")
    for css, spots in lines:
        way = " ".join(f"{across.at(x).rstrip('%')},{high(y):.3f}" for x, y in spots)
        inner += Markup('<polyline class="{}" points="{}"/>').format(css, way)
    parts.append(
        Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}</svg>').format(
            inner
        )
    )
    for x, low, top in bars:
        parts.append(
            Markup('<line class="bar" x1="{0}" x2="{0}" y1="{1:.2f}%" y2="{2:.2f}%"/>').format(
                across.at(x), high(low), high(top)
            )
        )
    for x, y in dots:
        parts.append(Markup('<circle cx="{}" cy="{:.2f}%" r="4"/>').format(across.at(x), high(y)))
    return drawing(parts, "curve", HIGH, label)
