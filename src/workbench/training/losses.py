"""Losses through the LM head, a few rows of logits at a time: cross entropy, and a teacher's distribution.

A prompt's tokens never meet the head, and nothing of size rows × vocabulary outlives its chunk. `Rows` is one loss of
some rows of logits with its gradient written out; `HeadRows` sums it over hidden states.

A `Divergence` takes log-probabilities of student and teacher, both (n, C) float32, and gives each row's value (n,) in
nats and its derivative by the student's log-probabilities (n, C). With p the teacher's, q the student's probability
and r = log p − log q, all of them are sums over the C outcomes of

    log_mix(r, β) = log(1 + β(eʳ − 1)) = log((βp + (1−β)q) / q)

which keeps its relative precision at every β. Temperature T divides the logits, or the buckets, of both sides, and the
divergence is multiplied by T², so that the gradient keeps its size as T grows (Hinton, arXiv 1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from workbench.recipe import Teach
from workbench.training.attention import Documents, read

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx
    from transformers import PreTrainedModel

ROWS_A_CHUNK = 512  # bounds the float32 logits: 512 × 128k words = 256 MiB
ROWS_AT_ONCE = 256  # about seven float32 tensors of rows × vocabulary live at once: 350 MB for 49k words
LOGIT_CHANGERS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
# A teacher's probability of nothing counts as e^−10000: the reverse divergences stay finite, the forward ones exact.
LOWEST = -10_000.0

# The float32 logits (n, V) of some rows, and which rows they are → each row's loss (n,), and a function that gives its
# gradient by the logits (n, V). It is called at most once, last, and may overwrite the logits.
Rows = Callable[[torch.Tensor, slice], tuple[torch.Tensor, Callable[[], torch.Tensor]]]
Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Gradient = Callable[[], torch.Tensor]


class HeadRows(torch.autograd.Function):
    """Summed loss of `hidden @ weight.T + bias`, its gradient taken chunk by chunk in the forward pass.

    `rows` says what a row loses, see `Rows`. Nothing of size rows × vocabulary outlives its chunk of `at_once` rows.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        rows: Rows,
        at_once: int = ROWS_A_CHUNK,
    ) -> torch.Tensor:
        values, *gradients = sweep(hidden_NH, weight_VH, bias_V, rows, ctx.needs_input_grad[:3], at_once)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (weight_VH.dtype, None if bias_V is None else bias_V.dtype)
        return values.sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        scale, (weight_dtype, bias_dtype) = grads[0], ctx.dtypes
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(weight_dtype),
            None if bias is None else (bias * scale).to(bias_dtype),
            None,
            None,
        )


class HeadLoss(HeadRows):
    """Summed cross entropy of `hidden @ weight.T + bias` against one token a row."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
    ) -> torch.Tensor:
        return HeadRows.forward(ctx, hidden_NH, weight_VH, bias_V, cross_entropy(target_N))


def sweep(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    rows: Rows,
    wanted: Sequence[bool],
    at_once: int = ROWS_A_CHUNK,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Each row's loss (N,), and the gradients of their sum by hidden, weight and bias where `wanted` says so.

    Logits are float32: rounding a bf16 product first costs 4 to 23 % of the gradient. Weight's and bias's gradients
    are summed in float32.
    """
    values = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden_NH) if wanted[0] else None
    grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if wanted[1] else None
    grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if wanted[2] and bias_V is not None else None
    for start in range(0, len(hidden_NH), at_once):
        part = slice(start, min(start + at_once, len(hidden_NH)))
        values[part], gradient = rows(float32_logits(hidden_NH[part], weight_VH, bias_V), part)
        if grad_hidden is None and grad_weight is None and grad_bias is None:
            continue
        grad = gradient()
        if grad_bias is not None:
            grad_bias += grad.sum(0)
        narrow = grad.to(weight_VH.dtype)
        if grad_hidden is not None:
            grad_hidden[part] = narrow @ weight_VH
        if grad_weight is not None:
            grad_weight += (narrow.T @ hidden_NH[part]).float()
    return values, grad_hidden, grad_weight, grad_bias


def cross_entropy(target_N: torch.Tensor) -> Rows:
    """−log p(y) = logsumexp(z) − z_y, and d/dz = softmax(z) − onehot(y)."""

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        target, logsumexp = target_N[part], logits.logsumexp(-1)

        def gradient() -> torch.Tensor:
            grad = logits.sub_(logsumexp[:, None]).exp_()
            grad[torch.arange(len(target), device=grad.device), target] -= 1
            return grad

        return logsumexp - logits.gather(1, target[:, None])[:, 0], gradient

    return rows


