"""Before hours are spent: which formats a model's shapes and tokenizer allow. No torch, no weights."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.extras import install_line

K_BLOCK = 256  # weights in a block of llama.cpp's K-quants
SMALL_BLOCK = 32  # weights in a block of its older types, Q8_0 among them
ROW_STEP = 16  # kernels for 8-bit and 4-bit rows read so many weights at a time
TO_CONVERT = install_line("quantize")
NF4_BLOCK = 64  # weights that share a scale in bitsandbytes' NF4
# Embeddings and head included, which stay in 16 bits; measured on SmolLM2-135M, of which they are a fifth.
BYTES_A_WEIGHT = {
    "gguf_f16": 2.01, "gguf_q8_0": 1.07, "gguf_q5_k_m": 0.80, "gguf_q4_k_m": 0.75,
    "w8a8": 1.25, "fp8_dynamic": 1.25, "w4a16": 0.87, "awq": 0.87, "nf4": 0.85,
}  # fmt: skip


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
    return [gguf(shape, tokenizer_json, f) if f.startswith("gguf_") else tensors(shape, f) for f in formats]


def widths_of(shape: Mapping[str, Any]) -> dict[str, int]:
    """Input widths of the linear layers by their names in config.json; 0 where it does not say."""
    shape = shape.get("text_config") or shape
    widths = {name: int(shape.get(name) or 0) for name in ("hidden_size", "intermediate_size", "moe_intermediate_size")}
    heads, width = int(shape.get("num_attention_heads") or 0), int(shape.get("head_dim") or 0)
    if heads and width and heads * width != widths["hidden_size"]:
        widths["num_attention_heads × head_dim"] = heads * width
    return {name: width for name, width in widths.items() if width or name != "moe_intermediate_size"}


def refused(format: str, why: str, remedy: str = "") -> Verdict:
    """The verdict that a format cannot be made."""
    return Verdict(format, False, why, remedy or f"leave {format} out of quantize")


def tensors(shape: Mapping[str, Any], format: str) -> Verdict:
    """Row lengths against what kernels read at once, the group that 4-bit weights will take, and the device."""
    widths = widths_of(shape)
    if format == "awq" and not cuda_is_here():
        return refused(
            format, "llm-compressor's AWQ needs a CUDA device, and none is here",
            "take w4a16 (GPTQ, 4 bits too), or run quantize on a machine with a GPU",
        )  # fmt: skip
    odd = [f"{name} {width}" for name, width in widths.items() if width % ROW_STEP]
    if odd:
        return refused(format, f"{odd[0]} is no multiple of {ROW_STEP}")
    if format == "nf4":
        ragged = [f"{name} {width}" for name, width in widths.items() if width % NF4_BLOCK]
        if ragged:  # bitsandbytes' product on a CPU with AVX512-BF16 fails at such a row
            return refused(format, f"{ragged[0]} is no multiple of {NF4_BLOCK}: a block would run into the next row")
        return Verdict(format, True, f"blocks of {NF4_BLOCK} divide every row")
    if not SCHEMES[format].grouped:
        return Verdict(format, True, "one scale a channel, no group to divide")
    if not all(widths.values()):
        return Verdict(format, True, "the group is chosen once the model's widths are known")
    group, told = group_size(widths.values()), ", ".join(map(str, sorted(set(widths.values()))))
    if group is None:
        return Verdict(format, True, f"no group of {', '.join(map(str, GROUPS))} divides {told}: one scale a channel")
    return Verdict(format, True, f"groups of {group}, the largest of {', '.join(map(str, GROUPS))} to divide {told}")


def cuda_is_here() -> bool:
    """Whether an NVIDIA driver serves this machine; asked without torch, which takes seconds to import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def gguf(shape: Mapping[str, Any], tokenizer_json: Path | None, format: str) -> Verdict:
    """Block sizes against row lengths, and the tokenizer against those the converter knows."""
    widths = {} if format == "gguf_f16" else widths_of(shape)
    odd = [f"{name} {width}" for name, width in widths.items() if width % SMALL_BLOCK]
    if odd:
        return refused(format, f"{odd[0]} is no multiple of {SMALL_BLOCK}")
    wide = [f"{name} {width}" for name, width in widths.items() if width % K_BLOCK]
    if "_k" in format and wide and len(wide) == len(widths):
        return refused(
            format, f"none of {', '.join(wide)} is a multiple of {K_BLOCK}: no row could have the format's own type",
            "take gguf_q8_0, whose blocks are of 32",
        )  # fmt: skip
    here = converter_is_here()
    if tokenizer_json is not None and here and not known_tokenizer(tokenizer_json):
        return refused(
            format, "the GGUF converter does not know this tokenizer's pre-tokenizer",
            f"leave {format} out of quantize, or take a model whose tokenizer is unchanged",
        )  # fmt: skip
    if wide and "_k" in format:
        return Verdict(format, True, f"{wide[0]} is no multiple of {K_BLOCK}: such rows fall back to q5_0 and q8_0")
    fit = "shapes fit" if widths else "no blocks to divide"
    if tokenizer_json is None:
        return Verdict(format, True, f"{fit}; the tokenizer is checked once the model is here")
    if not here:
        return Verdict(format, True, f"{fit}; the tokenizer is checked once the converter is here: {TO_CONVERT}")
    return Verdict(format, True, f"{fit}, and the tokenizer is known")


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


# The formats in compressed-tensors form, side by side: how weights are stored, what shares a scale, what is seen.

GROUPS = (128, 64, 32)  # weights that share a scale, the most compact first; the sizes that serving kernels know


@dataclass(frozen=True)
class Scheme:
    """How every linear layer but the head is stored, and how it is run."""

    bits: int  # of a weight
    kind: str  # "int" or "float"
    dtype: str  # what safetensors calls the stored weights; eight 4-bit weights lie in one I32
    input_bits: int | None  # inputs are rounded to these at run time, one scale a token; None: they stay as they are
    grouped: bool  # groups of weights share a scale, else a whole row does
    symmetric: bool  # no zero point
    method: str  # how the weights are rounded: gptq, awq, or nearest (which needs to see no rows)


SCHEMES = {
    # GPTQ gains nothing in eight bits: KL 0.0039 from the student against 0.0038, for nine times the time.
    "w8a8": Scheme(8, "int", "I8", 8, grouped=False, symmetric=True, method="nearest"),
    "fp8_dynamic": Scheme(8, "float", "F8_E4M3", 8, grouped=False, symmetric=True, method="nearest"),
    "w4a16": Scheme(4, "int", "I32", None, grouped=True, symmetric=True, method="gptq"),
    "awq": Scheme(4, "int", "I32", None, grouped=True, symmetric=False, method="awq"),
}


def group_size(widths: Iterable[int]) -> int | None:
    """The largest of GROUPS that divides every linear layer's input width; None: a whole row shares a scale."""
    wanted = list(widths)
    return next((size for size in GROUPS if wanted and not any(width % size for width in wanted)), None)
