"""Which rows go into which micro-batch, fixed before the first step, and how they become tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.records import TokenRow
from workbench.training.distil import sequences, taught
from workbench.training.targets import Target

BATCHES_A_WINDOW = 16


def total_steps(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps: `epochs` passes over the rows, and never more than `max_steps`."""
    steps = max(1, math.ceil(rows * epochs / batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def plan_batches(lengths: Sequence[int], batch_size: int, micro: int, steps: int, seed: int) -> list[list[int]]:
    """`steps × batch_size ÷ micro` lists of row numbers, in the order of training; a function of the seed alone.

    Each pass is a fresh permutation. Within a window of batches rows are sorted by length, so that a batch holds
    rows of like length and little padding; the batches of a window are then shuffled. A resumed run computes the
    same plan and skips what it has done, whatever the state of any random generator.
    """
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        order += generator.sample(range(len(lengths)), len(lengths))
    order = order[: steps * batch_size]
    plan: list[list[int]] = []
    window = batch_size * BATCHES_A_WINDOW
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda row: lengths[row])
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        generator.shuffle(batches)
        plan += [batch[i : i + micro] for batch in batches for i in range(0, batch_size, micro)]
    return plan


def by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Every row once, long ones first, in batches of at most `batch_tokens` padded tokens: for evaluation."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(
    rows: Sequence[tuple[int, TokenRow]], pad: int, targets: Mapping[str, Target] | None = None
) -> dict[str, Any]:
    """Right-padded `input_ids`, `attention_mask`, `labels` (−100 for no loss), all (B, T), and `rows` (their numbers).

    `trained` (rows,) counts a row's trained tokens. Where rows have weights or a teacher's targets, `weights` (B,) and
    `taught` are there too; B is then more than the rows where soft labels make several sequences of one.
    """
    found = targets or {}
    read = [one for _, row in rows for one in sequences(row, found.get(row.id))]
    longest = max(len(row.input_ids) for row in read)
    shape = (len(read), longest)
    ids = torch.full(shape, pad, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100, dtype=torch.long)
    for i, row in enumerate(read):
        tokens, trained = torch.tensor(row.input_ids), torch.tensor(row.trained)
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = 1
        labels[i, : len(tokens)] = torch.where(trained, tokens, -100)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "rows": torch.tensor([number for number, _ in rows]),
        "trained": torch.tensor([sum(row.trained[1:]) for _, row in rows]),
    }
    if any(row.weight != 1.0 or row.id in found for _, row in rows):
        batch["weights"] = torch.tensor([row.weight for row in read])
        batch["taught"] = taught([row for _, row in rows], found)
    return batch
