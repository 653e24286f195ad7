"""An MLflow store whose tables are made: making them takes three seconds, longer than most tests that need a store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from workbench.recipe import Tracking
from workbench.tracking.store import connect, store_uri


@cache
def template() -> Path:
    """An empty store, made by the workbench itself, once a process."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-store-"))
    with connect(store_uri(Tracking(), folder)) as client:
        client.search_experiments()
    return folder / "mlflow.db"


@contextmanager
def connect_to_a_copy(uri: str) -> Iterator[Any]:
    """What `connect` does, but that a store which is not there yet starts as a copy of the template."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        shutil.copyfile(template(), path)  # under the umask of who opens it, as the store's own file would be
    with connect(uri) as client:
        yield client
