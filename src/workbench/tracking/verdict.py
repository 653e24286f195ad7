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
from workbench.tracking.outbound import Outbound
from workbench.tracking.store import Store

# What shows figures of arms and nothing of a row.
PLAIN_TABLES = ("evaluate/arms.json", "evaluate/comparisons.json")
PLAIN_PICTURES = ("forest", "differences", "pareto", "calibration")


def feed_report(
    store: Store, fed: Fed, folder: Path, manifest: Mapping[str, Any], events: Sequence[Line], out: Outbound
) -> None:
    """The report with its intervals as metrics and tables, its pictures, the gate as tags, a table as description.

    Labels, slices and reasons are texts that may come from rows: of restricted ones they do not leave.
    """
    from mlflow.entities import Metric

    path = folder / "evaluate" / "report.json"
    if not path.is_file():
        return
    report = read_json(path)
    finished = manifest.get("stages", {}).get("evaluate", {}).get("finished")
    at_ms = told.millis(finished) if finished else max(line.at_ms for line in events)
    if fed.is_new("report", report):
        content.log_metrics(store, fed.parent, [Metric(k, v, at_ms, 0) for k, v in flat.report_metrics(report).items()])
        tables, tags = flat.report_tables(report), flat.gate_tags(report)
        if out.rule == "withheld":
            tables = {name: table for name, table in tables.items() if name in PLAIN_TABLES}
            tags["gate.override"] = None
            note = flat.report_note(report, reasons=False)
        else:
            tables, tags, note = out.tree("tables of the report", [tables, tags, flat.report_note(report)])
        content.log_tables(store, fed.parent, tables)
        content.log_tags(store, fed.parent, tags | {"mlflow.note.content": note})
    feed_pictures(store, fed, folder / "evaluate" / "figures", out)


def feed_pictures(store: Store, fed: Fed, folder: Path, out: Outbound) -> None:
    """Each PNG as an artefact under its own name, on top, since MLflow's comparison of runs offers no file in a folder.

    It shows the chosen picture of all the runs abreast. A text drawn in one cannot be swapped: those with labels or
    slices in them leave for another machine only where rows are public.
    """
    for path in sorted(folder.glob("*.png")):
        if not out.whole and path.stem not in PLAIN_PICTURES:
            continue
        if fed.is_new(f"picture {path.stem}", file_sha256(path)):
            if out.whole:
                out.file(path.name, file_sha256(path), path.stat().st_size)
            store.client.log_artifact(fed.parent, str(path))
