"""Tables on a terminal, or one JSON object in their place: the report's arms, the gate's lines, the views."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.evaluation.metrics import CONSTRAINED, DASH, amount, describe, p_text, points, span, title

ROOM_FOR_ENDS = 100  # characters
HIDDEN = (  # in report.json and report.html
    "cut_short", "field_share", "tokens_per_answer", "tokens_in_per_answer", "latency_p50", "latency_p95",
    "first_token_p50", "answers_per_second", "peak_memory_bytes", "kwh_per_1000",
)  # fmt: skip


def arms_table(report: Mapping[str, Any], width: int | None = None) -> Table:
    """One row an arm: metrics with their intervals, seconds an answer, size, and whether it ships.

    `width` in characters, null for the terminal's: below 100, `±` with an interval's longer side stands
    for its two ends, and five metrics still fit into 80.
    """
    wide = (width or shutil.get_terminal_size((120, 40)).columns) >= ROOM_FOR_ENDS
    table = Table(
        title=f"{report['task']}: {report['n']} test rows, {100 * report['confidence']:.3g} % intervals",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2 if wide else 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("arm", no_wrap=True, vertical="top")
    shown = [name for name in report["metrics"] if name not in HIDDEN and not name.startswith(CONSTRAINED)]
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
    """One line a check with its reason, a person's override last; no line when no gate was asked.

    ✓ it holds, ✗ it does not, · no limit is set, so it is only told. What holds for a format beside its place against
    the student stands in the report alone.
    """
    lines = []
    gate = report.get("gate", {})
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
        print(json.dumps(sections, ensure_ascii=False, indent=1, default=str))
        return
    console = Console(highlight=False, markup=False)  # a value in square brackets is no style
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
