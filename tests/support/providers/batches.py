"""Batches of `teacher_server`: worked off a part at each look, their results shuffled at the end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from providers.model import RefusedError, dump
from providers.shop import Shop

DAY = 86_400


@dataclass
class Batch:
    """One batch of either provider; results are (custom_id, succeeded | errored | expired | canceled, answer)."""

    id: str
    wire: ModuleType
    path: str
    lines: list[tuple[str, dict[str, Any]]]
    facts: dict[str, Any] = field(default_factory=dict)  # what the request said of it
    version: str | None = None  # of the API, as the request named it
    errors: list[dict[str, Any]] = field(default_factory=list)  # why it fails as a whole
    at_end: Callable[[Shop, Batch], None] = lambda shop, batch: None
    looks: int = 0
    cancelling: bool = False
    results: list[tuple[str, str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=lambda: {"created": int(time.time())})

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it."""
        return "ended" in self.times

    def counts(self) -> dict[str, int]:
        """Results by kind."""
        kinds = [kind for _, kind, _ in self.results]
        return {kind: kinds.count(kind) for kind in ("succeeded", "errored", "expired", "canceled")}


def look(shop: Shop, batch: Batch) -> Batch:
    """Someone looks: the batch gets on by its share of the lines, and ends at the last look."""
    if batch.ended:
        return batch
    batch.looks += 1
    steps = max(1, shop.config.batch_polls)
    goal = len(batch.lines) if batch.looks >= steps else len(batch.lines) * batch.looks // steps
    if batch.errors or batch.cancelling:
        goal = 0
    for custom_id, body in batch.lines[len(batch.results) : goal]:
        call = shop.log("POST", batch.path, dump(body).encode(), custom_id=custom_id, batch=batch.id)
        batch.results.append((custom_id, *shop.line(batch.wire, call, body, batch.version)))
    if batch.cancelling:
        batch.results += [(custom_id, "canceled", None) for custom_id, _ in batch.lines[len(batch.results) :]]
    if batch.errors or len(batch.results) == len(batch.lines):
        batch.times["ended"] = int(time.time())
        if shop.config.shuffle:
            random.Random(shop.config.seed).shuffle(batch.results)
        batch.at_end(shop, batch)
    return batch


def of(items: dict[str, Any], name: str, missing: RefusedError) -> Any:
    """The item of this name; raises `missing` where there is none."""
    if name not in items:
        raise missing
    return items[name]


def page(items: list[dict[str, Any]], query: Any, after: str, most: int) -> dict[str, Any]:
    """A page of a list, newest first, as both providers cut it."""
    limit = max(1, min(int(query.get("limit", 20)), most))
    ids = [item["id"] for item in items]
    start = ids.index(query[after]) + 1 if query.get(after) in ids else 0
    data = items[start : start + limit]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"data": data, "has_more": start + limit < len(items), **ends}


def parsed(body: bytes, broken: RefusedError) -> dict[str, Any]:
    """The JSON object in a body; raises `broken` where there is none."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise broken
    return value
