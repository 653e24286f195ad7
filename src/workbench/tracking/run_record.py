"""A run folder as MLflow will be told it: events, stages, the recipe and the report laid flat. No MLflow here."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.privacy.secrets import masked

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
MAX_PARAM, MAX_TAG = 6000, 5000


@dataclass(frozen=True)
class Line:
    """One event with its place in `events.jsonl`: `end` is the byte after its newline."""

    end: int
    at_ms: int
    kind: str
    stage: str | None
    body: Mapping[str, Any]


@dataclass
class StageState:
    """What the events say of one stage: from its first start to its newest end (milliseconds)."""

    started_ms: int
    status: Status = "RUNNING"
    ended_ms: int = 0
    why: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Sequence[Mapping[str, Any]] = ()


def read_events(path: Path) -> list[Line]:
    """Every whole event. A line torn by a kill is left out: what it said was never whole."""
    if not path.is_file():
        raise WorkbenchError("this run has no events", where=str(path), remedy="start it with `train`")
    lines, end = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        end += len(raw)
        try:
            body = json.loads(raw) if raw.endswith(b"\n") else None
            if isinstance(body, dict):
                lines.append(Line(end, millis(body["at"]), str(body["kind"]), body.get("stage"), body))
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def torn_lines(path: Path, events: Sequence[Line]) -> int:
    """How many lines of `events.jsonl` before the last event have an end and are no event: a full disk has torn them.

    What was written since the events were read is none of them.
    """
    return path.read_bytes()[: events[-1].end].count(b"\n") - len(events) if events else 0


def millis(at: str) -> int:
    """An ISO 8601 time in milliseconds since 1970."""
    return round(datetime.fromisoformat(at).timestamp() * 1000)


def identity(folder: Path, events: Sequence[Line]) -> str:
    """What tells this run from one that was started over in the same folder: its first event's time."""
    run = f"{folder.parent.name}/{folder.name}@{events[0].at_ms if events else 0}"
    return run.replace("'", "")  # it is quoted in MLflow's filters


def is_live(folder: Path) -> bool:
    """Whether a process is at work on this run: it holds the run's lock."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def fold_stages(lines: Sequence[Line], *, live: bool) -> dict[str, StageState]:
    """Each stage once, however often it was started. One that never ended was killed, unless it is still at work."""
    stages: dict[str, StageState] = {}
    newest = ""
    for line in lines:
        if not line.stage:
            continue
        state = stages.get(line.stage)
        if line.kind == "stage_started":
            state = stages.setdefault(line.stage, StageState(line.at_ms))
            state.status, state.why, newest = "RUNNING", "", line.stage
        elif state is None:
            continue
        elif line.kind == "stage_done":
            state.status = "FINISHED"
            state.facts, state.artefacts = line.body.get("facts") or {}, line.body.get("artefacts") or ()
        elif line.kind == "stage_failed":
            state.why = str(line.body.get("why", ""))
            state.status = "KILLED" if state.why == "interrupted" else "FAILED"
        state.ended_ms = line.at_ms
    for name, state in stages.items():
        if state.status == "RUNNING" and not (live and name == newest):
            state.status = "KILLED"
    return stages


def run_status(stages: Mapping[str, StageState]) -> Status:
    """The run's own status, by the worst that its stages have come to."""
    statuses = {state.status for state in stages.values()}
    order: tuple[Status, ...] = ("RUNNING", "FAILED", "KILLED")
    return next((status for status in order if status in statuses), "FINISHED")


def recipe_of(folder: Path, lines: Sequence[Line]) -> dict[str, Any]:
    """The recipe as it was last composed: `recipe.yaml`, else the `run` event."""
    if (folder / "recipe.yaml").is_file():
        return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) or {}
    runs = [line for line in lines if line.kind == "run"]
    return dict(runs[-1].body.get("recipe") or {}) if runs else {}


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key path, leaf) of nested mappings; a list is a leaf, and so is an empty mapping."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def text_of(value: object, longest: int) -> str:
    """A leaf as MLflow keeps it: text as it stands, all else as JSON, cut where MLflow would refuse it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def metric_name(name: str) -> str:
    """A name MLflow takes: letters, digits, `_ - . / : ` and spaces, at most 250, and no other way to write a path."""
    plain = re.sub(r"[^\w\-./: ]", "_", masked(name))[:250]
    return posixpath.normpath(f"/{plain}").lstrip("/") or "_"


def number(value: object) -> float | None:
    """The value as a float, or None when it is not a number."""
    return float(value) if isinstance(value, (int, float)) else None


def interval_text(cell: Any) -> str:
    """`0.685 [0.640, 0.730]`, or the value alone."""
    cell = cell if isinstance(cell, Mapping) else {"value": cell}
    value, low, high = (number(cell.get(end)) for end in ("value", "ci_low", "ci_high"))
    if value is None:
        return "–"
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def value_of(cell: Any) -> float | None:
    """A cell's value without its interval."""
    return number(cell.get("value") if isinstance(cell, Mapping) else cell)


# What a clock or a machine says of a step: other figures each time that the step is gone through.
CLOCKED = ("train/tokens_per_second", "train/memory_gb")


def points(lines: Sequence[Line]) -> Iterator[tuple[Line, float]]:
    """The metric events with their values, each point of a curve once.

    A training that was killed goes through its last steps again, to the same values: that is one point, not two.
    """
    known: dict[tuple[str | None, str, int], set[float]] = {}
    for line in lines:
        value = number(line.body.get("value")) if line.kind == "metric" else None
        if value is None:
            continue
        if line.body.get("step") is not None:
            name = str(line.body["name"])
            values = known.setdefault((line.stage, name, int(line.body["step"])), set())
            if value in values or (values and name in CLOCKED):
                continue
            values.add(value)
        yield line, value


def sample_table(bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sample answers in the layout of MLflow's tables (pandas' `split`)."""
    columns = ["step", "prompt", "expected", "answer"]
    rows = [[b.get("step"), *(text_of(b.get(c, ""), 10_000) for c in columns[1:])] for b in bodies]
    return {"columns": columns, "data": rows}
