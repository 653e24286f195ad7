"""What asking an arm takes of this machine: time, memory and energy, kept beside its answers over every resumption."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.device import release_memory
from workbench.evaluation.answers import Asking, Prediction
from workbench.files import write_whole

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

    from workbench.records import Answer

EVERY_S = 0.2  # between two looks at memory
SAVED_S = 5.0  # a killed evaluation loses at most so much of its account
# Codecarbon wants a country for grams of CO2; only the kilowatt-hours are used, which no country changes.
COUNTRY = "USA"


@dataclass
class Spent:
    """What an arm's answers took. Starting the engine is not in the seconds.

    `peak_memory_bytes`: resident memory of this process and all it has started, the libraries and mapped weights
    included; on a CUDA device that of its tensors. `kwh`: codecarbon's figure for the whole machine while it was asked,
    read from counters where there are any (Intel RAPL, NVIDIA), else estimated from the load; None when not measured.
    """

    answers: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    kwh: float | None = None


def read_spent(*paths: Path | None) -> Spent:
    """The account of the first file that there is; an empty one otherwise."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError, TypeError):
            if path is not None:
                return Spent(**json.loads(path.read_text(encoding="utf-8")))
    return Spent()


def metered(ask: Asking, path: Path, earlier: Path | None, *, energy: bool) -> Asking:
    """`ask`, its time, memory and energy added to the account in `path`, or to that of an `earlier` evaluation."""

    def measured(*args: Any, **kwargs: Any) -> Iterator[tuple[int, Answer]]:
        stream = ask(*args, **kwargs)  # starts the engine: no part of what an answer takes
        spent = read_spent(path, earlier)
        with watched(spent, path, energy):
            for answer in stream:
                spent.answers += 1
                yield answer

    return measured


@contextlib.contextmanager
def watched(spent: Spent, path: Path, energy: bool) -> Iterator[None]:
    """Watch this machine while the block runs; the account is saved every few seconds and at the end."""
    before, stop = spent.seconds, threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    forget_the_arm_before()
    started = saved = time.monotonic()

    def look() -> None:
        nonlocal saved
        now = time.monotonic()
        spent.seconds = before + now - started
        spent.peak_memory_bytes = max(spent.peak_memory_bytes, memory_now())
        if now - saved > SAVED_S:
            saved = now
            save(spent, path)

    def keep_looking() -> None:
        while not stop.wait(EVERY_S):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    try:
        with kilowatt_hours(spent) if energy else contextlib.nullcontext():
            started = time.monotonic()  # finding its meters takes codecarbon two seconds
            look()
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
                look()
    finally:
        save(spent, path)


def save(spent: Spent, path: Path) -> None:
    """Write the account in one step."""
    write_whole(path, json.dumps(asdict(spent)))


def memory_now() -> int:
    """Resident bytes of this process and its descendants; on a CUDA device, the most its tensors have held."""
    import psutil

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def forget_the_arm_before() -> None:
    """Give back what the arm before has freed, or it would count as this one's."""
    release_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def kilowatt_hours(spent: Spent) -> Iterator[None]:
    """Add the energy of the block to the account: offline, no file, no word; nothing where it is absent or fails."""
    logging.getLogger("codecarbon").disabled = True  # a level it would set anew
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        yield
        return
    before = spent.kwh or 0.0
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(Exception):  # whatever ails its meters, the answers are worth having without
            tracker = OfflineEmissionsTracker(
                country_iso_code=COUNTRY,
                output_methods=[],  # else a .codecarbon.config in the current folder says where the figures are sent
                log_level="critical",
                measure_power_secs=5,
                allow_multiple_runs=True,
            )
            tracker.start()
            stack.callback(read_meter, tracker, spent, before)
        yield


def read_meter(tracker: OfflineEmissionsTracker, spent: Spent, before: float) -> None:
    """Stop the tracker and add what it has measured."""
    with contextlib.suppress(Exception):
        tracker.stop()
        spent.kwh = before + float(tracker.final_emissions_data.energy_consumed)


def facts_of(
    size: int, spent: Spent, predictions: Sequence[Prediction], usd_per_hour: float | None
) -> dict[str, float]:
    """The plain figures of an arm for the report: those that are known.

    Dollars are what its answers were billed (a teacher's), else the machine's price over the seconds they took.
    """
    facts = {"bytes": float(size)} if size else {}
    if spent.peak_memory_bytes:
        facts["peak_memory_bytes"] = float(spent.peak_memory_bytes)
    if spent.answers and spent.seconds:
        facts["answers_per_second"] = spent.answers / spent.seconds
    if spent.answers and spent.kwh is not None:
        facts["kwh_per_1000"] = 1000 * spent.kwh / spent.answers
    billed, seconds = sum(p.usd for p in predictions), sum(p.seconds for p in predictions)
    if billed:
        facts["usd_per_1000"] = 1000 * billed / len(predictions)
    elif usd_per_hour is not None and predictions:
        facts["usd_per_1000"] = 1000 * usd_per_hour * seconds / 3600 / len(predictions)
    return facts
