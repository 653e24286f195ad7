"""What every stage needs: to speak to the screen and the record at once, and to know whether it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.command import next_command
from workbench.errors import WorkbenchError
from workbench.files import file_sha256, read_json
from workbench.privacy.secrets import masked
from workbench.recipe import Recipe
from workbench.runs import Run, hold_artefacts, hold_source, kept_data
from workbench.screen import SafeConsole
from workbench.sources import (
    content_sha256,
    is_here,
    is_local,
    is_missing,
    is_moving,
    model_folder,
    model_is_here,
    model_sha256,
    model_weights,
    pinned_commit,
    refuse_untrainable,
    resolve,
)

if TYPE_CHECKING:
    from workbench.tracking import Egress

PREPARED = "prepared"  # the folder of a run's `data/` that holds its rows as the sources gave them
MODELS = ("model.source", "teacher.weights")  # the keys of sources that are models
# A log file is as wide as the table of the arms; a terminal says itself how wide it is.
SCREEN = SafeConsole(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 116)


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
    """Whether the stage is whole, still there, and was made from the same inputs and settings."""
    entry = run.done(stage)
    if entry is None or entry["fingerprint"] != fingerprint:
        return False
    gone = [made["path"] for made in entry["artefacts"] if not (run.folder / made["path"]).exists()]
    if gone:
        say(run, stage, f"{gone[0]} is not there any more: it is made anew")
    return not gone


def need(run: Run, stage: str, wanted_by: str) -> dict[str, Any]:
    """The manifest's entry of an earlier stage, or an error that says what to run."""
    entry = run.done(stage)
    if entry is None:
        raise WorkbenchError(
            f"{wanted_by} needs the stage {stage}, which is not done",
            where=str(run.folder),
            remedy=next_command("train", run.recipe_name, f"until={stage.partition('/')[0]}"),
        )
    return entry


def hold_made(run: Run, *stages: str) -> None:
    """Raise WorkbenchError when weights of these stages, as far as they are done, have changed since they were made."""
    for stage in stages:
        hold_artefacts(run.folder, run.done(stage) or {})


def verdict(run: Run) -> dict[str, Any]:
    """The gate's verdict, by which it is decided what ships. WorkbenchError where its file is another by now."""
    path, written = run.folder / "evaluate" / "report.json", (run.done("evaluate") or {}).get("facts", {})
    if "report_sha256" in written and (not path.is_file() or file_sha256(path) != written["report_sha256"]):
        raise WorkbenchError(
            "this is not the report that the evaluation wrote, and what ships is decided by it",
            where=str(path),
            remedy="put it back, or delete this folder and run `train` again: it is made anew",
        )
    gate: dict[str, Any] = read_json(path)["gate"]
    return gate


def has_rows(run: Run) -> bool:
    """Whether the run has its rows, and can go on without their sources."""
    return kept_data(run, PREPARED) is not None


def refuse_other_bytes(run: Run) -> None:
    """Hold the fetched sources that lie here against what the run found in them; nothing is fetched for it."""
    for key, held in run.manifest().get("sources", {}).items():
        source = held["source"]
        if not is_moving(source) and not is_local(source) and is_here(source):
            path = resolve(source, key=key)
            digest = model_sha256(path) if key in MODELS else content_sha256(path)
            hold_source(run, key, source, digest, pinned_commit(source))


def base_model(recipe: Recipe, run: Run) -> Path:
    """The folder of the model that is tuned; refused when its weights are others than this run has used before."""
    model = recipe.model
    weights = model_weights(model.source, model.sha256, key="model.source")
    hold_source(run, "model.source", model.source, weights.sha256, pinned_commit(model.source))
    return weights.folder


def refuse_base(recipe: Recipe) -> None:
    """Refuse a base that could not be tuned, where it is here already: before a teacher is paid, or a step taken."""
    source = recipe.model.source
    if not is_moving(source) and not is_missing(source) and model_is_here(source):
        base = model_folder(source, recipe.model.sha256, key="model.source")
        refuse_untrainable(base, f"model.source={source}")


def log_datasets(run: Run, stage: str, datasets: Sequence[dict[str, Any]], roles: Sequence[str]) -> None:
    """Write which rows the stage has used, with their digests."""
    for dataset in datasets:
        if dataset["role"] in roles:
            run.event("dataset", stage=stage, **dataset)


def merged_model(run: Run) -> Path:
    """The folder of the 16-bit student."""
    return run.folder / "merge" / "model"
