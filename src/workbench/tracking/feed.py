"""Catch the MLflow store up with a run folder: only what is new, nothing twice, however often it is called or killed.

`tracking.json` in the run's folder remembers what was fed. It is a shortcut, not the truth: everything
found again in the store by its tags is reused, and everything logged twice falls on itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.files import file_sha256, read_json
from workbench.recipe import Tracking
from workbench.tracking import content, run_record
from workbench.tracking import outbound as leaving
from workbench.tracking.content import Fed
from workbench.tracking.outbound import Egress, Outbound
from workbench.tracking.run_record import Line, StageState, interval_metrics, interval_text, metric_name, number
from workbench.tracking.store import Store, open_store, shown


def catch_up(folder: Path, tracking: Tracking, experiments: Path, egress: Egress | None = None) -> dict[str, Any]:
    """Feed what is new in a run's folder into MLflow; repeat it as often as you like.

    A parent run for the recipe and one nested run a stage, found again when the stage was resumed.
    Without an `egress`, which redacts and logs, no text of a row leaves for a store on another machine.
    Params are never rewritten in MLflow: a value changed later is told as a tag `changed.<key>`.
    Returns `{"uri", "experiment_id", "run_id", "stages": {stage: run id}, "metrics": newly fed, "said": […]}`.
    Raises WorkbenchError when the store cannot be reached; nothing is lost then.
    """
    events = run_record.read_events(folder / "events.jsonl")
    manifest = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    recipe = run_record.recipe_of(folder, events)
    name = str(manifest.get("recipe") or recipe.get("name") or folder.parent.name)
    stages = run_record.fold_stages(events, live=run_record.is_live(folder))
    with open_store(tracking, experiments, name) as store:
        fed = content.remembered(folder, store.uri, identity(folder, events))
        out = leaving.outbound(store.uri, store.artefacts, recipe, f"{name}/{folder.name}", egress)
        content.under(fed, out.rule)
        find_runs(store, fed, f"{name}/{manifest.get('digest') or folder.name}", events, stages)
        content.save(folder, fed)  # a kill from here on costs no second run
        metrics = content.feed_metrics(store, fed, [line for line in events if line.end > fed.offset])
        content.feed_datasets(store, fed, events, out)
        content.feed_texts(store, fed, events, out)
        notes = content.feed_parent(store, fed, folder, manifest, recipe, out) + content.feed_files(
            store, fed, folder, events, out
        )
        torn = run_record.torn_lines(folder / "events.jsonl", events)
        if torn > 0 and fed.is_new("torn lines", torn):
            notes.append(f"{torn} torn lines of {folder / 'events.jsonl'} are left out")
        if out.remote and out.rule != "withheld" and store.uri.startswith("http://") and fed.is_new("way", store.uri):
            notes.append(f"texts of {out.privacy} rows go over plain http to {out.to}: who is on the way can read them")
        feed_report(store, fed, folder, manifest, events, out)
        for stage, state in stages.items():
            feed_stage(store, fed, stage, state, out)
        end_run(store, fed, fed.parent, run_record.run_status(stages), max((line.at_ms for line in events), default=0))
        fed.offset = max((line.end for line in events), default=0)
        content.save(folder, fed)
        return {
            "uri": shown(store.uri),
            "experiment_id": store.experiment_id,
            "run_id": fed.parent,
            "stages": dict(fed.stages),
            "metrics": metrics,
            "said": notes,
        }


def identity(folder: Path, events: Sequence[Line]) -> str:
    """What tells this run from one that was started over in the same folder: its first event's time."""
    run = f"{folder.parent.name}/{folder.name}@{events[0].at_ms if events else 0}"
    return run.replace("'", "")  # it is quoted in MLflow's filters


