"""One parent in MLflow for all runs of a sweep: found by its name, made by the first run, ended with the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.recipe import Tracking
from workbench.tracking.run_record import Line
from workbench.tracking.store import Store, open_store


def sweep_of(events: Sequence[Line]) -> str | None:
    """The sweep that a run belongs to: the last that it was a trial of."""
    return next((str(line.body["name"]) for line in reversed(events) if line.kind == "sweep"), None)


def sweep_run(store: Store, sweep: str, make: bool = True) -> str | None:
    """The id of the sweep's own run, made where it is not there."""
    runs = store.client.search_runs([store.experiment_id], f"tags.sweep = '{sweep}' AND tags.stage = 'sweep'")
    if runs or not make:
        return runs[0].info.run_id if runs else None
    tags = {"sweep": sweep, "stage": "sweep"}
    return store.client.create_run(store.experiment_id, tags=tags, run_name=f"sweep {sweep}").info.run_id


def end_sweep(tracking: Tracking, experiments: Path, recipe_name: str, sweep: str, best: Mapping[str, Any]) -> None:
    """Say in MLflow which trial was the best, and that the sweep has ended. Raises WorkbenchError as `open_store`."""
    with open_store(tracking, experiments, recipe_name) as store:
        run_id = sweep_run(store, sweep, make=False)
        if run_id is None:
            return
        store.client.log_metric(run_id, "best", best["value"])
        for name, value in {"metric": best["metric"], "best.run": Path(best["run"]).name}.items():
            store.client.set_tag(run_id, name, value)  # its values are that run's params, withheld there or not
        store.client.set_terminated(run_id, "FINISHED")
