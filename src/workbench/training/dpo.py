"""DPO (arXiv 2305.18290): of two answers to a prompt, the chosen one is to become likelier against the rejected one.

The pairs are one's own, or a teacher's answer chosen and the student's own sample rejected.

A row is the chosen answer, its target in the job the rejected one: the two are read as two sequences of one batch. The
reference is the student as it is when this starts, whose log-likelihoods are taken once, so that no copy of it has to
stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from workbench.errors import RequestError
from workbench.files import read_sealed, write_sealed
from workbench.records import TokenRow
from workbench.training.batches import Batch, by_length, collate, on_device
from workbench.training.distil import own_head, plain_head, summed
from workbench.training.job import HeldOut, Job, Loss, Moment, Student
from workbench.training.losses import trained_positions
from workbench.training.targets import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "reference.json"
NO_DROPOUT = "no dropout here: the student is held against itself as it starts, which has none"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: the better one, whose id and weight are the pair's, and the one it is to beat."""

    chosen: TokenRow
    rejected: TokenRow


def on_pairs(job: Job, pairs: Sequence[Pair], validation: Sequence[Pair], beta: float | None = None) -> Job:
    """The job, trained on pairs; its validation loss is DPO's. `beta` is `method.teach.dpo_beta` where it is not given.

    The reference is kept in `job.out/reference.json`. With each loss come `train/reward_margin`, the mean of what the
    loss takes the sigmoid of, and `train/reward_accuracy`, the share of pairs where it is above 0.
    """
    if job.method.dropout:
        job.event("said", text=NO_DROPOUT)
    beta = job.method.teach.dpo_beta if beta is None else beta
    return replace(as_pairs(job, pairs, validation), loss=partial(preference, beta=beta))


def as_pairs(job: Job, pairs: Sequence[Pair], validation: Sequence[Pair]) -> Job:
    """The job with the chosen answers as its rows and the rejected ones as their targets."""
    targets = {pair.chosen.id: Rejected(pair.rejected) for pair in (*pairs, *validation)}
    if len(targets) < len(pairs) + len(validation):
        raise RequestError("two pairs have the same id", where="training")
    rows, judging = ([pair.chosen for pair in part] for part in (pairs, validation))
    return replace(job, rows=rows, validation=judging, targets=targets)


@dataclass(frozen=True)
class Paired:
    """A job's pairs, the validation pairs after the others, as the student reads them.

    `collated(cut)` are some of them as one batch, (2 × pairs, T): the chosen and the rejected answer alternate.
    `logprobs(batch)` are both answers' log-likelihoods, (pairs, 2). `lengths` are the padded tokens of each pair,
    `looks` the cuts of the validation pairs.
    """

    rows: Sequence[TokenRow]
    lengths: Sequence[int]
    looks: Sequence[Sequence[int]]
    collated: Callable[[Sequence[int]], Batch]
    logprobs: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def paired(job: Job, student: Student) -> Paired:
    """The job's pairs."""
    rows = [*job.rows, *job.validation]
    rejected = [rejected_of(job, row) for row in rows]
    lengths = [2 * max(len(row.input_ids), len(other.input_ids)) for row, other in zip(rows, rejected, strict=True)]

    def collated(cut: Sequence[int]) -> Batch:
        batch = collate([(number, rows[number]) for number in cut], student.pad, job.targets)
        batch.pop("targets")
        batch["weights"] = torch.tensor([rows[number].weight for number in cut])
        batch["trained"] += torch.tensor([sum(rejected[number].trained[1:]) for number in cut])
        return on_device(batch, student.device, sum(rows[number].weight for number in cut))

    def logprobs(batch: Mapping[str, Any]) -> torch.Tensor:
        return pair_logprobs(student.decoder, batch, plain=student.plain, vocabulary=student.vocabulary)

    first = len(job.rows)
    looks = [[first + number for number in cut] for cut in by_length(lengths[first:], student.batch_tokens)]
    return Paired(rows, lengths, looks, collated, logprobs)


