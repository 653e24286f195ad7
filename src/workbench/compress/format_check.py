"""Whether a folder is in the format it is said to be: told from its headers and config alone, no weight is loaded."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from workbench.compress.preflight import SCHEMES, Scheme
from workbench.errors import WorkbenchError
from workbench.files import TensorHead, tensor_heads
from workbench.sources.gguf_header import read_gguf

PLAIN = {"bf16": "BF16", "bfloat16": "BF16", "float16": "F16", "float32": "F32"}
WIDE = {"F64", "F32", "F16", "BF16"}
# The type most weights of a GGUF format have; rows that its blocks do not divide fall back to a larger one.
MAIN_TYPES = {"gguf_q8_0": "Q8_0", "gguf_q4_k_m": "Q4_K", "gguf_q5_k_m": "Q5_K", "gguf_f16": "F16"}
WIDE_SHARE = 0.01  # of a quantized GGUF's weights that may stay wide: routers of mixtures do


# A layer's tensors by what follows ".weight" in their names: "" the weights, "_scale", "_packed", ".absmax" …
Layer = dict[str, TensorHead]


def really_quantized(folder: Path, format: str) -> dict[str, Any]:
    """What a folder's linear layers are stored in; WorkbenchError naming the fault when that is not `format`.

    `format` is one of the recipe's, or a 16-bit one (bf16, bfloat16, float16; float32 too), which must hold nothing
    quantized. Returns `bits_per_weight` (bits stored for the linear layers, their scales included, over the number
    of their weights; embeddings, head and norms do not count), `file_bits_per_weight` (bits of the weight files over
    all weights), `bytes` of the weight files, and bytes by type: `dtypes`, or for GGUF the number of tensors by type,
    `tensor_types`, and `fallback`, the larger types that some linear layers have.
    """
    where = f"{folder} ({format})"
    if format in MAIN_TYPES:
        return gguf_facts(the_gguf(folder, where), format, where)
    if not (folder / "config.json").is_file():
        raise WorkbenchError("no config.json: not a model folder", where=where)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    layers = layers_of(folder, where)
    if format in PLAIN:
        counts = plain_weights(config, layers, PLAIN[format], where)
    elif config is None:
        raise WorkbenchError("config.json has no quantization_config: engines would take it for 16-bit", where=where)
    elif format == "nf4":
        counts = nf4_weights(config, layers, where)
    elif format in SCHEMES:
        counts = compressed_weights(config, layers, SCHEMES[format], where)
    else:
        raise WorkbenchError("an unknown format", where=where, remedy=f"known are {', '.join(known_formats())}")
    if not counts:
        raise WorkbenchError("no linear layer in the folder", where=where)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    others = sum(prod(t.shape) for n, layer in layers.items() if n not in counts for t in layer.values())
    dtypes: Counter[str] = Counter()
    for tensor in (t for layer in layers.values() for t in layer.values()):
        dtypes[tensor.dtype] += tensor.size
    linear = sum(tensor.size for name in counts for tensor in layers[name].values())
    return {
        "bits_per_weight": round(linear * 8 / sum(counts.values()), 3),
        "file_bits_per_weight": round(size * 8 / (sum(counts.values()) + others), 3),
        "bytes": size,
        "dtypes": dict(dtypes),
    }


def known_formats() -> list[str]:
    """Every format that can be proven."""
    return [*SCHEMES, "nf4", *MAIN_TYPES, *PLAIN]


def layers_of(folder: Path, where: str) -> dict[str, Layer]:
    """Every tensor of the folder's safetensors, gathered by layer."""
    from safetensors import SafetensorError

    layers: dict[str, Layer] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found = tensor_heads(path)
        except SafetensorError as error:
            raise WorkbenchError(f"{path.name} has no safetensors header: {error}", where=where) from error
        for tensor in found:
            layer, _, part = tensor.name.rpartition(".weight")
            if layer:
                layers.setdefault(layer, {})[part] = tensor
            else:
                layers.setdefault(tensor.name, {})[""] = tensor
    if not layers:
        raise WorkbenchError("no safetensors in the folder", where=where)
    return layers


def is_linear(name: str, layer: Layer) -> bool:
    """Whether it is a matrix that is multiplied with: no embedding, no head, no bias, norm or convolution."""
    last = name.rpartition(".")[2]
    table = last == "lm_head" or "embed" in last or last in ("wte", "wpe", "bias")
    weight = layer.get("") or layer.get("_packed")
    return not table and weight is not None and (len(layer) > 1 or (len(weight.shape) > 1 and min(weight.shape) > 1))


def plain_weights(config: Any, layers: Mapping[str, Layer], dtype: str, where: str) -> dict[str, int]:
    """Weights of each linear layer of a folder that must not be quantized."""
    if config is not None:
        raise WorkbenchError(f"config.json says quantized: {config.get('quant_method')}", where=where)
    strange = {t.dtype for layer in layers.values() for t in layer.values()} - WIDE
    if strange or any(len(layer) > 1 for layer in layers.values()):
        raise WorkbenchError(f"quantized tensors in a folder that should have none: {sorted(strange)}", where=where)
    linear = {name: layer[""] for name, layer in layers.items() if is_linear(name, layer)}
    other = sorted({tensor.dtype for tensor in linear.values()} - {dtype})
    if other:
        raise WorkbenchError(f"linear layers are stored as {', '.join(other)}, not {dtype}", where=where)
    return {name: prod(tensor.shape) for name, tensor in linear.items()}


