"""The model that is trained: how it is loaded with its adapter. Nothing here imports torch before that."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.device import free_on_card, keep_unpacked, nf4_config
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Method
from workbench.sources import refuse_code
from workbench.training.memory import SHORT_ROW, stored_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def available_memory(device: str) -> int:
    """Free bytes on the device."""
    if device == "cuda":
        return free_on_card()
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        kibibytes = next(line.split()[1] for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
        return int(kibibytes) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_model(base: Path, method: Method, *, dtype: str, device: str, longest: int, seed: int) -> PreTrainedModel:
    """The base model with a fresh adapter on it (`full`: without), weights and adapter in `dtype`.

    Raises RequestError for a folder that could run code, and for float16, which needs loss scaling to train.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    refuse_dtype(dtype)
    refuse_code(base)
    torch_dtype = getattr(torch, dtype)
    settings: dict[str, Any] = {}
    if method.kind == "qlora":
        settings["device_map"] = {"": device}
        settings["quantization_config"] = nf4_config(torch_dtype)
    # On the CPU and for short rows, two plain matrix products beat the fused kernel's backward by a third.
    attention = "eager" if device == "cpu" and longest <= SHORT_ROW else "sdpa"
    set_seed(seed)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch_dtype, attn_implementation=attention, local_files_only=True, trust_remote_code=False,
            use_safetensors=True, output_loading_info=True, **settings,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"the model cannot be loaded: {error}", where=str(base)) from error
    refuse_random(loading, base)
    model.config.use_cache = False
    keep_unpacked(model)
    return model if method.kind == "full" else with_adapter(model, method)


def is_regex(names: Sequence[str]) -> bool:
    """Whether the wanted layers are one regular expression over whole names; a dot alone parts a name's words."""
    return len(names) == 1 and bool(re.search(r"[\\*+?|()\[\]{}^$]", names[0]))


def check_targets(base: Path, method: Method) -> None:
    """RequestError where no layer of the model has a name that `method.target_modules` wants. Loads no weight."""
    wanted = list(method.target_modules)
    if method.kind == "full" or wanted == ["all-linear"]:
        return
    shapes = {name: shape for path in base.glob("*.safetensors") for name, shape in stored_shapes(path).items()}
    layers = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    pattern = wanted[0] if is_regex(wanted) else "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in wanted)
    try:
        fits = any(re.fullmatch(pattern, layer) for layer in layers)
    except re.error as error:
        raise RequestError(
            f"{pattern!r} is no regular expression: {error}", where="method.target_modules", remedy="all-linear"
        ) from None
    if layers and not fits:
        ends = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
        raise RequestError(
            f"no layer of the model is called {' or '.join(wanted)}",
            where="method.target_modules",
            remedy=f"its layers end in {', '.join(ends[:12])}; all-linear fits every model",
        )


def refuse_dtype(dtype: str) -> None:
    """A type of weights that is not trained in here."""
    if dtype == "float16":
        raise RequestError(
            "float16 gradients vanish without loss scaling", where="model.dtype", remedy="use bfloat16 or float32"
        )


def refuse_random(loading: Mapping[str, Any], base: Path) -> None:
    """Refuse weights that the folder lacks: transformers fills them with random numbers and only warns."""
    missing = sorted(loading["missing_keys"])
    if missing:
        named = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        raise RequestError(
            f"the weights of {named} are not in its safetensors and would be random",
            where=str(base),
            remedy="fetch the model anew; of a model without a head (an embedder), take the one that writes text",
        )


def with_adapter(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    """Wrap the model in a fresh LoRA adapter (arXiv 2106.09685) of its own dtype."""
    from peft import LoraConfig, get_peft_model

    names = list(method.target_modules)
    config = LoraConfig(
        r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, use_rslora=method.rslora,
        use_dora=method.dora, target_modules=names[0] if names == ["all-linear"] or is_regex(names) else names,
        task_type="CAUSAL_LM", init_lora_weights=True if method.adapter_init == "zero" else method.adapter_init,
    )  # fmt: skip
    try:
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise RequestError(str(error), where="method.target_modules", remedy="all-linear fits every model") from error
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:  # DoRA's steps are smaller than bf16 can hold
            parameter.data = parameter.data.float()
    return model
