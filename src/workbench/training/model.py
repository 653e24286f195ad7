"""The model that is trained: how much memory it takes, and how it is loaded with its adapter.

Nothing here imports torch before a model is loaded: `plan` asks for the estimate.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.device import keep_unpacked, nf4_config
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Method, Model
from workbench.sources import refuse_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
NF4_BYTES = 0.52  # 4 bits, and the scales after double quantization (arXiv 2305.14314)
# Tensors that autograd keeps for one token in one layer, in units of the hidden and the MLP width; fitted to the
# peak of SmolLM2-135M and right within a third for the Llama family.
KEPT_HIDDEN, KEPT_MLP = 34, 9
SHORT_ROW = 640  # tokens; beyond, the attention scores that plain products keep for the backward pass cost too much
HEAD_ROWS = 512  # rows whose float32 logits exist at once: losses.ROWS_A_CHUNK
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Shape:
    """What an estimate needs to know of a decoder."""

    parameters: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int


def estimate_memory(model: Model, method: Method) -> dict[str, Any]:
    """Bytes that training takes, part by part and in all, for rows of `method.max_length` tokens.

    Keys: `weights`, `adapter`, `gradients`, `optimizer`, `activations`, `logits`, `total`, and how it was counted:
    `trainable_parameters`, `micro_batch_size`, `checkpointing`. Sizes the recipe does not give count as 0.
    """
    shape = Shape(model.parameters, model.layers, model.hidden_size, model.intermediate_size, model.vocabulary)
    micro = method.micro_batch_size or 1
    return footprint(shape, method, model.dtype, micro, method.max_length, method.checkpointing == "on")


def shape_of(base: Path) -> Shape:
    """The shape of a model folder, from its config.json and the size of its safetensors."""
    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    stored = BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    size = sum(p.stat().st_size for p in base.glob("*.safetensors"))
    hidden = config.get("hidden_size", 0)
    return Shape(
        size // stored, config.get("num_hidden_layers", 0), hidden, config.get("intermediate_size") or 4 * hidden,
        config.get("vocab_size", 0),
    )  # fmt: skip


def footprint(shape: Shape, method: Method, dtype: str, micro: int, tokens: int, checkpointing: bool) -> dict[str, Any]:
    """`estimate_memory` for micro-batches of `micro` rows of `tokens` tokens."""
    width = BYTES[dtype]
    embedding = shape.vocabulary * shape.hidden
    adapter = method.rank * shape.layers * (8 * shape.hidden + 3 * (shape.hidden + shape.mlp))
    trainable = shape.parameters if method.kind == "full" else adapter
    weights = shape.parameters * width
    if method.kind == "qlora":
        weights = round((shape.parameters - embedding) * NF4_BYTES + embedding * width)
    # float32 master weights beside 16-bit ones, and two moments
    states = 2 if method.optimizer == "adamw_8bit" else (8 if dtype == "float32" else 12)
    a_layer = width * (KEPT_HIDDEN * shape.hidden + KEPT_MLP * shape.mlp)
    kept = shape.layers * width * shape.hidden + a_layer if checkpointing else shape.layers * a_layer
    head = (4 + 4 + width) * min(micro * tokens, HEAD_ROWS) * shape.vocabulary
    parts = {
        "weights": weights,
        "adapter": 0 if method.kind == "full" else adapter * width,
        "gradients": trainable * width,
        "optimizer": trainable * states,
        "activations": kept * micro * tokens,
        "logits": head + 4 * embedding * (2 if method.kind == "full" else 1),
    }
    return {
        **parts,
        "total": sum(parts.values()),
        "trainable_parameters": trainable,
        "micro_batch_size": micro,
        "checkpointing": checkpointing,
    }


def fit(
    base: Path, method: Method, dtype: str, padded_tokens: Callable[[int], int], available: int
) -> tuple[int, bool]:
    """Rows a forward pass and whether to recompute activations: the most rows that fit without, else with.

    `padded_tokens(micro)` gives the tokens, padding included, of the largest micro-batch of so many rows.
    """
    shape = shape_of(base)
    divisors = [n for n in range(method.batch_size, 0, -1) if method.batch_size % n == 0]
    sizes = [method.micro_batch_size] if method.micro_batch_size else divisors
    ways = {"on": (True,), "off": (False,), "auto": (False, True)}[method.checkpointing]
    for checkpointing in ways:
        for micro in sizes:
            total = footprint(shape, method, dtype, 1, padded_tokens(micro), checkpointing)["total"]
            if total <= available * SHARE_OF_MEMORY:
                return micro, checkpointing
    return sizes[-1], ways[-1]  # the estimate is rough: try with the least rather than refuse


def available_memory(device: str) -> int:
    """Free bytes on the device."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
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


def stored_shapes(path: Path) -> dict[str, list[int]]:
    """Every tensor's shape, by its name, from the head of a safetensors file."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}


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
