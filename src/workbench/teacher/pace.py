"""How fast to ask: requests at once, requests and tokens a minute, and a pause that a provider asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from workbench.errors import WorkbenchError


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
