"""What the licences of base, teacher and data ask of the student, and whether it is met: for the gate."""

from __future__ import annotations

from typing import Any

from workbench.recipe import Recipe, has_open_teacher, has_teacher
from workbench.runs import Run
from workbench.stages.common import merged_model
from workbench.teacher import terms
from workbench.teacher.duties import Duty, read_duties


def duties_of(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """`[{"duty", "met", "why"}]`: the verdicts on base and teacher first, then each duty they leave."""
    model, teacher = recipe.model, recipe.teacher
    rows = [of_base(recipe)] if model.family or model.licence else []
    taught = [(teacher, "label")] if has_teacher(recipe) else []
    taught += [(terms.of_weights(teacher), "train")] if has_open_teacher(recipe) else []
    for judged, stage in taught:
        verdict = terms.judge(judged, read_duties(run.folder / stage))
        met = verdict.verdict.startswith("allow")
        why = verdict.why
        if verdict.verdict == "review" and terms.acknowledged(teacher.terms_acknowledged):
            met, why = True, f"{why} Acknowledged: {teacher.terms_acknowledged}"
        rows.append(row(f"the teacher's terms ({verdict.rule})", met, why))
    name = recipe.tracking.registered_model or recipe.name
    public = teacher.distribution == "public" if taught else True
    rows += [of_duty(duty, name, public) for duty in read_duties(merged_model(run))]
    if recipe.data.attribution:
        rows.append(row(f"credit the data: {recipe.data.attribution}", True, "NOTICE and card of every bundle say it"))
    return rows


def of_base(recipe: Recipe) -> dict[str, Any]:
    """The terms table's word on tuning and handing out this base."""
    model, teacher = recipe.model, recipe.teacher
    if not model.family:
        why = f"no model.family is named, so the terms table was not asked; its licence is said to be {model.licence}"
        return row("the base's licence", True, why)
    uses: dict[str, Any] = {}
    if has_teacher(recipe) or has_open_teacher(recipe):
        uses = {"distribution": teacher.distribution, "commercial": teacher.commercial}
    verdict = terms.base_duties(model.family, **uses)
    return row(f"the base's licence ({verdict.rule})", verdict.verdict.startswith("allow"), verdict.why)


def of_duty(duty: Duty, name: str, public: bool) -> dict[str, Any]:
    """One duty; a name is held against its prefix, a notice travels in the bundle, a threshold is told."""
    told = f"{duty.text} ({duty.origin})"
    match duty.kind:
        case "name_prefix":
            complaint = terms.name_ok(name, (duty,)) if public else None
            why = complaint or ("the name begins so" if public else "it is not handed out")
            return row(f"the name begins with {told}", complaint is None, why)
        case "threshold":
            return row(told, True, "for whoever serves it to watch: the card says so")
        case _:
            return row(told, True, "the bundle carries it: NOTICE, card and duties.json")


def row(duty: str, met: bool, why: str) -> dict[str, Any]:
    """One duty, for the report."""
    return {"duty": duty, "met": met, "why": why}
