"""Before a stage begins: whether what it will write fits on the disk. A run that ends on a full one has cost hours."""

from __future__ import annotations

from pathlib import Path

from workbench.files import require_room
from workbench.formats import format_named
from workbench.recipe import Recipe
from workbench.runs import Run, staging_folder
from workbench.sources import is_moving, model_folder, model_is_here
from workbench.stages.bundle import bundles_of, source_of
from workbench.stages.common import merged_model
from workbench.tracking import is_server, store_uri
from workbench.training.memory import BYTES, Shape, shape_named, shape_of, trained_bytes, training_bytes

BESIDES = 1 << 20  # bytes of events, predictions, reports and tables that any stage may write


def refuse_full_disk(recipe: Recipe, run: Run, stage: str) -> None:
    """Raise DiskError, naming the folder and the bytes, when a stage that is not done needs more than is free."""
    names = [stage]
    if stage == "quantize":
        names = [f"quantize/{name}" for name in recipe.quantize]
    elif stage == "bundle" and run.done("evaluate"):
        names = [f"bundle/{name}" for name in bundles_of(recipe, run)]
    if all(run.done(name) for name in names):
        return  # with nothing to do it needs nothing; what is made anew replaces what is there
    require_room(run.folder, needed(recipe, run, stage) + BESIDES, stage)


def needed(recipe: Recipe, run: Run, stage: str) -> int:
    """About how many bytes a stage has yet to write, small files left out; 0 where nothing is known or left."""
    if run.done(stage):
        return 0
    match stage:
        case "train":
            return max(0, of_training(recipe) - size_of(staging_folder(run, "train")))
        case "merge":
            # Two merges of a QLoRA adapter are compared, and one is kept.
            merges = 2 if recipe.method.kind == "qlora" else 1
            return base_shape(recipe).parameters * BYTES[recipe.model.dtype] * merges
        case "evaluate" if recipe.evaluate.folds:
            # The weights of every sibling stay until all rows are asked; one at a time has checkpoints.
            others = (recipe.evaluate.folds - 1) * trained_bytes(base_shape(recipe), recipe.method, recipe.model.dtype)
            return max(0, of_training(recipe) + others - size_of(staging_folder(run, "evaluate")))
        case "quantize":
            parameters = size_of(merged_model(run)) / BYTES[recipe.model.dtype]
            wanted = [q.format for name, q in recipe.quantize.items() if not run.done(f"quantize/{name}")]
            return round(sum(parameters * format_named(name).bytes_a_weight for name in wanted))
        case "bundle" if run.done("evaluate"):
            return sum(size_of(source_of(recipe, run, name)[0]) for name in coming_bundles(recipe, run))
        case "register" if run.done("evaluate") and not is_server(store_uri(recipe.tracking, run.folder.parents[1])):
            # The store's own copy of each, and the one that is fetched back and compared, one at a time.
            sizes = [size_of(run.folder / "bundle" / name) for name in bundles_of(recipe, run)]
            return sum(sizes) + max(sizes, default=0)
    return 0


def of_training(recipe: Recipe) -> int:
    """Bytes of the checkpoints that lie there at once, and of the adapter or model at the end."""
    return training_bytes(base_shape(recipe), recipe.method, recipe.model.dtype)


def base_shape(recipe: Recipe) -> Shape:
    """The base's shape: from its files where they are here, else as the recipe gives it."""
    model = recipe.model
    if not is_moving(model.source) and model_is_here(model.source):
        return shape_of(model_folder(model.source, model.sha256))
    return shape_named(model)


def coming_bundles(recipe: Recipe, run: Run) -> list[str]:
    """The bundles that are not made yet; the adapter's is too small to matter."""
    return [n for n in bundles_of(recipe, run) if n in ("student", *recipe.quantize) and not run.done(f"bundle/{n}")]


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 when it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
