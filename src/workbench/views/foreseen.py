"""What a run would take of memory, time and disk: by the model's shapes, and by what this machine measured before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.files import free_bytes
from workbench.formats import format_named
from workbench.pages.terminal import megabytes
from workbench.recipe import Method, Model, Recipe, has_open_teacher
from workbench.sources import is_here, model_folder
from workbench.training.forecast import Estimate, Forecast, device_here, estimated, forecast, measured
from workbench.training.memory import BYTES, Shape, checkpoint_bytes, shape_named, shape_of, training_bytes
from workbench.training.model import available_memory
from workbench.training.shrink import student_size


@dataclass(frozen=True)
class Ahead:
    """What training would take: by the model's shapes, with the parts, and by what this machine measured before."""

    estimate: Estimate
    parts: dict[str, Any]
    seen: Forecast


def foreseen(recipe: Recipe, tokens: Sequence[int], rows: int, base: Path | None) -> Ahead | None:
    """What training on so many rows, with these tokens, would take here; None where the model's sizes are not known.

    Micro-batches and recomputing are those that training would choose with the memory that is free now.
    """
    shape = student_shape(recipe.model, base)
    if not (shape.parameters and shape.hidden and tokens):
        return None
    device = device_here(recipe.launch.device)
    steps, free, beside = steps_of(recipe.method, rows), available_memory(device), teacher_bytes(recipe)
    several = recipe.launch.processes * recipe.launch.nodes
    estimate, parts = estimated(shape, recipe.method, recipe.model.dtype, device, tokens, steps, free, beside, several)
    return Ahead(estimate, parts, forecast(estimate, measured(Path(recipe.launch.experiments), estimate)))


def student_shape(model: Model, base: Path | None) -> Shape:
    """The student's shape: from the base's files where it is here, else as the recipe's keys give it."""
    if base is None:
        return shape_named(student_model(model, base))
    if model.shrink.layers is None:
        return shape_of(base)
    parameters, layers = student_size(model, base)
    return replace(shape_of(base), parameters=parameters, layers=layers)


def teacher_bytes(recipe: Recipe) -> int:
    """The bytes of a teacher's weights that lie in memory beside the student's, where they are here to be measured."""
    source = recipe.teacher.weights
    if not has_open_teacher(recipe) or source is None or not is_here(source):
        return 0
    folder = model_folder(source, recipe.teacher.weights_sha256, key="teacher.weights")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def about_forecast(ahead: Ahead) -> dict[str, str]:
    """Memory and time, each with what it is known by."""
    estimate, parts, seen = ahead.estimate, ahead.parts, ahead.seen
    again = ", activations recomputed" if parts["checkpointing"] else ""
    shapes = (
        f"≈{megabytes(estimate.memory_bytes)} by the model's shapes, {parts['micro_batch_size']} rows at once{again}"
    )
    lines = {"memory": f"{shapes}, on {estimate.device} in {estimate.dtype}"}
    if seen.memory_bytes is None or seen.seconds is None:
        return lines | {"time": "not known: no training has been measured here"}
    by = f"by {seen.runs:,} trainings that were measured here"
    lines["forecast memory"] = f"≈{megabytes(seen.memory_bytes)} in all, {by}"
    return lines | {"time": f"≈{seen.seconds / 60:,.1f} minutes of steps, {by}"}


def about_disk(recipe: Recipe, base: Path | None) -> dict[str, Any]:
    """What the run would take, the copies in the MLflow store included."""
    needs, shape = disk_bytes(recipe, base), student_shape(recipe.model, base)
    if not needs:
        return {"needs": "unknown: the model's size is not given"}
    one = checkpoint_bytes(shape, recipe.method, recipe.model.dtype)
    return {
        "needs": f"≈{megabytes(needs)} in {recipe.launch.experiments}/",
        "checkpoints": f"≈{megabytes(one)} each, at most four at once while it trains",
        "free": megabytes(free_bytes(Path(recipe.launch.experiments))),
    }


def disk_bytes(recipe: Recipe, base: Path | None) -> int:
    """Bytes at the most that the run has on the disk at once; 0 where the model's size is not known.

    Checkpoints go when training ends; what comes then is each made, bundled, and copied into the store.
    """
    shape, formats = student_shape(recipe.model, base), [q.format for q in recipe.quantize.values()]
    made = shape.parameters * 3 * (BYTES[recipe.model.dtype] + sum(format_named(f).bytes_a_weight for f in formats))
    return max(round(made), training_bytes(shape, recipe.method, recipe.model.dtype))


def student_model(model: Model, base: Path | None) -> Model:
    """The model's keys with the sizes of the student, where that is a smaller one."""
    if model.shrink.layers is None:
        return model
    parameters, layers = student_size(model, base)
    return replace(model, parameters=parameters, layers=layers)


def steps_of(method: Method, rows: int) -> int:
    """Optimizer steps of a training on so many rows."""
    an_epoch = max(1, math.ceil(rows / method.batch_size))
    return int(min(math.ceil(an_epoch * method.epochs), method.max_steps or math.inf))
