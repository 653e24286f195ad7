"""The loss on the trained positions alone: a prompt's tokens never meet the LM head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

ROWS_A_CHUNK = 512  # bounds the float32 logits: 512 × 128k words = 256 MiB
LOGIT_CHANGERS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")

# The float32 logits (n, V) of some rows, and which rows they are → each row's loss (n,), and a function that gives its
# gradient by the logits (n, V). It is called at most once, last, and may overwrite the logits.
Rows = Callable[[torch.Tensor, slice], tuple[torch.Tensor, Callable[[], torch.Tensor]]]


class HeadRows(torch.autograd.Function):
    """Summed loss of `hidden @ weight.T + bias`, its gradient taken chunk by chunk in the forward pass.

    `rows` says what a row loses, see `Rows`. Nothing of size rows × vocabulary outlives its chunk of `at_once` rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
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
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, target_N: torch.Tensor
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


def answer_loss(model: Any, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Summed loss of the trained tokens, through the backbone and a plain linear head.

    Rows are padded on the right, so causal attention alone keeps padding away from every real token: no mask is
    passed, which lets attention skip the upper triangle.
    """
    hidden = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    mask, target = trained_positions(labels_BT)
    head = model.get_output_embeddings()
    return HeadLoss.apply(hidden[:, :-1][mask], head.weight, getattr(head, "bias", None), target)


def plain_loss(model: Any, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The same sum through the model's own forward: for heads that soft-cap or scale their logits."""
    logits = model(input_ids=input_ids_BT, attention_mask=mask_BT, use_cache=False).logits
    mask, target = trained_positions(labels_BT)
    return F.cross_entropy(logits[:, :-1][mask].float(), target, reduction="sum")


def head_is_plain(model: Any, input_ids_BT: torch.Tensor) -> bool:
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
