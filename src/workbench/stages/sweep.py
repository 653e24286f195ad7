"""A sweep: what each trial is worth, its best one named at the end, and one parent for all in MLflow.

Trials may run in processes of their own (joblib, submitit), so each leaves its line in the sweep's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import errors
from workbench.errors import WorkbenchError
from workbench.files import read_json
from workbench.recipe import Recipe, Tracking
from workbench.runs import Run, append_line, find_run, read_events
from workbench.stages.common import SCREEN

TRIALS = "trials.jsonl"


def worth(recipe: Recipe, run: Run) -> tuple[str, float] | None:
    """What a trial is judged by, the higher the better; None where nothing has been measured.

    The student's primary metric, where its test rows were asked; before, its score on development rows, else its
    validation loss, negated. What was chosen by test rows is no longer proven by them.
    """
    if run.done("evaluate") is not None:
        report = read_json(run.folder / "evaluate" / "report.json")
        return report["primary"], float(report["arms"]["student"][report["primary"]]["value"])
    facts = (run.done("train") or {}).get("facts", {})
    if facts.get("development_score") is not None:
        return "development score", float(facts["development_score"])
    if facts.get("best_validation_loss") is not None:
        return "validation loss, negated", -float(facts["best_validation_loss"])
    return None


def note(sweep: Path, number: int, words: Sequence[str], recipe: Recipe | None, code: int) -> float | None:
    """Write a trial's line into the sweep's folder; gives what the trial is worth, for a sweeper that searches."""
    experiments = Path(recipe.launch.experiments).resolve() if recipe else None
    value, name, folder = None, None, None
    if recipe is not None and experiments is not None and code in (errors.OK, errors.GATE_SAID_NO):
        from workbench.stages.lifecycle import run_of

        run = find_run(experiments, recipe.name, run_of(recipe, experiments)[0])
        measured = worth(recipe, run) if run else None
        if run and measured:
            (name, value), folder = measured, str(run.folder)
    sweep.mkdir(parents=True, exist_ok=True)
    line = {"trial": number, "words": list(words), "code": code, "metric": name, "value": value, "run": folder}
    if recipe is not None:
        line |= {"recipe": recipe.name, "experiments": str(experiments), "tracking": vars(recipe.tracking)}
    append_line(sweep / TRIALS, json.dumps(line))
    return value


def end(sweep: Path) -> int:
    """Name the best trial, on the screen and in MLflow; gives the worst exit code of all."""
    path = sweep / TRIALS
    trials = read_events(path)[0] if path.is_file() else []
    best = best_of(trials)
    if best is not None:
        words = " ".join(best["words"]) or "the recipe as it is"
        SCREEN.print(
            f"best of {len(trials)} trials by {best['metric']}: {best['value']:.4f} with {words}   {best['run']}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if best is not None:
        from workbench.tracking import end_sweep

        try:
            end_sweep(Tracking(**best["tracking"]), Path(best["experiments"]), best["recipe"], sweep.name, best)
        except WorkbenchError as error:
            SCREEN.print(f"  {error}", markup=False, soft_wrap=True)
    return max((trial["code"] for trial in trials), default=errors.OK)


def best_of(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial that is worth most, the first of equals, among those measured by the same metric as the last one."""
    measured = [trial for trial in trials if trial["value"] is not None]
    alike = [trial for trial in measured if trial["metric"] == measured[-1]["metric"]]
    return max(alike, key=lambda trial: (trial["value"], -trial["trial"]), default=None)
