"""What `plan` says of a distillation and of a smaller student: what is learned, on which prompts, how large it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.prepare import Splits
from workbench.data.prompts import Asked
from workbench.recipe import Model, Recipe, Teach
from workbench.recipe.methods import distilled
from workbench.training.shrink import counted, student_size


def student_line(model: Model, base: Path | None) -> str:
    """The size of a student that is cut from the model's layers."""
    parameters, layers = student_size(model, base)
    whole = counted(base)[1] if base else model.layers
    size = f", {'' if base else '≈'}{parameters:,} parameters" if parameters else ""
    return f"{layers} of {whole or 'its'} layers ({model.shrink.keep}){size}"


def rows_learned(recipe: Recipe, splits: Splits, asked: Asked | None) -> int:
    """Rows that an epoch of training holds, when every prompt is answered and kept; a reason is a row of its own."""
    if asked is None:
        sampled = any(kind.replaces for kind in distilled(recipe.method.distil))
        return len(splits.train) * (recipe.method.teach.samples if sampled else 1)
    teach = recipe.method.teach if recipe.method.distil else Teach()
    rows = round((len(asked.examples) - len(asked.judging)) * teach.answers / (1 - teach.gold_share))
    return 2 * rows if any(kind.reasons for kind in distilled(recipe.method.distil)) else rows


def about_distillation(recipe: Recipe, splits: Splits, asked: Asked | None) -> dict[str, Any]:
    """What is learned of the teacher, on which prompts, from how many answers, and what guards it."""
    method, teacher = recipe.method, recipe.teacher
    teach = method.teach
    told: dict[str, Any] = {"learns": ", then ".join(method.distil).replace("_", "-")}
    if asked is None:
        told["prompts"] = f"{len(splits.train):,}, those of the training rows; no label is asked for"
    else:
        prompts = len(asked.examples) - len(asked.judging)
        samples = f"{teacher.samples} samples each, at most {teach.answers} of their answers kept"
        told["prompts"] = f"{prompts:,} to train on, " + (samples if teacher.samples > 1 else "one answer each")
        told["judged on"] = f"{len(asked.judging):,} validation rows that the teacher answers too"
    if any(kind.samples for kind in distilled(method.distil)):
        told["own answers"] = f"{teach.samples} a prompt, of at most {teach.max_new_tokens} tokens"
    gold = sum(bool(e.answer) for e in splits.validation[: teach.development_rows])
    limit = "told, not judged" if teach.headroom is None else f"a lead above {teach.headroom:g}, lower end"
    there = asked is not None or teacher.weights is not None
    told["headroom"] = f"on {gold:,} gold development rows: {limit}" if there and gold else "not looked at"
    if teach.curve:
        told["learning curve"] = "trained on 25 and 50 % of the labels as well"
    return told


def student_model(model: Model, base: Path | None) -> Model:
    """The model's keys with the sizes of the student, where that is a smaller one."""
    if model.shrink.layers is None:
        return model
    parameters, layers = student_size(model, base)
    return replace(model, parameters=parameters, layers=layers)
