"""The loss of answers, a teacher's word among them: weighted text, likeliest tokens, chunks of bytes, soft labels.

A row's loss is (1−w) × cross entropy + w × the teacher's term, both in nats, summed over its answer; positions that the
teacher says nothing of keep the whole cross entropy. The loop divides by the whole step's trained tokens, each counted
as often as its row's weight says: a step of rows that all weigh one half is the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import RequestError
from workbench.recipe import Teach
from workbench.records import TokenRow
from workbench.stored_tokens import Both
from workbench.training.attention import read
from workbench.training.batches import CHUNKS, LABELS, PLAIN, TOKENS, Batch, by_length, collate, on_device
from workbench.training.job import Job, Loss, Moment, Student
from workbench.training.losses import (
    LOWEST,
    ROWS_AT_ONCE,
    Divergence,
    Rows,
    answer_loss,
    cross_entropy,
    distil_loss,
    divergence_of,
    forward_kl,
    log_softmax,
    masked,
    mixed,
    plain_loss,
    routed_loss,
    router_coefficient,
    sweep,
    through_softmax,
    top_k,
    trained_positions,
    weighted,
)

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx
    from transformers import PreTrainedModel

# A float32 softmax cannot tell a likelier student from a certain one: 1 − q is at least this.
NEAREST_TO_CERTAIN = 2.0**-24


def answers(job: Job, student: Student) -> Loss:
    """Σ over the rows' trained tokens, a row by its weight and against the teacher's word where `job.targets` has one.

    Validation rows are held against their own text alone. Raises RequestError for a mixture of experts with weights or
    targets, whose router's loss belongs to the model's own cross entropy.
    """
    rows, teach, router = Both(job.rows, job.validation), job.method.teach, router_coefficient(student.decoder)
    if router and job.world:
        raise RequestError(
            "a mixture of experts trains in one process: its router's loss is a mean over the whole step",
            where="launch.processes",
            remedy="launch=local",
        )
    if router and (job.targets or any(row.weight != 1.0 or row.scales for row in job.rows)):
        raise RequestError(
            "a mixture of experts is trained on plain text alone here: rows have no weights, tokens no targets",
            where="method.distil",
            remedy="method.distil=[text] method.teach.vote_weight=false",
        )

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        targets = job.targets if moment[0] == "step" else {}
        made = [collate([(n, rows[n]) for n in cut], student.pad, targets, student.packs) for cut in cuts]
        items = [sum(counted(rows[number]) for number in cut) for cut in cuts]
        # The router's loss is a mean over a batch: of a step it is the mean of its micro-batches' means.
        scale = router * sum(items) / len(made) if moment[0] == "step" else 0.0
        return [on_device(b | {"router": scale}, student.device, n) for b, n in zip(made, items, strict=True)]

    def summed_loss(batch: Batch) -> torch.Tensor:
        decoder, plain = student.decoder, student.plain
        if batch["router"]:
            return routed_loss(decoder, batch, plain=plain)
        if "targets" in batch:
            divergence, vocabulary = divergence_of(teach), student.vocabulary
            return distillation_loss(decoder, batch, teach, divergence, plain=plain, vocabulary=vocabulary)
        if plain:
            return answer_loss(decoder, batch["input_ids"], batch["labels"], batch.get("documents"))
        return plain_loss(decoder, batch["input_ids"], batch["labels"], batch["attention_mask"], batch.get("documents"))

    looks = by_length([len(row.input_ids) for row in job.validation], student.batch_tokens)
    return Loss(batches, summed_loss, [[len(job.rows) + number for number in cut] for cut in looks])


def counted(row: TokenRow) -> float:
    """The row's trained tokens, each as often as its row's weight and its turn's say."""
    if not row.scales:
        return row.weight * sum(row.trained[1:])
    return row.weight * sum(scale for scale, on in zip(row.scales[1:], row.trained[1:], strict=True) if on)


