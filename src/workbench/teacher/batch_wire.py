"""How the batch APIs are spoken to: hand in, look, fetch the lines, find a batch whose receipt was lost.

OpenAI: platform.openai.com/docs/api-reference/batch. Anthropic: docs.anthropic.com/en/api/creating-message-batches.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tenacity

from workbench.errors import RequestError, WorkbenchError
from workbench.privacy.secrets import masked, values_without_held
from workbench.teacher.calls import Desk, pause
from workbench.teacher.client import TroubleError, sorted_out, wire_of
from workbench.teacher.egress import NO_ROW, SENDING, Sending
from workbench.teacher.wire import Request


@dataclass(frozen=True)
class Line:
    """One line of a batch's results: the request it answers, and the reply, or why there is none."""

    request: str
    payload: Any
    status: int | None
    error: str


async def patiently(
    desk: Desk, sending: Sending, call: Callable[[], Awaitable[Any]], *, once_sent: bool = False
) -> Any:
    """A control call through the choke point, again while that may help. Raises WorkbenchError or TroubleError.

    With `once_sent`, a call whose work may have been done is not tried again.
    """

    async def once() -> Any:
        token = SENDING.set(sending)
        try:
            return await call()
        except WorkbenchError:
            raise
        except Exception as error:
            raise sorted_out(error, desk.teacher, sending) from error
        finally:
            SENDING.reset(token)

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(desk.teacher.attempts), wait=pause, reraise=True,
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, TroubleError) and e.kind == "again" and not (once_sent and e.charged)
        ),
    )  # fmt: skip
    try:
        return await retrying(once)
    except TroubleError as trouble:
        if trouble.error is not None:
            desk.closed = desk.closed or trouble.error
            raise desk.closed from trouble
        raise


async def submit(desk: Desk, requests: Sequence[Request], batch: str) -> str:
    """Hand a batch in; gives the provider's id."""
    sdk = desk.client.sdk
    if wire_of(desk.teacher) == "anthropic":
        lines = [{"custom_id": request.hash, "params": dict(request.body)} for request in requests]
        return str((await sdk.messages.batches.create(requests=lines)).id)
    if not hasattr(sdk, "batches"):
        raise RequestError("this teacher has no batch API", where="teacher.batch", remedy="teacher.batch=false")
    lines = [
        {"custom_id": request.hash, "method": "POST", "url": "/v1/chat/completions", "body": dict(request.body)}
        for request in requests
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    uploaded = await sdk.files.create(file=(f"{batch}.jsonl", content), purpose="batch")
    made = await sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h",
        metadata={"workbench": batch},
    )  # fmt: skip
    return str(made.id)


async def look(desk: Desk, remote: str) -> tuple[bool, str]:
    """(ended, a word on it)."""
    sdk = desk.client.sdk
    if wire_of(desk.teacher) == "anthropic":
        found = await sdk.messages.batches.retrieve(remote)
        counts = found.request_counts
        return found.processing_status == "ended", f"{found.processing_status}, {counts.succeeded:,} answered"
    found = await sdk.batches.retrieve(remote)
    if found.status == "failed":
        told = masked("; ".join(str(error.message) for error in (found.errors.data if found.errors else None) or []))
        return True, f"failed: {told or 'no reason given'}"
    done = f", {found.request_counts.completed:,} answered" if found.request_counts else ""
    return found.status in ("completed", "expired", "cancelled"), f"{found.status}{done}"


async def results(desk: Desk, remote: str) -> AsyncIterator[Line]:
    """The lines of an ended batch, in the provider's order."""
    sdk = desk.client.sdk
    if wire_of(desk.teacher) == "anthropic":
        found = await sdk.messages.batches.retrieve(remote)
        if found.results_url is None:
            return
        async for entry in await sdk.messages.batches.results(remote):
            told = values_without_held(entry.model_dump(mode="json"))
            result = told["result"]
            if result["type"] == "succeeded":
                yield Line(told["custom_id"], result["message"], 200, "")
            else:
                error = (result.get("error") or {}).get("error") or {}
                yield Line(told["custom_id"], None, None, f"{result['type']}: {error.get('message', '')}")
        return
    found = await sdk.batches.retrieve(remote)
    for file in filter(None, (found.output_file_id, found.error_file_id)):
        text = (await sdk.files.content(file)).text
        for raw in text.splitlines():
            if raw.strip():
                yield openai_line(values_without_held(json.loads(raw)))


def openai_line(told: dict[str, Any]) -> Line:
    """One line of an output or error file."""
    response, error = told.get("response") or {}, told.get("error") or {}
    status = response.get("status_code")
    if status == 200:
        return Line(told["custom_id"], response["body"], status, "")
    inner = (response.get("body") or {}).get("error") or {}
    said = error.get("message") or inner.get("message") or ""
    return Line(told["custom_id"], None, status, f"{error.get('code') or inner.get('code') or ''} {said}".strip())


async def find_remote(desk: Desk, batch: str, started: float, requests: int) -> str | None:
    """The provider's id of a batch whose submission was interrupted; None when the provider has none.

    OpenAI keeps our own id with it. Anthropic does not: there it is the one batch we do not know, made after ours was
    written, with as many requests.
    """
    sdk, sending = desk.client.sdk, Sending(f"batch {batch}", NO_ROW)
    known = desk.ledger.known_remotes()

    async def listed() -> list[Any]:
        anthropic = wire_of(desk.teacher) == "anthropic"
        page = (sdk.messages.batches if anthropic else sdk.batches).list(limit=100)
        return [one async for one in page]

    found = await patiently(desk, sending, listed)
    if wire_of(desk.teacher) != "anthropic":
        return next((one.id for one in found if (one.metadata or {}).get("workbench") == batch), None)
    reserved = len(desk.ledger.tickets(batch))
    for one in found:
        counts = one.request_counts
        total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
        if one.id not in known and one.created_at.timestamp() >= started - 60 and total in (reserved, requests):
            return str(one.id)
    return None
