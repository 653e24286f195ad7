"""GGUF files for llama.cpp and Ollama, written by AutoRound and then read back: types, template, stop token."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.compress.format_check import gguf_facts
from workbench.engines.ask import stop_ids
from workbench.engines.child import call
from workbench.errors import WorkbenchError
from workbench.formats import Format, Gguf
from workbench.sources.gguf_header import read_gguf

CALIBRATION_TOKENS = 64


def write_gguf(format: Format, model_dir: Path, out_dir: Path, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Write one `.gguf` into `out_dir` and hold it against the model it was made from; returns its file name.

    `texts` are rendered training rows for calibration. Raises WorkbenchError when the file's types, chat template or
    stop token are not the wanted ones.
    """
    assert isinstance(format.stored, Gguf)
    with tempfile.TemporaryDirectory(dir=out_dir) as temporary:
        folder = Path(temporary)
        request = {"model": str(model_dir.resolve()), "out": str((folder / "out").resolve())}
        if format.stored.plain:
            request |= {"kind": format.stored.plain}
            what = f"the GGUF converter ({format.name})"
            call("workbench.compress.gguf:convert_plainly_here", request, what=what, inside=folder)
        else:
            samples = folder / "calibration.json"
            samples.write_text(json.dumps([{"text": text} for text in joined(texts, tokens)]), encoding="utf-8")
            request |= {"samples": str(samples.resolve()), "format": format.name}
            what = f"AutoRound ({format.name})"
            call("workbench.compress.gguf:convert_here", request, what=what, inside=folder)
        made = sorted((folder / "out").rglob("*.gguf"))
        if len(made) != 1:
            raise WorkbenchError(f"{len(made)} files were written, one was wanted", where=f"quantize.{format.name}")
        name = f"model-{format.name.removeprefix('gguf_')}.gguf"
        shutil.move(made[0], out_dir / name)
    inspect(out_dir / name, model_dir, format)
    return {"file": name}


def joined(texts: Sequence[str], tokens: int) -> list[str]:
    """Rows joined until each sample is surely as long as the calibration wants: shorter ones would be dropped."""
    samples, current = [], ""
    for text in texts:
        current += text + "\n"
        if len(current) > max(tokens, CALIBRATION_TOKENS) * 6:
            samples.append(current)
            current = ""
    return samples or [current]


def inspect(path: Path, model_dir: Path, format: Format) -> None:
    """Read a GGUF file back and hold it against the model it was made from."""
    where = f"quantize.{format.name}"
    gguf_facts(path, format, where)
    fields = read_gguf(path).fields
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    trained = (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    if template is None or template.strip() != trained.strip():
        raise WorkbenchError("the file's chat template is not the one that was trained with", where=where)
    stops = stop_ids(model_dir)
    eos = fields["tokenizer.ggml.eos_token_id"].contents()
    if eos not in stops:
        raise WorkbenchError(f"the file's stop token is {eos}, trained were {sorted(stops)}", where=where)


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