def without_dropout(student: Student) -> None:
    """Turn dropout off for good: the student is held against its own start, which has none."""
    for module in student.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def preference(job: Job, student: Student, beta: float) -> Loss:
    """Σ over the pairs of −log σ(margin), each by its weight. Takes the reference: the student is as it starts."""
    without_dropout(student)
    pairs, step = paired(job, student), {"margin": 0.0, "right": 0.0, "pairs": 0}
    rows, logprobs = pairs.rows, pairs.logprobs
    reference = kept_reference(job, student, rows, pairs.lengths, lambda cut: logprobs(pairs.collated(cut)))

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        step.update(margin=0.0, right=0.0, pairs=0)
        held = [torch.tensor([reference[rows[number].id] for number in cut], dtype=torch.float64) for cut in cuts]
        return [
            pairs.collated(cut) | {"reference": one.to(student.device)} for cut, one in zip(cuts, held, strict=True)
        ]

    def summed_loss(batch: Batch) -> torch.Tensor:
        loss, margin = preference_loss(logprobs(batch), batch["reference"], beta)
        step["pairs"] += len(margin)
        step["margin"] += float(margin.detach().sum())
        step["right"] += float((margin > 0).sum())
        return (loss * batch["weights"]).sum().float()

    def metrics() -> dict[str, float]:
        return {"reward_margin": step["margin"] / step["pairs"], "reward_accuracy": step["right"] / step["pairs"]}

    return Loss(batches, summed_loss, pairs.looks, metrics, held_out=lambda: likelier(pairs, logprobs))


def likelier(pairs: Paired, logprobs: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> HeldOut:
    """Of each validation pair whether the student holds the chosen answer for the likelier one, by `logprobs`."""
    right: dict[int, float] = {}
    with torch.no_grad():
        for cut in pairs.looks:
            both = logprobs(pairs.collated(cut))
            right |= zip(cut, (both[:, 0] > both[:, 1]).double().tolist(), strict=True)
    values = [right[number] for number in sorted(right)]
    return HeldOut("share of held-out pairs whose better answer is the likelier", "up", values, [1.0] * len(values))


def rejected_of(job: Job, row: TokenRow) -> TokenRow:
    """The other half of a pair."""
    target = job.targets[row.id]
    assert isinstance(target, Rejected)
    return target.row


def kept_reference(
    job: Job,
    student: Student,
    rows: Sequence[TokenRow],
    lengths: Sequence[int],
    logprobs: Callable[[Sequence[int]], torch.Tensor],
) -> dict[str, list[float]]:
    """Both answers' log-likelihoods under the student as it starts, by pair: read, or taken once and written."""
    path = job.out / REFERENCE
    kept = read_sealed(path) or {}
    if kept.get("of") == student.request:
        return kept["logprobs"]
    job.event("said", text=f"{len(rows):,} pairs are read by the student as it starts: the reference")
    taken: dict[str, list[float]] = {}
    student.model.eval()
    with torch.no_grad():
        for cut in by_length(lengths, student.batch_tokens):
            taken |= zip((rows[number].id for number in cut), logprobs(cut).tolist(), strict=True)
    job.out.mkdir(parents=True, exist_ok=True)
    write_sealed(path, {"of": student.request, "logprobs": taken})
    return taken


def preference_loss(
    logprob_N2: torch.Tensor, reference_N2: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair's loss and margin, (N,), of log-likelihoods (nats) of the chosen and the rejected answer (eq. 7).

    margin = β · ( (log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l)) ),   loss = −log σ(margin)
    """
    moved = logprob_N2 - reference_N2
    margin = beta * (moved[:, 0] - moved[:, 1])
    return -F.logsigmoid(margin), margin


def pair_logprobs(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None, each: int = 2
) -> torch.Tensor:
    """Log-likelihood of the chosen and the rejected answer, (pairs, 2), of a batch where the two alternate.

    With `each` another number than two, of so many answers a prompt.

    A token's is taken in float32, the sum in float64: long answers' likelihoods are large and their differences small.
    """
    mask, target = trained_positions(inputs["labels"])
    head = (plain_head if plain else own_head)(model, inputs, mask, vocabulary)
    likely = head.likely(torch.arange(len(target), device=target.device), target)
    return summed(likely.double(), mask.nonzero()[:, 0], len(mask)).view(-1, each)
