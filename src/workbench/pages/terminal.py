"""Tables on a terminal, or one JSON object in their place: the report's arms, the gate's lines, the views."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.evaluation.answers import Prediction
from workbench.evaluation.few_rows import rows_called
from workbench.evaluation.metrics import CONSTRAINED, DASH, amount, describe, p_text, points, span, title
from workbench.screen import SafeConsole, json_line

LOG_WIDTH = 116  # characters of a line where there is no terminal: the table of the arms fits
ROOM_FOR_ENDS, ROOM_FOR_MORE, CELL = 100, 60, 15  # characters
HIDDEN = (  # in report.json and report.html
    "cut_short", "field_share", "tokens_per_answer", "tokens_in_per_answer", "latency_p50", "latency_p95",
    "first_token_p50", "batch_seconds_p50", "batch_seconds_p95", "batch_first_token_p50", "answers_per_second",
    "peak_memory_bytes", "kwh_per_1000",
)  # fmt: skip


def results() -> Console:
    """Where results go: standard output, as wide as its terminal; a file is as wide as COLUMNS says, else 116."""
    columns = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(columns) if columns.isdecimal() and int(columns) else LOG_WIDTH
    return SafeConsole(highlight=False, markup=False, width=width)


def print_json(value: object) -> None:
    """One JSON object on one line of standard output, so that the objects of a sweep are JSON lines."""
    print(json_line(value), flush=True)


def with_unit(metric: str) -> str:
    """A metric's name that ends in its unit: `exact_match_share`, `seconds_per_answer`, `bytes`."""
    kind = describe(metric)["kind"]
    unit = {"share": "share", "seconds": "seconds", "bytes": "bytes", "usd": "usd", "kwh": "kwh"}.get(kind)
    return metric if unit is None or unit in metric.split("_") else f"{metric}_{unit}"


