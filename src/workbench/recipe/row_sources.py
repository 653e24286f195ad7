"""The sources of rows that one key names: a single one, a list, or a mixture of several with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from workbench.errors import RequestError, nearest

ENTRY = ("from", "weight", "name")


@dataclass(frozen=True)
class RowSource:
    """One source; `weight` is its part of a mixture's rows, None where all its rows are taken."""

    source: str
    weight: float | None = None
    name: str = ""


def row_sources(value: object, key: str) -> tuple[RowSource, ...]:
    """What a key such as `data.train` names; none where it is null or empty.

    Raises RequestError for anything but a source, a list of them, or of `{from, weight, name}`, and where some have a
    weight and others none.
    """
    entries = value if isinstance(value, list) else [value] if value not in (None, "") else []
    sources = tuple(
        entry_of(entry, f"{key}[{i}]" if isinstance(value, list) else key) for i, entry in enumerate(entries)
    )
    if isinstance(value, list) and not sources:
        raise RequestError("the list names no source", where=key, remedy=f"{key}: [file:a.jsonl, file:b.jsonl]")
    if len({source.weight is None for source in sources}) > 1:
        raise RequestError(
            "some sources have a weight and others none", where=key, remedy="give each a weight, or none of them"
        )
    short = [name_of(source.source) for source in sources]
    sources = tuple(
        replace(source, name=source.name or (name if short.count(name) == 1 else source.source))
        for source, name in zip(sources, short)
    )
    names = [source.name for source in sources]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise RequestError(
            f"two sources are called {repeated!r}", where=key, remedy="give them a name: {from: …, name: …}"
        )
    return sources


def entry_of(entry: object, key: str) -> RowSource:
    """One entry of a list of sources."""
    if isinstance(entry, str) and entry:
        return RowSource(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("from"), str):
        raise RequestError(
            "this names no source of rows", where=key, remedy="a path, or {from: file:rows.jsonl, weight: 2}"
        )
    strange = next((str(word) for word in entry if word not in ENTRY), None)
    if strange is not None:
        raise RequestError(f"no such key {strange!r}", where=f"{key}.{strange}", remedy=nearest(strange, ENTRY))
    weight, name = entry.get("weight"), entry.get("name")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0):
        raise RequestError(f"{weight!r} must be a number above 0", where=f"{key}.weight", remedy="weight: 2")
    return RowSource(entry["from"], None if weight is None else float(weight), str(name or ""))


def name_of(source: str) -> str:
    """What a source is called: its last part without its endings, or all of it where that is a pattern."""
    last = PurePosixPath(source.partition(":")[2] or source).name
    return source if any(sign in last for sign in "*?[") else last.partition(".")[0] or source


def source_text(value: object, key: str = "data") -> str:
    """The sources of a key on one line."""
    return " + ".join(source.source for source in row_sources(value, key))