class LogitRows(torch.autograd.Function):
    """`Rows` on logits that are there already: for heads that change what their weight gives."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits_NV: torch.Tensor, rows: Rows) -> torch.Tensor:
        values, gradient = rows(logits_NV.float().clone(), slice(0, len(logits_NV)))
        ctx.save_for_backward(gradient().to(logits_NV.dtype))
        return values.sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None


@dataclass(frozen=True)
class Head:
    """How the student's distribution at some positions is met: a loss on it, or the log-probability of one token."""

    loss: Callable[[torch.Tensor, Rows, torch.Tensor], torch.Tensor]
    likely: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_head(model: PreTrainedModel, inputs: Mapping[str, Any], mask: torch.Tensor, vocabulary: int | None) -> Head:
    """Through the backbone and a linear head: nothing of size positions × vocabulary outlives its chunk."""
    hidden = read(model.base_model, inputs["input_ids"], inputs.get("documents")).last_hidden_state[:, :-1][mask]
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    return Head(
        lambda at, rows, scale: distil_loss(
            hidden[at], weight, bias, rows, num_items=1, row_weight_N=scale, vocabulary=vocabulary
        ),
        lambda at, target: token_logprobs(hidden[at], weight, bias, target, vocabulary=vocabulary),
    )


def own_head(model: PreTrainedModel, inputs: Mapping[str, Any], mask: torch.Tensor, vocabulary: int | None) -> Head:
    """Through the model's own forward, whole logits."""
    documents = inputs.get("documents")
    out = read(model, inputs["input_ids"], documents, **masked(inputs["attention_mask"], documents))
    logits = out.logits[:, :-1][mask][:, :vocabulary].float()
    return Head(
        lambda at, rows, scale: LogitRows.apply(logits[at], weighted(rows, scale)),
        lambda at, target: logits[at].log_softmax(-1).gather(1, target[:, None])[:, 0],
    )


def distillation_loss(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    teach: Teach,
    divergence: Divergence,
    *,
    plain: bool,
    vocabulary: int | None,
) -> torch.Tensor:
    """The batch's summed loss, as the head of this file says. `inputs` come from `batches.collate`."""
    mask, target = trained_positions(inputs["labels"])
    head = (plain_head if plain else own_head)(model, inputs, mask, vocabulary)
    scale = inputs["weights"]
    part, w, t = inputs["targets"], teach.weight, teach.temperature
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
        _, of_label = inputs["sequences"][at].unique(return_inverse=True)
        student = summed(head.likely(at, target[at]), of_label, part["labels"].numel()).view_as(part["labels"])
        own_answer = student.gather(1, part["own"][:, None])[:, 0]
        soft = label_loss(
            student, part["labels"], num_items=1, divergence=divergence, temperature=t, weight_N=part["label_weights"]
        )
        total = total - (1 - w) * (own_answer * part["label_weights"]).sum() + w * soft
    return total


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias) of one token a row, (N,) in float32, for losses that join rows.

    With a frozen head each row's gradient is taken in the forward pass and scaled in the backward one; a trained
    head's needs the rows' scales, so its chunks are computed again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
    ) -> torch.Tensor:
        ctx.frozen = not any(ctx.needs_input_grad[1:3])
        wanted = (ctx.frozen and ctx.needs_input_grad[0], False, False)
        values, grad_hidden, *_ = sweep(hidden_NH, weight_VH, bias_V, cross_entropy(target_N), wanted, ROWS_AT_ONCE)
        ctx.save_for_backward(*((grad_hidden,) if ctx.frozen else (hidden_NH, weight_VH, bias_V, target_N)))
        return -values

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.frozen:
            (grad_hidden,) = ctx.saved_tensors
            return (
                (None if grad_hidden is None else (grad_hidden * -grads[0][:, None]).to(grad_hidden.dtype)),
                None,
                None,
                None,
            )
        hidden, weight, bias, target = ctx.saved_tensors
        rows = weighted(cross_entropy(target), -grads[0])
        _, *gradients = sweep(hidden, weight, bias, rows, ctx.needs_input_grad[:3], ROWS_AT_ONCE)
        like = (hidden, weight, bias)
        return *(None if g is None else g.to(tensor.dtype) for g, tensor in zip(gradients, like, strict=True)), None


