"""The stage `train`: train.py is its door, task.py what is learned, kinds/ one file for each way of learning it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The stage's door, loaded when it is asked for: whoever reads a recipe needs kinds/ alone, and must not wait."""
    if name == "run":
        from workbench.stages.train.train import run

        return run
    raise AttributeError(name)
