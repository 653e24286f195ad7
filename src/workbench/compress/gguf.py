"""GGUF files for llama.cpp and Ollama, written by AutoRound and then read back: types, template, stop token."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.compress.format_check import gguf_facts
from workbench.engines.child import call
from workbench.errors import WorkbenchError
from workbench.sources.gguf_header import read_gguf

CALIBRATION_TOKENS = 64
# Formats that need to see no rows, by llama.cpp's name; its own converter rounds to them.
PLAIN = {"gguf_f16": "MOSTLY_F16", "gguf_q8_0": "MOSTLY_Q8_0"}


def write_gguf(
    model_dir: Path, out_dir: Path, format: str, texts: Sequence[str], *, rows: int, tokens: int
) -> dict[str, Any]:
    """Write one `.gguf` into `out_dir` and prove what it holds.

    `texts` are rendered training rows for calibration; the formats of PLAIN are written without. Returns file name,
    seconds and the proof's facts. Raises WorkbenchError when the file's types, chat template or stop token are not
    the wanted ones.
    """
    started, shown = time.monotonic(), [] if format in PLAIN else list(texts[:rows])
    with tempfile.TemporaryDirectory(dir=out_dir) as temporary:
        folder = Path(temporary)
        paths = {"model": model_dir, "out": folder / "out"}
        if format in PLAIN:
            request = {key: str(path.resolve()) for key, path in paths.items()} | {"kind": PLAIN[format]}
            call(
                "workbench.compress.gguf:convert_plainly_here",
                request,
                what=f"the GGUF converter ({format})",
                inside=folder,
            )
        else:
            samples = folder / "calibration.json"
            samples.write_text(json.dumps([{"text": text} for text in joined(shown, tokens)]), encoding="utf-8")
            request = {key: str(path.resolve()) for key, path in (paths | {"samples": samples}).items()}
            call(
                "workbench.compress.gguf:convert_here",
                request | {"format": format},
                what=f"AutoRound ({format})",
                inside=folder,
            )
        made = sorted((folder / "out").rglob("*.gguf"))
        if len(made) != 1:
            raise WorkbenchError(f"{len(made)} files were written, one was wanted", where=f"quantize.{format}")
        name = f"model-{format.removeprefix('gguf_')}.gguf"
        shutil.move(made[0], out_dir / name)
    facts = inspect(out_dir / name, model_dir, format)
    return facts | {"file": name, "calibration_rows": len(shown), "seconds": round(time.monotonic() - started, 1)}


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
    where = f"quantize.{format}"
    facts = gguf_facts(path, format, where)
    fields = read_gguf(path).fields
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    trained = (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    if template is None or template.strip() != trained.strip():
        raise WorkbenchError("the file's chat template is not the one that was trained with", where=where)
    config = json.loads((model_dir / "generation_config.json").read_text())
    stops = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    eos = fields["tokenizer.ggml.eos_token_id"].contents()
    if eos not in stops:
        raise WorkbenchError(f"the file's stop token is {eos}, trained were {stops}", where=where)
    return facts


def convert_here(model: str, out: str, samples: str, format: str) -> None:
    """In a child process, which AutoRound fills with its talk and state: one conversion."""
    from auto_round import AutoRound

    # AutoRound collects garbage about a hundred times: 33 of 99 s went into looking at what was imported.
    gc.freeze()
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


def convert_plainly_here(model: str, out: str, kind: str) -> None:
    """In a child process: llama.cpp's own converter, which comes with AutoRound."""
    import gguf
    import torch
    from auto_round.export.export_to_gguf.config import ModelType
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

    folder = Path(out)
    folder.mkdir()
    conversion = get_conversion(model, model_type=ModelType.TEXT)
    shape = conversion.ModelBase.load_hparams(Path(model), False)
    name = conversion.get_model_architecture(shape, conversion.model_type(ModelType.TEXT))
    with torch.inference_mode():
        conversion.get_model_class(name, model_type=ModelType.TEXT)(
            dir_model=Path(model), ftype=gguf.LlamaFileType[kind], fname_out=folder / "model.gguf", hparams=shape,
            model_name="model",
        ).write()  # fmt: skip
