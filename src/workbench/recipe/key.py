"""One key of a recipe, as a dataclass field: default, meaning and limits."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    makes_weights: bool = True,
) -> Any:
    """A dataclass field for one key of the recipe.

    `choices` closes the set of values; `makes_weights=False` keeps the key out of the run's digest,
    so that changing it does not orphan a trained model. Lists and dictionaries are given as factories.
    """
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "choices": choices,
        "makes_weights": makes_weights,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)
