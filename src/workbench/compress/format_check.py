"""Whether a folder is in the format it is said to be: told from its headers and config alone, no weight is loaded."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files import TensorHead, tensor_heads
from workbench.formats import FORMATS, Format, Gguf, Scheme, find_format
from workbench.sources.gguf_header import read_gguf

PLAIN = {"bf16": "BF16", "bfloat16": "BF16", "float16": "F16", "float32": "F32"}
WIDE = {"F64", "F32", "F16", "BF16"}
WIDE_SHARE = 0.01  # of a quantized GGUF's weights that may stay wide: routers of mixtures do


# A layer's tensors by what follows ".weight" in their names: "" the weights, "_scale", "_packed", ".absmax" …
Layer = dict[str, TensorHead]
Config = Mapping[str, Any] | None  # config.json's quantization_config


def really_quantized(folder: Path, format: str) -> dict[str, Any]:
    """What a folder's linear layers are stored in; WorkbenchError naming the fault when that is not `format`.

    `format` is one of the recipe's, or a 16-bit one (bf16, bfloat16, float16; float32 too), which must hold nothing
    quantized. Returns `bits_per_weight` (bits stored for the linear layers, their scales included, over the number
    of their weights; embeddings, head and norms do not count), `file_bits_per_weight` (bits of the weight files over
    all weights), `bytes` of the weight files, and bytes by type: `dtypes`, or for GGUF the number of tensors by type,
    `tensor_types`, and `fallback`, the larger types that some linear layers have. Nothing, where the format is an
    installed package's that has no check.
    """
    if format in PLAIN:
        return folder_facts(folder, f"{folder} ({format})", lambda *parts: plain_weights(PLAIN[format], *parts))
    facts = find_format(format, f"{folder} ({format})")
    if facts is None:
        raise WorkbenchError(
            f"no format is called {format}: no package that is installed here offers it",
            where=f"{folder} ({format})",
            remedy=f"install that package; known are {', '.join([*FORMATS, *PLAIN])}",
        )
    return dict(facts.function("check")(facts, folder)) if facts.check else {}


def gguf_folder(format: Format, folder: Path) -> dict[str, Any]:
    """`really_quantized` of a folder with one GGUF file."""
    where = f"{folder} ({format.name})"
    return gguf_facts(the_gguf(folder, where), format, where)


def compressed_folder(format: Format, folder: Path) -> dict[str, Any]:
    """`really_quantized` of a folder in compressed-tensors form."""
    return folder_facts(folder, f"{folder} ({format.name})", lambda *parts: compressed_weights(format, *parts))


def nf4_folder(format: Format, folder: Path) -> dict[str, Any]:
    """`really_quantized` of a bitsandbytes folder."""
    return folder_facts(folder, f"{folder} ({format.name})", nf4_weights)


Weights = Callable[[Config, Mapping[str, Layer], str], dict[str, int]]


def folder_facts(folder: Path, where: str, weights_of: Weights) -> dict[str, Any]:
    """A safetensors folder's facts, once `weights_of` has found the number of weights of each linear layer."""
    if not (folder / "config.json").is_file():
        raise WorkbenchError("no config.json: not a model folder", where=where)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    layers = layers_of(folder, where)
    counts = weights_of(config, layers, where)
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


def layers_of(folder: Path, where: str) -> dict[str, Layer]:
    """Every tensor of the folder's safetensors, gathered by layer."""
    from safetensors import SafetensorError

    layers: dict[str, Layer] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors = tensor_heads(path)
        except SafetensorError as error:
            raise WorkbenchError(f"{path.name} has no safetensors header: {error}", where=where) from error
        for tensor in tensors:
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


def plain_weights(dtype: str, config: Config, layers: Mapping[str, Layer], where: str) -> dict[str, int]:
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


def quantized_by(config: Config, where: str) -> Mapping[str, Any]:
    """What config.json says of its quantization; WorkbenchError when it says nothing."""
    if config is None:
        raise WorkbenchError("config.json has no quantization_config: engines would take it for 16-bit", where=where)
    return config


def compressed_weights(format: Format, config: Config, layers: Mapping[str, Layer], where: str) -> dict[str, int]:
    """Weights of each quantized layer of a compressed-tensors folder."""
    scheme, config = format.stored, quantized_by(config, where)
    assert isinstance(scheme, Scheme)
    if config.get("quant_method") != "compressed-tensors":
        raise WorkbenchError(
            f"quantization_config is {config.get('quant_method')}'s, not compressed-tensors'", where=where
        )
    for group in (config.get("config_groups") or {"": {}}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        stated = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric"), inputs.get("num_bits"))
        wanted = (format.bits, scheme.kind, scheme.symmetric, scheme.input_bits)
        if stated != wanted:
            raise WorkbenchError(
                f"quantization_config says (weight bits, type, symmetric, input bits) {stated}, wanted is {wanted}",
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
        check_bits(name, weight.size, counts[name], format.bits, where)
    return counts


def nf4_weights(config: Config, layers: Mapping[str, Layer], where: str) -> dict[str, int]:
    """Weights of each quantized layer of a bitsandbytes folder."""
    config = quantized_by(config, where)
    if config.get("quant_method") != "bitsandbytes":
        raise WorkbenchError(f"quantization_config is {config.get('quant_method')}'s, not bitsandbytes'", where=where)
    stated = tuple(config.get(f"bnb_4bit_{key}") for key in ("quant_type", "use_double_quant"))
    if not config.get("load_in_4bit") or stated != ("nf4", True):
        raise WorkbenchError(
            f"quantization_config says (type, double quantization) {stated}, not ('nf4', True)", where=where
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


def check_bits(name: str, size: int, weights: int, wanted: float, where: str) -> None:
    """Whether a layer's stored weights, without scales, take the wanted bits each."""
    bits = size * 8 / weights
    if round(bits, 1) != wanted:
        raise WorkbenchError(f"{name} takes {bits:.1f} bits a weight, wanted are {wanted}", where=where)


def the_gguf(folder: Path, where: str) -> Path:
    """The one GGUF file of a folder."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise WorkbenchError(f"{len(files)} .gguf files in the folder, one was wanted", where=where)
    return files[0]


def gguf_facts(path: Path, format: Format, where: str) -> dict[str, Any]:
    """`really_quantized` of one GGUF file."""
    assert isinstance(format.stored, Gguf)
    tensors = read_gguf(path).tensors
    linear = [
        t for t in tensors if sum(n > 1 for n in t.shape) > 1 and not t.name.startswith(("token_embd", "output."))
    ]
    weights: Counter[str] = Counter()
    for tensor in linear:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    wanted, total = format.stored.kind, sum(weights.values())
    if wanted not in weights:
        raise WorkbenchError(f"no {wanted} tensor among the linear layers: {dict(weights)}", where=where)
    wide = WIDE - {wanted}
    if sum(weights[kind] for kind in wide) > WIDE_SHARE * total:
        raise WorkbenchError(f"not quantized: linear layers are still wide: {dict(weights)}", where=where)
    others = sorted(weights.keys() - wide - {wanted})
    if others and format.stored.block <= 32:  # only K-quants mix types, or fall back to a larger one
        raise WorkbenchError(f"linear layers in {', '.join(others)} beside {wanted}", where=where)
    size = path.stat().st_size
    return {
        "bits_per_weight": round(sum(int(t.n_bytes) for t in linear) * 8 / total, 3),
        "file_bits_per_weight": round(size * 8 / sum(int(t.n_elements) for t in tensors), 3),
        "bytes": size,
        "tensor_types": dict(Counter(t.tensor_type.name for t in tensors)),
        "fallback": others,
    }
