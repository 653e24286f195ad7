"""The report's pictures as SVG files, for MLflow and for slides: the page's own drawings with their words beside them.

MLflow's artifact viewer shows `.svg` as it shows `.png`. A picture is white whatever the reader likes, and brings its
style along: nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from workbench.evaluation import metrics
from workbench.evaluation.metrics import STUDENT, amount, describe, title
from workbench.files import write_whole
from workbench.pages import charts, panels
from workbench.pages.charts import Axis, text

Report = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
WIDTH, MARGIN, HEADING = 820, 24, 58  # CSS pixels
ROW, NAME, FIGURE = 30, 210, 150  # a row of intervals: its height, the name on the left, the figure on the right
SCATTER, DIAGRAM = 400, 240  # the width of one drawing of several abreast
CELL, LABEL, LETTER = 46, 170, 6.9  # a table of counts: its cells, its labels, a letter
MOST_SLICES = 16  # of the worst
MOST_LETTERS = 28  # of a name


@dataclass(frozen=True)
class Picture:
    """What is drawn below a heading, with its size in CSS pixels."""

    heading: str
    parts: Sequence[Markup]
    width: float
    height: float


def draw(report: Report, folder: Path) -> list[Path]:
    """Write every picture that the report has figures for; equal input gives equal bytes. Returns their paths.

    forest, differences, pareto, slices, calibration, confusion: each `<name>.svg`.
    """
    makers: dict[str, Callable[[Report], Picture | None]] = {
        "forest": forest, "differences": differences, "pareto": pareto,
        "slices": slices, "calibration": calibration, "confusion": confusion,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("picture.css", "charts.css"))
    # The values themselves: what a browser knows as variables, an office program does not.
    style = re.sub(r"var\(--([\w-]+)\)", lambda name: colours()[name[1]], style)
    paths = []
    for name, make in makers.items():
        picture = make(report)
        if picture is not None:
            paths.append(folder / f"{name}.svg")
            write_whole(paths[-1], page(picture, style))
    return paths


@cache
def colours() -> dict[str, str]:
    """The page's light colours and fonts by name."""
    return dict(re.findall(r"--([\w-]+): ([^;]+);", (TEMPLATES / "colours.css").read_text(encoding="utf-8")))


def mixed(name: str, share: float) -> str:
    """So much of a colour in the colour of an empty cell, as the page mixes them."""
    full, empty = (bytes.fromhex(colours()[key].removeprefix("#")) for key in (name, "plain-wash"))
    return "#" + bytes(round(share * f + (1 - share) * e) for f, e in zip(full, empty)).hex()


def page(picture: Picture, style: str) -> str:
    """The whole file."""
    wide, high = picture.width + 2 * MARGIN, HEADING + picture.height + MARGIN
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}" '
        'role="img"><title>{2}</title><style>{3}</style><rect width="100%" height="100%" fill="{4}"/>'
    ).format(wide, high, picture.heading, Markup(style), colours()["card"])
    body = text("heading", MARGIN, 34, picture.heading, "start") + at(
        MARGIN, HEADING, picture.width, picture.height, Markup("").join(picture.parts)
    )
    return str(head + body + Markup("</svg>\n"))


def at(x: float, y: float, width: float, height: float, drawing: Markup) -> Markup:
    """A drawing in a place of its own, which its per cents are of."""
    form = '<svg x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" overflow="visible">{}</svg>'
    return Markup(form).format(x, y, width, height, drawing)


def intervals(heading: str, rows: Sequence[tuple[str, Markup, str]], axis: Markup) -> Picture:
    """Rows of intervals one below another: (name, its drawing, the figure on the right), and their axis."""
    parts, wide = [], WIDTH - NAME - FIGURE
    for number, (name, drawing, figure) in enumerate(rows):
        middle = ROW * number + ROW / 2 + 4
        parts.append(text(f"name {'student' if name == STUDENT else ''}", NAME - 16, middle, shortened(name), "end"))
        parts.append(at(NAME, ROW * number, wide, ROW, drawing))
        parts.append(text("figure", NAME + wide + 16, middle, figure, "start"))
    parts.append(at(NAME, ROW * len(rows), wide, charts.AXIS_HEIGHT, axis))
    return Picture(heading, parts, WIDTH, ROW * len(rows) + charts.AXIS_HEIGHT)


def forest(report: Report) -> Picture | None:
    """Every arm's primary metric with its interval."""
    name = report["primary"]
    kind = describe(name)["kind"]
    cells = {arm: row[name] for arm, row in report["arms"].items() if row.get(name, {}).get("value") is not None}
    if not cells:
        return None
    bounds = [v for cell in cells.values() for v in (cell["value"], cell["ci_low"], cell["ci_high"]) if v is not None]
    axis = panels.HALF if kind == "share" else charts.axis_of(bounds)
    ticks = charts.axis_row(axis, " %") if kind == "share" else axis_row(axis, kind)
    rows = [(arm, row_of(axis, arm, cell), amount(kind, cell["value"])) for arm, cell in cells.items()]
    return intervals(f"{capital(title(name))}, {level(report)} intervals, n = {report['n']}", rows, ticks)


def differences(report: Report) -> Picture | None:
    """Paired differences of the primary metric in points."""
    rows = [row for row in report["comparisons"] if row["metric"] == report["primary"]]
    if not rows or describe(report["primary"])["kind"] != "share":
        return None
    bounds = [v for row in rows for v in (row["delta"], row["ci_low"], row["ci_high"]) if v is not None]
    axis = charts.axis_of(bounds, at_least=(-0.01, 0.01))
    drawn = []
    for row in rows:
        hue, ends = panels.role(row["candidate"]), (row["delta"], row["ci_low"], row["ci_high"])
        name, figure = f"{row['candidate']} − {row['baseline']}", metrics.points(row["delta"], sign=True)
        drawn.append((name, charts.difference_row(axis, *ends, hue, f"{name}: {figure} points", None), figure))
    heading = f"Paired differences of {title(report['primary'])}, points"
    return intervals(heading, drawn, charts.axis_row(axis, " points", signed=True))


