"""The providers' batch APIs: half the price for patience. What a batch answers goes into the ledger, like any answer.

Written before it is sent, and asked for again after a restart: a batch that was paid for is never lost, by any run.
Lines come back in any order and are put to their requests by their own id; what failed or expired is simply still
unanswered, and the calls that follow ask for it one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import tenacity

from workbench.errors import RequestError, WorkbenchError
from workbench.privacy.secrets import masked, values_without_held
from workbench.teacher.calls import Desk, pause, watch_bill
from workbench.teacher.client import Api, TroubleError, sorted_out, version_for, wire_of
from workbench.teacher.egress import NO_ROW, SENDING, Sending, merged
from workbench.teacher.ledger import Outcome, TakenError
from workbench.teacher.payload import MOST_TOKENS, ErrorInReply, ShapeError, read_reply
from workbench.teacher.prices import pricing_of
from workbench.teacher.wire import Reply, Request

UNKNOWN = Request("", {}, "", MOST_TOKENS, MOST_TOKENS)  # stands for one that an earlier process has sent
MAX_BYTES = 150_000_000  # below both providers' limits on one batch
Say = Callable[[str], None]
Class = Callable[[Reply], Outcome]


async def fill(desk: Desk, wanted: Sequence[tuple[Request, Sending]], classed: Class, say: Say) -> None:
    """Have the unanswered of these requests answered by batches, as far as the budget goes."""
    seen: set[str] = set()
    open_ones = [(request, sending) for request, sending in wanted if fresh(desk, request, seen)]
    chunk: list[tuple[Request, Sending]] = []
    size = 0
    for request, sending in open_ones:
        length = len(json.dumps(request.body))
        if chunk and (len(chunk) >= desk.teacher.batch_rows or size + length > MAX_BYTES):
            await one_batch(desk, chunk, classed, say)
            chunk, size = [], 0
        chunk.append((request, sending))
        size += length
    if chunk:
        await one_batch(desk, chunk, classed, say)


def fresh(desk: Desk, request: Request, seen: set[str]) -> bool:
    """Whether a request is neither answered, nor on its way, nor an equal of one before it."""
    if request.hash in seen or desk.ledger.answer(request.hash) or desk.ledger.in_flight(request.hash):
        return False
    seen.add(request.hash)
    return True


async def collect_unfinished(desk: Desk, classed: Class, say: Say) -> None:
    """Wait for the batches that an earlier attempt, of this run or another, has sent to this teacher."""
    for batch, remote, started, requests in desk.ledger.unfinished_batches(desk.client.identity):
        if remote is None:
            remote = await find_remote(desk, batch, started, requests)
        if remote is None:  # it never reached the provider
            for ticket in desk.ledger.tickets(batch).values():
                desk.ledger.settle(ticket, "error", 0, error="the batch was never submitted")
            desk.ledger.mark_batch(batch, "done", None)
            continue
        desk.ledger.mark_batch(batch, "submitted", remote)
        say(f"batch {remote} of an earlier attempt, {requests:,} requests: waiting for it")
        await collect(desk, batch, remote, Sending(f"batch {batch}", NO_ROW), classed, say, {})


async def one_batch(desk: Desk, chunk: Sequence[tuple[Request, Sending]], classed: Class, say: Say) -> None:
    """Reserve, submit, wait, settle. Requests that the budget has no room for are left out."""
    if desk.closed:
        return
    batch, pricing = uuid.uuid4().hex, pricing_of(desk.teacher, batch=True)
    desk.ledger.open_batch(batch, desk.client.identity, len(chunk))
    taken = []
    for request, sending in chunk:
        worst = pricing.worst(request.most_in, request.most_out)
        with contextlib.suppress(TakenError):  # another run is buying it
            if desk.ledger.reserve(request.hash, request.row, desk.client.identity, worst, desk.budget, "batch", batch):
                taken.append((request, sending))
    if not taken:
        desk.ledger.mark_batch(batch, "done", None)
        return
    sending = joint([sending for _, sending in taken], batch)
    try:
        remote = await submitted_once(desk, [request for request, _ in taken], batch, sending)
    except TroubleError as error:
        if error.charged:  # the provider may have it: the next attempt looks for it before anything is sent again
            raise WorkbenchError(
                f"nobody knows whether the batch was taken: {error}",
                where="teacher.batch",
                remedy="run the command again",
            ) from error
        for ticket in desk.ledger.tickets(batch).values():
            desk.ledger.settle(ticket, "error", 0, error=str(error))
        desk.ledger.mark_batch(batch, "done", None)
        raise WorkbenchError(
            f"the batch was not taken: {error}", where="teacher.batch", remedy="teacher.batch=false asks one by one"
        ) from error
    desk.ledger.mark_batch(batch, "submitted", remote)
    say(f"batch {remote}: {len(taken):,} requests submitted, looked at every {desk.teacher.poll_seconds:g} s")
    await collect(desk, batch, remote, sending, classed, say, {request.hash: request for request, _ in taken})


def joint(sendings: Sequence[Sending], batch: str) -> Sending:
    """One line for all rows of a batch, of the strictest class among them."""
    strictest = max((sending.privacy for sending in sendings), key=("public", "internal", "restricted").index)
    return Sending(f"batch {batch}: {len(sendings)} rows", strictest, merged(sending.redacted for sending in sendings))


async def collect(
    desk: Desk, batch: str, remote: str, sending: Sending, classed: Class, say: Say, known: Mapping[str, Request]
) -> None:
    """Poll until the batch has ended, and settle every request of it. `known` are the requests by their hash."""
    last = ""
    while True:
        ended, state = await patiently(desk, sending, lambda: look(desk, remote))
        if state != last:
            say(f"batch {remote}: {state}")
            last = state
        if ended:
            break
        await asyncio.sleep(desk.teacher.poll_seconds)
    pricing = pricing_of(desk.teacher, batch=True)
    tickets = desk.ledger.tickets(batch)
    lines = await patiently(desk, sending, lambda: gathered(results(desk, remote)))
    odd = lines.count(None)
    for line in filter(None, lines):
        ticket = tickets.pop(line.request, None)
        if ticket is None:  # answered twice, or not ours: counted once
            continue
        reply = None
        if line.payload is not None:
            request = known.get(line.request, UNKNOWN)
            try:
                reply = read_reply(wire_of(desk.teacher), line.payload, request)
            except ErrorInReply as error:
                line = replace(line, error=str(error), status=error.status)
            except ShapeError as error:
                cost = ticket.worst if error.usage is None else pricing.cost(error.usage)
                desk.ledger.settle(
                    ticket, "error", cost, usage=error.usage, error=str(error), assumed=error.usage is None, status=200
                )
                continue
        if reply is None:
            desk.ledger.settle(ticket, "error", 0, error=line.error, status=line.status)
        else:
            own = reply.usage.own_in or reply.usage.own_out
            # Of a batch that an earlier process sent nobody has the questions to count.
            cost = ticket.worst if own and request is UNKNOWN else pricing.cost(reply.usage)
            desk.ledger.settle(
                ticket, classed(reply), cost, reply=reply, status=line.status, assumed=own, egress=sending.hash
            )
            watch_bill(desk, request, reply.usage, cost)
    if odd:
        say(f"batch {remote}: {odd:,} lines cannot be read; as many requests without one are counted at their worst")
    # An expired or cancelled batch gives no line for what it has not done.
    for number, ticket in enumerate(sorted(tickets.values(), key=lambda ticket: -ticket.worst)):
        lost = number < odd
        why = "a line that cannot be read may have been its answer" if lost else f"no line in the {state} batch"
        desk.ledger.settle(ticket, "error", ticket.worst if lost else 0, error=why, assumed=lost)
    desk.ledger.mark_batch(batch, "done", remote)


async def gathered(lines: AsyncIterator[Line | None]) -> list[Line | None]:
    """All lines, so that a broken download is begun anew and nothing is settled twice."""
    return [line async for line in lines]


async def submitted_once(desk: Desk, requests: Sequence[Request], batch: str, sending: Sending) -> str:
    """Hand a batch in and give the provider's id; when the answer was lost, it is looked for, not sent twice."""
    started = time.time()
    for left in range(desk.teacher.attempts - 1, -1, -1):
        try:
            return str(await patiently(desk, sending, lambda: submit(desk, requests, batch), once_sent=True))
        except TroubleError as trouble:
            if not trouble.charged:
                raise
            remote = await find_remote(desk, batch, started, len(requests))
            if remote is not None:
                return remote
            if not left:
                raise
    raise AssertionError("a loop of at least one attempt")


