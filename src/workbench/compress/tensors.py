"""Weights in compressed-tensors form (w8a8, fp8_dynamic, w4a16, awq), by llm-compressor; vLLM and SGLang load it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.compress.format_check import really_quantized
from workbench.compress.preflight import SCHEMES, group_size
from workbench.engines.child import call

REQUEST = ".request.json"
# What a library writes anew, or is no part of the model: all else beside the weights is its parent's, byte for byte.
OWN = ("config.json", "duties.json", "model.safetensors.index.json")


def write_tensors(
    model_dir: Path, out_dir: Path, format: str, texts: Sequence[str], *, rows: int, tokens: int
) -> dict[str, Any]:
    """Quantize every linear layer but the head as `SCHEMES[format]` says, and prove what was written.

    `texts` are rendered training rows; `rows` of them, cut at `tokens` tokens, are shown to GPTQ (arXiv 2210.17323)
    and AWQ (arXiv 2306.00978), none where weights go to their nearest value. Returns seconds, the group size (null:
    a whole row shares a scale), and the proof's facts. Raises WorkbenchError when what was written is not `format`.
    """
    started = time.monotonic()
    shown = [] if SCHEMES[format].method == "nearest" else list(texts[:rows])
    request = {"model": str(model_dir.resolve()), "out": str(out_dir.resolve()), "format": format}
    told = call(
        "workbench.compress.tensors:quantize_here",
        {"request_file": written(request | {"texts": shown, "tokens": tokens}, out_dir)},
        what=f"llm-compressor ({format})",
        inside=out_dir,
    )
    for name in (REQUEST, "recipe.yaml"):  # the library's own record; what it did stands in config.json
        (out_dir / name).unlink(missing_ok=True)
    keep_company(model_dir, out_dir)
    facts = really_quantized(out_dir, format)
    return facts | told | {"calibration_rows": len(shown), "seconds": round(time.monotonic() - started, 1)}


def keep_company(model_dir: Path, out_dir: Path) -> None:
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
    group = group_size(m.in_features for m in linear.values()) if SCHEMES[request["format"]].grouped else None
    shown = [
        tokenizer(text, add_special_tokens=False, truncation=True, max_length=request["tokens"])
        for text in request["texts"]
    ]
    seen: dict[str, Any] = {}
    if shown:
        rows = Dataset.from_list([dict(row) for row in shown])
        seen = {"dataset": rows, "max_seq_length": request["tokens"], "num_calibration_samples": len(shown)}
    oneshot(model=model, recipe=modifiers(request["format"], group), **seen)
    model.save_pretrained(request["out"], save_compressed=True)
    return {"group_size": group}


def modifiers(format: str, group: int | None) -> list[Any]:
    """What llm-compressor is to do, in its own words."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    of = SCHEMES[format]
    weights = QuantizationArgs(
        num_bits=of.bits, type=of.kind, symmetric=of.symmetric, strategy="group" if group else "channel",
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


def write_nf4(model_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Quantize every linear layer but the head, and prove what was written; returns seconds and the proof's facts.

    Raises WorkbenchError when what was written is not NF4.
    """
    started = time.monotonic()
    paths = {"model": str(model_dir.resolve()), "out": str(out_dir.resolve())}
    call("workbench.compress.tensors:quantize_nf4_here", paths, what="bitsandbytes (nf4)", inside=out_dir)
    keep_company(model_dir, out_dir)
    facts = really_quantized(out_dir, "nf4")
    return facts | {"calibration_rows": 0, "seconds": round(time.monotonic() - started, 1)}


def quantize_nf4_here(model: str, out: str) -> None:
    """In a child process: one quantization, on the CPU, where bitsandbytes has NF4 too."""
    import json

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
