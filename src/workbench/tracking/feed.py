"""Catch the MLflow store up with a run folder: only what is new, nothing twice, however often it is called or killed.

`tracking.json` in the run's folder remembers what was fed. It is a shortcut, not the truth: everything
found again in the store by its tags is reused, and everything logged twice falls on itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.files import read_json
from workbench.recipe import Tracking
from workbench.tracking import content, run_record
from workbench.tracking import outbound as leaving
from workbench.tracking.content import Fed
from workbench.tracking.outbound import Egress, Outbound
from workbench.tracking.report_feed import feed_description, feed_report
from workbench.tracking.run_record import Line, StageState, number
from workbench.tracking.store import Store, open_store, shown
from workbench.tracking.sweeps import sweep_of, sweep_run
from workbench.tracking.traces import feed_traces

ROUTE_TAGS = ("passed", "arm", "kind", "teacher", "promise", "kept_at_home", "harm", "refused")


def catch_up(
    folder: Path, tracking: Tracking, experiments: Path, egress: Egress | None = None, *, live: bool | None = None
) -> dict[str, Any]:
    """Feed what is new in a run's folder into MLflow; repeat it as often as you like.

    A parent run for the recipe and one nested run a stage, found again when the stage was resumed.
    Without an `egress`, which redacts and logs, no text of a row leaves for a store on another machine.
    Params are never rewritten in MLflow: a value changed later is told as a tag `changed.<key>`.
    `live` says whether a process is at work on the run; None: its lock is looked at.
    Returns `{"uri", "experiment_id", "run_id", "stages": {stage: run id}, "metrics": newly fed, "said": […]}`.
    Raises WorkbenchError when the store cannot be reached, AwayError of a server's; nothing is lost then.
    """
    run_record.read_events(folder / "events.jsonl")  # a folder without any is refused before a store is made
    with open_store(tracking, experiments, name_of(folder)) as store:
        # Read where nobody else feeds: what another process has fed in the meantime is older than this.
        events = run_record.read_events(folder / "events.jsonl")
        manifest = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
        recipe, name = run_record.recipe_of(folder, events), name_of(folder)
        at_work = run_record.is_live(folder) if live is None else live
        stages = run_record.fold_stages(events, live=at_work)
        fed = content.remembered(folder, store.uri, run_record.identity(folder, events))
        out = leaving.outbound(store.uri, store.artefacts, recipe, f"{name}/{folder.name}", egress)
        content.under(fed, out.rule)
        find_runs(store, fed, f"{name}/{manifest.get('digest') or folder.name}", events, stages)
        content.save(folder, fed)  # a kill from here on costs no second run
        metrics = content.feed_metrics(store, fed, events)
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
        feed_description(store, fed, folder, name, events, out)
        feed_traces(store, fed, folder, out, max((line.at_ms for line in events), default=0))
        for stage, state in stages.items():
            feed_stage(store, fed, stage, state, out)
        status = "RUNNING" if at_work else run_record.run_status(stages)
        end_run(store, fed, fed.parent, status, max((line.at_ms for line in events), default=0))
        fed.offset, fed.at_rest = max((line.end for line in events), default=0), not at_work
        content.save(folder, fed)
        return {
            "uri": shown(store.uri),
            "experiment_id": store.experiment_id,
            "run_id": fed.parent,
            "stages": dict(fed.stages),
            "metrics": metrics,
            "said": notes,
        }


def name_of(folder: Path) -> str:
    """The recipe's name, by which its experiment is called."""
    manifest = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    return str(manifest.get("recipe") or folder.parent.name)


def find_runs(store: Store, fed: Fed, name: str, events: Sequence[Line], stages: Mapping[str, StageState]) -> None:
    """Find the parent run and the nested ones by their tags, and create those that are missing.

    A remembered run that the store no longer has makes the memory blank, so that all is fed again.
    """
    start = events[0].at_ms if events else None
    parent = content.find_parent(store, fed)
    nested = content.search(store, f"tags.`mlflow.parentRunId` = '{parent}'") if parent else {}
    if parent != fed.parent or any(nested.get(stage) != known for stage, known in fed.stages.items()):
        fed.offset, fed.once = 0, {}
    if not parent:
        tags = {"run": fed.run, "stage": "all"}
        parent = store.client.create_run(store.experiment_id, start, tags, name).info.run_id
    sweep = sweep_of(events)
    if sweep and fed.is_new("sweep", sweep):
        store.client.set_tag(parent, "mlflow.parentRunId", sweep_run(store, sweep))
    fed.parent, fed.stages = parent, {stage: nested[stage] for stage in stages if stage in nested}
    for stage, state in stages.items():
        if stage not in fed.stages:
            tags = {"mlflow.parentRunId": parent, "run": fed.run, "stage": stage}
            run = store.client.create_run(store.experiment_id, state.started_ms, tags, stage)
            fed.stages[stage] = run.info.run_id


def feed_stage(store: Store, fed: Fed, stage: str, state: StageState, out: Outbound) -> None:
    """A stage's status and end, its facts (all as a table, texts as tags too) and its artefacts' digests."""
    if not fed.is_new(f"stage {stage}", asdict(state)):
        return
    run_id = fed.stages[stage]
    facts = dict(run_record.flatten(state.facts)) if state.facts else {}
    texts, why = {k: v for k, v in facts.items() if number(v) is None or isinstance(v, bool)}, state.why
    if out.rule == "withheld":  # a name inside nested facts may be a row's, and an error may quote one
        facts = {k: v for k, v in facts.items() if k in state.facts and k not in texts}
        texts, why = {}, state.why.partition(":")[0]
    else:
        facts, texts, why = out.tree(f"facts of {stage}", [facts, texts, why])
    if facts:
        columns: dict[str, object] = {"columns": ["fact", "value"], "data": [[k, v] for k, v in facts.items()]}
        content.log_tables(store, run_id, {"facts.json": columns})
    content.log_tags(store, run_id, {
        **{f"facts.{k}": v for k, v in texts.items()},
        **{f"sha256.{a['path']}": a["sha256"] for a in state.artefacts},
        "why": why or None,
    })  # fmt: skip
    if stage == "route":  # which requests the run's student keeps stands beside the run, not only below it
        content.log_tags(store, fed.parent, {f"route.{name}": facts.get(name) for name in ROUTE_TAGS})
    end_run(store, fed, run_id, state.status, state.ended_ms)


def end_run(store: Store, fed: Fed, run_id: str, status: run_record.Status, ended_ms: int) -> None:
    """Give a run its status and end; one that was ended and goes on is opened again."""
    if not fed.is_new(f"status of {run_id}", [status, ended_ms]):
        return
    if status == "RUNNING":
        store.client.update_run(run_id, status="RUNNING")
    else:
        store.client.set_terminated(run_id, status, ended_ms)
