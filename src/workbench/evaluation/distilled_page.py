"""The page's section on a distillation: what was kept of the teacher, and how the student came by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from workbench.evaluation import charts, panels
from workbench.evaluation.curves import curve, learning_curve
from workbench.evaluation.figures import points
from workbench.evaluation.report import STUDENT

PLACE = "distillation"


def panel(report: Mapping[str, Any]) -> dict[str, Any]:
    """Drawings and places of report.json's `distillation`, each part only where it is told; empty without one."""
    told = report.get(PLACE)
    if not told:
        return {}
    looks = told.get("development", {}).get("points", ())
    steps = [{"rows": p["labels"], **p} for p in told.get("curve", {}).get("points", ())]
    return {
        "kept": kept_panel(report, told) if told.get("kept") else None,
        "score": scores_drawn(looks),
        "loss": losses_drawn(looks),
        "learning": learning_curve(steps),
    }


def kept_panel(report: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The shares on one axis that holds nothing and the whole of the gain, and the gate's limit where there is one."""
    checks = report.get("gate", {}).get("checks", ())
    limit = next((check["limit"] for check in checks if check["name"] == "kept_share"), None)
    shares = {arm: cell for arm, cell in told["kept"].items() if cell["value"] is not None}
    ends = [v for cell in shares.values() for v in cell.values() if v is not None]
    axis = charts.axis_of(ends, at_least=(0.0, 1.0))
    rows = []
    for arm, cell in shares.items():
        words = f"{arm} kept {100 * cell['value']:.1f} % of the teacher's gain"
        own = limit if arm == STUDENT else None
        svg = charts.difference_row(axis, cell["value"], cell["ci_low"], cell["ci_high"], panels.role(arm), words, own)
        rows.append({"arm": arm, "svg": svg, "place": (PLACE, "kept", arm)})
    return {"rows": rows, "axis": charts.axis_row(axis, " %"), "limited": limit is not None}


def scores_drawn(looks: Sequence[Mapping[str, Any]]) -> Markup:
    """The score on the gold development rows by step, with its intervals, in per cent."""
    if not looks:
        return Markup("")
    spots = [(float(look["step"]), float(look["value"])) for look in looks]
    bars = [(float(look["step"]), look["ci_low"], look["ci_high"]) for look in looks]
    up = charts.axis_of([v for look in looks for v in (look["value"], look["ci_low"], look["ci_high"])])
    across = charts.axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
    return curve(across, up, [("held", spots)], dots=spots, bars=bars, told="score by training step",
                 words=lambda y: points(y).removesuffix(".0"))  # fmt: skip


def losses_drawn(looks: Sequence[Mapping[str, Any]]) -> Markup:
    """The loss at the same steps."""
    if not looks:
        return Markup("")
    spots = [(float(look["step"]), float(look["loss"])) for look in looks]
    up = charts.axis_of([y for _, y in spots], at_least=(0.0, 0.1))
    across = charts.axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
    return curve(across, up, [("mean", spots)], dots=spots, told="loss by training step", words=lambda y: f"{y:.2g}")
