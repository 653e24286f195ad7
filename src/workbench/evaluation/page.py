"""`report.html`: the whole evaluation on one self-contained page, for a reader who was not there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workbench.evaluation import distilled_page, figures, panels, quoted
from workbench.evaluation.answers import Prediction
from workbench.evaluation.changed import CHANGES, MOST, by_judge, changed_items, judged_by
from workbench.evaluation.curves import learning_curve, loss_curve
from workbench.evaluation.report import STUDENT
from workbench.evaluation.tables import verdict

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    "facts",
    "datasets",
    "versions",
    "recipe",
    "prompts",
    "manifest",
    "train",
    "curve",
    "constrained",
    "teacher",
)
CHECKS = {
    "enough_rows": "Enough rows",
    "better_than_baseline": "Better than baseline",
    "not_worse_than_champion": "No worse than champion",
    "kept_share": "Teacher's gain kept",
    "validity": "Valid answers",
    "not_worse_than_student": "No worse than student",
    "slices": "Every slice",
    "latency": "Latency",
    "size": "Size",
    "cost": "Cost",
    "forgetting": "Nothing forgotten",
    "refusals": "Still refuses harm",
    "memorised": "Nothing memorised",
    "duties": "Duties of licences",
    "judge": "A sound judge",
}


def write_page(
    report: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
    path: Path,
    *,
    title: str,
    context: Mapping[str, Any],
) -> None:
    """Write the page; equal input gives equal bytes. A section appears when its part of the report is there.

    `context` may hold `manifest` (run.json), `facts` and `teacher` (name → value), `datasets` (a list of equal
    mappings), `versions` (package → version), `recipe` (a mapping, or its YAML), `prompts` (item id → the user's
    text, shown beside the answers), `train` (`[{"step", "loss" | "eval_loss"}]`) and `curve`
    (`[{"rows", "value", "ci_low", "ci_high"}]`, the primary metric by the rows trained on); any other key is listed
    among the facts.
    """
    manifest = context.get("manifest") or {}
    rest = {name: value for name, value in context.items() if name not in SECTIONS}
    baseline = baseline_of(report)
    shown, counts = changed_items(report, predictions, context.get("prompts") or {}, baseline)
    html = render(
        "page.html.j2",
        report,
        title=title,
        headline=headline(report),
        baseline=baseline,
        forests=panels.forests(report),
        groups=panels.gate_groups(report),
        differences=panels.differences(report, baseline),
        tradeoffs=panels.tradeoffs(report),
        chain=panels.chain(report),
        distilled=distilled_page.panel(report),
        slices=panels.slices(report, baseline),
        calibrations=panels.calibrations(report),
        confusions=list(panels.confusions(report)),
        sides=panels.side_checks(report),
        answers=shown,
        counts=counts,
        loss=loss_curve(context.get("train") or ()),
        learning=learning_curve(context.get("curve") or ()),
        facts={**facts_of(manifest), **context.get("facts", {}), **rest},
        teacher=dict(context.get("teacher") or {}),
        datasets=list(context.get("datasets") or ()),
        versions=dict(context.get("versions", manifest.get("versions", {}))),
        recipe=as_yaml(context.get("recipe", "")),
    )
    path.write_text(html, encoding="utf-8")


def render(template: str, report: Mapping[str, Any], **values: Any) -> str:
    """A template of this room, with what every page of a report needs at hand.

    `fig(place…, kind=…)` and `ends(place…)` quote the report. Only the page's own script may run, by its hash,
    and nothing may be fetched: the browser itself holds the page to that.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "filter.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        figures=figures, checks=CHECKS, verdict=verdict, student=STUDENT, changes=CHANGES, most=MOST, role=panels.role,
        report=report, fig=partial(quoted.quote, report), ends=partial(quoted.ends, report),
        columns=panels.qualities(report), resources=panels.resources(report), twins=panels.constrained(report),
        judged=judged_by(report), by_judge=by_judge(report), script=Markup(script), script_sha256=digest,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


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


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """The verdict as `{"word", "tone"}`: what a reader takes away if they read nothing else."""
    gate = report.get("gate")
    if report["arms"].get(STUDENT, {}).get(report["primary"]) is None:
        return {"word": "No student was asked", "tone": "plain"}
    if gate is None:
        return {"word": "The student was measured", "tone": "plain"}
    if gate.get("overridden"):
        return {"word": "The student ships against the gate", "tone": "override"}
    if not gate["passed"]:
        return {"word": "The student may not ship", "tone": "bad"}
    refused = [arm for arm in gate["refused"] if arm != STUDENT]
    word = "The student ships" + (f"; {listed(refused)} {'do' if len(refused) > 1 else 'does'} not" if refused else "")
    return {"word": word, "tone": "good"}


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
