"""Which rows go into which micro-batch, fixed before the first step, and how they become tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch

from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.training.targets import ChunkTargets, LabelTargets, Target, TokenTargets, sequences

BATCHES_A_WINDOW = 16
PLAIN, TOKENS, CHUNKS, LABELS = range(4)  # what holds a trained position: its text alone, or which of the targets

Batch = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a training, as row numbers in the order of training: a function of the job alone.

    Whoever knows the job knows the whole plan and what every step holds, so a resumed run, or one process of several,
    takes its part of it. `micro` is the rows of a micro-batch; `recomputed` says whether activations are made again in
    the backward pass.
    """

    steps: int
    micro: int
    recomputed: bool
    cuts: Sequence[Sequence[int]]

    def of_step(self, step: int) -> Sequence[Sequence[int]]:
        """The micro-batches of a step; the first is 1."""
        a_step = len(self.cuts) // self.steps
        return self.cuts[(step - 1) * a_step : step * a_step]


def plan_of(lengths: Sequence[int], method: Method, seed: int, micro: int, recomputed: bool = False) -> Plan:
    """The plan for rows of these lengths (tokens) in micro-batches of `micro` rows."""
    steps = total_steps(len(lengths), method.batch_size, method.epochs, method.max_steps)
    return Plan(steps, micro, recomputed, plan_batches(lengths, method.batch_size, micro, steps, seed))


def evaluation_steps(steps: int, times: int) -> frozenset[int]:
    """Evenly spread steps after which the validation loss is taken, the last among them."""
    return frozenset(max(1, round(steps * k / times)) for k in range(1, times + 1))


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


def collate(rows: Sequence[tuple[int, TokenRow]], pad: int, targets: Mapping[str, Target] | None = None) -> Batch:
    """Right-padded `input_ids`, `attention_mask`, `labels` (−100 for no loss), all (B, T), and `rows` (their numbers).

    `trained` (rows,) counts a row's trained tokens. Where rows have weights or a teacher's targets, `weights` (B,) and
    `targets` are there too, and `scales` (N,) of the trained positions where turns of a row have weights of their own.
    B is then more than the rows where soft labels make several sequences of one.
    """
    targets = targets or {}
    read = [sequence for _, row in rows for sequence in sequences(row, targets.get(row.id))]
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
    if any(row.weight != 1.0 or row.scales or row.id in targets for _, row in rows):
        batch["weights"] = torch.tensor([row.weight for row in read])
        if any(row.scales for row in read):  # of each trained position, in order: position t predicts token t + 1
            batch["scales"] = torch.tensor(
                [scale for row in read for scale, on in zip(row.scales[1:] or repeat(1.0), row.trained[1:]) if on]
            )
        batch["targets"] = target_tensors([row for _, row in rows], targets)
    return batch


def on_device(batch: Batch, device: str, items: float) -> Batch:
    """The batch on the device, with counts that are known without it: `items`, which the loss is divided by, `tokens`.

    `trained_tokens` are those with a loss. A step's counts are the sums of its batches' and need no device either.
    """
    counts = {"items": items, "tokens": int(batch["attention_mask"].sum())}
    return moved(batch, device) | counts | {"trained_tokens": int(batch["trained"].sum())}


def moved(value: Any, device: str) -> Any:
    """Every tensor in nested dicts on the device; anything else as it is."""
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def target_tensors(rows: Sequence[TokenRow], targets: Mapping[str, Target]) -> dict[str, torch.Tensor]:
    """The targets of a batch as tensors, in the order of its trained positions.

    `kind` (N,) of each position; `ids`, `logprobs` (n, K) of the token-wise ones, −1 for none; `chunk` (n,) of the
    chunk-wise ones, with `chunk_logprobs` and `chunk_weights` (C,); `labels` (R, L), `own` and `label_weights` (R,).
    """
    kind: list[int] = []
    ids: list[tuple[int, ...]] = []
    logprobs: list[tuple[float, ...]] = []
    chunk: list[int] = []
    chunk_logprobs: list[float] = []
    chunk_weights: list[float] = []
    labels: list[tuple[float, ...]] = []
    own, label_weights = [], []
    for row in rows:
        target, count = targets.get(row.id), sum(row.trained[1:])
        match target:
            case TokenTargets():
                kind += [PLAIN] * (count - len(target.ids)) + [TOKENS if known else PLAIN for known in target.ids]
                ids += [known for known in target.ids if known]
                logprobs += [known for known in target.logprobs if known]
            case ChunkTargets():
                kind += [PLAIN] * (count - len(target.chunk_of))
                kind += [CHUNKS if number >= 0 else PLAIN for number in target.chunk_of]
                chunk += [len(chunk_logprobs) + number for number in target.chunk_of if number >= 0]
                chunk_logprobs += target.logprobs
                chunk_weights += [row.weight] * len(target.logprobs)
            case LabelTargets():
                kind += [LABELS] * sum(map(len, target.answers))
                labels.append(target.logprobs)
                own.append(target.own)
                label_weights.append(row.weight)
            case None:
                kind += [PLAIN] * count
    most, widest = max(map(len, ids), default=0), max(map(len, labels), default=0)
    return {
        "kind": torch.tensor(kind),
        "ids": torch.tensor([[*known, *[-1] * (most - len(known))] for known in ids], dtype=torch.long),
        "logprobs": torch.tensor([[*known, *[0.0] * (most - len(known))] for known in logprobs]),
        "chunk": torch.tensor(chunk, dtype=torch.long),
        "chunk_logprobs": torch.tensor(chunk_logprobs),
        "chunk_weights": torch.tensor(chunk_weights),
        "labels": torch.tensor([[*known, *[-torch.inf] * (widest - len(known))] for known in labels]),
        "own": torch.tensor(own, dtype=torch.long),
        "label_weights": torch.tensor(label_weights),
    }
