"""The training loss: cross entropy on the trained tokens only, so that the vocabulary head sees no other row."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

# A config key that changes logits after the head; such a model's own forward pass must be used.
HEAD_EXTRAS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier", "dim_model_base")


def answer_cross_entropy(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Sum of −log p over the trained tokens, in fp32, and their count.

    `input_ids` and `labels` are [B, T], padded on the right, `labels` −100 where no loss is taken. No attention
    mask is passed: under a causal mask nothing reads the padding behind it. Hidden states [B, T, D] are gathered
    at the N trained positions before the head, so logits are [N, V] and never [B·T, V].
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    wanted = labels[:, 1:] != -100
    targets = labels[:, 1:][wanted]
    if plain_head(base):
        hidden = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = base.get_output_embeddings()(hidden[:, :-1][wanted])
    else:
        logits = base(input_ids=input_ids, use_cache=False).logits[:, :-1][wanted]
    return functional.cross_entropy(logits.float(), targets, reduction="sum"), int(targets.numel())


def plain_head(base: Any) -> bool:
    """Whether the model's logits are its head's output and nothing more."""
    return not any(getattr(base.config, name, None) for name in HEAD_EXTRAS)
