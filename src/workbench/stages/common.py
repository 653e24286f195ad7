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
from workbench.recipe import Recipe, has_teacher
from workbench.runs import Run

if TYPE_CHECKING:
    from workbench.data.prepare import Splits
    from workbench.tracking import Egress

# A log file is as wide as the table of the arms; a terminal says itself how wide it is.
SCREEN = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 116)


def tracking_egress(experiments: Path) -> Egress:
    """What a tracking server on another machine is fed through: privacy's placeholders, and the log of what left."""
    # Not at the top: a wrong word must fail before a library of finders has loaded.
    from workbench.data.privacy import redact
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
    return prepare(recipe.data, recipe.seed)


def log_datasets(run: Run, stage: str, datasets: Sequence[dict[str, Any]], roles: Sequence[str]) -> None:
    """Write which rows the stage has used, with their digests."""
    for dataset in datasets:
        if dataset["role"] in roles:
            run.event("dataset", stage=stage, **dataset)


def merged_model(run: Run) -> Path:
    """The folder of the 16-bit student."""
    return run.folder / "merge" / "model"
