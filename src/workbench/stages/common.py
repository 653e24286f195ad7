"""What every stage needs: to speak to the screen and the record at once, and to know whether it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from workbench.errors import WorkbenchError
from workbench.privacy.secrets import masked
from workbench.recipe import Recipe, has_teacher, sources_of
from workbench.runs import Run, hold_source
from workbench.sources import (
    content_sha256,
    is_here,
    is_local,
    is_moving,
    model_sha256,
    model_weights,
    pinned_commit,
    resolve,
)

if TYPE_CHECKING:
    from workbench.data.prepare import Splits
    from workbench.tracking import Egress

# The keys of sources that are models, and of those that hold rows.
MODELS = ("model.source", "teacher.weights")
ROWS = ("data.train", "data.validation", "data.test", "teacher.prompts")
# A log file is as wide as the table of the arms; a terminal says itself how wide it is.
SCREEN = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 116)


def tracking_egress(experiments: Path) -> Egress:
    """What a tracking server on another machine is fed through: privacy's placeholders, and the log of what left."""
    # Not at the top: a wrong word must fail before a library of finders has loaded.
    from workbench.privacy.redact import redact
    from workbench.teacher.egress import write_line
    from workbench.tracking import Egress

    return Egress(redact, partial(write_line, experiments / "egress.jsonl"))


def say(run: Run, stage: str, text: str) -> None:
    """Tell the user, and write it into the run's events."""
    SCREEN.print(f"  {masked(text)}", markup=False, soft_wrap=True)
    run.event("said", stage=stage, text=text)


def is_done(run: Run, stage: str, fingerprint: str) -> bool:
    """Whether the stage is whole and was made from the same inputs and settings."""
    entry = run.done(stage)
    return entry is not None and entry["fingerprint"] == fingerprint


def need(run: Run, stage: str, wanted_by: str) -> dict[str, Any]:
    """The manifest's entry of an earlier stage, or an error that says what to run."""
    entry = run.done(stage)
    if entry is None:
        raise WorkbenchError(
            f"{wanted_by} needs the stage {stage}, which is not done",
            where=str(run.folder),
            remedy=f"python -m workbench train recipe={run.recipe_name}",
        )
    return entry


def rows(recipe: Recipe, run: Run) -> Splits:
    """The recipe's rows, the same at every stage; with a teacher, the training rows are its labels."""
    from workbench.data.prepare import prepare
    from workbench.stages.prompts import labelled  # imported late: a word that is refused must not wait for it

    if has_teacher(recipe):
        need(run, "label", "train")
        return labelled(recipe, run)
    return prepare(recipe.data, recipe.seed, contents=row_contents(recipe, run))


def row_contents(recipe: Recipe, run: Run) -> dict[str, str]:
    """The digests that the sources of rows must have as they are read, by source.

    Of local files that is what the run's digest covers; of fetched ones, what the run found at their first use.
    """
    contents: dict[str, str] = dict(run.manifest().get("contents", {}))
    for key, source in sources_of(recipe).items():
        if source and not is_local(source) and not is_moving(source) and key in ROWS:
            found = content_sha256(resolve(source, key=key))
            hold_source(run, key, source, found, pinned_commit(source))
            contents[source] = found
    return contents


def refuse_other_bytes(run: Run) -> None:
    """Hold the fetched sources that lie here against what the run found in them; nothing is fetched for it."""
    for key, held in run.manifest().get("sources", {}).items():
        source = held["source"]
        if not is_moving(source) and not is_local(source) and is_here(source):
            path = resolve(source, key=key)
            found = model_sha256(path) if key in MODELS else content_sha256(path)
            hold_source(run, key, source, found, pinned_commit(source))


def base_model(recipe: Recipe, run: Run) -> Path:
    """The folder of the model that is tuned; refused when its weights are others than this run has used before."""
    model = recipe.model
    weights = model_weights(model.source, model.sha256)
    hold_source(run, "model.source", model.source, weights.sha256, pinned_commit(model.source))
    return weights.folder


def log_datasets(run: Run, stage: str, datasets: Sequence[dict[str, Any]], roles: Sequence[str]) -> None:
    """Write which rows the stage has used, with their digests."""
    for dataset in datasets:
        if dataset["role"] in roles:
            run.event("dataset", stage=stage, **dataset)


def merged_model(run: Run) -> Path:
    """The folder of the 16-bit student."""
    return run.folder / "merge" / "model"
