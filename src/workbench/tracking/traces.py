"""Answers as MLflow's traces, the scorer's word on each as its assessments, for people to review; and what they say.

A stage leaves one answer a line in its file of FILES: `{"id", "prompt", "answer", "expected", "scores"}`, of which a
teacher's labels have the first three. A trace is
found again by an id that is made of the run, the row and the answer, so that it is there once, however often it is
fed, and keeps what people have written on it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.files import file_sha256
from workbench.privacy.redact import restore
from workbench.privacy.secrets import masked
from workbench.recipe import Tracking
from workbench.records import digest
from workbench.tracking import content, run_record
from workbench.tracking import outbound as leaving
from workbench.tracking.bounds import Bounded
from workbench.tracking.content import Fed
from workbench.tracking.outbound import Egress, Outbound
from workbench.tracking.store import Store, is_here, open_store

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace, TraceInfo
    from mlflow.tracing.client import TracingClient

FILES = {"label": "to_review.jsonl", "evaluate": "review.jsonl"}  # as the stages write them
WANTED = "expected_response"  # the name of the right answer, where there is one, and where a person writes one
ROW, STAGE = "workbench.row", "workbench.stage"
CORRECTIONS = (WANTED, "answer", "correction")
MOST, PAGE, PREVIEW = 200, 200, 900


@dataclass(frozen=True)
class Item:
    """One answer that people may look at. The texts are as they may leave; `key` stands for the row's id."""

    key: str
    trace: str
    stage: str
    prompt: str
    answer: str
    expected: str | None
    scores: Mapping[str, float]
    ms: int = 1  # that the answer took; the least that a span can, where nobody has measured it


def items_of(fed: Fed, folder: Path, stage: str, out: Outbound) -> list[Item]:
    """A stage's answers, each with its texts swapped as one row's are, so that placeholders can be put back."""
    items = []
    for line in review_rows(folder, stage):
        prompt, answer, expected = (str(line.get(name) or "") for name in ("prompt", "answer", "expected"))
        sent = out.texts(f"{stage} trace", [prompt, answer, expected])
        key = digest(line["id"], 16)
        trace = f"tr-{digest([fed.run, stage, key, sent], 32)}"
        wanted = None if line.get("expected") is None else sent[2]
        ms = max(1, round(1000 * float(line.get("seconds") or 0)))
        items.append(Item(key, trace, stage, sent[0], sent[1], wanted, line.get("scores") or {}, ms))
    return items


def review_rows(folder: Path, stage: str) -> Iterator[dict[str, Any]]:
    """The first MOST lines with an answer of a stage's file of them; none where it has left none."""
    path = folder / stage / FILES[stage]
    lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1]) if path.is_file() else ()
    yield from itertools.islice((line for line in lines if line.get("answer") is not None), MOST)


def feed_traces(store: Store, fed: Fed, folder: Path, out: Outbound, at_ms: int) -> None:
    """Each answer as a trace of the parent run. One that is no more given goes, unless a person has written on it.

    Of restricted rows none leaves for another machine, of internal ones placeholders do.
    """
    for stage in FILES:
        path = folder / stage / FILES[stage]
        if out.rule == "withheld" or not path.is_file() or not fed.is_new(f"traces of {stage}", file_sha256(path)):
            continue
        client = tracing(store)
        there = {t.trace_id: t for t in traces_of(client, store, fed.parent) if t.tags.get(STAGE) == stage}
        items = items_of(fed, folder, stage, out)
        new = [item for item in items if item.trace not in there]
        for start in range(0, len(new), PAGE):
            client.log_spans(store.experiment_id, [span_of(item, at_ms) for item in new[start : start + PAGE]])
        for item in new:
            client.start_trace(trace_info(item, store.experiment_id, fed.parent, at_ms))
        current = {item.trace for item in items}
        stale = [
            t.trace_id for t in there.values() if t.trace_id not in current and not any(map(by_person, t.assessments))
        ]
        for start in range(0, len(stale), PAGE):
            client.delete_traces(store.experiment_id, trace_ids=stale[start : start + PAGE])


def tracing(store: Store) -> TracingClient:
    """MLflow's client for traces, bounded as the other is."""
    from mlflow.tracing.client import TracingClient

    client = TracingClient(store.uri)
    return client if is_here(store.uri) else cast("TracingClient", Bounded(client, store.uri))


def traces_of(client: TracingClient, store: Store, run_id: str) -> Iterator[TraceInfo]:
    """What is known of each trace of a run, without what was asked and answered."""
    token = None
    while True:
        page: Sequence[Trace] = client.search_traces(
            locations=[store.experiment_id], run_id=run_id, max_results=PAGE, page_token=token, include_spans=False
        )
        yield from (trace.info for trace in page)
        token = getattr(page, "token", None)
        if not token:
            return


