"""Files that show damage: a JSON object with a digest of itself, and a folder by the hashes of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.files import file_sha256
from workbench.records import digest
from workbench.runs import write_whole


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object whole, with a digest of itself."""
    write_whole(path, json.dumps({**values, "sha256": digest(values)}))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where that is not there or not as it was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if values.pop("sha256") == digest(values) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path from there."""
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def changed_since(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The first file that is not as `hashes_of` saw it, in words; None when all are."""
    for name, sha256 in hashes.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if file_sha256(path) != sha256:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None