def figures_with_units(cells: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's figures under names that end in their units."""
    return {with_unit(metric): cell for metric, cell in cells.items()}


def arms_table(report: Mapping[str, Any], width: int | None = None) -> Table:
    """One row an arm: metrics with their intervals, seconds an answer, size, and whether it ships.

    `width` in characters, null for that of the results: below 100, `±` with an interval's longer side stands
    for its two ends, and five metrics still fit into 80; from 180 on, nothing is left to the report alone.
    """
    width = width or results().width
    wide = width >= ROOM_FOR_ENDS
    table = Table(
        title=f"{report['task']}: {report['n']} {rows_called(report)}, {100 * report['confidence']:.3g} % intervals",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2 if wide else 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("arm", no_wrap=True, vertical="top")
    names = [name for name in report["metrics"] if any(name in cells for cells in report["arms"].values())]
    shown = [name for name in names if name not in HIDDEN and not name.startswith(CONSTRAINED)]
    for name in [name for name in names if name in HIDDEN]:  # as many of the others as there is room for
        if width >= ROOM_FOR_MORE + CELL * len(shown):
            shown.append(name)
    for name in shown:
        style = "bold not dim" if name == report["primary"] else "dim"
        table.add_column(header(name), justify="right", header_style=style, no_wrap=True)
    if "gate" in report:
        table.add_column("verdict", no_wrap=True)
    for arm, metrics in report["arms"].items():
        cells = [value_cell(name, metrics.get(name), name == report["primary"], wide) for name in shown]
        table.add_row(Text(arm, style="bold" if arm == "student" else ""), *cells, *verdict_cell(report, arm))
    return table


def header(name: str) -> str:
    """A column title on as many lines as it has words."""
    return {"bytes": "size", "seconds_per_answer": "seconds each"}.get(name, title(name)).replace(" ", "\n")


def value_cell(name: str, cell: Mapping[str, float | None] | None, bold: bool, wide: bool) -> Text:
    """`68.5 %` over a dim `64.7–72.1`, or over `±3.8`."""
    if cell is None:
        return Text(DASH, style="dim")
    kind = describe(name)["kind"]
    text = Text(amount(kind, cell["value"]), style="bold" if bold else "")
    ends = span(kind, cell).replace(" ", "") if wide else side(kind, cell)
    return text.append(f"\n{ends}", style="dim not bold") if ends else text


def side(kind: str, cell: Mapping[str, float | None]) -> str:
    """`±3.8`: the longer side of an interval."""
    value, low, high = cell["value"], cell["ci_low"], cell["ci_high"]
    if value is None or low is None or high is None:
        return ""
    longer = max(value - low, high - value)
    return "±" + (points(longer) if kind == "share" else f"{longer:,.1f}")


def verdict_cell(report: Mapping[str, Any], arm: str) -> list[Text]:
    """Whether the gate lets this arm ship; nothing to say of a baseline."""
    if "gate" not in report:
        return []
    word = verdict(report, arm)
    return [Text(word, style={"ships": "bold green", "refused": "bold red"}.get(word, "dim"))]


def verdict(report: Mapping[str, Any], arm: str) -> str:
    """`ships`, `refused`, or a dash."""
    gate = report.get("gate", {})
    return "ships" if arm in gate.get("shipped", ()) else "refused" if arm in gate.get("refused", ()) else DASH


def gate_lines(report: Mapping[str, Any]) -> list[Text]:
    """Findings first, one line a check with its reason, a person's override last; no line when no gate was asked.

    ! look, ✓ it holds, ✗ it does not, · no limit is set, so it is only told. What holds for a format beside
    its place against the student stands in the report alone.
    """
    lines = []
    gate = report.get("gate", {})
    for finding in gate.get("findings", ()):
        lines.append(Text("! ", style="bold yellow").append(finding, style="default not bold"))
    for check in gate.get("checks", ()):
        if check["passed"] and check["arm"] != "student" and check["name"] != "not_worse_than_student":
            continue
        mark = Text("✓ ", style="green") if check["passed"] else Text("✗ ", style="bold red")
        if check["passed"] and check["limit"] is None:
            mark = Text("· ", style="dim")
        lines.append(mark.append(check["why"], style="default not bold"))
    if gate.get("override"):
        word = "overridden by a person" if gate.get("overridden") else "a person's override changed nothing"
        lines.append(Text("! ", style="bold yellow").append(f"{word}: {gate['override']}", style="default not bold"))
    return lines


def compare_table(rows: Sequence[Mapping[str, Any]], confidence: float = 0.95) -> Table:
    """Paired differences under the name of their pair: points, interval, p, rows, and what could have been shown."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("candidate − baseline", overflow="fold")
    for name in ("points", f"{100 * confidence:.3g} % interval", "McNemar p", "n", "detectable"):
        table.add_column(name, justify="right", no_wrap=True)
    pair = None
    for row in rows:
        if pair != (row["candidate"], row["baseline"]):
            pair = (row["candidate"], row["baseline"])
            table.add_row(Text(f"{pair[0]} − {pair[1]}", style="bold"))
        low, high = row["ci_low"], row["ci_high"]
        certain = low is not None and (low > 0 or high < 0)
        style = ("green" if row["delta"] > 0 else "red") if certain else "dim"
        table.add_row(
            f"  {title(row['metric'])}",
            Text(points(row["delta"], sign=True), style=style),
            DASH if low is None else f"{points(low, sign=True)} to {points(high, sign=True)}",
            p_text(row["p_value"]),
            str(row["n"]),
            DASH if row["mde"] is None else points(row["mde"]),
        )
    return table


# How a view speaks: tables for a person, or one JSON object for a program.


def show(title: str, sections: Mapping[str, Mapping[str, Any]], output: str) -> None:
    """Print named sections of key and value; with `output=json` as one object and nothing else."""
    if output == "json":
        print_json(sections)
        return
    console = results()
    table = Table(title=title, show_header=False, box=None, pad_edge=False, title_justify="left")
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, section in sections.items():
        for number, (key, value) in enumerate(section.items()):
            table.add_row(name if number == 0 else "", key, plain(value))
    console.print(table)


def plain(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "\n".join(map(plain, value)) or "none"
    return "—" if value is None else str(value)


def megabytes(count: float) -> str:
    """Bytes as MB or GB, powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# Three answers are worth a table of figures: what was asked, what was wanted, what base and student say.

MOST_ANSWERS = 3


def most_telling(
    student: Sequence[Prediction], base: Sequence[Prediction]
) -> list[tuple[Prediction, Prediction | None]]:
    """Up to three of the student's answers beside the base's: what it has learned, then what it has not."""
    of_base = {row.id: row for row in base}
    pairs = [(row, of_base.get(row.id)) for row in student]

    def kind(pair: tuple[Prediction, Prediction | None]) -> tuple[bool, bool]:
        row, before = pair
        right = row.answer.strip() == row.expected.strip()
        return not (right and (before is None or before.answer.strip() != row.expected.strip())), right

    ordered = sorted(pairs, key=kind)
    # Of the last row on, which the student has wrong if it has any wrong: a choice of successes would mislead.
    wrong = [pair for pair in ordered if pair[0].answer.strip() != pair[0].expected.strip()]
    return list({pair[0].id: pair for pair in [*ordered[: MOST_ANSWERS - 1], *wrong[:1], *ordered]}.values())[
        :MOST_ANSWERS
    ]


def answer_lines(
    pairs: Sequence[tuple[Prediction, Prediction | None]], texts: Mapping[str, str], width: int
) -> list[Text]:
    """`asked`, `wanted`, `base` and `student` of each, a line each, as wide as the screen."""
    lines = []
    for row, before in pairs:
        parts = [("asked", texts.get(row.id, "")), ("wanted", row.expected)]
        parts += [("base", before.answer)] if before is not None else []
        for name, text in [*parts, ("student", row.answer)]:
            flat = " ".join(text.split())
            cut = flat if len(flat) <= width - 12 else flat[: width - 13] + "…"
            style = "bold" if name == "student" else "dim" if name == "asked" else ""
            lines.append(Text(f"  {name:<8}", style="dim").append(cut, style=style))
        lines.append(Text(""))
    return lines