def span_of(item: Item, at_ms: int) -> Span:
    """The one span of a trace: what was asked and what was answered."""
    from mlflow.entities import Span

    start = at_ms * 1_000_000
    attributes = {
        "mlflow.traceRequestId": item.trace,
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": {"messages": [{"role": "user", "content": item.prompt}]},
        "mlflow.spanOutputs": {"choices": [{"message": {"role": "assistant", "content": item.answer}}]},
        "mlflow.message.format": "openai",
    }
    return Span.from_dict({
        "trace_id": item.trace, "span_id": digest(item.trace, 16), "parent_span_id": None, "name": item.stage,
        "start_time_unix_nano": start, "end_time_unix_nano": start + item.ms * 1_000_000,
        "status": {"code": "OK", "message": ""}, "events": [],
        "attributes": {name: json.dumps(value) for name, value in attributes.items()},
    })  # fmt: skip


def trace_info(item: Item, experiment_id: str, run_id: str, at_ms: int) -> TraceInfo:
    """A trace with the right answer as its expectation and the scorer's word as its feedback."""
    from mlflow.entities import AssessmentSource, Expectation, Feedback, TraceInfo, TraceLocation, TraceState

    source = AssessmentSource("CODE", "workbench")
    assessments: list[Assessment] = []
    if item.expected is not None:
        assessments.append(Expectation(WANTED, item.expected, source))
    for name, value in item.scores.items():
        word = bool(value) if value in (0.0, 1.0) else float(value)
        assessments.append(Feedback(run_record.metric_name(name), word, source=source))
    for number, assessment in enumerate(assessments):
        assessment.trace_id, assessment.assessment_id = item.trace, f"a-{digest([item.trace, number], 32)}"
    return TraceInfo(
        trace_id=item.trace,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=at_ms,
        state=TraceState.OK,
        request_preview=run_record.text_of(item.prompt, PREVIEW),
        response_preview=run_record.text_of(item.answer, PREVIEW),
        execution_duration=item.ms,
        trace_metadata={"mlflow.sourceRun": run_id},
        tags={"mlflow.traceName": item.stage, ROW: item.key, STAGE: item.stage},
        assessments=assessments,
    )


# Review comes back: what people have written on the traces of a run, by the ids of its rows.


def by_person(assessment: Assessment) -> bool:
    """Whether a person has written it, or has changed in MLflow what the workbench wrote."""
    human = str(assessment.source.source_type) == "HUMAN"
    changed = (assessment.last_update_time_ms or 0) > (assessment.create_time_ms or 0)
    return (human or changed) and assessment.valid is not False


def reviewed(
    folder: Path, tracking: Tracking, experiments: Path, egress: Egress | None = None
) -> dict[str, dict[str, dict[str, str]]]:
    """The answers that people have corrected on a run's traces: stage → row → `{"id", "answer", "by", "at"}`.

    Of several on one row the newest counts. Placeholders that were sent become what they stand for again. Raises
    WorkbenchError when the store cannot be reached.
    """
    events = run_record.read_events(folder / "events.jsonl")
    rows = {(stage, digest(line["id"], 16)): line for stage in FILES for line in review_rows(folder, stage)}
    if not rows:
        return {}
    newest: dict[str, dict[str, dict[str, str]]] = {}
    with open_store(tracking, experiments, folder.parent.name) as store:
        fed = content.remembered(folder, store.uri, run_record.identity(folder, events))
        out = leaving.outbound(store.uri, store.artefacts, run_record.recipe_of(folder, events), folder.name, egress)
        parent = content.find_parent(store, fed)
        for info in traces_of(tracing(store), store, parent) if parent else ():
            stage = info.tags.get(STAGE, "")
            line = rows.get((stage, info.tags.get(ROW, "")))
            for assessment in info.assessments if line else ():
                text = correction(assessment)
                if line is None or text is None:
                    continue
                row = {
                    "id": str(line["id"]),
                    "answer": put_back(text, line, out),
                    "by": reviewer_of(assessment),
                    "at": written_at(assessment),
                }
                known = newest.setdefault(stage, {})
                if row["at"] >= known.get(row["id"], row)["at"]:
                    known[row["id"]] = row
    return newest


def written_at(assessment: Assessment) -> str:
    """When it was written last, ISO 8601 in UTC to the millisecond."""
    at = datetime.fromtimestamp((assessment.last_update_time_ms or 0) / 1000, UTC)
    return at.isoformat(timespec="milliseconds")


def reviewer_of(assessment: Assessment) -> str:
    """Who has written it; MLflow does not note who changes what another wrote."""
    human = str(assessment.source.source_type) == "HUMAN"
    return str(assessment.source.source_id or "") if human else "not named in MLflow"


def correction(assessment: Assessment) -> str | None:
    """The answer that a person has written in an assessment; None where it is none."""
    if not by_person(assessment) or assessment.name not in CORRECTIONS:
        return None
    part = assessment.expectation or assessment.feedback
    value = part.value if part else None
    if value is None or isinstance(value, bool):
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def put_back(text: str, line: Mapping[str, Any], out: Outbound) -> str:
    """A person's answer with what its placeholders stand for in this row."""
    if out.rule != "redacted" or out.egress is None:
        return text
    texts = [masked(str(line.get(name) or "")) for name in ("prompt", "answer", "expected")]
    return restore(text, out.egress.redact(texts)[1])
