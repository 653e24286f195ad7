"""Anthropic's message batches, as the API reference and the batch guide describe them.

What is wrong inside the `params` of a request shows only in its result; everything else is refused at once.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

from providers import anthropic_wire as wire
from providers.batches import DAY, Batch, look, of, page, parsed
from providers.model import dump
from providers.shop import Shop

MOST_LINES = 100_000
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def create(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """POST /v1/messages/batches"""
    invalid = wire.invalid
    wanted = parsed(body, invalid("The request body is not valid JSON"))
    for name in wanted.keys() - {"requests"}:
        raise invalid(f"{name}: Extra inputs are not permitted")
    requests = wanted.get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= MOST_LINES:
        raise invalid("requests: List should have at least 1 item and at most 100000 items")
    lines: dict[str, dict[str, Any]] = {}
    for i, line in enumerate(requests):
        for name in ("custom_id", "params"):
            if name not in line:
                raise invalid(f"requests.{i}.{name}: Field required")
        if not isinstance(line["custom_id"], str) or not CUSTOM_ID.fullmatch(line["custom_id"]):
            raise invalid(f"requests.{i}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if line["custom_id"] in lines:
            raise invalid(f"requests.{i}.custom_id: custom_id must be unique within a batch")
        lines[line["custom_id"]] = line["params"]
    batch = Batch(f"msgbatch_{next(shop.numbers):012x}", wire, wire.MESSAGES, list(lines.items()))
    batch.version = request.headers["anthropic-version"]
    shop.batches[batch.id] = batch
    return batch_json(batch, request.host)


def batch_json(batch: Batch, host: str) -> dict[str, Any]:
    """The batch object: all requests count as processing until the batch has ended."""
    counts = batch.counts() if batch.ended else dict.fromkeys(("succeeded", "errored", "expired", "canceled"), 0)
    created, cancelled = batch.times["created"], batch.times.get("cancelling")
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.ended else "canceling" if batch.cancelling else "in_progress",
        "request_counts": {"processing": 0 if batch.ended else len(batch.lines), **counts},
        "created_at": stamp(created),
        "expires_at": stamp(created + DAY),
        "ended_at": stamp(batch.times["ended"]) if batch.ended else None,
        "cancel_initiated_at": stamp(cancelled) if cancelled else None,
        "archived_at": None,
        "results_url": f"http://{host}{wire.BATCHES}/{batch.id}/results" if batch.ended else None,
    }


def stamp(seconds: int) -> str:
    """A time as RFC 3339 writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def found(shop: Shop, name: str) -> Batch:
    """The batch of this id; raises 404 where there is none."""
    missing = wire.refused(404, "not_found_error", f"Message batch with ID {name} not found.")
    batch: Batch = of(shop.batches, name, missing)
    return batch


def get(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """GET /v1/messages/batches/{id}"""
    return batch_json(look(shop, found(shop, name)), request.host)


def listed(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """GET /v1/messages/batches"""
    mine = [batch for batch in reversed(shop.batches.values()) if batch.wire is wire]
    return page([batch_json(batch, request.host) for batch in mine], request.query, "after_id", 1000)


def cancel(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """POST /v1/messages/batches/{id}/cancel"""
    batch = found(shop, name)
    if not batch.ended:
        batch.cancelling = True
        batch.times["cancelling"] = int(time.time())
    return batch_json(batch, request.host)


def delete(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """DELETE /v1/messages/batches/{id}"""
    if not found(shop, name).ended:
        raise wire.invalid("Message batches can only be deleted once they have finished processing.")
    del shop.batches[name]
    return {"id": name, "type": "message_batch_deleted"}


def results(shop: Shop, request: Any, body: bytes, name: str) -> bytes:
    """GET /v1/messages/batches/{id}/results"""
    batch = found(shop, name)
    if not batch.ended:
        raise wire.refused(404, "not_found_error", f"Results of message batch {name} are not available yet.")
    rows = []
    for number, (custom_id, kind, answer) in enumerate(batch.results):
        result: dict[str, Any] = {"type": kind}
        if kind == "succeeded":
            result["message"] = answer
        elif kind == "errored":
            result["error"] = {**answer.body, "request_id": f"req_{number:012x}"}
        rows.append(dump({"custom_id": custom_id, "result": result}) + "\n")
    return "".join(rows).encode()
