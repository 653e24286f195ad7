"""Losses on how likely the student finds whole strings: chunks of the teacher's answer, the labels of a closed set."""

from __future__ import annotations

import math
from typing import Any

import torch

from workbench.training.divergences import LOWEST, Divergence, forward_kl
from workbench.training.head import ROWS_AT_ONCE, log_softmax, through_softmax, weighted
from workbench.training.losses import cross_entropy, sweep

# A float32 softmax cannot tell a likelier student from a certain one: 1 − q is at least this.
NEAREST_TO_CERTAIN = 2.0**-24


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias) of one token a row, (N,) in float32, for losses that join rows.

    With a frozen head each row's gradient is taken in the forward pass and scaled in the backward one; a trained
    head's needs the rows' scales, so its chunks are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, target_N: torch.Tensor
    ) -> torch.Tensor:
        ctx.frozen = not any(ctx.needs_input_grad[1:3])
        wanted = (ctx.frozen and ctx.needs_input_grad[0], False, False)
        values, grad_hidden, *_ = sweep(hidden_NH, weight_VH, bias_V, cross_entropy(target_N), wanted, ROWS_AT_ONCE)
        ctx.save_for_backward(*((grad_hidden,) if ctx.frozen else (hidden_NH, weight_VH, bias_V, target_N)))
        return -values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
        _, *found = sweep(hidden, weight, bias, rows, ctx.needs_input_grad[:3], ROWS_AT_ONCE)
        like = (hidden, weight, bias)
        return *(None if g is None else g.to(one.dtype) for g, one in zip(found, like, strict=True)), None


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