def compressed_weights(
    config: Mapping[str, Any], layers: Mapping[str, Layer], scheme: Scheme, where: str
) -> dict[str, int]:
    """Weights of each quantized layer of a compressed-tensors folder."""
    if config.get("quant_method") != "compressed-tensors":
        raise WorkbenchError(
            f"quantization_config is {config.get('quant_method')}'s, not compressed-tensors'", where=where
        )
    for group in (config.get("config_groups") or {"": {}}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        said = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric"), inputs.get("num_bits"))
        wanted = (scheme.bits, scheme.kind, scheme.symmetric, scheme.input_bits)
        if said != wanted:
            raise WorkbenchError(
                f"quantization_config says (weight bits, type, symmetric, input bits) {said}, wanted is {wanted}",
                where=where,
            )
    ignored = set(config.get("ignore") or ())
    counts = {}
    for name, layer in layers.items():
        if not is_linear(name, layer) or name in ignored:
            continue
        weight = layer.get("_packed") or layer[""]
        if weight.dtype in WIDE:
            raise still_wide(name, weight, where)
        if "_scale" not in layer or weight.dtype != scheme.dtype:
            raise WorkbenchError(
                f"{name} is stored as {weight.dtype} with {sorted(layer)}, wanted is {scheme.dtype} with a scale",
                where=where,
            )
        shape = layer.get("_shape")
        counts[name] = prod(struct.unpack(f"<{shape.shape[0]}q", shape.read())) if shape else prod(weight.shape)
        check_bits(name, weight.size, counts[name], scheme.bits, where)
    return counts


def nf4_weights(config: Mapping[str, Any], layers: Mapping[str, Layer], where: str) -> dict[str, int]:
    """Weights of each quantized layer of a bitsandbytes folder."""
    if config.get("quant_method") != "bitsandbytes":
        raise WorkbenchError(f"quantization_config is {config.get('quant_method')}'s, not bitsandbytes'", where=where)
    said = tuple(config.get(f"bnb_4bit_{key}") for key in ("quant_type", "use_double_quant"))
    if not config.get("load_in_4bit") or said != ("nf4", True):
        raise WorkbenchError(
            f"quantization_config says (type, double quantization) {said}, not ('nf4', True)", where=where
        )
    counts = {}
    for name, layer in layers.items():
        if not is_linear(name, layer):
            continue
        state = layer.get(".quant_state.bitsandbytes__nf4")
        if state is None and layer[""].dtype in WIDE:
            raise still_wide(name, layer[""], where)
        if state is None or layer[""].dtype != "U8":
            raise WorkbenchError(f"{name} is stored as {layer[''].dtype} with {sorted(layer)}, not as NF4", where=where)
        counts[name] = prod(json.loads(state.read())["shape"])
        check_bits(name, layer[""].size, counts[name], 4, where)
    return counts


def still_wide(name: str, weight: TensorHead, where: str) -> WorkbenchError:
    """The fault of a layer that nobody quantized."""
    return WorkbenchError(f"not quantized: the linear layer {name} is still {weight.dtype}", where=where)


def check_bits(name: str, size: int, weights: int, wanted: int, where: str) -> None:
    """Whether a layer's stored weights, without scales, take the wanted bits each."""
    bits = size * 8 / weights
    if round(bits, 1) != wanted:
        raise WorkbenchError(f"{name} takes {bits:.1f} bits a weight, wanted are {wanted}", where=where)


def the_gguf(folder: Path, where: str) -> Path:
    """The one GGUF file of a folder."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise WorkbenchError(f"{len(found)} .gguf files in the folder, one was wanted", where=where)
    return found[0]


def gguf_facts(path: Path, format: str, where: str) -> dict[str, Any]:
    """`really_quantized` of one GGUF file."""
    tensors = read_gguf(path).tensors
    linear = [
        t for t in tensors if sum(n > 1 for n in t.shape) > 1 and not t.name.startswith(("token_embd", "output."))
    ]
    weights: Counter[str] = Counter()
    for tensor in linear:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    wanted, total = MAIN_TYPES[format], sum(weights.values())
    if wanted not in weights:
        raise WorkbenchError(f"no {wanted} tensor among the linear layers: {dict(weights)}", where=where)
    wide = WIDE - {wanted}
    if sum(weights[kind] for kind in wide) > WIDE_SHARE * total:
        raise WorkbenchError(f"not quantized: linear layers are still wide: {dict(weights)}", where=where)
    others = sorted(weights.keys() - wide - {wanted})
    if others and not format.endswith("_m"):  # only the K-quants mix types
        raise WorkbenchError(f"linear layers in {', '.join(others)} beside {wanted}", where=where)
    size = path.stat().st_size
    return {
        "bits_per_weight": round(sum(int(t.n_bytes) for t in linear) * 8 / total, 3),
        "file_bits_per_weight": round(size * 8 / sum(int(t.n_elements) for t in tensors), 3),
        "bytes": size,
        "tensor_types": dict(Counter(t.tensor_type.name for t in tensors)),
        "fallback": others,
    }
