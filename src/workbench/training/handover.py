"""A job as files: what the lifecycle hands to the processes that train together, and the names of what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from workbench.files import read_json, write_whole
from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.stored_tokens import StoredTokens, opened_tokens
from workbench.training.development import Development
from workbench.training.job import Job
from workbench.training.targets import ChunkTargets, LabelTargets, TokenTargets

REQUEST, EVENTS, RESULT = "request.json", "events.jsonl", "result.json"
STOP = "stop"  # where this lies, the processes save after the step, and end
TARGETS = {kind.__name__: kind for kind in (TokenTargets, ChunkTargets, LabelTargets)}
PLAIN = ("made_of", "seed", "dtype", "device", "threads", "facts")
T = TypeVar("T")


def write_job(job: Job, folder: Path) -> None:
    """Write all of a job that a process cannot make by itself."""
    request: dict[str, Any] = {name: getattr(job, name) for name in PLAIN}
    request |= {"base": str(job.base.resolve()), "out": str(job.out.resolve()), "method": values_of(job.method)}
    request["start"] = str(job.start) if job.start else None
    if isinstance(job.rows, StoredTokens):
        request["stored"] = [str(job.rows.folder.resolve()), job.rows.of, job.rows.shards]
    else:
        write_rows(folder / "rows.jsonl", job.rows)
    write_rows(folder / "validation.jsonl", job.validation)
    if job.development is not None:
        write_rows(folder / "development.jsonl", job.development.rows)
        names = ("max_new_tokens", "drop", "decides", "key", "remedy")
        request["development"] = {name: getattr(job.development, name) for name in names}
    with (folder / "targets.jsonl").open("w", encoding="utf-8") as stream:
        for row, target in job.targets.items():
            stream.write(json.dumps([row, type(target).__name__, vars(target)]) + "\n")
    write_whole(folder / REQUEST, json.dumps(request))


def read_job(folder: Path) -> Job:
    """The job that `write_job` wrote, whose events nobody hears."""
    request = read_json(folder / REQUEST)
    development, stored = None, None
    if "stored" in request:
        place, of, shards = request["stored"]
        stored = opened_tokens(Path(place), of, shards)
    if "development" in request:
        rows = read_rows(folder / "development.jsonl")
        development = Development(rows, lambda number, answer: 0.0, **request["development"])
    return Job(
        base=Path(request["base"]),
        method=made(Method, request["method"]),
        rows=stored if stored is not None else read_rows(folder / "rows.jsonl"),
        out=Path(request["out"]),
        validation=read_rows(folder / "validation.jsonl"),
        targets={row: TARGETS[kind](**tupled(values)) for row, kind, values in lines_of(folder / "targets.jsonl")},
        development=development,
        start=Path(request["start"]) if request["start"] else None,
        **{name: request[name] for name in PLAIN},
    )


def values_of(section: Any) -> dict[str, Any]:
    """A section of the recipe as nested dicts."""
    pairs = {spec.name: getattr(section, spec.name) for spec in fields(section)}
    return {name: values_of(value) if is_dataclass(value) else value for name, value in pairs.items()}


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """A section of the recipe from nested dicts."""
    plain = kind()
    inner = {name: type(getattr(plain, name)) for name in values if is_dataclass(getattr(plain, name))}
    return kind(**{name: made(inner[name], value) if name in inner else value for name, value in values.items()})


def write_rows(path: Path, rows: Sequence[TokenRow]) -> None:
    """Rows as they are trained, one a line."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(vars(row)) + "\n")


def read_rows(path: Path) -> list[TokenRow]:
    """What `write_rows` wrote."""
    return [TokenRow(**tupled(values)) for values in lines_of(path)]


def lines_of(path: Path) -> Iterator[Any]:
    """Each line's value."""
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def tupled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with tuples for lists, at any depth."""

    def of(value: object) -> object:
        return tuple(map(of, value)) if isinstance(value, list) else value

    return {name: of(value) for name, value in values.items()}