# How the batch APIs are spoken to: hand in, look, fetch the lines, find a batch whose receipt was lost.
#
# OpenAI: platform.openai.com/docs/api-reference/batch. Anthropic: docs.anthropic.com/en/api/creating-message-batches.

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
        stop=tenacity.stop_after_attempt(desk.teacher.attempts),
        wait=pause,
        reraise=True,
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, TroubleError) and e.kind == "again" and not (once_sent and e.charged)
        ),
    )
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
    made = await api.call(
        "POST",
        "/batches",
        json={
            "input_file_id": uploaded.json()["id"],
            "endpoint": QUESTIONS,
            "completion_window": "24h",
            "metadata": {"workbench": batch},
        },
    )
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


async def results(desk: Desk, remote: str) -> AsyncIterator[Line | None]:
    """The lines of an ended batch, in the provider's order; None for one of which nobody can tell what it answers."""
    state, api = await batch_state(desk, remote), api_of(desk)
    if wire_of(desk.teacher) == "anthropic":
        if state.get("results_url"):
            for line in json_lines(await api.call("GET", state["results_url"])):
                yield line_of(line, anthropic_line)
        return
    for file in filter(None, (state.get("output_file_id"), state.get("error_file_id"))):
        for line in json_lines(await api.call("GET", f"/files/{quote(file, safe='')}/content")):
            yield line_of(line, openai_line)


