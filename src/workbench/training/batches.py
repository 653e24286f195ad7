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
from workbench.training.attention import Documents, documents_of
from workbench.training.targets import ChunkTargets, LabelTargets, Target, TokenTargets, sequences

PLAIN, TOKENS, CHUNKS, LABELS = range(4)  # what holds a trained position: its text alone, or which of the targets

Batch = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """How a step's rows become micro-batches: at most so many rows in one, and so many tokens, but for a longer row.

    Rows that are `packed` take the tokens they have; else each takes as many as the longest beside it.
    """

    rows: int
    tokens: int
    packed: bool = False

    def of(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """The micro-batches of a step's rows (numbers), the one with the most tokens first: it fits, or none does."""
        if not rows:
            return []
        return (balanced if self.packed else padded)(sorted(rows, key=lambda row: -lengths[row]), lengths, self)


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a training, as row numbers in the order of training: a function of the job and the cut.

    Whoever knows them knows the whole plan and what every step holds, so a resumed run, or one process of several,
    takes its part of it. What a step holds is a function of the job alone. `recomputed` says whether activations are
    made again in the backward pass.
    """

    lengths: Sequence[int]
    rows: Sequence[Sequence[int]]
    cut: Cut
    recomputed: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.rows)

    def of_step(self, step: int) -> list[list[int]]:
        """The micro-batches of a step; the first is 1."""
        return self.cut.of(self.rows[step - 1], self.lengths)


def plan_of(lengths: Sequence[int], method: Method, seed: int, cut: Cut, recomputed: bool = False) -> Plan:
    """The plan for rows of these lengths (tokens)."""
    steps = total_steps(len(lengths), method.batch_size, method.epochs, method.max_steps)
    return Plan(lengths, rows_of_steps(len(lengths), method.batch_size, steps, seed), cut, recomputed)


def evaluation_steps(steps: int, times: int) -> frozenset[int]:
    """Evenly spread steps after which the validation loss is taken, the last among them."""
    return frozenset(max(1, round(steps * k / times)) for k in range(1, times + 1))


def total_steps(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps: `epochs` passes over the rows, and never more than `max_steps`."""
    steps = max(1, math.ceil(rows * epochs / batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def rows_of_steps(count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The rows (numbers below `count`) of each step, a function of the seed alone.

    Each pass is a fresh permutation, cut into steps as it comes: a step's rows are a fair sample of all, whatever their
    length tells. A resumed run computes the same and skips what it has done, whatever the state of any random
    generator.
    """
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        order += generator.sample(range(count), count)
    return [order[start : start + batch_size] for start in range(0, steps * batch_size, batch_size)]


LIKE = 0.75  # a row at least so long as the longest beside it is padded to it rather than read apart
FEW = 32  # tokens of padding that cost less than another pass


def padded(rows: Sequence[int], lengths: Sequence[int], cut: Cut) -> list[list[int]]:
    """Rows, the longest first, in micro-batches of like length."""
    made: list[list[int]] = []
    for row in rows:
        longest = lengths[made[-1][0]] if made else 0
        fits = made and len(made[-1]) < cut.rows and longest * (len(made[-1]) + 1) <= cut.tokens
        if fits and (lengths[row] >= LIKE * longest or longest - lengths[row] <= FEW):
            made[-1].append(row)
        else:
            made.append([row])
    return sorted(made, key=lambda part: -len(part) * lengths[part[0]])


def balanced(rows: Sequence[int], lengths: Sequence[int], cut: Cut) -> list[list[int]]:
    """Rows, the longest first, in bins of about equal tokens, as few as hold them: each goes into the emptiest."""
    total = sum(lengths[row] for row in rows)
    count = max(-(-total // cut.tokens), -(-len(rows) // cut.rows))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for row in rows:
            emptiest = min((n for n in range(count) if len(bins[n]) < cut.rows), key=held.__getitem__)
            bins[emptiest].append(row)
            held[emptiest] += lengths[row]
        if max(held) <= cut.tokens or count >= len(rows):
            break
        count += 1
    order = sorted((n for n in range(count) if bins[n]), key=lambda n: -held[n])
    return [bins[n] for n in order]


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
    rows: Sequence[tuple[int, TokenRow]],
    pad: int,
    targets: Mapping[str, Target] | None = None,
    packed: bool = False,
) -> Batch:
    """Right-padded `input_ids`, `attention_mask`, `labels` (−100 for no loss), all (B, T), and `rows` (their numbers).

    `trained` (rows,) counts a row's trained tokens. Where rows have weights or a teacher's targets, `targets` are
    there too, `weights` (N,) of the trained positions, in order, and `sequences` (N,), which one each stands in. B is
    more than the rows where soft labels make several sequences of one. `packed` puts all sequences into one row, (1,
    T), and tells where they lie: `documents`.
    """
    targets = targets or {}
    read = [sequence for _, row in rows for sequence in sequences(row, targets.get(row.id))]
    if packed:
        batch = in_one_row(read)
    else:
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
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch |= {
        "rows": torch.tensor([number for number, _ in rows]),
        "trained": torch.tensor([sum(row.trained[1:]) for _, row in rows]),
    }
    if any(row.weight != 1.0 or row.scales or row.id in targets for _, row in rows):
        counts = torch.tensor([sum(row.trained[1:]) for row in read])
        # Of each trained position, in order: position t predicts token t + 1.
        scales = [scale for row in read for scale, on in zip(row.scales[1:] or repeat(1.0), row.trained[1:]) if on]
        batch["weights"] = torch.tensor([row.weight for row in read]).repeat_interleave(counts) * torch.tensor(scales)
        batch["sequences"] = torch.arange(len(read)).repeat_interleave(counts)
        batch["targets"] = target_tensors([row for _, row in rows], targets)
    return batch


def in_one_row(read: Sequence[TokenRow]) -> Batch:
    """Sequences one after the other, (1, T), where they lie, and labels; the first token of each is not predicted."""
    ids = torch.tensor([token for row in read for token in row.input_ids])
    trained = torch.tensor([at > 0 and on for row in read for at, on in enumerate(row.trained)])
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "labels": torch.where(trained, ids, -100)[None],
        "documents": documents_of([len(row.input_ids) for row in read]),
    }


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
    return value.to(device) if isinstance(value, torch.Tensor | Documents) else value


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