def token_logprobs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_N: torch.Tensor,
    *,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """The student's log-probability of each row's token, (N,). Head rows from `vocabulary` on are padding."""
    bias_V = None if bias_V is None else bias_V[:vocabulary]
    return TokenLogprobs.apply(hidden_NH, weight_VH[:vocabulary], bias_V, target_N)


def summed(logprob_N: torch.Tensor, part_of_N: torch.Tensor, parts: int) -> torch.Tensor:
    """Log-likelihood of each string, (parts,): the sum over its tokens. `part_of` is a token's string, −1 for none."""
    kept = part_of_N >= 0
    return logprob_N.new_zeros(parts).index_add(0, part_of_N[kept], logprob_N[kept])


def chunk_loss(
    student_C: torch.Tensor,
    teacher_C: torch.Tensor,
    *,
    num_items: int | torch.Tensor,
    temperature: float = 1.0,
    weight_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """Approximate likelihood matching (arXiv 2503.20083) on chunks that hold the same bytes, see align.py.

    With s and t the student's and the teacher's log-likelihood of a chunk, q = e^(s/τ) and p = e^(t/τ), a chunk's loss
    is the KL of "said this, or something else":

        τ · ( p log(p/q) + (1−p) log((1−p)/(1−q)) )     and     t − s − t log(t/s)     at τ = ∞,

    its limit; the factor τ, which the paper leaves to the learning rate, keeps its size as τ grows. The paper uses
    τ = 100, under which unlikely chunks count too. Without the paper's debiasing of chunks that end inside a word.
    """
    s, t = student_C.float(), teacher_C.float().clamp(min=LOWEST, max=0.0)
    s = s - torch.relu(s.detach() + NEAREST_TO_CERTAIN)
    if math.isinf(temperature):
        terms = t - s - torch.where(t < 0, t * torch.log(t.clamp(max=-1e-30) / s), 0.0)
    else:
        s, t = s / temperature, t / temperature
        p, other = t.exp(), -torch.expm1(t)
        rest = torch.where(other > 0, log_one_less(t), 0.0) - log_one_less(s)
        terms = temperature * (p * (t - s) + other * rest)
    return (terms if weight_C is None else terms * weight_C).sum() / num_items


def log_one_less(x: torch.Tensor) -> torch.Tensor:
    """log(1 − eˣ) for x < 0, precise at both ends; the branch not taken stays finite, for its gradient's sake."""
    far = x < -math.log(2)
    small = torch.log1p(-torch.exp(torch.where(far, x, -1.0)))
    return torch.where(far, small, torch.log(-torch.expm1(torch.where(far, -1.0, x).clamp(max=-1e-30))))


def label_loss(
    student_NL: torch.Tensor,
    teacher_NL: torch.Tensor,
    *,
    num_items: int | torch.Tensor,
    divergence: Divergence = forward_kl,
    temperature: float = 1.0,
    weight_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact soft labels: the divergence of both sides' distributions over a closed set of L labels, a row a prompt.

    Takes each label's log-likelihood as an answer, its stop token included (else "GPL" holds "GPL-2"): both sides are
    normalised over the set, at temperature T, and the loss multiplied by T². −inf is a label that is not offered.
    """
    student = log_softmax(student_NL.float().clamp(min=LOWEST), temperature)
    teacher = log_softmax(teacher_NL.float().clamp(min=LOWEST), temperature).clamp(min=LOWEST)
    with torch.no_grad():
        value, slope = divergence(student.detach(), teacher)
        slope = through_softmax(student.detach(), slope) * temperature
        value = value * temperature**2
    # The value of the divergence with the gradient it gave.
    centred = student_NL.float() - student_NL.detach().float()
    terms = value + torch.where(torch.isfinite(student_NL), centred * slope, 0.0).sum(-1)
    return (terms if weight_N is None else terms * weight_N).sum() / num_items