def find_runs(store: Store, fed: Fed, name: str, events: Sequence[Line], stages: Mapping[str, StageState]) -> None:
    """Find the parent run and the nested ones by their tags, and create those that are missing.

    A remembered run that the store no longer has makes the memory blank, so that all is fed again.
    """
    start = events[0].at_ms if events else None
    parent = search(store, f"tags.run = '{fed.run}' AND tags.stage = 'all'").get("all")
    nested = search(store, f"tags.`mlflow.parentRunId` = '{parent}'") if parent else {}
    if parent != fed.parent or any(nested.get(stage) != known for stage, known in fed.stages.items()):
        fed.offset, fed.once = 0, {}
    if not parent:
        tags = {"run": fed.run, "stage": "all"}
        parent = store.client.create_run(store.experiment_id, start, tags, name).info.run_id
    fed.parent, fed.stages = parent, {stage: nested[stage] for stage in stages if stage in nested}
    for stage, state in stages.items():
        if stage not in fed.stages:
            tags = {"mlflow.parentRunId": parent, "run": fed.run, "stage": stage}
            run = store.client.create_run(store.experiment_id, state.started_ms, tags, stage)
            fed.stages[stage] = run.info.run_id


def search(store: Store, query: str) -> dict[str, str]:
    """Stage → run id of the runs a filter finds; the oldest where a kill left two."""
    runs = store.client.search_runs([store.experiment_id], query, max_results=1000, order_by=["attributes.start_time"])
    return {run.data.tags.get("stage", ""): run.info.run_id for run in reversed(runs)}


def feed_stage(store: Store, fed: Fed, stage: str, state: StageState, out: Outbound) -> None:
    """A stage's status and end, its facts (numbers as metrics, the rest as tags) and its artefacts' digests."""
    from mlflow.entities import Metric

    if not fed.is_new(f"stage {stage}", asdict(state)):
        return
    run_id = fed.stages[stage]
    facts = dict(run_record.flatten(state.facts)) if state.facts else {}
    numbers = {k: v for k, v in facts.items() if run_record.number(v) is not None and not isinstance(v, bool)}
    texts = {k: v for k, v in facts.items() if k not in numbers}
    if out.rule == "withheld":  # a name inside nested facts may be a row's, and an error may quote one
        numbers = {k: v for k, v in numbers.items() if k in state.facts}
        texts, why = {}, state.why.partition(":")[0]
    else:
        texts, why = out.tree(f"facts of {stage}", [texts, state.why])
    content.log_metrics(
        store,
        run_id,
        [Metric(run_record.metric_name(f"stage/{k}"), float(v), state.ended_ms, 0) for k, v in numbers.items()],
    )
    content.log_tags(store, run_id, {
        **{f"facts.{k}": v for k, v in texts.items()},
        **{f"sha256.{a['path']}": a["sha256"] for a in state.artefacts},
        "why": why or None,
    })  # fmt: skip
    end_run(store, fed, run_id, state.status, state.ended_ms)


def end_run(store: Store, fed: Fed, run_id: str, status: run_record.Status, ended_ms: int) -> None:
    """Give a run its status and end; one that was ended and goes on is opened again."""
    if not fed.is_new(f"status of {run_id}", [status, ended_ms]):
        return
    if status == "RUNNING":
        store.client.update_run(run_id, status="RUNNING")
    else:
        store.client.set_terminated(run_id, status, ended_ms)


# An evaluation in MLflow: its report laid flat as metrics and tables, its pictures, the gate's word as tags.

ASIDE = (("general", "accuracy"), ("refusals", "refusals"))  # sections of the report that hold arms of their own
CELL = ("value", "ci_low", "ci_high")
DIFFERENCE = ("delta", "ci_low", "ci_high", "p_value", "p_holm")


