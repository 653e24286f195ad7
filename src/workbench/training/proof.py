"""The proof after training: every adapter tensor moved, and no base tensor did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Before:
    """Fingerprints of every tensor before the first step, by parameter name."""

    trained: dict[str, str]
    frozen: dict[str, str]


def fingerprint(tensor: torch.Tensor) -> str:
    """A checksum of a tensor's bits that also feels a change of order; one pass, on the tensor's own device."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    place = torch.arange(1, len(words) + 1, device=words.device)
    return f"{tuple(tensor.shape)}:{int(words.sum())}:{int((words * place).sum())}"


def fingerprints(model: Any) -> Before:
    """Fingerprint every parameter as it is now."""
    named = list(model.named_parameters())
    return Before(
        {name: fingerprint(p) for name, p in named if p.requires_grad},
        {name: fingerprint(p) for name, p in named if not p.requires_grad},
    )


def prove_moved(model: Any, before: Before, kind: str) -> int:
    """The number of trained tensors that moved. WorkbenchError when a base tensor moved, or a trained one did not.

    In full fine-tuning only matrices are held to this: a norm's weights near 1 may keep their 16-bit value, and an
    expert that no row was routed to has no gradient.
    """
    now = {name: fingerprint(p) for name, p in model.named_parameters()}
    changed = [name for name, mark in before.frozen.items() if now[name] != mark]
    if changed:
        raise WorkbenchError(
            f"{len(changed)} base tensors changed though they were frozen, the first {changed[0]}",
            where="training",
            remedy="this is a defect: the adapter does not describe the model that was trained",
        )
    still = [name for name, mark in before.trained.items() if now[name] == mark]
    shapes = {name: p.dim() for name, p in model.named_parameters()}
    held = [n for n in still if kind != "full" or (shapes[n] > 1 and "expert" not in n)]
    if held:
        raise WorkbenchError(
            f"{len(held)} of {len(before.trained)} trained tensors did not move, the first {held[0]}",
            where="training",
            remedy="raise method.learning_rate or method.max_steps, or choose other method.target_modules",
        )
    return len(before.trained) - len(still)
