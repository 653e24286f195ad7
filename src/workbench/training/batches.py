"""Which rows each step sees, fixed before training starts: shuffled by the seed, neighbours of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from workbench.records import TokenRow

# Rows are sorted by length within so many batches: little padding, and still near to a shuffle.
BATCHES_SORTED_TOGETHER = 16
# Lengths are padded to a multiple, so that kernels meet few shapes.
LENGTH_STEP = 16


def steps_of(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run."""
    return max_steps or max(1, math.ceil(rows / batch_size * epochs))


def row_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Row indices for `steps` whole batches, epoch after epoch; the same for the same arguments.

    Fixing the order here makes it independent of how a resumed run restores random state.
    """
    generator = random.Random(seed)
    order: list[int] = []
    carried: list[int] = []
    while len(order) < steps * batch_size:
        epoch = list(range(len(lengths)))
        generator.shuffle(epoch)
        epoch = carried + epoch
        together = batch_size * BATCHES_SORTED_TOGETHER
        whole = len(epoch) // batch_size * batch_size
        carried = epoch[whole:]  # what fills no batch goes first in the next epoch
        batches: list[list[int]] = []
        for start in range(0, whole, together):
            part = sorted(epoch[start : min(start + together, whole)], key=lambda i: lengths[i])
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        generator.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order[: steps * batch_size]


def collate(rows: Sequence[TokenRow], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` [B, T], padded on the right; labels are −100 where no loss is taken."""
    longest = max(len(row.input_ids) for row in rows)
    width = -(-longest // LENGTH_STEP) * LENGTH_STEP
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens = torch.tensor(row.input_ids)
        ids[number, : len(tokens)] = tokens
        labels[number, : len(tokens)] = torch.where(torch.tensor(row.trained), tokens, -100)
    return {"input_ids": ids, "labels": labels}


def collator(rows: Sequence[TokenRow], pad: int) -> Any:
    """The trainer's collator: its examples hold only a row's number."""

    def together(examples: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        numbers = [example["row"] for example in examples]
        return collate([rows[n] for n in numbers], pad) | {"rows": torch.tensor(numbers)}

    return together
