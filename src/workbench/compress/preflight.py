"""Before hours are spent: which formats a model's shapes and tokenizer allow; and then which writer writes one."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.compress.format_check import really_quantized
from workbench.errors import RequestError, WorkbenchError
from workbench.extras import install_line
from workbench.formats import Format, Gguf, Scheme, format_named

TO_CONVERT = install_line("quantize")


@dataclass(frozen=True)
class Verdict:
    """Whether a format can be made of this model, why, and what to do if not."""

    format: str
    ok: bool
    why: str
    remedy: str = ""


def preflight(shape: Mapping[str, Any], tokenizer_json: Path | None, formats: Sequence[str]) -> list[Verdict]:
    """A verdict for each wanted format.

    `shape` is the model's config.json, or its `hidden_size` and `intermediate_size`; `tokenizer_json` is null
    before the model is fetched, and then nothing is said against a tokenizer.
    """
    return [verdict_on(format_named(name), shape, tokenizer_json) for name in formats]


def verdict_on(format: Format, shape: Mapping[str, Any], tokenizer_json: Path | None) -> Verdict:
    """The device and the row lengths by the format's facts, then whatever else its own function looks at."""
    try:
        if format.without_gpu and not cuda_is_here():
            raise RequestError(
                "it is written on a CUDA device, and none is here",
                remedy=f"take {format.without_gpu}, or run quantize on a machine with a GPU",
            )
        odd = rows_past(shape, format.row_step)
        if odd:
            raise RequestError(f"{odd[0]} is no multiple of {format.row_step}")
        if format.fits:
            return Verdict(format.name, True, format.function("fits")(format, shape, tokenizer_json))
        return Verdict(format.name, True, f"blocks of {format.row_step} divide every row")
    except RequestError as error:
        return Verdict(format.name, False, error.what, error.remedy or f"leave {format.name} out of quantize")


def rows_past(shape: Mapping[str, Any], step: int) -> list[str]:
    """The linear layers' widths, with their names, that `step` does not divide."""
    return [f"{name} {width}" for name, width in widths_of(shape).items() if width % step]


def widths_of(shape: Mapping[str, Any]) -> dict[str, int]:
    """Input widths of the linear layers by their names in config.json; 0 where it does not say."""
    shape = shape.get("text_config") or shape
    widths = {name: int(shape.get(name) or 0) for name in ("hidden_size", "intermediate_size", "moe_intermediate_size")}
    heads, width = int(shape.get("num_attention_heads") or 0), int(shape.get("head_dim") or 0)
    if heads and width and heads * width != widths["hidden_size"]:
        widths["num_attention_heads × head_dim"] = heads * width
    return {name: width for name, width in widths.items() if width or name != "moe_intermediate_size"}


def group_fits(format: Format, shape: Mapping[str, Any], tokenizer_json: Path | None) -> str:
    """The group of weights that will share a scale."""
    assert isinstance(format.stored, Scheme)
    widths = widths_of(shape)
    if not format.stored.grouped:
        return "one scale a channel, no group to divide"
    if not all(widths.values()):
        return "the group is chosen once the model's widths are known"
    group, listed = group_size(widths.values()), ", ".join(map(str, sorted(set(widths.values()))))
    if group is None:
        return f"no group of {', '.join(map(str, GROUPS))} divides {listed}: one scale a channel"
    return f"groups of {group}, the largest of {', '.join(map(str, GROUPS))} to divide {listed}"


def cuda_is_here() -> bool:
    """Whether an NVIDIA driver serves this machine; asked without torch, which takes seconds to import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def gguf_fits(format: Format, shape: Mapping[str, Any], tokenizer_json: Path | None) -> str:
    """K-quants' blocks against row lengths, and the tokenizer against those the converter knows."""
    assert isinstance(format.stored, Gguf)
    wide = rows_past(shape, format.stored.block)
    if wide and len(wide) == len(widths_of(shape)):
        raise RequestError(
            f"none of {', '.join(wide)} is a multiple of {format.stored.block}: no row could have the format's own "
            "type",
            remedy="take gguf_q8_0, whose blocks are of 32",
        )
    here = converter_is_here()
    if tokenizer_json is not None and here and not known_tokenizer(tokenizer_json):
        raise RequestError(
            "the GGUF converter does not know this tokenizer's pre-tokenizer",
            remedy=f"leave {format.name} out of quantize, or take a model whose tokenizer is unchanged",
        )
    if wide:
        return f"{wide[0]} is no multiple of {format.stored.block}: such rows fall back to q5_0 and q8_0"
    fit = "shapes fit" if format.stored.block > 1 else "no blocks to divide"
    if tokenizer_json is None:
        return f"{fit}; the tokenizer is checked once the model is here"
    if not here:
        return f"{fit}; the tokenizer is checked once the converter is here: {TO_CONVERT}"
    return f"{fit}, and the tokenizer is known"


def converter_is_here() -> bool:
    """Whether the GGUF converter is installed, whose source says which tokenizers it knows."""
    return find_spec("auto_round") is not None


def known_tokenizer(tokenizer_json: Path) -> bool:
    """Whether the converter knows the tokenizer, by the digest of its ids for a fixed text; SentencePiece always."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    if (tokenizer_json.parent / "tokenizer.model").is_file():
        return True
    text, known = converter_facts()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return hashlib.sha256(str(ids).encode()).hexdigest() in known


@lru_cache(maxsize=1)
def converter_facts() -> tuple[str, frozenset[str]]:
    """The converter's fixed text and the digests it knows, read from its source without importing it."""
    spec = find_spec("auto_round")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "export" / "export_to_gguf" / "conversion" / "base.py"
    code = source.read_text(encoding="utf-8")
    literal = re.search(r"^\s*chktxt = ((?:'|\").*)$", code, re.M)
    digests = frozenset(re.findall(r'chkhsh == "([0-9a-f]{64})"', code))
    return (ast.literal_eval(literal[1]) if literal else ""), digests


GROUPS = (128, 64, 32)  # weights that share a scale, the most compact first; the sizes that serving kernels know


def group_size(widths: Iterable[int]) -> int | None:
    """The largest of GROUPS that divides every linear layer's input width; None: a whole row shares a scale."""
    wanted = list(widths)
    return next((size for size in GROUPS if wanted and not any(width % size for width in wanted)), None)


# A model written in a format: by the function that the format names, then read back by the one that checks it.


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
