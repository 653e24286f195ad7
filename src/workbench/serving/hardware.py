"""Which engine takes a format, and on which hardware: the table in ENGINES.md, and which launch files are written.

Read in vLLM 0.32's and SGLang's kernels and documentation, llama.cpp's and Ollama's, in November 2026. An engine
counts as verified only where it loaded this very bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.serving.about import About, Verified, adapter_facts

NAMES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "ollama": "Ollama",
    "transformers": "transformers",
}
PLAIN = ("bf16", "bfloat16", "float16", "float32")
LARGEST_RANK = 512  # of an adapter that vLLM takes


@dataclass(frozen=True)
class Taker:
    """An engine that takes a format, the hardware its kernels for it want, and what one must know."""

    engine: str
    hardware: str
    note: str = ""


LIKE_TRAINING = Taker("transformers", "CPU or GPU", "slow, for checking: the engine of training")
BY_FORMAT: dict[str, tuple[Taker, ...]] = {
    "16-bit": (
        Taker("vllm", "NVIDIA compute capability 8.0 (7.0 with --dtype float16), AMD, Intel GPU; x86 and Arm CPU"),
        Taker("sglang", "NVIDIA compute capability 8.0, AMD"),
        LIKE_TRAINING,
    ),
    "w8a8": (
        Taker("vllm", "NVIDIA compute capability 7.5 (Turing); x86 and Arm CPU", "int8 by compressed-tensors"),
        Taker("sglang", "NVIDIA compute capability 8.0"),
        LIKE_TRAINING,
    ),
    "fp8_dynamic": (
        Taker(
            "vllm",
            "NVIDIA compute capability 8.9 (Ada, Hopper and newer), AMD MI300",
            "older NVIDIA cards from 7.5 on keep the weights in 8 bits and compute in 16",
        ),
        Taker("sglang", "NVIDIA compute capability 8.9, AMD MI300"),
        LIKE_TRAINING,
    ),
    "w4a16": (
        Taker("vllm", "NVIDIA compute capability 8.0 (Marlin; 7.5 in recent releases); x86 CPU"),
        Taker("sglang", "NVIDIA compute capability 8.0 (Marlin)"),
        LIKE_TRAINING,
    ),
    "awq": (
        Taker("vllm", "NVIDIA compute capability 8.0 (Marlin; 7.5 in recent releases); x86 CPU", "4 bits, zero points"),
        Taker("sglang", "NVIDIA compute capability 8.0 (Marlin)"),
        LIKE_TRAINING,
    ),
    "nf4": (
        Taker(
            "vllm",
            "NVIDIA compute capability 7.5",
            "from 0.28 on with `pip install vllm-bnb-plugin`; one card only, no tensor parallelism",
        ),
        Taker("sglang", "NVIDIA compute capability 7.5"),
        Taker("transformers", "CPU or NVIDIA GPU", "with bitsandbytes"),
    ),
    "gguf": (
        Taker("llamacpp", "x86 and Arm CPU; NVIDIA, AMD, Apple and Intel GPU"),
        Taker(
            "ollama",
            "x86 and Arm CPU; NVIDIA, AMD and Apple GPU",
            "renders no Jinja: it takes the nearest of its own templates, so token ids may differ from training's",
        ),
    ),
    "adapter": (
        Taker("vllm", "as its base model", "the base model is loaded too, from where it was taken"),
        Taker("transformers", "CPU or GPU", "with peft"),
    ),
}


def takers(about: About, folder: Path) -> tuple[Taker, ...]:
    """The engines that take this bundle. vLLM is left out for an adapter that it refuses, and the reason is told."""
    if about.kind != "adapter":
        return BY_FORMAT["gguf" if about.format.startswith("gguf") else plain_name(about.format)]
    refusal = vllm_refuses(folder)
    return tuple(t for t in BY_FORMAT["adapter"] if t.engine != "vllm" or refusal is None)


def plain_name(format: str) -> str:
    """All unquantized formats are one row of the table."""
    return "16-bit" if format in PLAIN else format


def vllm_refuses(folder: Path) -> str | None:
    """Why vLLM would not load the adapter in this folder, or None."""
    facts = adapter_facts(folder)
    kept = [name for name in facts.get("modules_to_save") or [] if name not in ("classifier", "score")]
    if facts.get("use_dora"):
        return "it is a DoRA adapter"
    if kept:
        return f"it replaces whole modules: {', '.join(kept)}"
    if facts.get("bias", "none") != "none" or facts.get("lora_bias"):
        return "it trains biases"
    if largest_rank(folder) > LARGEST_RANK:
        return f"its rank {largest_rank(folder)} is over {LARGEST_RANK}"
    return None


def largest_rank(folder: Path) -> int:
    """The largest rank of any layer of the adapter in this folder."""
    facts = adapter_facts(folder)
    return max([1, int(facts.get("r") or 1), *map(int, (facts.get("rank_pattern") or {}).values())])


def engine_table(about: About, folder: Path) -> str:
    """The table of engines and hardware as Markdown; `verified here` only where this bundle was really loaded."""
    rows = list(takers(about, folder))
    rows += [Taker(v.engine, v.hardware) for v in about.verified if v.engine not in {t.engine for t in rows}]
    lines = ["| engine | hardware, at least | verified here | note |", "| --- | --- | --- | --- |"]
    for taker in rows:
        proofs = [proof for proof in about.verified if proof.engine == taker.engine]
        seen = "; ".join(told(proof) for proof in proofs) or "no"
        lines.append(f"| {NAMES.get(taker.engine, taker.engine)} | {taker.hardware} | {seen} | {taker.note} |")
    refusal = vllm_refuses(folder) if about.kind == "adapter" else None
    return "\n".join(lines) + (f"\n\nvLLM does not take this adapter: {refusal}." if refusal else "")


def told(proof: Verified) -> str:
    """`yes (0.32.0, x86 CPU)`."""
    facts = ", ".join(filter(None, (proof.version, proof.hardware)))
    return f"yes ({facts})" if facts else "yes"
