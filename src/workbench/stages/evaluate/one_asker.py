"""What one asker waits for an answer, alone in the engine that serves the arm: measured once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path

from workbench.bundles.prove import verified_in
from workbench.engines.arrivals import alone, marked
from workbench.engines.ask import Ask
from workbench.engines.served import ENGINES, available
from workbench.files import read_json, write_whole
from workbench.records import Example
from workbench.stages.evaluate.arms import Arm

ROWS, SECONDS = 20, 3.0  # asked one after the other: so many, or for so long
NOBODYS = ("teacher",)  # it is paid for, and waited for elsewhere


def is_served(arm: Arm) -> bool:
    """Whether the arm answers from a server, as its users would ask it."""
    return arm.served_by in ENGINES and arm.name not in NOBODYS


def measured_waits(folder: Path, name: str) -> tuple[float, ...]:
    """The waits, in seconds, that were measured of an arm, as they are kept beside its answers; empty where none."""
    path = folder / f"{name}.alone.json"
    return tuple(read_json(path)["each"]) if path.is_file() else ()


def waits_of(
    arm: Arm, ask: Ask, items: Sequence[Example], longest: int, places: Sequence[Path], wanted: bool
) -> dict[str, float]:
    """`latency_p50`, `latency_p95` and `first_token_p50`, in seconds.

    The figures of the same weights in the same engine are taken from the first of `places` that has them, and written
    into it; else they are measured where that is `wanted`, and left out where it is not. Where the engine is not here
    now, what was measured in it stands, whatever its version.
    """
    here = available(arm.served_by) is None
    of = f"{arm.digest} in {arm.served_by} " + (verified_in(arm.served_by).version if here else "")
    files = [place / f"{arm.name}.alone.json" for place in places]
    measured = [read_json(path) for path in files if path.is_file()]
    known = next((held for held in measured if held["of"] == of or (not here and held["of"].startswith(of))), None)
    if known is None:
        if not wanted or not here:
            return {}
        number = count()

        def ask_row(row: int, most: int = longest) -> float | None:
            item = items[row % len(items)]
            ((_, answer),) = ask([marked(item.prompt, next(number))], most, None, [item.tools])
            return answer.first_token

        known = {"of": of} | asdict(alone(ask_row, ROWS, within=SECONDS, one_token=partial(ask_row, most=1)))
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_whole(files[0], json.dumps(known))
    figures = {"latency_p50": known["p50"], "latency_p95": known["p95"], "first_token_p50": known["first_token_p50"]}
    return {name: value for name, value in figures.items() if value is not None}
