"""A trained model's weights: read, written, and proven to have moved while no tensor of the base did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.files import whole_folder


def load_weights(model: Any, files: Iterable[Path]) -> None:
    """Put the tensors of safetensors files into the model, in the dtype the model has: an adapter's, or all of them."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = {name: tensor for path in files for name, tensor in load_file(path).items()}
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)  # PEFT's load_adapter would bring the adapter back in float32
    else:
        model.load_state_dict(state, strict=False)  # a tied head is stored once
        model.tie_weights()


def write_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write adapter or model beside its place and rename it; a model takes its tokenizer along."""
    model.config.use_cache = True
    with whole_folder(folder) as staging:
        model.save_pretrained(staging)
        if folder.name == "model":
            tokenizer.save_pretrained(staging)
        if not list(staging.glob("*.safetensors")):
            raise WorkbenchError("no weights were written", where=str(folder))


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