def json_lines(response: httpx.Response) -> Iterator[object]:
    """The values of a body that holds one a line; U+2028 and its like within a text end no line. None for no JSON."""
    for line in filter(bytes.strip, response.content.split(b"\n")):
        try:
            yield values_without_held(json.loads(line))
        except (ValueError, RecursionError):
            yield None


def line_of(row: object, read: Callable[[str, Mapping[str, Any]], Line]) -> Line | None:
    """A batch's line: what it says of the request that it names, None where it names none.

    What is not as documented is an answer of no shape: paid for, perhaps, and of no use.
    """
    request = object_of(row).get("custom_id")
    if not isinstance(request, str):
        return None
    try:
        return read(request, object_of(row))
    except (KeyError, TypeError, AttributeError):
        return Line(request, {}, None, "")


def object_of(value: object) -> Mapping[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def anthropic_line(request: str, row: Mapping[str, Any]) -> Line:
    """One line of a batch's results."""
    result = row["result"]
    if result["type"] == "succeeded":
        return Line(request, result["message"] or {}, 200, "")
    error = object_of(object_of(result.get("error")).get("error"))
    return Line(request, None, None, f"{result['type']}: {error.get('message', '')}")


def openai_line(request: str, row: Mapping[str, Any]) -> Line:
    """One line of an output or error file."""
    response, error = row.get("response") or {}, object_of(row.get("error"))
    status = response.get("status_code")
    if status == 200:
        return Line(request, response["body"] or {}, status, "")
    inner = object_of(object_of(response.get("body")).get("error"))
    message = error.get("message") or inner.get("message") or ""
    return Line(request, None, status, f"{error.get('code') or inner.get('code') or ''} {message}".strip())


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
