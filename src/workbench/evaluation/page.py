"""`report.html`: the whole evaluation on one self-contained page, for a reader who was not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbench.evaluation import charts, figures
from workbench.evaluation.answers import Prediction
from workbench.evaluation.changed import EACH, changed_items, judged_by
from workbench.evaluation.gate import comparison
from workbench.evaluation.report import BASELINES, STUDENT
from workbench.evaluation.tables import HIDDEN, verdict

ROOM = Path(__file__).parent
SECTIONS = ("facts", "datasets", "versions", "recipe", "prompts", "manifest")
CHECKS = {
    "enough_rows": "Enough rows",
    "better_than_baseline": "Better than baseline",
    "validity": "Valid answers",
    "not_worse_than_student": "No worse than student",
}


def write_page(
    report: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
    path: Path,
    *,
    title: str,
    context: Mapping[str, Any],
) -> None:
    """Write the page; equal input gives equal bytes.

    `context` may hold `manifest` (run.json), `facts` (name → value), `datasets` (a list of equal mappings),
    `versions` (package → version), `recipe` (a mapping, or its YAML) and `prompts` (item id → the user's
    text, shown beside the answers); any other key is listed among the facts.
    """
    manifest = context.get("manifest", {})
    rest = {name: value for name, value in context.items() if name not in SECTIONS}
    baseline = baseline_of(report)
    shown, counts = changed_items(report, predictions, context.get("prompts", {}), baseline)
    environment = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tight"] = lambda text: text.replace(" %", "\u00a0%")
    environment.globals.update(
        figures=figures, checks=CHECKS, each=EACH, verdict=verdict, student=STUDENT, extra=HIDDEN
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        report=report,
        sentence=sentence(report, baseline),
        roles={arm: role(arm) for arm in report["arms"]},
        columns=[name for name in report["metrics"] if any(name in cells for cells in report["arms"].values())],
        forests=forests(report),
        differences=differences(report),
        judged=judged_by(report),
        changed=shown,
        counts=counts,
        facts={**facts_of(manifest), **context.get("facts", {}), **rest},
        datasets=list(context.get("datasets", ())),
        versions=dict(context.get("versions", manifest.get("versions", {}))),
        recipe=as_yaml(context.get("recipe", "")),
        baseline=baseline,
    )
    path.write_text(html, encoding="utf-8")


def facts_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """A run's name, date and revision, and the minutes of each stage that is done."""
    facts = {name: str(manifest[name]) for name in ("recipe", "digest", "created", "git") if manifest.get(name)}
    stages = manifest.get("stages", {})
    return facts | {
        name: f"{entry['seconds'] / 60:.1f} minutes" for name, entry in stages.items() if "seconds" in entry
    }


def as_yaml(recipe: Mapping[str, Any] | str) -> str:
    """The recipe as it would be written in a file."""
    return recipe if isinstance(recipe, str) else yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def baseline_of(report: Mapping[str, Any]) -> str:
    """The arm the gate held the student against; without a gate, the strongest baseline that was asked."""
    if "gate" in report:
        return report["gate"]["baseline"]
    return next((arm for arm in ("base_few_shot", "base") if arm in report["arms"]), "base")


def sentence(report: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """The verdict as `{"word", "tone", "text"}`: what a reader takes away if they read nothing else."""
    primary, arms = report["primary"], report["arms"]
    own, row = arms.get(STUDENT, {}).get(primary), comparison(report, STUDENT, baseline, primary)
    if own is None:
        return {"word": "No student was asked", "tone": "plain", "text": f"{report['n']} test rows."}
    share = figures.describe(primary)["kind"] == "share"
    text = f"{figures.amount('share' if share else 'number', own['value'])} {figures.title(primary)}"
    if row is not None:
        size = figures.points(abs(row["delta"]))
        side = "better" if row["delta"] > 0 else "worse"
        interval = figures.interval_in_points(row["ci_low"], row["ci_high"], report["confidence"])
        text += f", {size} points {side} than {baseline} on the same {report['n']} test rows ({interval})."
    else:
        text += f" on {report['n']} test rows."
    gate = report.get("gate")
    if gate is None:
        return {"word": "The student was measured", "tone": "plain", "text": text}
    if not gate["passed"]:
        return {"word": "The student may not ship", "tone": "bad", "text": text}
    formats = [arm for arm in gate["refused"] if arm != STUDENT]
    word = "The student ships" + (f"; {listed(formats)} {'do' if len(formats) > 1 else 'does'} not" if formats else "")
    return {"word": word, "tone": "good", "text": text}


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def role(arm: str) -> str:
    """The CSS class that colours an arm: baseline, student or format."""
    return "baseline" if arm in BASELINES else "student" if arm == STUDENT else "format"


def forests(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each share with an interval, the primary one first: every arm on one axis from 0 to 100 %."""
    names = [n for n, about in report["metrics"].items() if about["kind"] == "share" and n != "cut_short"]
    axis = charts.Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    drawn = []
    for name in sorted(names, key=lambda n: n != report["primary"]):
        rows = []
        for arm, cells in report["arms"].items():
            cell = cells.get(name)
            if cell is not None:
                ends = figures.span("share", cell)
                told = f"{arm}: {figures.percent(cell['value'])}, interval {ends}"
                svg = charts.interval_row(axis, cell["value"], cell["ci_low"], cell["ci_high"], role(arm), told)
                rows.append({"arm": arm, "svg": svg, "value": figures.percent(cell["value"]), "ends": ends})
        if rows:
            meaning = report["metrics"][name]["meaning"]
            drawn.append({"metric": name, "meaning": meaning, "rows": rows, "axis": charts.axis_row(axis, " %")})
    return drawn


def differences(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Paired differences on the primary metric: student against baselines, formats against student."""
    limits = {(c["arm"], c["name"]): c["limit"] for c in report.get("gate", {}).get("checks", ())}
    rows = [row for row in report["comparisons"] if row["metric"] == report["primary"]]
    gate_baseline = baseline_of(report)
    panels = []
    for heading, mine in (
        ("Student against baselines", [r for r in rows if r["candidate"] == STUDENT]),
        ("Formats against the student", [r for r in rows if r["candidate"] != STUDENT]),
    ):
        if not mine:
            continue
        if mine[0]["candidate"] == STUDENT:
            limit = [
                limits.get((STUDENT, "better_than_baseline")) if r["baseline"] == gate_baseline else None for r in mine
            ]
        else:
            limit = [limits.get((r["candidate"], "not_worse_than_student")) for r in mine]
        ends = [v for r in mine for v in (r["delta"], r["ci_low"], r["ci_high"]) if v is not None]
        axis = charts.axis_of([*ends, *(v for v in limit if v is not None)], at_least=(-0.01, 0.01))
        drawn = []
        for row, bound in zip(mine, limit):
            interval = figures.interval_in_points(row["ci_low"], row["ci_high"], report["confidence"])
            told = (
                f"{row['candidate']} − {row['baseline']}: {figures.points(row['delta'], sign=True)} points, {interval}"
            )
            values = (row["delta"], row["ci_low"], row["ci_high"])
            svg = charts.difference_row(axis, *values, role(row["candidate"]), told, bound)
            drawn.append(
                {"row": row, "svg": svg, "other": row["baseline"] if row["candidate"] == STUDENT else row["candidate"]}
            )
        limited = any(bound is not None for bound in limit)
        panels.append(
            {
                "heading": heading,
                "rows": drawn,
                "limited": limited,
                "axis": charts.axis_row(axis, " points", signed=True),
            }
        )
    return panels
