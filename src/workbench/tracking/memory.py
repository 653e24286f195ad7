"""What a run folder remembers of being fed: a shortcut, never the truth, and blank whenever it does not fit."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.records import digest
from workbench.runs import read_json, write_whole


@dataclass
class Fed:
    """What `tracking.json` remembers: which run of which store, and how far it was fed."""

    store: str = ""
    run: str = ""
    parent: str = ""
    stages: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    once: dict[str, str] = field(default_factory=dict)
    rule: str = "raw"

    def is_new(self, what: str, content: Any) -> bool:
        """Whether `content` differs from what was fed under this name; remembers it as fed from now on."""
        mark = digest(content, 16)
        changed = self.once.get(what) != mark
        self.once[what] = mark
        return changed


def under(fed: Fed, rule: str) -> Fed:
    """The memory under a rule of what may leave; under another than before, texts and files count as new."""
    if fed.rule != rule:
        fed.rule, fed.once = rule, {}
    return fed


def remembered(folder: Path, store_uri: str, run: str) -> Fed:
    """What was fed before, or a blank memory when the store or the run is another."""
    blank = Fed(store=digest(store_uri, 16), run=run)
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        fed = Fed(**read_json(folder / "tracking.json"))
        return fed if (fed.store, fed.run) == (blank.store, blank.run) else blank
    return blank


def save(folder: Path, fed: Fed) -> None:
    """Write `tracking.json`, whole or not at all."""
    write_whole(folder / "tracking.json", json.dumps(asdict(fed), indent=1))