def report_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """`<arm>/<metric>` with `_ci_low` and `_ci_high`, for all that the report says of an arm, and for each comparison
    `<candidate>_vs_<baseline>/<metric>_delta` with its interval, `_p_value` and `_p_holm`.
    """
    flat: dict[str, Any] = {}
    for arm, metric, cell in cells(report):
        flat |= {f"{arm}/{name}": value for name, value in interval_metrics(metric, cell).items()}
    rows = [*report.get("comparisons", ())]
    rows += [
        row | {"metric": f"{section}_{row['metric']}"}
        for section, _ in ASIDE
        for row in (report.get(section) or {}).get("comparisons", ())
    ]
    for row in rows:
        start = f"{row['candidate']}_vs_{row['baseline']}/{row['metric']}"
        flat |= {f"{start}_delta": row.get("delta"), f"{start}_p_value": row.get("p_value")}
        flat |= {f"{start}_delta_{end}": row.get(end) for end in ("ci_low", "ci_high")}
        flat |= {f"{start}_p_holm": row.get("p_holm")}
    flat |= distilled(report.get("distillation") or {})
    return {metric_name(name): value for name, raw in flat.items() if (value := number(raw)) is not None}


def distilled(distillation: Mapping[str, Any]) -> dict[str, Any]:
    """Of a distillation: the teacher's own gain, what a doubling of the labels bought, and a smaller student's size."""
    flat: dict[str, Any] = {}
    for place, cell in (
        (
            f"teacher_vs_{distillation.get('baseline')}/{distillation.get('metric')}_delta",
            distillation.get("teacher_gain"),
        ),
        ("curve/doubling", distillation.get("curve", {}).get("doubling")),
    ):
        flat |= interval_metrics(place, cell) if cell else {}
    smaller = distillation.get("smaller", {})
    for arm in ("base", "student"):
        flat |= {f"{arm}/{name}": value for name, value in smaller.get(arm, {}).items()}
    for row in smaller.get("faster", ()):
        start = f"{row['candidate']}_vs_{row['baseline']}"
        flat |= {f"{start}/{name}": row[name] for name in ("times", "times_a_token")}
    return flat


def cells(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every (arm, metric, cell) of a report, those of its side checks and of the calibration too."""
    for arm, metrics in report.get("arms", {}).items():
        for metric, cell in metrics.items():
            yield arm, metric, cell
    for section, metric in ASIDE:
        for arm, metrics in (report.get(section) or {}).get("arms", {}).items():
            yield arm, f"{section}_{metric}", metrics[metric]
    for arm, figures in (report.get("calibration") or {}).items():
        yield from ((arm, metric, figures[metric]) for metric in ("ece", "brier"))
    for arm, cell in (report.get("memorised") or {}).items():
        yield arm, "memorised", cell
    for arm, cell in (report.get("distillation") or {}).get("kept", {}).items():
        yield arm, "kept_share", cell


def report_tables(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """File name → table in the layout of MLflow's tables (pandas' `split`), each that the report has rows for."""
    tables = {
        "evaluate/arms.json": table(("arm", "metric", *CELL), ([arm, m, *ends(c)] for arm, m, c in cells(report))),
        "evaluate/comparisons.json": table(
            ("candidate", "baseline", "metric", *DIFFERENCE, "n", "mde"),
            ([row.get(name) for name in ("candidate", "baseline", "metric", *DIFFERENCE, "n", "mde")]
             for row in report.get("comparisons", ())),
        ),
        "evaluate/slices.json": table(
            ("field", "slice", "n", "arm", *CELL),
            ([part["field"], str(part["value"]), part["n"], arm, *ends(cell)]
             for part in report.get("slices") or () for arm, cell in part["arms"].items()),
        ),
        "evaluate/slice_differences.json": table(
            ("field", "slice", "n", "candidate", "baseline", *DIFFERENCE),
            ([part["field"], str(part["value"]), part["n"], row["candidate"], row["baseline"],
              *(row.get(name) for name in DIFFERENCE)]
             for part in report.get("slices") or () for row in part.get("comparisons", ())),
        ),
        "evaluate/gate.json": table(
            ("check", "arm", "passed", "value", "limit", "why"),
            ([check.get(key) for key in ("name", "arm", "passed", "value", "limit", "why")]
             for check in report.get("gate", {}).get("checks", ())),
        ),
    }  # fmt: skip
    for metric, counts in (report.get("confusion") or {}).items():
        tables[f"evaluate/confusion_{metric_name(metric).replace('/', '_')}.json"] = table(
            ("arm", "wanted", "answered", "count"),
            ([arm, wanted, answered, n] for arm, rows in counts["arms"].items()
             for wanted, row in zip(counts["labels"], rows) for answered, n in zip(counts["labels"], row) if n),
        )  # fmt: skip
    return {name: content for name, content in tables.items() if content["data"]}


def table(columns: tuple[str, ...], rows: Iterator[list[Any]]) -> dict[str, Any]:
    """Columns and rows as MLflow's tables are written."""
    return {"columns": list(columns), "data": list(rows)}


