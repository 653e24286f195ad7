"""GGUF files for llama.cpp and Ollama, written by AutoRound and then read back: types, template, stop token."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.engines.child import call
from workbench.errors import WorkbenchError

# The type most weights of a format have; rows that its blocks do not divide fall back to a larger one.
MAIN_TYPES = {"gguf_q8_0": "Q8_0", "gguf_q4_k_m": "Q4_K"}
LEGACY = {"Q5_0", "Q5_1", "Q8_0"}
CALIBRATION_TOKENS = 64


def write_gguf(
    model_dir: Path, out_dir: Path, format: str, texts: Sequence[str], *, rows: int, tokens: int
) -> dict[str, Any]:
    """Write one `.gguf` into `out_dir` and prove what it holds.

    `texts` are rendered training rows for calibration. Returns file name, bits a weight, tensor types and
    seconds. Raises WorkbenchError when the file's types, chat template or stop token are not the wanted ones.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=out_dir) as temporary:
        folder = Path(temporary)
        samples = folder / "calibration.json"
        samples.write_text(json.dumps([{"text": text} for text in joined(texts[:rows], tokens)]), encoding="utf-8")
        paths = {"model": model_dir, "out": folder / "out", "samples": samples}
        request = {key: str(path.resolve()) for key, path in paths.items()}
        call("workbench.compress.gguf:convert_here", request | {"format": format}, what=f"AutoRound ({format})")
        made = sorted((folder / "out").rglob("*.gguf"))
        if len(made) != 1:
            raise WorkbenchError(f"{len(made)} files were written, one was wanted", where=f"quantize.{format}")
        name = f"model-{format.removeprefix('gguf_')}.gguf"
        shutil.move(made[0], out_dir / name)
    facts = inspect(out_dir / name, model_dir, format)
    return facts | {"file": name, "seconds": round(time.monotonic() - started, 1)}


def joined(texts: Sequence[str], tokens: int) -> list[str]:
    """Rows joined until each sample is surely as long as the calibration wants: shorter ones would be dropped."""
    samples, current = [], ""
    for text in texts:
        current += text + "\n"
        if len(current) > max(tokens, CALIBRATION_TOKENS) * 6:
            samples.append(current)
            current = ""
    return samples or [current]


def inspect(path: Path, model_dir: Path, format: str) -> dict[str, Any]:
    """Read a GGUF file back and hold it against the model it was made from."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    where = f"quantize.{format}"
    wanted = MAIN_TYPES[format]
    linear = Counter({k: n for k, n in types.items() if k not in ("F32", "F16", "BF16")})
    if wanted not in linear or (linear.keys() & {"F16", "BF16"}):
        raise WorkbenchError(f"no {wanted} tensor in the file: {dict(types)}", where=where)
    fields = reader.fields
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    trained = (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    if template is None or template.strip() != trained.strip():
        raise WorkbenchError("the file's chat template is not the one that was trained with", where=where)
    config = json.loads((model_dir / "generation_config.json").read_text())
    stops = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    eos = fields["tokenizer.ggml.eos_token_id"].contents()
    if eos not in stops:
        raise WorkbenchError(f"the file's stop token is {eos}, trained were {stops}", where=where)
    return {
        "bits_per_weight": round(path.stat().st_size * 8 / weights, 2),
        "tensor_types": dict(types),
        "fallback": sorted(linear.keys() & LEGACY - {wanted}),
    }


def convert_here(model: str, out: str, samples: str, format: str) -> None:
    """In a child process, which AutoRound fills with its talk and state: one conversion."""
    from auto_round import AutoRound

    scheme = format.removeprefix("gguf_")
    rounding = AutoRound(
        model,
        scheme=f"GGUF:{scheme.upper()}",
        iters=0,
        dataset=samples,
        nsamples=32,
        seqlen=CALIBRATION_TOKENS,
        batch_size=8,
    )
    rounding.quantize_and_save(output_dir=out, format=f"gguf:{scheme}")
