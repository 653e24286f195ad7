"""`route/report.html` and the lines of a terminal: what a route promises, what the test says, what would change it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workbench.deciding.identity import NAMES as PARTS
from workbench.deciding.scores import MEANING
from workbench.evaluation.metrics import percent, points, title
from workbench.files import write_whole
from workbench.pages import charts
from workbench.pages.report_page import TEMPLATES, ends, quote

ARMS = {"cascade": "student", "teacher": "format", "student": "base", "random_mix": "base"}  # name → hue
NAMES = {"cascade": "the route", "teacher": "the teacher alone", "student": "the student alone",
         "random_mix": "a random mix of equal share"}  # fmt: skip
DIFFERENCES = {
    "cascade_vs_teacher": "the route − the teacher",
    "cascade_vs_student": "the route − the student",
    "cascade_vs_random_mix": "the route − a random mix",
    "teacher_vs_student": "the teacher − the student",
}
WAYS = {"cascade": "the student's answer", "before": "the prompt alone"}
HEXES = 64  # of a SHA-256


def write_route_page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page; equal input gives equal bytes. It runs nothing and fetches nothing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    nothing = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    environment.globals.update(
        report=report, fig=partial(quote, report), ends=partial(ends, report), script_sha256=nothing, names=NAMES,
        differences=DIFFERENCES, hues=ARMS, headline=headline(report), forest=forest(report), title_of=title,
        ways=WAYS, meanings=MEANING, parts=PARTS, hexes=HEXES, harmed=harmed(report),
        shares=drawn(report, ("cascade", "mix"), "how often the answers are right, by the share kept at home"),
        harms=drawn(report, ("harm",), "harm by the share kept at home"),
    )  # fmt: skip
    write_whole(path, environment.get_template("route.html.j2").render())


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """What a reader takes away if they read nothing else."""
    names = [each["name"] for each in report["refused"]]
    if "no_router_is_needed" in names:
        return {"word": "No router is needed", "tone": "plain"}
    if names:
        return {"word": "There is no route that keeps this promise" if not report["test"] else "The route is refused",
                "tone": "bad"}  # fmt: skip
    return {"word": "The student keeps a part at home", "tone": "good"}


def harmed(report: Mapping[str, Any]) -> str:
    """What harm is, in words."""
    if report["against"] == "teacher":
        return "their answer at home differs from the teacher's"
    return "wrong at home, where the teacher is right"


def forest(report: Mapping[str, Any]) -> dict[str, Any]:
    """How often each was right on the test, on one axis."""
    if not report["test"]:
        return {}
    arms = report["test"]["arms"]
    values = [v for cell in arms.values() for v in cell.values() if v is not None]
    axis = charts.axis_of(values, at_least=(max(0.0, min(values)), min(1.0, max(values) + 0.01)))
    rows = [
        {
            "name": name, "hue": hue,
            "svg": charts.interval_row(axis, arms[name]["value"], arms[name]["ci_low"], arms[name]["ci_high"], hue,
                                       f"{NAMES[name]}: {percent(arms[name]['value'])}"),
        }
        for name, hue in ARMS.items()
    ]  # fmt: skip
    return {"rows": rows, "axis": charts.axis_row(axis, " %")}


def drawn(report: Mapping[str, Any], names: Sequence[str], label: str) -> Markup:
    """Lines over the shares of the test that could be kept, the route's own share as a dot; nothing without a test."""
    spots = (report["test"] or {}).get("curve") or []
    if not spots:
        return Markup("")
    across = charts.axis_of([0.0, 100.0], at_least=(0.0, 100.0))
    up = charts.axis_of([p[name] for p in spots for name in names])
    if "cascade" in names:
        low = min(p[name] for p in spots for name in names)
        up = charts.axis_of([p[name] for p in spots for name in names], at_least=(low, low + 0.01))
    lines = [
        ("mean" if at == 0 else "raw", [(100 * p["share"], p[name]) for p in spots]) for at, name in enumerate(names)
    ]
    kept = 1 - report["test"]["escalated"]["value"]
    near = min(spots, key=lambda p: abs(p["share"] - kept))
    dots = [(100 * near["share"], near[names[0]])]
    return charts.curve(across, up, lines, dots=dots, label=label, words=lambda y: points(y).removesuffix(".0"))


def route_lines(report: Mapping[str, Any]) -> list[str]:
    """The route on a terminal."""
    chosen, test = report["chosen"], report["test"]
    lines = [f"{report['recipe']}: {report['arm']} at home, {report['teacher']} for the rest"]
    lines.append(f"the promise: {report['promise']['sentence']}")
    lines += [f"chosen on {report['validation']['n']:,} rows: {candidate_line(each)}" for each in report["candidates"]]
    if test and chosen:
        level = f"{100 * report['look']['level']:.4g} % intervals"
        look = f", look {report['look']['number']} at this test" if report["look"]["number"] > 1 else ""
        lines.append(f"on {test['n']:,} test rows ({level}{look}):")
        lines.append(f"  kept at home {percent(1 - test['escalated']['value'])}; harm {with_ends(test['harm'])} %")
        lines += [f"  right: {NAMES[name]} {with_ends(test['arms'][name])} %" for name in ARMS]
        lines += [f"  {words}: {with_ends(test['differences'][name], sign=True)} points"
                  for name, words in DIFFERENCES.items()]  # fmt: skip
        if test["usd_per_1000"]:
            usd = test["usd_per_1000"]
            lines.append(f"  dollars for 1,000 requests: {usd['cascade']['value']:.4g}, the teacher alone "
                         f"{usd['teacher']['value']:.4g}")  # fmt: skip
    if report["compared"]:
        lines.append(f"which way is cheaper: {report['compared']['why']}")
    if report["more_rows"]:
        takes = [f"{100 * line['share']:.0f} %: {rows_in_words(line['rows'])}" for line in report["more_rows"]]
        lines.append(f"rows that it would take to keep, by what was seen, {'; '.join(takes)}")
    for each in report["refused"]:
        lines.append(f"✗ {each['why']}")
    if report["passed"]:
        lines.append("✓ the route stands; it is void once the bundle, the teacher's model string, the rendering or the "
                     "engine's version changes")  # fmt: skip
    return lines


def rows_in_words(rows: int | None) -> str:
    """How many rows, or that no number would do."""
    return "no number would do" if rows is None else f"{rows:,}"


def candidate_line(each: Mapping[str, Any]) -> str:
    """One candidate in a line."""
    kept = (
        f"keeps {percent(each['share'])}, {each['harmful']} harmful" if each["threshold"] is not None else "keeps none"
    )
    allowed = "none is too few rows" if each["allowed"] is None else f"{each['allowed']} allowed"
    apart = "" if each["auroc"] is None else f", AUROC {each['auroc']:.2f}"
    return f"{each['kind']} by {each['score']} {kept} ({allowed}{apart})"


def with_ends(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """`67.0 (62.2 to 71.4)` in points."""
    value = points(cell["value"], sign=sign)
    if cell["ci_low"] is None:
        return value
    return f"{value} ({points(cell['ci_low'], sign=sign)} to {points(cell['ci_high'], sign=sign)})"
