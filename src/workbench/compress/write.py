"""A model written in a format: by the function that the format names, then read back by the one that checks it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.compress.format_check import really_quantized
from workbench.errors import RequestError, WorkbenchError
from workbench.formats import format_named


def write_format(
    name: str, model_dir: Path, out_dir: Path, texts: Sequence[str], *, rows: int, tokens: int
) -> dict[str, Any]:
    """Write the merged model of `model_dir` into `out_dir` and return what is known of it.

    `texts` are rendered training rows; `rows` of them, cut at `tokens` tokens, are shown to a format that is
    calibrated. Returns `seconds`, `calibration_rows`, what the writer tells, and what was read back, `bits_per_weight`
    among it. Raises WorkbenchError when what was written is not the format.
    """
    started, format = time.monotonic(), format_named(name)
    shown = list(texts[:rows]) if format.calibrated else []
    written = format.function("write")(format, model_dir, out_dir, shown, tokens) or {}
    if not isinstance(written, dict):
        raise RequestError(
            f"{format.write} gave a {type(written).__name__}",
            where=f"the format {name}",
            remedy="its writer must return a dict of further facts",
        )
    if not any(path.suffix in (".safetensors", ".gguf") for path in out_dir.iterdir()):
        raise WorkbenchError("no .safetensors or .gguf file was written", where=f"the format {name}")
    facts = {"bits_per_weight": format.bits} | really_quantized(out_dir, name) | written
    return facts | {"calibration_rows": len(shown), "seconds": round(time.monotonic() - started, 1)}
