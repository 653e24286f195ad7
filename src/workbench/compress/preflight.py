"""Before hours are spent: which formats a model's shapes and tokenizer allow. No torch, no weights."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

K_BLOCK = 256  # weights in a block of llama.cpp's K-quants
SMALL_BLOCK = 32  # weights in a block of its older types, Q8_0 among them


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


def tensors(shape: Mapping[str, Any], format: str) -> Verdict:
    """W8A8 has one scale a channel: no group must divide a row. Its kernels want rows in 16s."""
    odd = [name for name in ("hidden_size", "intermediate_size") if int(shape.get(name) or 0) % 16]
    if odd:
        return Verdict(format, False, f"{odd[0]} {shape[odd[0]]} is no multiple of 16", "leave w8a8 out of quantize")
    return Verdict(format, True, "one scale a channel, no group to divide")


def gguf(shape: Mapping[str, Any], tokenizer_json: Path | None, format: str) -> Verdict:
    """Block sizes against row lengths, and the tokenizer against those the converter knows."""
    widths = {n: int(shape.get(n) or 0) for n in ("hidden_size", "intermediate_size")}
    odd = [f"{name} {width}" for name, width in widths.items() if width % SMALL_BLOCK]
    if odd:
        return Verdict(format, False, f"{odd[0]} is no multiple of {SMALL_BLOCK}", f"leave {format} out of quantize")
    if tokenizer_json is not None and not known_tokenizer(tokenizer_json):
        return Verdict(
            format,
            False,
            "the GGUF converter does not know this tokenizer's pre-tokenizer",
            f"leave {format} out of quantize, or take a model whose tokenizer is unchanged",
        )
    wide = [f"{name} {width}" for name, width in widths.items() if width % K_BLOCK]
    if wide and "_k" in format:
        return Verdict(format, True, f"{wide[0]} is no multiple of {K_BLOCK}: such rows fall back to q5_0 and q8_0")
    if tokenizer_json is None:
        return Verdict(format, True, "shapes fit; the tokenizer is checked once the model is here")
    return Verdict(format, True, "shapes and tokenizer fit")


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
    if spec is None or not spec.submodule_search_locations:
        return "", frozenset()
    source = Path(spec.submodule_search_locations[0]) / "export" / "export_to_gguf" / "conversion" / "base.py"
    code = source.read_text(encoding="utf-8")
    literal = re.search(r"^\s*chktxt = ((?:'|\").*)$", code, re.M)
    digests = frozenset(re.findall(r'chkhsh == "([0-9a-f]{64})"', code))
    return (ast.literal_eval(literal[1]) if literal else ""), digests
