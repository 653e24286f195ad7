"""Feed MLflow while a run is at work: what the run writes is followed, and no stage ever waits for a server.

It runs in a process of its own (`stages/feeding.py` starts it), which hears from the run's only that it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.recipe import Tracking
from workbench.tracking import content
from workbench.tracking.feed import catch_up
from workbench.tracking.outbound import Egress
from workbench.tracking.run_record import identity, read_events
from workbench.tracking.store import is_server, shown, store_uri

# Seconds between two looks. Feeding takes at most a sixth of the time, and a server that is away is asked ever less.
LOOK_S, MOST_LOOK_S, SHARE = 1.0, 15.0, 5.0
FIRST_LOOK_S = 4.0  # at most, until there is a point: whoever has opened the page waits for that
AGAIN_S, MOST_AGAIN_S = 15.0, 120.0

Tell = Callable[[Mapping[str, Any]], None]


def follow(
    folder: Path, tracking: Tracking, experiments: Path, egress: Egress, ended: Callable[[float], bool], tell: Tell
) -> None:
    """Feed what a run writes until `ended(seconds)`, which waits so long, says that the run's process has ended.

    `tell` hears `{"run": link}` once, `{"said": [line]}`, `{"away": why}` when the store cannot be reached any more,
    and `{"back": true}` when it can again. The last that is fed is how the run ended.
    """
    uri = store_uri(tracking, experiments)
    known = size_of(folder) if is_fed(folder, uri) else -1
    again, wait, away, linked, over, failed = AGAIN_S, 0.0, False, False, False, 0.0
    most = FIRST_LOOK_S
    while not over:
        over = ended(wait)
        size, wait = size_of(folder), LOOK_S
        if size == known and not away and not (over and linked):
            continue  # nothing is new, nor is it that the run has ended
        started = time.monotonic()
        if over and away and started - failed < AGAIN_S:
            return  # it has just been asked
        try:
            fed = catch_up(folder, tracking, experiments, egress, live=not over)
        except WorkbenchError as error:
            if not away:
                tell({"away": str(error)})
            away, wait, again, failed = True, again, min(MOST_AGAIN_S, again * 2), time.monotonic()
            continue
        if away:
            tell({"back": True})
        if not linked:
            tell({"run": link(fed)})
        if fed["said"]:
            tell({"said": fed["said"]})
        away, linked, known, again = False, True, size, AGAIN_S
        most = MOST_LOOK_S if fed["metrics"] else most
        wait = min(most, max(LOOK_S, SHARE * (time.monotonic() - started)))


def size_of(folder: Path) -> int:
    """The bytes of a run's events."""
    path = folder / "events.jsonl"
    return path.stat().st_size if path.is_file() else 0


def is_fed(folder: Path, uri: str) -> bool:
    """Whether this store has been fed all that the run's events say, and that nobody is at work on it."""
    try:
        events = read_events(folder / "events.jsonl")
    except WorkbenchError:
        return False
    fed = content.remembered(folder, uri, identity(folder, events))
    return fed.at_rest and fed.offset == max((line.end for line in events), default=0)


def link(fed: Mapping[str, Any]) -> str:
    """Where a browser shows the run: at its server, or where `ui` serves the store that is in a file."""
    page = f"#/experiments/{fed['experiment_id']}/runs/{fed['run_id']}"
    if is_server(fed["uri"]):
        return f"{shown(fed['uri']).rstrip('/')}/{page}"
    return f"http://127.0.0.1:5000/{page} (while `python -m workbench ui` runs)"
