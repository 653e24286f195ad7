"""How the batch APIs are spoken to: hand in, look, fetch the lines, find a batch whose receipt was lost.

OpenAI: platform.openai.com/docs/api-reference/batch. Anthropic: docs.anthropic.com/en/api/creating-message-batches.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import tenacity

from workbench.errors import RequestError, WorkbenchError
from workbench.privacy.secrets import masked, values_without_held
from workbench.teacher.api import Api, version_for
from workbench.teacher.calls import Desk, pause
from workbench.teacher.client import TroubleError, sorted_out, wire_of
from workbench.teacher.egress import NO_ROW, SENDING, Sending
from workbench.teacher.wire import Request

QUESTIONS = "/v1/chat/completions"  # where OpenAI's batch puts each line's question
COUNTED = ("processing", "succeeded", "errored", "canceled", "expired")


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


def api_of(desk: Desk) -> Api:
    """The teacher's interface; RequestError where it is a plug-in's that has none."""
    api = desk.client.api
    if api is None:
        raise RequestError("this teacher has no batch API", where="teacher.batch", remedy="teacher.batch=false")
    return api


async def submit(desk: Desk, requests: Sequence[Request], batch: str) -> str:
    """Hand a batch in; gives the provider's id."""
    api = api_of(desk)
    bodies = [dict(request.body) for request in requests]
    if wire_of(desk.teacher) == "anthropic":
        lines = [{"custom_id": request.hash, "params": body} for request, body in zip(requests, bodies)]
        made = await api.call("POST", "/v1/messages/batches", headers=version_for(*bodies), json={"requests": lines})
        return str(made.json()["id"])
    content = "".join(
        json.dumps({"custom_id": request.hash, "method": "POST", "url": QUESTIONS, "body": body}, ensure_ascii=False)
        + "\n"
        for request, body in zip(requests, bodies)
    ).encode()
    uploaded = await api.call("POST", "/files", files={"file": (f"{batch}.jsonl", content)}, data={"purpose": "batch"})
    made = await api.call("POST", "/batches", json={
        "input_file_id": uploaded.json()["id"], "endpoint": QUESTIONS, "completion_window": "24h",
        "metadata": {"workbench": batch},
    })  # fmt: skip
    return str(made.json()["id"])


async def batch_state(desk: Desk, remote: str) -> dict[str, Any]:
    """The batch as the provider describes it."""
    path = "/v1/messages/batches" if wire_of(desk.teacher) == "anthropic" else "/batches"
    return (await api_of(desk).call("GET", f"{path}/{quote(remote, safe='')}")).json()


async def look(desk: Desk, remote: str) -> tuple[bool, str]:
    """(ended, a word on it)."""
    state = await batch_state(desk, remote)
    counts = state.get("request_counts") or {}
    if wire_of(desk.teacher) == "anthropic":
        status = state["processing_status"]
        return status == "ended", f"{status}, {counts['succeeded']:,} answered"
    status = state["status"]
    if status == "failed":
        problems = (state.get("errors") or {}).get("data") or []
        reason = masked("; ".join(str(problem.get("message")) for problem in problems))
        return True, f"failed: {reason or 'no reason given'}"
    done = f", {counts['completed']:,} answered" if counts else ""
    return status in ("completed", "expired", "cancelled"), f"{status}{done}"


async def results(desk: Desk, remote: str) -> AsyncIterator[Line]:
    """The lines of an ended batch, in the provider's order."""
    state, api = await batch_state(desk, remote), api_of(desk)
    if wire_of(desk.teacher) == "anthropic":
        if state.get("results_url"):
            for line in json_lines(await api.call("GET", state["results_url"])):
                yield anthropic_line(line)
        return
    for file in filter(None, (state.get("output_file_id"), state.get("error_file_id"))):
        for line in json_lines(await api.call("GET", f"/files/{quote(file, safe='')}/content")):
            yield openai_line(line)


def json_lines(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of a body that holds one a line; U+2028 and its like within a text end no line."""
    return (values_without_held(json.loads(line)) for line in response.content.split(b"\n") if line.strip())


def anthropic_line(answer: dict[str, Any]) -> Line:
    """One line of a batch's results."""
    result = answer["result"]
    if result["type"] == "succeeded":
        return Line(answer["custom_id"], result["message"], 200, "")
    error = (result.get("error") or {}).get("error") or {}
    return Line(answer["custom_id"], None, None, f"{result['type']}: {error.get('message', '')}")


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
    sending = Sending(f"batch {batch}", NO_ROW)
    known, anthropic = desk.ledger.known_remotes(), wire_of(desk.teacher) == "anthropic"

    async def listed() -> list[dict[str, Any]]:
        where = ("/v1/messages/batches", "after_id") if anthropic else ("/batches", "after")
        return [entry async for entry in api_of(desk).entries(*where)]

    entries = await patiently(desk, sending, listed)
    if not anthropic:
        return next((e["id"] for e in entries if (e.get("metadata") or {}).get("workbench") == batch), None)
    reserved = len(desk.ledger.tickets(batch))
    for entry in entries:
        total = sum(entry["request_counts"][state] for state in COUNTED)
        made_at = datetime.fromisoformat(entry["created_at"]).timestamp()
        if entry["id"] not in known and made_at >= started - 60 and total in (reserved, requests):
            return str(entry["id"])
    return None
