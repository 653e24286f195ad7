"""`report.html`: the whole evaluation on one self-contained page, for a reader who was not there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import yaml
from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from workbench.evaluation import metrics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import STUDENT, points
from workbench.files import write_whole
from workbench.pages import charts, panels
from workbench.pages.changed_answers import CHANGES, MOST, by_judge, changed_items, judged_by
from workbench.pages.charts import curve, learning_curve, loss_curve
from workbench.pages.terminal import verdict

SECTION = re.compile(r'<section id="([\w-]+)">\s*<h2>(.*?)</h2>', re.DOTALL)
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
VITALS = {  # of a training, by step: what it is called, and how its axis is written
    "learning_rate": ("Learning rate", ".2g"),
    "grad_norm": ("Norm of the gradient", ".2g"),
    "memory_gb": ("Memory, most so far (GB)", ".3g"),
    "tokens_per_second": ("Tokens a second", ",.0f"),
}
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
    text, shown beside the answers), `train` (`[{"step", "loss" | "eval_loss" | one of VITALS}]`) and `curve`
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
        distilled=panel(report),
        slices=panels.slices(report, baseline),
        calibrations=panels.calibrations(report),
        confusions=list(panels.confusions(report)),
        sides=panels.side_checks(report),
        answers=shown,
        counts=counts,
        loss=loss_curve(context.get("train") or ()),
        vitals=vitals(context.get("train") or ()),
        costs=costs_of(manifest, recipe_of(context)),
        learning=learning_curve(context.get("curve") or ()),
        facts={**facts_of(manifest), **context.get("facts", {}), **rest},
        teacher=dict(context.get("teacher") or {}),
        datasets=list(context.get("datasets") or ()),
        versions=dict(context.get("versions", manifest.get("versions", {}))),
        recipe=as_yaml(context.get("recipe", "")),
    )
    write_whole(path, html)


class Compiled(BytecodeCache):
    """What templates were compiled to, kept while the process lives: compiling takes longer than most pages do."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self.kept.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        if bucket.code is not None:
            self.kept[bucket.key, bucket.checksum] = bucket.code


COMPILED = Compiled()


def render(template: str, report: Mapping[str, Any], **values: object) -> str:
    """A template of this room, with what every page of a report needs at hand.

    `fig(place…, kind=…)` and `ends(place…)` quote the report. Only the page's own script may run, by its hash,
    and nothing may be fetched: the browser itself holds the page to that.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=COMPILED,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "filter.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["contents"] = contents
    environment.globals.update(
        figures=metrics, checks=CHECKS, verdict=verdict, student=STUDENT, changes=CHANGES, most=MOST, role=panels.role,
        hot=panels.HOT,
        report=report, fig=partial(quote, report), ends=partial(ends, report),
        columns=panels.qualities(report), resources=panels.resources(report), twins=panels.constrained(report),
        judged=judged_by(report), by_judge=by_judge(report), script=Markup(script), script_sha256=digest,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def facts_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """A run's name, date and revision."""
    return {name: str(manifest[name]) for name in ("recipe", "digest", "created", "git") if manifest.get(name)}


def contents(body: str) -> list[tuple[str, Markup]]:
    """(id, heading) of each section of the page that has both, in its order."""
    return [(place, Markup(Markup(name).striptags())) for place, name in SECTION.findall(body)]  # escaped before


