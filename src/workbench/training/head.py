"""Distillation through the LM head: a teacher's distribution against the student's, a few rows of logits at a time.

Each function here makes `Rows` (see losses.py) of a teacher's word; `distil_loss` sums them over hidden states.
Temperature T divides the logits, or the buckets, of both sides, and the divergence is multiplied by T², so that the
gradient keeps its size as T grows (Hinton, arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from workbench.training.divergences import LOWEST, Divergence
from workbench.training.losses import HeadRows, Rows, float32_logits

ROWS_AT_ONCE = 256  # about seven float32 tensors of rows × vocabulary live at once: 350 MB for 49k words

Gradient = Callable[[], torch.Tensor]


def distil_loss(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    rows: Rows,
    *,
    num_items: int | torch.Tensor,
    row_weight_N: torch.Tensor | None = None,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Σ over the rows of weight × loss, over `num_items`: the whole step's trained tokens, whatever the micro-batch.

    The head may be frozen or trained. Its rows from `vocabulary` on are padding: no part of any softmax, no gradient.
    """
    rows = rows if row_weight_N is None else weighted(rows, row_weight_N)
    bias_V = None if bias_V is None else bias_V[:vocabulary]
    return HeadRows.apply(hidden_NH, weight_VH[:vocabulary], bias_V, rows, ROWS_AT_ONCE) / num_items


def full(teacher: Callable[[slice], torch.Tensor], divergence: Divergence, temperature: float = 1.0) -> Rows:
    """Against a teacher with the same vocabulary; `teacher(rows)` gives its logits (n, ≥V), see `head_logits`."""

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        theirs = log_softmax(teacher(part)[:, : logits.shape[1]].float(), temperature).clamp_(min=LOWEST)
        student = log_softmax(logits, temperature)
        value, slope = divergence(student, theirs)
        del theirs
        return value.mul_(temperature**2), lambda: through_softmax(student, slope).mul_(temperature)

    return rows


def head_logits(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None = None
) -> Callable[[slice], torch.Tensor]:
    """A teacher for `full`, by its last hidden states and its head: its logits are made as they are asked for."""

    @torch.no_grad()
    def logits(part: slice) -> torch.Tensor:
        return float32_logits(hidden_NH[part], weight_VH, bias_V)

    return logits


def top_k(ids_NK: torch.Tensor, logprobs_NK: torch.Tensor, divergence: Divergence, temperature: float = 1.0) -> Rows:
    """Against the teacher's k likeliest tokens a row and one bucket for all others.

    An id of −1 is none, for rows with fewer than k; a row's other ids differ. Both sides become distributions over the
    k tokens and the bucket, which at T ≠ 1 are tempered as they are: what the bucket holds is not known. A teacher
    whose k sum to more than 1 by rounding, or who names every token of the vocabulary, is normalised and has no bucket.
    """

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        ids = ids_NK[part].to(logits.device)
        kept = (ids >= 0) & (ids < logits.shape[1])
        ids = ids.masked_fill(~kept, 0)
        theirs = with_bucket(logprobs_NK[part].to(logits.device), kept, logits.shape[1])
        each = logits.log_softmax(-1)
        inside = torch.zeros_like(each, dtype=torch.bool)
        inside.scatter_(1, ids, True)
        # A missing id points at token 0, which is inside only if a real one does too.
        inside[:, 0] = (kept & (ids == 0)).any(-1)
        rest = each.masked_fill(inside, -torch.inf)
        bucket = rest.logsumexp(-1, keepdim=True)
        student = torch.cat([each.gather(1, ids).masked_fill(~kept, LOWEST), bucket], 1).clamp_(min=LOWEST)
        value, slope = divergence(log_softmax(student, temperature), log_softmax(theirs, temperature))

        def gradient() -> torch.Tensor:
            buckets = through_softmax(log_softmax(student, temperature), slope).mul_(temperature)
            buckets = buckets.masked_fill(torch.cat([~kept, torch.isneginf(bucket)], 1), 0.0)
            grad = rest.sub_(bucket.clamp(min=LOWEST)).exp_().mul_(buckets[:, -1:])
            # The buckets' derivatives sum to nought, so the softmax over the words adds nothing of its own.
            return grad.scatter_add_(1, ids, buckets[:, :-1])

        return value.mul_(temperature**2), gradient

    return rows


def with_bucket(logprobs_nK: torch.Tensor, kept_nK: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The teacher's log-probabilities (n, k+1) with what is left of 1 as the last, in float32; computed in float64."""
    p = logprobs_nK.double().exp().masked_fill(~kept_nK, 0.0)
    total = p.sum(-1, keepdim=True)
    whole = (total > 1) | (kept_nK.sum(-1, keepdim=True) == vocabulary)
    p = torch.where(whole, p / total, p)
    left = torch.where(whole, torch.zeros_like(total), 1 - total)
    return torch.cat([p, left], 1).log().clamp(min=LOWEST).float()


def uld(logprobs_NK: torch.Tensor) -> Rows:
    """Universal logit distillation (arXiv 2402.12030): Σ |p₍ᵢ₎ − q₍ᵢ₎|, both sorted by size, whatever their words.

    A baseline. Teacher's probabilities that are not given count as nought, so it wants all of its vocabulary.
    """

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        theirs = logprobs_NK[part].to(logits.device).float().exp().sort(-1, descending=True).values
        student = logits.log_softmax(-1)
        q, order = student.exp().sort(-1, descending=True)
        shared = min(q.shape[1], theirs.shape[1])
        q[:, :shared] -= theirs[:, :shared]
        value = q.abs().sum(-1) + theirs[:, shared:].sum(-1)

        def gradient() -> torch.Tensor:
            sign = torch.empty_like(q).scatter_(1, order, q.sign())
            return through_softmax(student, sign.mul_(student.exp()))

        return value, gradient

    return rows


def mixed(*parts: tuple[float, Rows]) -> Rows:
    """Σ share × loss over one product with the head, such as (0.5, cross_entropy(…)), (0.5, top_k(…)).

    At most one of them may be a cross entropy, which writes its gradient over the logits.
    """

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        told = [(share, *loss(logits, part)) for share, loss in parts]

        def gradient() -> torch.Tensor:
            total = told[0][2]().mul_(told[0][0])
            for share, _, slope in told[1:]:
                total.add_(slope(), alpha=share)
            return total

        return torch.stack([share * value for share, value, _ in told]).sum(0), gradient

    return rows


def weighted(loss: Rows, weight_N: torch.Tensor) -> Rows:
    """Each row's loss times its weight, such as a label's share of the votes."""

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        value, gradient = loss(logits, part)
        weight = weight_N[part].to(value.device, torch.float32)
        return value * weight, lambda: gradient().mul_(weight[:, None])

    return rows


def log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(z / T) in float32. It takes the largest off before it exponentiates, so large logits lose nothing."""
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def through_softmax(logprobs: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The derivative by logits, from g, the derivative by their log-softmax: g − q Σ g. Overwrites g.

    A multiple of q in g makes no difference, so the one that leaves the likeliest word nothing is taken off first:
    else the sum drowns the rest where that word is all but certain.
    """
    q, top = logprobs.exp(), logprobs.argmax(-1, keepdim=True)
    slope.addcmul_(q, slope.gather(1, top) / q.gather(1, top), value=-1).scatter_(1, top, 0.0)
    return slope.sub_(q.mul_(slope.sum(-1, keepdim=True)))