def ends(cell: object) -> list[float | None]:
    """A cell's value and its interval."""
    return [number(cell.get(name)) for name in CELL] if isinstance(cell, Mapping) else [number(cell), None, None]


def gate_tags(report: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's word, what ships and what does not, and a person's override with its reason."""
    gate = report.get("gate", {})
    word = "overridden" if gate.get("overridden") else "passed" if gate.get("passed") else "refused"
    return {
        "gate": word,
        "gate.override": gate.get("override") if gate.get("overridden") else None,
        "shipped": ", ".join(gate.get("shipped", [])) or None,
        "refused": ", ".join(gate.get("refused", [])) or None,
    }


def report_note(report: Mapping[str, Any], *, reasons: bool = True) -> str:
    """The report as a Markdown table of arms and metrics with the gate's word, for the run's description.

    Without `reasons` it says nothing but figures: a reason may quote a label or a slice.
    """
    arms = report.get("arms", {})
    metrics = list(dict.fromkeys(metric for row in arms.values() for metric in row))
    gate = report.get("gate", {})
    rows = [f"**Gate: {gate_tags(report)['gate']}**, {report.get('n', '?')} test rows", ""]
    if gate.get("overridden") and reasons:
        rows[1:1] = ["", f"Overridden by a person: {gate.get('override')}"]
    rows += ["| arm | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for arm, row in arms.items():
        rows.append(f"| {arm} | " + " | ".join(interval_text(row.get(metric, {})) for metric in metrics) + " |")
    checks = [f"- {c.get('name')}: {c.get('why')}" for c in gate.get("checks", []) if not c.get("passed")]
    return "\n".join(rows + (["", *checks] if checks and reasons else []))


# The evaluation in MLflow: its figures as metrics, tables and pictures of the parent run, the gate's word as tags.

# What shows figures of arms and nothing of a row.
PLAIN_TABLES = ("evaluate/arms.json", "evaluate/comparisons.json")
PICTURES = (".svg", ".png")  # as they are drawn, and as an earlier version drew them
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
    at_ms = run_record.millis(finished) if finished else max(line.at_ms for line in events)
    if fed.is_new("report", report):
        content.log_metrics(store, fed.parent, [Metric(k, v, at_ms, 0) for k, v in report_metrics(report).items()])
        tables, tags = report_tables(report), gate_tags(report)
        if out.rule == "withheld":
            tables = {name: table for name, table in tables.items() if name in PLAIN_TABLES}
            tags["gate.override"] = None
            note = report_note(report, reasons=False)
        else:
            tables, tags, note = out.tree("tables of the report", [tables, tags, report_note(report)])
        content.log_tables(store, fed.parent, tables)
        content.log_tags(store, fed.parent, tags | {"mlflow.note.content": note})
    feed_pictures(store, fed, folder / "evaluate" / "figures", out)


def feed_pictures(store: Store, fed: Fed, folder: Path, out: Outbound) -> None:
    """Each picture as an artefact under its own name, on top: MLflow's comparison of runs offers no file in a folder.

    It shows the chosen picture of all the runs abreast. A text drawn in one cannot be swapped: those with labels or
    slices in them leave for another machine only where rows are public.
    """
    for path in sorted(path for path in folder.glob("*") if path.suffix in PICTURES):
        if not out.whole and path.stem not in PLAIN_PICTURES:
            continue
        if fed.is_new(f"picture {path.stem}", file_sha256(path)):
            if out.whole:
                out.file(path.name, file_sha256(path), path.stat().st_size)
            store.client.log_artifact(fed.parent, str(path))
