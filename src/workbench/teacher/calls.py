"""One request through ledger, wall, pace and retries: the only way from a row to a teacher."""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import tenacity

from workbench.errors import GateError, WorkbenchError
from workbench.recipe import Teacher
from workbench.teacher.client import Client, TroubleError
from workbench.teacher.egress import Sending
from workbench.teacher.ledger import NANO, Ledger, Outcome, TakenError, Ticket
from workbench.teacher.payload import impossible_bill
from workbench.teacher.prices import Pricing
from workbench.teacher.wire import Reply, Request, Usage

# How fast to ask: requests at once, requests and tokens a minute, and a pause that a provider asked for.


@dataclass
class Pace:
    """The pace of one run. `allowed` follows the provider: halved by a 429, raised by one a round of calm answers.

    The additive-increase, multiplicative-decrease rule of TCP's congestion avoidance (Chiu and Jain 1989), which
    shares a limit fairly with whoever else uses the same key.
    """

    most: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    clock: Callable[[], float] = time.monotonic
    allowed: int = 0
    in_flight: int = 0
    calm: int = 0
    resumes_at: float = 0.0
    next_request: float = 0.0
    next_tokens: float = 0.0
    freed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.allowed = self.most

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a turn to send a request of about `tokens` tokens, and hold it until the answer is there."""
        async with self.freed:
            await self.freed.wait_for(lambda: self.in_flight < self.allowed)
            self.in_flight += 1
        try:
            while (wait := self.starts_in(tokens)) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            async with self.freed:
                self.in_flight -= 1
                self.freed.notify_all()

    def starts_in(self, tokens: int) -> float:
        """Seconds until this request may leave; at 0 its share of the minute's limits is taken."""
        now = self.clock()
        wait = max(self.resumes_at, self.next_request, self.next_tokens) - now
        if wait > 0:
            return wait
        if self.requests_per_minute:
            self.next_request = max(self.next_request, now) + 60.0 / self.requests_per_minute
        if self.tokens_per_minute:
            if tokens > self.tokens_per_minute:
                raise WorkbenchError(
                    f"one request may take {tokens:,} tokens, more than a whole minute allows",
                    where="teacher.tokens_per_minute",
                    remedy="raise it to your real limit, or lower teacher.max_new_tokens",
                )
            self.next_tokens = max(self.next_tokens, now) + 60.0 * tokens / self.tokens_per_minute
        return 0.0

    def throttled(self, retry_after: float | None) -> None:
        """A 429 came: half as many at once, and nobody asks before the provider wants to be asked again."""
        self.calm = 0
        self.allowed = max(1, min(self.allowed, self.in_flight) // 2)
        if retry_after:
            self.resumes_at = max(self.resumes_at, self.clock() + retry_after)

    def answered(self) -> None:
        """An answer came."""
        self.calm += 1
        if self.calm >= self.allowed and self.allowed < self.most:
            self.allowed, self.calm = self.allowed + 1, 0


REFUSED_IN_A_ROW = 20  # requests that the provider calls wrong, with never an answer between: it is not the row's fault
Check = Callable[[Reply], Outcome]


class RowError(Exception):
    """This row gets no answer; `reason` is a short word for the count, the message says more."""

    def __init__(self, reason: str, message: str, answer: str = ""):
        super().__init__(message)
        self.reason, self.answer = reason, answer


@dataclass
class Desk:
    """All that a request passes. `closed` holds the error that ended the run: nothing more is sent.

    `took` are the seconds that a row's requests were under way, the wait for their turn left out. `stretch` is how
    much more than its worst case an answer has cost: later ones are reserved at as much more. `eaten` counts the
    answers in a row whose whole length went into thoughts.
    """

    teacher: Teacher
    client: Client
    ledger: Ledger
    pricing: Pricing
    pace: Pace
    under_way: dict[str, asyncio.Future[Reply]] = field(default_factory=dict)
    settled: asyncio.Condition = field(default_factory=asyncio.Condition)
    reserved_here: int = 0
    refused: int = 0
    sent: int = 0
    from_ledger: int = 0
    tokens: int = 0
    stretch: float = 1.0
    eaten: int = 0
    hear: Callable[[str], None] = lambda text: None
    took: collections.defaultdict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    closed: WorkbenchError | None = None

    @property
    def budget(self) -> int | None:
        """The wall in nano-dollars."""
        return None if self.teacher.budget_usd is None else round(self.teacher.budget_usd * NANO)


async def buy(desk: Desk, request: Request, sending: Sending, check: Check, kind: str = "online") -> Reply:
    """The answer to a request: from the ledger when it was ever given, else from the teacher, paid once.

    `check` names the outcome that the ledger keeps. Raises RowError when this row gets none, and what `desk.closed`
    holds when the run is over.
    """
    while True:
        known = desk.ledger.answer(request.hash)
        if known is not None:
            desk.from_ledger += 1
            return known
        try:
            if request.hash in desk.under_way:  # an equal row is being asked right now
                return await asyncio.shield(desk.under_way[request.hash])
            return await alone(desk, request, sending, check, kind)
        except TakenError:
            await asyncio.sleep(0.2)  # another run is asking this very thing and will have its answer
            settle_dead(desk)


def settle_dead(desk: Desk, *, own: bool = False) -> bool:
    """Settle what processes have left that are known to be dead by now, and say so; whether there was any.

    With `own` that of this budget alone.
    """
    count = desk.ledger.settle_abandoned(everywhere=not own)
    if count:
        desk.hear(f"{count} calls were under way when another process ended: counted at their worst price")
    return bool(count)


async def alone(desk: Desk, request: Request, sending: Sending, check: Check, kind: str) -> Reply:
    """Buy for all equal rows of this run: those that come meanwhile wait for this one's outcome."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    desk.under_way[request.hash] = future
    try:
        reply = await with_retries(desk, request, sending, check, kind)
        future.set_result(reply)
        return reply
    except BaseException as error:
        if isinstance(error, Exception):
            future.set_exception(error)
            future.exception()  # read here, so that nobody hears of it when no equal row waits
        else:
            future.cancel()
        raise
    finally:
        del desk.under_way[request.hash]


async def with_retries(desk: Desk, request: Request, sending: Sending, check: Check, kind: str) -> Reply:
    """Try until there is an answer, the attempts are used up, or trying is of no use."""
    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(desk.teacher.attempts),
        wait=pause,
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, TroubleError) and e.kind == "again"),
        reraise=True,
    )
    try:
        async for attempt in retrying:
            with attempt:
                return await once(desk, request, sending, check, kind)
    except TroubleError as trouble:
        if trouble.kind == "stop" and trouble.error is not None:
            desk.closed = desk.closed or trouble.error
            raise desk.closed from trouble
        if trouble.kind == "again":
            raise RowError("unanswered", f"{desk.teacher.attempts} attempts failed; the last: {trouble}") from trouble
        refuse_hopeless(desk, trouble)
        reason = "blocked" if trouble.filtered else "unreadable" if trouble.charged else "refused_by_provider"
        raise RowError(reason, str(trouble)) from trouble
    raise AssertionError("tenacity ended without a result")


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the provider asked for, else 0.5 to 30, doubling, with full jitter."""
    trouble = state.outcome.exception() if state.outcome else None
    wanted = trouble.retry_after if isinstance(trouble, TroubleError) else None
    return wanted if wanted is not None else tenacity.wait_random_exponential(multiplier=0.5, max=30.0)(state)


def refuse_hopeless(desk: Desk, trouble: TroubleError) -> None:
    """Close the desk when request after request is called wrong: then it is the recipe, not the rows."""
    desk.refused += trouble.status is not None
    if desk.refused >= REFUSED_IN_A_ROW:
        desk.closed = desk.closed or WorkbenchError(
            f"{desk.refused} requests in a row were refused; the last: {trouble}",
            where=f"teacher {desk.teacher.model}",
            remedy="the provider's words above say what it does not take",
        )


async def once(desk: Desk, request: Request, sending: Sending, check: Check, kind: str) -> Reply:
    """Reserve, wait for a turn, send, settle."""
    async with desk.pace.slot(request.most_in // 4 + request.most_out):
        ticket = await room_for(desk, request, kind)
        desk.reserved_here += 1
        started = time.perf_counter()
        try:
            reply = await send(desk, request, sending, check, ticket)
        finally:
            desk.took[request.row] += time.perf_counter() - started
            async with desk.settled:
                desk.reserved_here -= 1
                desk.settled.notify_all()
    return reply


async def room_for(desk: Desk, request: Request, kind: str) -> Ticket:
    """A reservation below the wall; waits while calls in flight may yet leave room. Closes the desk when none will."""
    worst = math.ceil(desk.pricing.worst(request.most_in, request.most_out) * desk.stretch)
    while True:
        if desk.closed:
            raise desk.closed
        alone = not desk.reserved_here
        ticket = desk.ledger.reserve(request.hash, request.row, desk.client.identity, worst, desk.budget, kind)
        if ticket is not None:
            return ticket
        if alone:
            if settle_dead(desk, own=True):
                continue
            if not desk.ledger.waits_for_others():
                break
            await asyncio.sleep(1.0)  # reserved by a process on another machine: it lives, or its lease ends
            continue
        async with desk.settled:
            if desk.reserved_here:
                await desk.settled.wait()
    spent, reserved = desk.ledger.spending()
    desk.closed = GateError(
        f"the budget of {desk.teacher.budget_usd:g} USD is used up: {spent / NANO:.4f} spent, "
        f"{reserved / NANO:.4f} reserved, and the next call may cost {worst / NANO:.4f}",
        where="teacher.budget_usd",
        remedy="everything bought is kept; a higher budget goes on from here",
    )
    raise desk.closed


async def send(desk: Desk, request: Request, sending: Sending, check: Check, ticket: Ticket) -> Reply:
    """One call, and its line in the ledger whatever comes of it."""
    worst, settle = ticket.worst, desk.ledger.settle
    desk.sent += 1
    try:
        reply = await desk.client.ask(request, sending)
    except TroubleError as trouble:
        if trouble.status == 429:
            desk.pace.throttled(trouble.retry_after)
        outcome: Outcome = "filtered" if trouble.filtered and trouble.kind == "row" else "error"
        stated = trouble.usage
        cost = 0 if not trouble.charged else worst if stated is None else desk.pricing.cost(stated)
        settle(
            ticket,
            outcome if trouble.status else "error",
            cost,
            usage=stated,
            status=trouble.status,
            error=str(trouble),
            assumed=trouble.charged and stated is None,
            egress=trouble.egress,
        )
        if stated is not None:
            watch_bill(desk, request, stated, cost)
        raise
    except BaseException:  # interrupted while the provider was at work
        settle(ticket, "error", worst, error="interrupted", assumed=True, egress=sending.hash)
        raise
    desk.pace.answered()
    desk.refused = 0
    desk.tokens += reply.usage.tokens_in + reply.usage.out
    cost = desk.pricing.cost(reply.usage)
    own = reply.usage.own_in or reply.usage.own_out
    settle(ticket, check(reply), cost, reply=reply, status=200, assumed=own, egress=sending.hash)
    watch_bill(desk, request, reply.usage, cost)
    return replace(reply, attempt=ticket.attempt, cost=cost)


def watch_bill(desk: Desk, request: Request, usage: Usage, cost: int) -> None:
    """Close the desk at a bill that cannot be; reserve more for the calls to come after one that is merely higher."""
    impossible = impossible_bill(usage, request)
    if impossible:
        desk.closed = desk.closed or WorkbenchError(
            f"the bill of {desk.teacher.model} cannot be held to the budget: {impossible}",
            where="teacher.max_new_tokens",
            remedy=f"if its thoughts count beside its answers, allow for them: teacher.max_new_tokens={usage.out}, or "
            "teacher.limit_key=max_completion_tokens; what was bought is kept",
        )
    elif not (usage.own_in or usage.own_out):
        desk.stretch = max(desk.stretch, cost / max(desk.pricing.worst(request.most_in, request.most_out), 1))