def float32_logits(hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
    """`hidden @ weight.T + bias` accumulated and kept in float32, shape (N, V)."""
    if hidden_NH.is_cuda and hidden_NH.dtype != torch.float32:
        logits = torch.mm(hidden_NH, weight_VH.T, out_dtype=torch.float32)
    else:
        logits = hidden_NH.float() @ weight_VH.float().T
    return logits if bias_V is None else logits + bias_V.float()


def trained_positions(labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask (B, T−1) of the positions that predict a trained token, and those tokens (N,)."""
    mask = labels_BT[:, 1:] != -100
    return mask, labels_BT[:, 1:][mask]


def answer_loss(
    model: PreTrainedModel, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, documents: Documents | None = None
) -> torch.Tensor:
    """Summed loss of the trained tokens, through the backbone and a plain linear head; `documents` of packed rows."""
    hidden = read(model.base_model, input_ids_BT, documents).last_hidden_state
    mask, target = trained_positions(labels_BT)
    head = model.get_output_embeddings()
    return HeadLoss.apply(hidden[:, :-1][mask], head.weight, getattr(head, "bias", None), target)


def plain_loss(
    model: PreTrainedModel,
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    documents: Documents | None = None,
) -> torch.Tensor:
    """The same sum through the model's own forward: for heads that soft-cap or scale their logits."""
    logits = read(model, input_ids_BT, documents, **masked(mask_BT, documents)).logits
    mask, target = trained_positions(labels_BT)
    return F.cross_entropy(logits[:, :-1][mask].float(), target, reduction="sum")


def masked(mask_BT: torch.Tensor, documents: Documents | None) -> dict[str, torch.Tensor]:
    """The mask of a padded batch, as a keyword; a packed one has no padding."""
    return {"attention_mask": mask_BT} if documents is None else {}


def router_coefficient(model: PreTrainedModel) -> float:
    """The share of a mixture of experts' load balancing in its loss, by its config; 0 for any other model."""
    config = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if hasattr(config, "output_router_logits") else 0.0


def routed_loss(model: PreTrainedModel, batch: Mapping[str, Any], *, plain: bool) -> torch.Tensor:
    """`answer_loss` of a mixture of experts, and `batch["router"]` times the mean loss of its routers.

    Its own forward makes the routers' loss; where the head is plain it is asked for one position's logits alone, and
    the hidden states are caught on their way.
    """
    ids, labels, caught = batch["input_ids"], batch["labels"], []
    hook = model.base_model.register_forward_hook(lambda _module, _args, output: caught.append(output[0]))
    try:
        documents = batch.get("documents")
        out = read(
            model, ids, documents, **masked(batch["attention_mask"], documents), output_router_logits=True,
            logits_to_keep=1 if plain else 0,
        )  # fmt: skip
    finally:
        hook.remove()
    mask, target = trained_positions(labels)
    if plain:
        head = model.get_output_embeddings()
        loss = HeadLoss.apply(caught[0][:, :-1][mask], head.weight, getattr(head, "bias", None), target)
    else:
        loss = F.cross_entropy(out.logits[:, :-1][mask].float(), target, reduction="sum")
    return loss + batch["router"] * out.aux_loss


def head_is_plain(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> bool:
    """Whether hidden states times the head's weight are the model's logits: by its config, and tried on one row."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if any(getattr(config, name, None) not in (None, 1.0, 1) for name in LOGIT_CHANGERS):
        return False
    if type(head) is not torch.nn.Linear or not hasattr(model, "base_model_prefix") or model.base_model is model:
        return False
    with torch.no_grad():
        own = model(input_ids=input_ids_BT, use_cache=False).logits[0].float()
        hidden = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state[0]
        ours = float32_logits(hidden, head.weight, head.bias)
    return bool((own - ours).abs().max() <= 0.02 * own.abs().max())


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


def mixed(*parts: tuple[float, Rows]) -> Rows:
    """Σ share × loss over one product with the head, such as (0.5, cross_entropy(…)), (0.5, top_k(…)).

    At most one of them may be a cross entropy, which writes its gradient over the logits.
    """

    def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Gradient]:
        terms = [(share, *loss(logits, part)) for share, loss in parts]

        def gradient() -> torch.Tensor:
            total = terms[0][2]().mul_(terms[0][0])
            for share, _, slope in terms[1:]:
                total.add_(slope(), alpha=share)
            return total

        return torch.stack([share * value for share, value, _ in terms]).sum(0), gradient

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


def divergence_of(teach: Teach) -> Divergence:
    """The recipe's divergence."""
    return named(teach.divergence, teach.beta if teach.divergence == "jsd" else teach.skew)


def named(name: str, mix: float) -> Divergence:
    """A recipe's divergence. `mix` (0 to 1) is β of `jsd` and α of `skew_kl` and `skew_reverse_kl`, else unused."""
    match name:
        case "forward_kl":
            return forward_kl
        case "reverse_kl":
            return reverse_kl
        case "jsd":
            return partial(jsd, beta=mix)
        case "skew_kl":
            return partial(skew_kl, alpha=mix)
        case "skew_reverse_kl":
            return partial(skew_reverse_kl, alpha=mix)
    raise ValueError(f"no divergence {name!r}")


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ q) = Σ p (log p − log q): the student must cover whatever the teacher says."""
    p = teacher.exp()
    return (p * (teacher - student)).sum(-1), p.neg_()


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q ‖ p) = Σ q (log q − log p): the student may say only what the teacher would."""
    q = student.exp()
    terms = q * (student - teacher)
    return terms.sum(-1), q.add_(terms)


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised Jensen–Shannon divergence over β(1−β): forward KL at β = 0, reverse KL at β = 1, continuous between.

    (β KL(p ‖ m) + (1−β) KL(q ‖ m)) / (β(1−β)) with m = βp + (1−β)q, as in GKD (arXiv 2306.13649) but for the divisor,
    without which it vanishes at both ends. In terms of `log_mix` the sums are −Σ q log_mix(r, β)/β and
    −Σ p log_mix(−r, 1−β)/(1−β), and the derivative by log q is the first sum's term alone.
    """
    refuse_outside(beta)
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    ratio = teacher - student
    ours = student.exp().mul_(log_mix(ratio, beta)).div_(-beta)
    theirs = teacher.exp().mul_(log_mix(ratio.neg_(), 1 - beta, beta)).div_(-(1 - beta))
    return theirs.add_(ours).sum(-1), ours


def skew_kl(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ αp + (1−α)q) of DistiLLM (arXiv 2402.03898), where α = 0.1 is usual: forward KL with bounded gradients."""
    refuse_outside(alpha)
    p, inverse = teacher.exp(), student - teacher
    value = -(p * log_mix(inverse, 1 - alpha, alpha)).sum(-1)
    return value, p.neg_().mul_(torch.sigmoid(inverse.add_(log_odds(1 - alpha, alpha))))


def skew_reverse_kl(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q ‖ (1−α)p + αq) of DistiLLM: reverse KL that stays finite where the teacher's probability is nought."""
    refuse_outside(alpha)
    q, ratio = student.exp(), teacher - student
    terms = q * log_mix(ratio, 1 - alpha, alpha)
    value = -terms.sum(-1)
    return value, q.mul_(torch.sigmoid(ratio.add_(log_odds(1 - alpha, alpha)))).sub_(terms)


def log_mix(ratio: torch.Tensor, beta: float, rest: float | None = None) -> torch.Tensor:
    """log(1 + β(eʳ − 1)), elementwise; `rest` is 1 − β where that is known better than float subtraction gives it."""
    rest = 1 - beta if rest is None else rest
    if beta == 0:
        return torch.zeros_like(ratio)
    mixed = torch.log1p(beta * torch.expm1(ratio.clamp(max=60.0)))
    if beta > 0.5:  # 1 − β·(almost 1) would cancel
        mixed = torch.where(ratio < -0.5, torch.log(rest + beta * torch.exp(ratio)).clamp_(min=LOWEST), mixed)
    return torch.where(ratio > 60.0, ratio + math.log(beta), mixed)


def log_odds(part: float, rest: float) -> float:
    """log(part / rest), infinite at the ends."""
    return math.inf if rest == 0 else -math.inf if part == 0 else math.log(part / rest)


def refuse_outside(mix: float) -> None:
    """A share of a mixture lies between 0 and 1."""
    if not 0 <= mix <= 1:
        raise ValueError(f"a mixture's share is {mix}, not between 0 and 1")
