"""How far one model is from another on held-out rows: KL, agreement of the first choice, flips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from workbench.engines.device import device_of
from workbench.records import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer_logprobs(model: PreTrainedModel, row: TokenRow) -> torch.Tensor:
    """Log-probabilities [N, V] in fp32, on the CPU, at the positions that predict the row's N trained tokens."""
    ids = torch.tensor([row.input_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    wanted = torch.tensor(row.trained[1:], device=logits.device)
    return functional.log_softmax(logits[wanted].float(), dim=-1).cpu()


def agreement(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What `second` changed: `kl`, the mean KL(first ‖ second) in nats over all positions; `top_token_agreement`,
    the share of them with the same most likely token; `flip_rate`, the share with another; `rows`; `positions`.
    """
    kl, same, positions = 0.0, 0, 0
    for a, b in zip(first, second, strict=True):
        kl += float((a.exp() * (a - b)).sum())
        same += int((a.argmax(dim=-1) == b.argmax(dim=-1)).sum())
        positions += len(a)
    share = same / positions
    return {
        "kl": kl / positions,
        "top_token_agreement": share,
        "flip_rate": 1 - share,
        "rows": len(first),
        "positions": positions,
    }


def folder_logprobs(model_dir: Path, rows: Sequence[TokenRow], *, device: str = "auto") -> list[torch.Tensor]:
    """`answer_logprobs` of each row in the model of a folder, 16-bit or quantized, run as transformers runs it.

    Takes 4 bytes × positions × vocabulary: 125 MB for 32 rows of 20 trained tokens with 49,000 in the vocabulary.
    """
    from workbench.engines.transformers import load

    place = torch.device(device_of(device))
    model, _ = load(model_dir, None, place)
    return [answer_logprobs(model, row) for row in rows]
