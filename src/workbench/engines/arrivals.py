"""Ask an engine as its users do: one request alone, and open-loop arrivals at a rate that does not wait for answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from workbench.records import Message

AskRow = Callable[[int], float | None]  # asks the row of this number; seconds to the first token, where it is known
MOST_AT_ONCE = 256  # requests in flight; who comes later waits here, and that counts too
NEAR = 95  # of 100
LEAST = 5  # requests that a summary of one asker's waits rests on at least


@dataclass(frozen=True)
class Waits:
    """What askers waited for a whole answer, from their arrival on: how many they were, the median, and 95 of 100.

    `each` are the waits of an asker who was alone.
    """

    askers: int
    p50: float
    p95: float
    first_token_p50: float | None = None
    each: tuple[float, ...] = ()


def waits_of(seconds: Sequence[float], first: Sequence[float | None] = ()) -> Waits:
    """The summary of some waits; the 95th percentile is one that was seen, never less."""
    known = [value for value in first if value is not None]
    return Waits(
        len(seconds),
        float(np.percentile(seconds, 50, method="higher")),
        float(np.percentile(seconds, NEAR, method="higher")),
        float(np.median(known)) if known else None,
    )


def alone(
    ask: AskRow, rows: int, within: float = float("inf"), one_token: Callable[[int], object] | None = None
) -> Waits:
    """Ask so many rows one after the other, after one that warms the engine up and is not counted.

    `within` so many seconds it ends with the rows that were asked by then, five at least. Where the engine does not
    tell its first token, `one_token` asks a row for no more than that, and its wall time stands for it.
    """
    ask(0)
    seconds: list[float] = []
    first: list[float | None] = []
    for row in range(1, rows + 1):
        if len(seconds) >= LEAST and sum(seconds) > within:
            break
        started = time.perf_counter()
        first.append(ask(row))
        seconds.append(time.perf_counter() - started)
    if one_token is not None and all(value is None for value in first):
        first = []
        for row in range(1, LEAST + 1):
            started = time.perf_counter()
            one_token(row)
            first.append(time.perf_counter() - started)
    return replace(waits_of(seconds, first), each=tuple(seconds))


def marked(messages: Sequence[Message], number: int) -> list[Message]:
    """The turns with a number before the last one's text: no engine answers it from what it remembers of the row."""
    return [*messages[:-1], replace(messages[-1], content=f"({number}) {messages[-1].content}")]


def under_load(ask: AskRow, rate: float, askers: int, seed: int, patience: float) -> Waits:
    """Let so many askers arrive at `rate` a second as a Poisson process, whatever the engine has answered yet.

    Of a Poisson process that is known to bring n arrivals in n / rate seconds, these are n sorted uniform draws, so the
    rate is met exactly, and one seed gives one pattern of arrivals, only denser at a higher rate. A wait begins at the
    arrival, not when a thread is free. Who has no answer `patience` seconds after the last arrival is counted as
    waiting for ever, and is not asked for any more.
    """
    arrivals = np.sort(np.random.default_rng(seed).random(askers)) * (askers / rate)
    pool = ThreadPoolExecutor(min(MOST_AT_ONCE, len(arrivals)))
    started = time.perf_counter()

    def answer(row: int, at: float) -> float:
        ask(row)
        return time.perf_counter() - started - at

    jobs = []
    try:
        for row, at in enumerate(arrivals):
            time.sleep(max(0.0, at - (time.perf_counter() - started)))
            jobs.append(pool.submit(answer, row, float(at)))
        last = time.perf_counter() + patience
        waits = []
        for job in jobs:
            try:
                waits.append(job.result(timeout=max(0.0, last - time.perf_counter())))
            except TimeoutError:
                waits.append(float("inf"))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return waits_of(waits)
