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
from collections.abc import AsyncIterator, Callable, Sequence

from workbench.errors import WorkbenchError
from workbench.teacher.batch_wire import Line, find_remote, look, patiently, results, submit
from workbench.teacher.calls import Desk
from workbench.teacher.client import TroubleError, wire_of
from workbench.teacher.egress import NO_ROW, Sending, merged
from workbench.teacher.ledger import Outcome, TakenError
from workbench.teacher.prices import pricing_of
from workbench.teacher.wire import Reply, Request, read_reply

MAX_BYTES = 150_000_000  # below both providers' limits on one batch
Say = Callable[[str], None]
Class = Callable[[Reply], Outcome]


async def fill(desk: Desk, asked: Sequence[tuple[Request, Sending]], classed: Class, say: Say) -> None:
    """Have the unanswered of these requests answered by batches, as far as the budget goes."""
    seen: set[str] = set()
    open_ones = [(request, sending) for request, sending in asked if fresh(desk, request, seen)]
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
        await collect(desk, batch, remote, Sending(f"batch {batch}", NO_ROW), classed, say)


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
    sending = joint([one for _, one in taken], batch)
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
    await collect(desk, batch, remote, sending, classed, say)


def joint(sendings: Sequence[Sending], batch: str) -> Sending:
    """One line for all rows of a batch, of the strictest class among them."""
    strictest = max((one.privacy for one in sendings), key=("public", "internal", "restricted").index)
    return Sending(f"batch {batch}: {len(sendings)} rows", strictest, merged(one.redacted for one in sendings))


async def collect(desk: Desk, batch: str, remote: str, sending: Sending, classed: Class, say: Say) -> None:
    """Poll until the batch has ended, and settle every request of it."""
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
    for line in lines:
        ticket = tickets.pop(line.request, None)
        if ticket is None:  # answered twice, or not ours: counted once
            continue
        reply = None
        if line.payload is not None:
            try:
                reply = read_reply(wire_of(desk.teacher), line.payload)
            except WorkbenchError as error:
                desk.ledger.settle(ticket, "error", ticket.worst, error=str(error), assumed=True, status=200)
                continue
        if reply is None:
            desk.ledger.settle(ticket, "error", 0, error=line.error, status=line.status)
        else:
            cost = pricing.cost(reply.usage)
            desk.ledger.settle(ticket, classed(reply), cost, reply=reply, status=line.status, egress=sending.hash)
    for ticket in tickets.values():  # an expired or cancelled batch gives no line for what it has not done
        desk.ledger.settle(ticket, "error", 0, error=f"no line in the {state} batch")
    desk.ledger.mark_batch(batch, "done", remote)


async def gathered(lines: AsyncIterator[Line]) -> list[Line]:
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
