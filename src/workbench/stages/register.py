"""Register: the record is brought up to date, and the proven models get their versions and aliases in the registry."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from workbench.files import write_whole
from workbench.recipe import Recipe
from workbench.records import digest
from workbench.runs import Run, stage
from workbench.stages.bundle import bundles_of, check_registered
from workbench.stages.common import is_done, need, say, tracking_egress, verdict
from workbench.tracking import register, shown, store_uri


def run(recipe: Recipe, run: Run) -> bool:
    """Register unless it is done. A student that the gate refuses is a version without an alias."""
    need(run, "evaluate", "register")
    for name in bundles_of(recipe, run):
        need(run, f"bundle/{name}", "register")
    experiments = Path(recipe.launch.experiments).resolve()
    fingerprint = fingerprint_of(recipe, run, experiments)
    if is_done(run, "register", fingerprint):
        return False
    gate = verdict(run)
    with stage(run, "register", fingerprint) as staging:
        made = register(
            run.folder,
            recipe.tracking,
            experiments,
            passed=gate["passed"],
            shipped=gate.get("shipped", []),
            verify=check_registered,
            egress=tracking_egress(experiments),
        )
        for line in made.pop("said"):
            say(run, "register", line)
        write_whole(staging.folder / "registered.json", json.dumps(made, indent=1))
        staging.facts = made
    return True


def fingerprint_of(recipe: Recipe, run: Run, experiments: Path) -> str:
    """What the registration rests on: the verdict, the bytes, and the registry they go to."""
    tracking = asdict(recipe.tracking) | {"uri": shown(store_uri(recipe.tracking, experiments))}
    names = [
        name for name in run.manifest()["stages"] if name.partition("/")[0] in ("train", "merge", "quantize", "bundle")
    ]
    made = {name: run.output_digest(name) for name in names}
    return digest({"tracking": tracking, "evaluate": run.output_digest("evaluate"), "made": made}, 16)
