"""What the report tells of a distillation: headroom, development, the learning curve, and a smaller student's size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.chat import load_tokenizer, special_ids, template_switches, template_text
from workbench.engines.ask import generation_config, stop_ids
from workbench.evaluation.answers import Prediction
from workbench.evaluation.attribution import faster, next_labels
from workbench.evaluation.lm_eval import FOLDER, export_task
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.statistics import rounded
from workbench.files import read_json
from workbench.recipe import Recipe, has_open_teacher, has_teacher
from workbench.records import Example
from workbench.runs import Run
from workbench.stages.common import base_model, merged_model, say
from workbench.stages.train.guards import FILE
from workbench.stages.train.intervals import interval
from workbench.terms import policy
from workbench.terms.policy import Duty, name_ok, read_duties
from workbench.training.shrink import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAD = {"value": "lead", "ci_low": "lead_low", "ci_high": "lead_high"}


def evidence(
    recipe: Recipe,
    run: Run,
    predictions: Mapping[str, Sequence[Prediction]],
    engines: Mapping[str, str],
) -> dict[str, Any]:
    """The parts of report.json's `distillation` that this run has files or keys for; empty in a run that has none."""
    folder = run.folder / "train"
    headroom = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    parts = {
        "headroom": headroom_figures(headroom),
        "development": development_figures(recipe, folder / "development.json", headroom.get("groups", ())),
        "curve": curve_figures(recipe, folder / "curve.json"),
        "smaller": smaller_figures(recipe, run, predictions, engines),
    }
    return {name: part for name, part in parts.items() if part}