def pareto(report: Report) -> Picture | None:
    """The primary metric against each cost that two arms or more have, with the front."""
    drawn = panels.tradeoffs(report)
    if not drawn:
        return None
    cells = [(capital(title(panel["cost"])), panel["svg"]) for panel in drawn]
    heading = f"{capital(title(report['primary']))}, %, against what an answer costs"
    return abreast(heading, cells, SCATTER, SCATTER * charts.HEIGHT / charts.WIDTH, len(cells))


def slices(report: Report) -> Picture | None:
    """The student's worst slices."""
    parts = [part for part in report.get("slices") or () if STUDENT in part["arms"]][:MOST_SLICES]
    if not parts:
        return None
    rows = []
    for part in parts:
        cell = part["arms"][STUDENT]
        figure = f"{amount('share', cell['value'])}  n = {part['n']}"
        rows.append((f"{part['field']}: {part['value']}", row_of(panels.HALF, STUDENT, cell), figure))
    return intervals("The student's slices, the worst first", rows, charts.axis_row(panels.HALF, " %"))


def calibration(report: Report) -> Picture | None:
    """A reliability diagram an arm."""
    drawn = panels.calibrations(report)
    if not drawn:
        return None
    cells = []
    for panel in drawn:
        error = amount("share", report["calibration"][panel["arm"]]["ece"]["value"])
        cells.append((f"{panel['arm']}, ECE {error}", panel["svg"]))
    return abreast("How often right (up), by how sure (to the right), %", cells, DIAGRAM, DIAGRAM, min(4, len(cells)))


def confusion(report: Report) -> Picture | None:
    """What the student takes for what, a table a labelled metric."""
    tables = [table for table in panels.confusions(report) if STUDENT in table["arms"]]
    if not tables:
        return None
    parts, left, high = [], 0.0, 0.0
    for table in tables:
        names = [shortened(str(label)) for label in table["labels"]]
        longest = max(map(len, names)) * LETTER
        top = 26 + 0.7 * longest  # the labels above the columns lean at 40 degrees
        parts.append(text("name", left, 12, f"{capital(title(table['metric']))}: wanted (rows), answered", "start"))
        for i, (name, row) in enumerate(zip(names, table["arms"][STUDENT])):
            parts.append(text("name", left + LABEL - 10, top + CELL * (i + 0.5) + 4, name, "end"))
            x = left + LABEL + CELL * (i + 0.5)
            lean = Markup('<text class="name" transform="translate({:.1f} {:.1f}) rotate(-40)">{}</text>')
            parts.append(lean.format(x, top - 8, name))
            for k, (count, warmth, _) in enumerate(row):
                parts.append(count_cell(left + LABEL + CELL * k, top + CELL * i, i == k, count, warmth))
        left += LABEL + CELL * len(names) + 0.8 * longest + MARGIN
        high = max(high, top + CELL * len(names))
    return Picture("What the student takes for what", parts, max(left, 420), high)


def count_cell(x: float, y: float, right: bool, count: int, warmth: float) -> Markup:
    """One count, the darker the larger its share of the row."""
    fill = mixed("good" if right else "bad", 0.92 * warmth)
    form = '<rect class="count" x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill="{}"/>'
    square = Markup(form).format(x, y, CELL, CELL, fill)
    if not count:
        return square
    css = "counted hot" if warmth >= panels.HOT else "counted"
    return square + text(css, x + CELL / 2, y + CELL / 2 + 4, f"{count}", "middle")


def abreast(heading: str, cells: Sequence[tuple[str, Markup]], wide: float, high: float, columns: int) -> Picture:
    """Drawings beside and below each other, each under its own words."""
    parts = []
    for number, (words, drawing) in enumerate(cells):
        x, y = (wide + MARGIN) * (number % columns), (high + 2 * MARGIN) * (number // columns)
        parts += [text("name", x, y + 12, words, "start"), at(x, y + MARGIN, wide, high, drawing)]
    lines = -(-len(cells) // columns)
    return Picture(heading, parts, max(420, (wide + MARGIN) * columns - MARGIN), (high + 2 * MARGIN) * lines - MARGIN)


def row_of(axis: Axis, arm: str, cell: Mapping[str, float | None]) -> Markup:
    """An arm's interval."""
    assert cell["value"] is not None
    words = f"{arm}: {metrics.percent(cell['value'])}"
    return charts.interval_row(axis, cell["value"], cell["ci_low"], cell["ci_high"], panels.role(arm), words)


def axis_row(axis: Axis, kind: str) -> Markup:
    """The ends of an axis that is no share."""
    form = Markup('<text class="tick" x="{}" y="15" text-anchor="{}">{}</text>')
    ends = (("start", axis.low), ("end", axis.high))
    return Markup("").join(form.format(axis.at(value), anchor, amount(kind, value)) for anchor, value in ends)


def shortened(name: str) -> str:
    """A name that fits its place, without characters that XML has no room for."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def capital(words: str) -> str:
    """With a capital first letter, the rest as it stands."""
    return words[:1].upper() + words[1:]


def level(report: Report) -> str:
    """`95 %`."""
    return f"{100 * report['confidence']:.3g} %"
