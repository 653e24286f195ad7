"""The model that is trained: base weights, adapters on them, and how an unchanged or untrained one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Method
from workbench.sources import refuse_code


def place(device: str) -> torch.device:
    """The device tensors live on. Raises RequestError when CUDA is asked for and not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("no CUDA device is here", where="launch.device", remedy="launch.device=auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def load_model(base_dir: Path, method: Method, *, dtype: str, device: torch.device, checkpointing: bool) -> Any:
    """Base weights in `dtype` on `device`, with LoRA adapters unless every weight is trained.

    QLoRA holds the linear layers as NF4 with double quantization (arXiv 2305.14314), by bitsandbytes,
    on CPU and CUDA alike.
    """
    refuse_code(base_dir)
    kind = getattr(torch, dtype)
    quantization = None
    if method.kind == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
    model = AutoModelForCausalLM.from_pretrained(
        base_dir,
        dtype=kind,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        quantization_config=quantization,
        device_map={"": device},
    )
    model.config.use_cache = False
    if method.kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
        for name, parameter in model.named_parameters():
            # The helper makes norms and embeddings fp32; in 16 bits they cost less and the base is frozen anyway.
            if parameter.dtype == torch.float32 and "lora_" not in name:
                parameter.data = parameter.data.to(kind)
    if method.kind != "full":
        model = get_peft_model(model, lora_config(method), autocast_adapter_dtype=False)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def lora_config(method: Method) -> LoraConfig:
    """PEFT's config; `all-linear` is every linear layer but the head."""
    targets = method.target_modules
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        use_rslora=method.rslora,
        use_dora=method.dora,
        target_modules=targets[0] if targets == ["all-linear"] else list(targets),
        task_type="CAUSAL_LM",
    )


def fingerprints(model: Any) -> dict[str, float]:
    """One number a tensor that changes when the tensor does: sum of its bytes, weighted by position."""
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            raw = parameter.detach().contiguous().flatten().view(torch.uint8)
            # Blocks bound the memory that the wider type takes.
            total = 0
            for number, block in enumerate(raw.split(1 << 22)):
                weights = torch.arange(block.numel(), device=block.device, dtype=torch.int32) % 8191 + 1
                total += (number + 1) * int((block.to(torch.int32) * weights).sum(dtype=torch.int64))
            found[name] = total
    return found


def check_moved(model: Any, before: dict[str, float]) -> int:
    """Refuse a run whose trained tensors did not all move, or whose frozen ones did; returns how many moved."""
    after = fingerprints(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    still = sorted(name for name in trained if after[name] == before[name])
    moved = sorted(name for name in after if name not in trained and after[name] != before[name])
    if still:
        raise WorkbenchError(
            f"{len(still)} of {len(trained)} trained tensors did not change, among them {still[0]}",
            where="train",
            remedy="raise method.learning_rate or method.max_steps; in bfloat16 a small step rounds to none",
        )
    if moved:
        raise WorkbenchError(f"{len(moved)} frozen tensors changed, among them {moved[0]}", where="train")
    return len(trained)
