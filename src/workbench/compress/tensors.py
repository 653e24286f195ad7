"""Weights in compressed-tensors form (w8a8, fp8_dynamic, w4a16, awq), by llm-compressor; vLLM and SGLang load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.compress.preflight import group_size
from workbench.engines.child import call
from workbench.formats import Format, Scheme

REQUEST = ".request.json"
# What a library writes anew, or is no part of the model: all else beside the weights is its parent's, byte for byte.
OWN = ("config.json", "duties.json", "model.safetensors.index.json")


def write_tensors(format: Format, model_dir: Path, out_dir: Path, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Quantize every linear layer but the head as `format.stored` says; returns the group size.

    `texts` are rendered training rows; they are cut at `tokens` tokens and shown to GPTQ (arXiv 2210.17323) and AWQ
    (arXiv 2306.00978), none where weights go to their nearest value. The group size is null where a whole row shares
    a scale.
    """
    assert isinstance(format.stored, Scheme)
    request = {
        "model": str(model_dir.resolve()),
        "out": str(out_dir.resolve()),
        "bits": format.bits,
        "scheme": asdict(format.stored),
        "texts": list(texts),
        "tokens": tokens,
    }
    facts: dict[str, Any] = call(
        "workbench.compress.tensors:quantize_here",
        {"request_file": written(request, out_dir)},
        what=f"llm-compressor ({format.name})",
        inside=out_dir,
    )
    for name in (REQUEST, "recipe.yaml"):  # the library's own record; what it did stands in config.json
        (out_dir / name).unlink(missing_ok=True)
    copy_beside_weights(model_dir, out_dir)
    return facts


def copy_beside_weights(model_dir: Path, out_dir: Path) -> None:
    """Copy tokenizer, chat template and generation_config.json: rewritten by a library, stop tokens can get lost."""
    for path in sorted(model_dir.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in OWN:
            shutil.copyfile(path, out_dir / path.name)


def written(request: dict[str, Any], folder: Path) -> str:
    """The child's request as a file: calibration rows are too long for a command line."""
    path = folder / REQUEST
    path.write_text(json.dumps(request), encoding="utf-8")
    return str(path.resolve())


def quantize_here(request_file: str) -> dict[str, Any]:
    """In a child process, which llm-compressor fills with its talk and state: one quantization."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype="auto", local_files_only=True, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(request["model"], local_files_only=True)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    scheme = Scheme(**request["scheme"])
    group = group_size(m.in_features for m in linear.values()) if scheme.grouped else None
    shown = [
        tokenizer(text, add_special_tokens=False, truncation=True, max_length=request["tokens"])
        for text in request["texts"]
    ]
    seen: dict[str, Any] = {}
    if shown:
        rows = Dataset.from_list([dict(row) for row in shown])
        seen = {"dataset": rows, "max_seq_length": request["tokens"], "num_calibration_samples": len(shown)}
    oneshot(model=model, recipe=modifiers(scheme, request["bits"], group), **seen)
    model.save_pretrained(request["out"], save_compressed=True)
    return {"group_size": group}


def modifiers(of: Scheme, bits: int, group: int | None) -> list[Any]:
    """What llm-compressor is to do, in its own words."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = QuantizationArgs(
        num_bits=bits, type=of.kind, symmetric=of.symmetric, strategy="group" if group else "channel",
        group_size=group,
    )  # fmt: skip
    inputs = None
    if of.input_bits:
        inputs = QuantizationArgs(num_bits=of.input_bits, type=of.kind, strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    wanted = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    match of.method:
        case "gptq":
            return [GPTQModifier(**wanted)]
        case "awq":
            return [AWQModifier(), QuantizationModifier(**wanted)]
        case _:
            return [QuantizationModifier(**wanted)]


# 4-bit weights in bitsandbytes' NF4 form; transformers and vLLM load it, no calibration row is seen.


def write_nf4(format: Format, model_dir: Path, out_dir: Path, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Quantize every linear layer but the head; no row is shown."""
    paths = {"model": str(model_dir.resolve()), "out": str(out_dir.resolve())}
    call("workbench.compress.tensors:quantize_nf4_here", paths, what="bitsandbytes (nf4)", inside=out_dir)
    copy_beside_weights(model_dir, out_dir)
    return {}


def quantize_nf4_here(model: str, out: str) -> None:
    """In a child process: one quantization, on the CPU, where bitsandbytes has NF4 too."""
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.engines.device import nf4_config

    stored = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, stored.get("dtype") or stored.get("torch_dtype") or "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": "cpu"},
        quantization_config=nf4_config(dtype),
    )  # fmt: skip
    loaded.save_pretrained(out)
