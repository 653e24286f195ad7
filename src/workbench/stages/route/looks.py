"""Looks at a test set: every route that was told on it, so that a second one is told for what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from workbench.files import append
from workbench.runs import cut_torn_line, now

LOOKS = "looks.jsonl"  # in the experiments folder: runs of several recipes may be judged on the same rows


def look(experiments: Path, test: str, route: str, by: str) -> int:
    """The number of this route among those that were told on the test rows of this digest, from 1; noted if it is new.

    The same route told again is the same look.
    """
    path = experiments / LOOKS
    with FileLock(path.with_name(f".{LOOKS}.lock")):  # two that are told at once are two looks
        known = list(dict.fromkeys(line["route"] for line in looks_at(path) if line["test"] == test))
        if route not in known:
            cut_torn_line(path)  # else this one would be lost with it
            append(path, json.dumps({"at": now(), "test": test, "route": route, "by": by}) + "\n")
            known.append(route)
    return known.index(route) + 1


def looks_at(path: Path) -> list[dict[str, Any]]:
    """Every whole line; one that a full disk has torn is none."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            entry = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(entry, dict) and {"test", "route"} <= set(entry):
            lines.append(entry)
    return lines


def level_of(confidence: float, number: int) -> float:
    """The level of a look's intervals: the n-th has 1 − (1 − confidence)/n."""
    return 1 - (1 - confidence) / number
