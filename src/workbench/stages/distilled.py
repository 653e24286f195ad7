"""What the report tells of a distillation: headroom, development, the learning curve, and a smaller student's size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.evaluation.answers import Prediction
from workbench.evaluation.cells import rounded
from workbench.evaluation.distilled import faster, next_labels
from workbench.recipe import Recipe
from workbench.runs import Run, read_json
from workbench.stages.common import base_model, merged_model
from workbench.stages.train.guards import FILE, interval
from workbench.training.shrink import counted

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
        "headroom": headroom_told(headroom),
        "development": development_told(recipe, folder / "development.json", headroom.get("groups", ())),
        "curve": curve_told(recipe, folder / "curve.json"),
        "smaller": smaller_told(recipe, run, predictions, engines),
    }
    return {name: part for name, part in parts.items() if part}


def headroom_told(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Teacher and base on the gold development rows before training, and the lead with its interval."""
    if not kept:
        return {}
    told: dict[str, Any] = {"n": len(kept["groups"])} if "groups" in kept else {}
    told |= {"teacher": rounded(kept["teacher_score"]), "base": rounded(kept["base_score"])}
    return told | {"lead": {end: rounded(kept[name]) for end, name in LEAD.items()}}


def development_told(recipe: Recipe, path: Path, groups: Sequence[str]) -> dict[str, Any]:
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
    told = {"n": len(own), "score": shown(interval(kept["scores"], own, recipe)), "points": points}
    return told | ({"loss_name": kept["curve"][-1]["loss_name"]} if points else {})


def curve_told(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The learning curve, and in one sentence what the next labels would buy."""
    if not path.is_file():
        return {}
    points = json.loads(path.read_text(encoding="utf-8"))
    told: dict[str, Any] = {"points": [{"labels": p["labels"]} | shown(p) for p in points]}
    doubling = points[-1].get("doubling") if points else None
    if doubling:
        told["doubling"] = shown(doubling)
        fewer, labels = points[-2]["labels"], points[-1]["labels"]
        told["sentence"] = next_labels(fewer, labels, told["doubling"], recipe.evaluate.confidence)
    return told


def smaller_told(
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
