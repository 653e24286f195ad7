"""Token rows and a method that a tiny model learns in a dozen steps, for tests of training."""

from __future__ import annotations

from typing import Any

from workbench.recipe import Method
from workbench.records import TokenRow

STEPS = 12


def rows(count: int, start: int = 0) -> list[TokenRow]:
    """Prompts of many lengths with one answer, which even an adapter on random layers can learn: 10 11 12 stop."""
    made = []
    for i in range(start, start + count):
        prompt = [1, *(60 + (i * 3 + j) % 50 for j in range(4 + i % 9)), 5]
        ids = [*prompt, 10, 11, 12, 2]
        made.append(TokenRow(f"r{i}", tuple(ids), tuple(j >= len(prompt) for j in range(len(ids)))))
    return made


def method(**changes: Any) -> Method:
    settings = {"learning_rate": 2e-2, "max_steps": STEPS, "epochs": 50.0, "batch_size": 8, "evaluations": 3, "rank": 4}
    return Method(**{**settings, "sample_answers": 1, **changes})
