"""4-bit weights in bitsandbytes' NF4 form; transformers and vLLM load it, no calibration row is seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from workbench.compress.proof import really_quantized
from workbench.compress.tensors import keep_company
from workbench.engines.child import call


def write_nf4(model_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Quantize every linear layer but the head, and prove what was written; returns seconds and the proof's facts.

    Raises WorkbenchError when what was written is not NF4.
    """
    started = time.monotonic()
    paths = {"model": str(model_dir.resolve()), "out": str(out_dir.resolve())}
    call("workbench.compress.nf4:quantize_here", paths, what="bitsandbytes (nf4)")
    keep_company(model_dir, out_dir)
    facts = really_quantized(out_dir, "nf4")
    return facts | {"calibration_rows": 0, "seconds": round(time.monotonic() - started, 1)}


def quantize_here(model: str, out: str) -> None:
    """In a child process: one quantization, on the CPU, where bitsandbytes has NF4 too."""
    import json

    import torch
    from transformers import AutoModelForCausalLM

    from workbench.engines.nf4 import nf4_config

    stored = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, stored.get("dtype") or stored.get("torch_dtype") or "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": "cpu"},
        quantization_config=nf4_config(dtype),
    )  # fmt: skip
    loaded.save_pretrained(out)
