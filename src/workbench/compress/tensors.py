"""8-bit weights and activations (W8A8) in compressed-tensors form, by llm-compressor, calibrated on training rows."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.engines.child import call
from workbench.errors import WorkbenchError

REQUEST = ".request.json"


def write_w8a8(model_dir: Path, out_dir: Path, texts: Sequence[str], *, rows: int, tokens: int) -> dict[str, Any]:
    """Quantize every linear layer but the head: int8 weights by GPTQ (arXiv 2210.17323), int8 activations a token.

    `texts` are rendered training rows; `rows` of them, cut at `tokens` tokens, are shown. Returns seconds and
    dtype counts. Raises WorkbenchError when what was written is not 8-bit.
    """
    started = time.monotonic()
    request = {"model": str(model_dir), "out": str(out_dir), "texts": list(texts[:rows]), "tokens": tokens}
    call("workbench.compress.tensors:quantize_here", {"request_file": written(request, out_dir)}, what="llm-compressor")
    (out_dir / REQUEST).unlink()
    dtypes = dtype_bytes(out_dir)
    linear = sum(count for kind, count in dtypes.items() if kind != "I8")
    if dtypes.get("I8", 0) == 0 or "quantization_config" not in json.loads((out_dir / "config.json").read_text()):
        raise WorkbenchError(f"the result is not 8-bit: bytes by type {dtypes}", where="quantize.w8a8")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "int8_bytes": dtypes["I8"],
        "other_bytes": linear,
        "calibration_rows": min(rows, len(texts)),
    }


def dtype_bytes(folder: Path) -> dict[str, int]:
    """Bytes by type over a folder's safetensors, read from their headers alone."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                found[tensor["dtype"]] = found.get(tensor["dtype"], 0) + end - start
    return found


def written(request: dict[str, Any], folder: Path) -> str:
    """The child's request as a file: calibration rows are too long for a command line."""
    path = folder / REQUEST
    path.write_text(json.dumps(request), encoding="utf-8")
    return str(path.resolve())


def quantize_here(request_file: str) -> None:
    """In a child process, which llm-compressor fills with its talk and state: one quantization."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(request["model"], local_files_only=True)
    shown = [
        tokenizer(text, add_special_tokens=False, truncation=True, max_length=request["tokens"])
        for text in request["texts"]
    ]
    oneshot(
        model=model,
        dataset=Dataset.from_list([dict(row) for row in shown]),
        recipe=[GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])],
        max_seq_length=request["tokens"],
        num_calibration_samples=len(shown),
    )
    model.save_pretrained(request["out"], save_compressed=True)
    tokenizer.save_pretrained(request["out"])
