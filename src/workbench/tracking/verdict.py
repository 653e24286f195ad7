"""The evaluation in MLflow: its figures as metrics, tables and pictures of the parent run, the gate's word as tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.records import file_sha256
from workbench.runs import read_json
from workbench.tracking import content, flat
from workbench.tracking import lines as told
from workbench.tracking.lines import Line
from workbench.tracking.memory import Fed
from workbench.tracking.store import Store


def feed_report(store: Store, fed: Fed, folder: Path, manifest: Mapping[str, Any], events: Sequence[Line]) -> None:
    """The report with its intervals as metrics and tables, its pictures, the gate as tags, a table as description."""
    from mlflow.entities import Metric

    path = folder / "evaluate" / "report.json"
    if not path.is_file():
        return
    report = read_json(path)
    finished = manifest.get("stages", {}).get("evaluate", {}).get("finished")
    at_ms = told.millis(finished) if finished else max(line.at_ms for line in events)
    if fed.is_new("report", report):
        content.log_metrics(store, fed.parent, [Metric(k, v, at_ms, 0) for k, v in flat.report_metrics(report).items()])
        content.log_tables(store, fed.parent, flat.report_tables(report))
        note = {"mlflow.note.content": flat.report_note(report)}
        content.log_tags(store, fed.parent, flat.gate_tags(report) | note)
    feed_pictures(store, fed, folder / "evaluate" / "figures")


def feed_pictures(store: Store, fed: Fed, folder: Path) -> None:
    """Each PNG as an artefact under its own name, on top, since MLflow's comparison of runs offers no file in a folder.

    It shows the chosen picture of all the runs abreast.
    """
    for path in sorted(folder.glob("*.png")):
        if fed.is_new(f"picture {path.stem}", file_sha256(path)):
            store.client.log_artifact(fed.parent, str(path))
