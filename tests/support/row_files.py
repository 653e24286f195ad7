"""Rows in a file of their own, read as the workbench reads them: for tests of what a layout becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.data.load import Loaded, load
from workbench.recipe import Data
from workbench.records import Example


def read(folder: Path, *rows: Any, **data: Any) -> Loaded:
    """The rows, written as JSONL and loaded; `data` are further keys of the recipe's section."""
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(folder / "r.jsonl", Data(**data))


def one(folder: Path, row: Any, **data: Any) -> Example:
    """The only row, which must be one that can be read."""
    loaded = read(folder, row, **data)
    assert loaded.bad == []
    return loaded.examples[0]
