"""The loss of rows that a teacher's word weighs on: weighted text, likeliest tokens, chunks of bytes, soft labels.

A row's loss is (1−w) × cross entropy + w × the teacher's term, both in nats, summed over its answer; positions that the
teacher says nothing of keep the whole cross entropy. The trainer divides by the whole step's trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.recipe import Teach
from workbench.records import TokenRow
from workbench.training.divergences import Divergence, named
from workbench.training.head import distil_loss, mixed, top_k, weighted
from workbench.training.likelihoods import chunk_loss, label_loss, summed, token_logprobs
from workbench.training.losses import Rows, cross_entropy, trained_positions
from workbench.training.targets import ChunkTargets, LabelTargets, Rejected, Target, TokenTargets

PLAIN, TOKENS, CHUNKS, LABELS = range(4)


@dataclass(frozen=True)
class Lesson:
    """What a trainer needs beside its rows: the teacher's word by row id, and how it is weighed."""

    targets: Mapping[str, Target]
    teach: Teach

    @property
    def divergence(self) -> Divergence:
        """The recipe's divergence."""
        return named(self.teach.divergence, self.teach.beta if self.teach.divergence == "jsd" else self.teach.skew)


def sequences(row: TokenRow, target: Target | None) -> list[TokenRow]:
    """A row as the sequences that the student reads: one, for soft labels one a label, in a pair the rejected next."""
    if isinstance(target, Rejected):
        return [row, target.row]
    if not isinstance(target, LabelTargets):
        return [row]
    prompt = row.input_ids[: row.answer_start]
    return [
        TokenRow(row.id, (*prompt, *ids), (False,) * len(prompt) + (True,) * len(ids), row.where, row.weight)
        for ids in target.answers
    ]


def taught(rows: Sequence[TokenRow], targets: Mapping[str, Target]) -> dict[str, torch.Tensor]:
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


class LogitRows(torch.autograd.Function):
    """`Rows` on logits that are there already: for heads that change what their weight gives."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, rows: Rows) -> torch.Tensor:
        values, gradient = rows(logits_NV.float().clone(), slice(0, len(logits_NV)))
        ctx.save_for_backward(gradient().to(logits_NV.dtype))
        return values.sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None


@dataclass(frozen=True)
class Head:
    """How the student's distribution at some positions is met: a loss on it, or the log-probability of one token."""

    loss: Callable[[torch.Tensor, Rows, torch.Tensor], torch.Tensor]
    likely: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_head(model: Any, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor, vocabulary: int | None) -> Head:
    """Through the backbone and a linear head: nothing of size positions × vocabulary outlives its chunk."""
    hidden = model.base_model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state[:, :-1][mask]
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    return Head(
        lambda at, rows, scale: distil_loss(
            hidden[at], weight, bias, rows, num_items=1, row_weight_N=scale, vocabulary=vocabulary
        ),
        lambda at, target: token_logprobs(hidden[at], weight, bias, target, vocabulary=vocabulary),
    )


def own_head(model: Any, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor, vocabulary: int | None) -> Head:
    """Through the model's own forward, whole logits."""
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
    logits = out.logits[:, :-1][mask][:, :vocabulary].float()
    return Head(
        lambda at, rows, scale: LogitRows.apply(logits[at], weighted(rows, scale)),
        lambda at, target: logits[at].log_softmax(-1).gather(1, target[:, None])[:, 0],
    )


def taught_loss(
    model: Any, inputs: Mapping[str, Any], teach: Teach, divergence: Divergence, *, plain: bool, vocabulary: int | None
) -> torch.Tensor:
    """The batch's summed loss, as the head of this file says. `inputs` come from `batches.collate`."""
    mask, target = trained_positions(inputs["labels"])
    head = (plain_head if plain else own_head)(model, inputs, mask, vocabulary)
    scale = inputs["weights"][:, None].expand(mask.shape)[mask]
    part, w, t = inputs["taught"], teach.weight, teach.temperature
    kind = part["kind"]
    total = target.new_zeros((), dtype=torch.float32)

    at = (kind == PLAIN).nonzero()[:, 0]
    if len(at):
        total = total + head.loss(at, cross_entropy(target[at]), scale[at])
    at = (kind == TOKENS).nonzero()[:, 0]
    if len(at):
        both = mixed((1 - w, cross_entropy(target[at])), (w, top_k(part["ids"], part["logprobs"], divergence, t)))
        total = total + head.loss(at, both, scale[at])
    at = (kind == CHUNKS).nonzero()[:, 0]
    if len(at):
        likely = head.likely(at, target[at])
        student = summed(likely, part["chunk"], len(part["chunk_logprobs"]))
        kept = chunk_loss(student, part["chunk_logprobs"], num_items=1, temperature=t, weight_C=part["chunk_weights"])
        total = total - (1 - w) * (likely * scale[at]).sum() + w * kept
    at = (kind == LABELS).nonzero()[:, 0]
    if len(at):
        of_sequence = inputs["labels"].new_tensor(range(len(mask)))[:, None].expand(mask.shape)[mask][at]
        _, of_label = of_sequence.unique(return_inverse=True)
        student = summed(head.likely(at, target[at]), of_label, part["labels"].numel()).view_as(part["labels"])
        said = student.gather(1, part["own"][:, None])[:, 0]
        soft = label_loss(
            student, part["labels"], num_items=1, divergence=divergence, temperature=t, weight_N=part["label_weights"]
        )
        total = total - (1 - w) * (said * part["label_weights"]).sum() + w * soft
    return total