def headroom_figures(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Teacher and base on the gold development rows before training, and the lead with its interval."""
    if not kept:
        return {}
    figures: dict[str, Any] = {"n": len(kept["groups"])} if "groups" in kept else {}
    figures |= {"teacher": rounded(kept["teacher_score"]), "base": rounded(kept["base_score"])}
    return figures | {"lead": {end: rounded(kept[name]) for end, name in LEAD.items()}}


def development_figures(recipe: Recipe, path: Path, groups: Sequence[str]) -> dict[str, Any]:
    """The student's score and loss at each look while it trained, and the score of the weights that were written.

    `groups` tie near copies among its rows together, where they are known.
    """
    if not path.is_file():
        return {}
    kept = read_json(path)
    own = groups if len(groups) == len(kept["scores"]) else [""] * len(kept["scores"])
    points = [
        {"step": look["step"]} | shown(interval(look["scores"], own, recipe)) | {"loss": rounded(look["loss"])}
        for look in kept["curve"]
    ]
    figures = {"n": len(own), "score": shown(interval(kept["scores"], own, recipe)), "points": points}
    return figures | ({"loss_name": kept["curve"][-1]["loss_name"]} if points else {})


def curve_figures(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The learning curve, and in one sentence what the next labels would buy."""
    if not path.is_file():
        return {}
    points = json.loads(path.read_text(encoding="utf-8"))
    figures: dict[str, Any] = {"points": [{"labels": p["labels"]} | shown(p) for p in points]}
    doubling = points[-1].get("doubling") if points else None
    if doubling:
        figures["doubling"] = shown(doubling)
        fewer, labels = points[-2]["labels"], points[-1]["labels"]
        figures["sentence"] = next_labels(fewer, labels, figures["doubling"], recipe.evaluate.confidence)
    return figures


def smaller_figures(
    recipe: Recipe, run: Run, predictions: Mapping[str, Sequence[Prediction]], engines: Mapping[str, str]
) -> dict[str, Any]:
    """Parameters and layers of a student that was cut, beside its base's, and how much faster it answered."""
    if recipe.model.shrink.layers is None:
        return {}
    folders = {"base": base_model(recipe, run), "student": merged_model(run)}
    names = ("parameters", "layers")
    sizes = {whose: dict(zip(names, counted(folder), strict=True)) for whose, folder in folders.items()}
    return sizes | {"faster": faster(predictions, engines, list(recipe.quantize))}


def shown(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A value and the ends of its interval as report.json writes them."""
    return {end: rounded(figure[end]) for end in ("value", "ci_low", "ci_high")}


# What the licences of base, teacher and data ask of the student, and whether it is met: for the gate.


def duties_of(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """`[{"duty", "met", "why"}]`: the verdicts on base and teacher first, then each duty they leave."""
    model, teacher = recipe.model, recipe.teacher
    rows = [of_base(recipe)] if model.family or model.licence else []
    teachers = [(teacher, "label")] if has_teacher(recipe) else []
    teachers += [(policy.of_weights(teacher), "train")] if has_open_teacher(recipe) else []
    for judged, stage in teachers:
        verdict = policy.judge(judged, read_duties(run.folder / stage))
        met = verdict.verdict.startswith("allow")
        why = verdict.why
        if verdict.verdict == "review" and policy.acknowledged(teacher.terms_acknowledged):
            met, why = True, f"{why} Acknowledged: {teacher.terms_acknowledged}"
        rows.append(row(f"the teacher's terms ({verdict.rule})", met, why))
    name = recipe.tracking.registered_model or recipe.name
    public = teacher.distribution == "public" if teachers else True
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
    verdict = policy.base_duties(model.family, **uses)
    return row(f"the base's licence ({verdict.rule})", verdict.verdict.startswith("allow"), verdict.why)


def of_duty(duty: Duty, name: str, public: bool) -> dict[str, Any]:
    """One duty; a name is held against its prefix, a notice travels in the bundle, a threshold is told."""
    duty_text = f"{duty.text} ({duty.origin})"
    match duty.kind:
        case "name_prefix":
            complaint = name_ok(name, (duty,)) if public else None
            why = complaint or ("the name begins so" if public else "it is not handed out")
            return row(f"the name begins with {duty_text}", complaint is None, why)
        case "threshold":
            return row(duty_text, True, "for whoever serves it to watch: the card says so")
        case _:
            return row(duty_text, True, "the bundle carries it: NOTICE, card and duties.json")


def row(duty: str, met: bool, why: str) -> dict[str, Any]:
    """One duty, for the report."""
    return {"duty": duty, "met": met, "why": why}


# Hand the evaluation over: the test rows, rendered for the student, as a task for lm-evaluation-harness.

# What a model's generation_config.json may add to greedy decoding, and the value that leaves the probabilities alone.
PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "num_beams": 1}


def hand_over(recipe: Recipe, run: Run, items: Sequence[Example], folder: Path) -> None:
    """Write `folder`/lm_eval, `folder` being the evaluation's; the figures are report.json's where it is written.

    The folder holds test rows: it stays in the run, and goes neither to MLflow nor into a bundle.
    """
    model = merged_model(run)
    tokenizer = load_tokenizer(model, None)
    switches = template_switches(tokenizer, str(model))
    prompts = [template_text(tokenizer, item.prompt, True, switches, item.where) for item in items]
    written = folder / "report.json"
    report: dict[str, Any] = read_json(written) if written.is_file() else {}
    notes = export_task(
        folder / FOLDER,
        recipe.evaluate,
        items,
        prompts,
        stop_strings(model, tokenizer),
        task=recipe.data.name or recipe.name,
        arm=report.get("arms", {}).get(STUDENT),
        dtype=recipe.model.dtype,
        plain_greedy=plain_greedy(model),
        public=recipe.data.privacy == "public",
    )
    for line in notes:
        say(run, "evaluate", line)


def stop_strings(model: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that end an answer, as text: the tokenizer's own and all that generation_config.json names."""
    return [tokenizer.decode([number]) for number in sorted(stop_ids(model, tokenizer) & special_ids(tokenizer))]


def plain_greedy(model: Path) -> dict[str, Any]:
    """What must be switched off for the most likely token to be taken each time."""
    config = generation_config(model)
    return {key: plain for key, plain in PLAIN.items() if config.get(key) not in (None, plain)}