def recipe_of(context: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe as a mapping, or an empty one where its text alone is there."""
    recipe = context.get("recipe")
    return recipe if isinstance(recipe, Mapping) else {}


def costs_of(manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[dict[str, str]]:
    """Minutes and dollars of each stage that is done, and their sum: the teacher's bill, and `launch.usd_per_hour`."""
    hourly = (recipe.get("launch") or {}).get("usd_per_hour")
    done = [
        (name, e["seconds"], e.get("facts") or {}) for name, e in manifest.get("stages", {}).items() if "seconds" in e
    ]
    rows = []
    for name, seconds, facts in done:
        parts = [] if hourly is None else [hourly * seconds / 3600]
        parts += [facts["usd"]] if isinstance(facts.get("usd"), int | float) else []
        rows.append((name, seconds / 60, sum(parts) if parts else None))
    known = [usd for *_, usd in rows if usd is not None]
    rows += [("in all", sum(minutes for _, minutes, _ in rows), sum(known) if known else None)] if len(rows) > 1 else []
    return [
        {"stage": name, "minutes": f"{minutes:.1f}", "dollars": metrics.DASH if usd is None else f"{usd:.2f}"}
        for name, minutes, usd in rows
    ]


def vitals(train: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Small curves of how the training went, each that was told at two steps or more."""
    drawn = []
    for name, (title, form) in VITALS.items():
        spots = [(float(row["step"]), float(row[name])) for row in train if row.get(name) is not None]
        if len(spots) > 1:
            across = charts.axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
            up = charts.axis_of([y for _, y in spots], at_least=(0.0, max(1e-6, *(y for _, y in spots))))
            words = partial(tick_words, form)
            svg = curve(across, up, [("mean", spots)], dots=(), label=f"{title} by step", words=words)
            drawn.append({"title": title, "svg": svg})
    return drawn


def tick_words(form: str, value: float) -> str:
    """A value as its axis writes it."""
    return format(value, form)


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


# The page's section on a distillation: what was kept of the teacher, and how the student came by it.

PLACE = "distillation"


def panel(report: Mapping[str, Any]) -> dict[str, Any]:
    """Drawings and places of report.json's `distillation`, each part only where it is told; empty without one."""
    distillation = report.get(PLACE)
    if not distillation:
        return {}
    looks = distillation.get("development", {}).get("points", ())
    steps = [{"rows": p["labels"], **p} for p in distillation.get("curve", {}).get("points", ())]
    return {
        "kept": kept_panel(report, distillation) if distillation.get("kept") else None,
        "score": scores_drawn(looks),
        "loss": losses_drawn(looks),
        "learning": learning_curve(steps),
    }


def kept_panel(report: Mapping[str, Any], distillation: Mapping[str, Any]) -> dict[str, Any]:
    """The shares on one axis that holds nothing and the whole of the gain, and the gate's limit where there is one."""
    checks = report.get("gate", {}).get("checks", ())
    limit = next((check["limit"] for check in checks if check["name"] == "kept_share"), None)
    shares = {arm: cell for arm, cell in distillation["kept"].items() if cell["value"] is not None}
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
    return curve(
        across,
        up,
        [("held", spots)],
        dots=spots,
        bars=bars,
        label="score by training step",
        words=lambda y: points(y).removesuffix(".0"),
    )


def losses_drawn(looks: Sequence[Mapping[str, Any]]) -> Markup:
    """The loss at the same steps."""
    if not looks:
        return Markup("")
    spots = [(float(look["step"]), float(look["loss"])) for look in looks]
    up = charts.axis_of([y for _, y in spots], at_least=(0.0, 0.1))
    across = charts.axis_of([x for x, _ in spots], at_least=(0.0, 1.0))
    return curve(across, up, [("mean", spots)], dots=spots, label="loss by training step", words=lambda y: f"{y:.2g}")


# A figure on the page, with the place in report.json that it was read from, so that anyone can hold it against it.

Place = tuple[str | int, ...]
NBSP = "\u00a0"

FORMS: dict[str, Callable[[Any], str]] = {  # beside the kinds of figures.amount
    "points": lambda value: metrics.points(value, sign=True),
    "size": lambda value: metrics.points(abs(value)),
    "bound": metrics.points,  # an interval's end, without its unit
    "p": metrics.p_text,
    "length": str,  # of a list or a mapping
    "count": lambda value: f"{value:,.0f}",
    "level": lambda value: f"{100 * value:.3g}{NBSP}%",
    "small": lambda value: f"{value:.2g}",
    "ratio": lambda value: f"{value:.2f}",
    "text": str,
}


def quote(report: Mapping[str, Any], start: Place | str, *more: str | int, kind: str = "share") -> Markup:
    """The figure at a place in the report, written as its `kind`; the element names the place and the exact value.

    The place is `start` followed by `more`. `data-path` is it as a JSON pointer (RFC 6901) into report.json.
    Raises KeyError or IndexError where the report has no such place.
    """
    place = joined(start, more)
    value = look_up(report, place)
    value = len(value) if kind == "length" else value
    plain = metrics.DASH if value is None else written(value, kind)
    css = "words" if kind == "text" else "num"
    # Of words the element's text says it all.
    exact = Markup("") if kind == "text" else Markup(' value="{}"').format(json.dumps(value))
    head = Markup('<data class="{}" data-path="{}" data-kind="{}"{}>').format(css, pointer(place), kind, exact)
    return head + plain + Markup("</data>")


def written(value: Any, kind: str) -> str:
    """A value as its kind is written, its unit kept on the line."""
    if kind == "text":
        return str(value)
    form = FORMS.get(kind)
    return (form(value) if form else metrics.amount(kind, value)).replace(" ", NBSP)


def ends(report: Mapping[str, Any], start: Place | str, *more: str | int, kind: str = "bound") -> Markup:
    """Both ends of the interval of the figure at a place, or nothing where it has none."""
    place = joined(start, more)
    cell = look_up(report, place)
    if cell.get("ci_low") is None or cell.get("ci_high") is None:
        return Markup("")
    word = " to " if kind == "points" else f" {metrics.DASH} "  # a dash between signed numbers reads as a minus
    low, high = (quote(report, place, end, kind=kind) for end in ("ci_low", "ci_high"))
    return Markup('<span class="num ends">{}{}{}</span>').format(low, word.replace(" ", NBSP), high)


def joined(start: Place | str, more: Place) -> Place:
    """The whole place."""
    return ((start,) if isinstance(start, str) else tuple(start)) + more


def look_up(report: Mapping[str, Any], place: Place) -> Any:
    """The value at a place: names in mappings, positions in lists."""
    value: Any = report
    for step in place:
        value = value[step]
    return value


def pointer(place: Place) -> str:
    """A place as a JSON pointer: `/arms/student/category_accuracy/value`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)
