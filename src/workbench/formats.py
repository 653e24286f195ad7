"""The formats a model can be written in: one table of what is known of each. The code for one is named, not imported.

A format more is one entry of `SHIPPED` and a YAML file in `configs/quantize/`, where a writer in `compress/` can make
it already. An installed package adds one through the entry point group `workbench.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from workbench.errors import RequestError, nearest
from workbench.extras import entry_points, loaded

GROUP = "workbench.formats"


@dataclass(frozen=True)
class Taker:
    """An engine that takes a format, the hardware its kernels for it want at least, and what one must know."""

    engine: str  # vllm, sglang, llamacpp, ollama or transformers
    hardware: str
    note: str = ""
    gpu_only: bool = False  # its CPU build has no kernels for the format
    flags: str = ""  # what the engine must be told on its command line, beside the usual
    to_start: str = ""  # a line for the head of its launch script


@dataclass(frozen=True)
class Scheme:
    """How compressed-tensors stores every linear layer but the head, and how it is run."""

    kind: str  # "int" or "float"
    dtype: str  # what safetensors calls the stored weights; eight 4-bit weights lie in one I32
    input_bits: int | None = None  # inputs are rounded to these at run time, one scale a token; None: they stay
    grouped: bool = False  # groups of weights share a scale, else a whole row does
    symmetric: bool = True  # no zero point
    method: str = "nearest"  # how the weights are rounded: gptq, awq or nearest


@dataclass(frozen=True)
class Gguf:
    """How a GGUF file stores most weights of its linear layers."""

    kind: str  # llama.cpp's name of the type
    block: int  # weights in a block of it; a row that 256 does not divide falls back to a larger type
    plain: str = ""  # llama.cpp's name of the file type where its own converter rounds; empty: AutoRound does


@dataclass(frozen=True)
class Format:
    """What an entry point in `workbench.formats` gives: the facts of one format, and the functions that know it.

    Functions are named as `module:function` and imported when they are used, so that a recipe is read without torch:

    - `write(format, model_dir, out_dir, texts, tokens)` writes the merged 16-bit model of `model_dir` into `out_dir`,
      with all that an engine loads beside the weights, and returns further facts for the record. `texts` are rendered
      training rows, none unless `calibrated`; `tokens` is how much of each may be shown.
    - `check(format, folder)` returns `bits_per_weight` and what else it read in the folder, or raises WorkbenchError
      when the folder is not in this format. Without one, a bundle says that nobody looked.
    - `fits(format, shape, tokenizer_json)` returns in one sentence why a model can be written so, or raises
      RequestError. `shape` is config.json's content, `tokenizer_json` None before the model is here.
    """

    name: str
    bits: float  # of a weight of a linear layer, scales aside
    bytes_a_weight: float  # of the whole file over all weights, embeddings in 16 bits included: for `plan`
    takers: tuple[Taker, ...]  # the engine that serves it first
    write: str
    check: str = ""
    fits: str = ""
    calibrated: bool = False  # it is shown training rows
    row_step: int = 1  # every linear layer's input width must be a multiple of it
    without_gpu: str = ""  # what to take where no CUDA device is; empty: it is written without one
    stored: Scheme | Gguf | None = None  # what the writers of compress/ must know

    @property
    def served_by(self) -> str:
        """The engine that serves it."""
        return self.takers[0].engine

    def taker(self, engine: str) -> Taker | None:
        """What is known of an engine with this format; None where it does not take it."""
        return next((taker for taker in self.takers if taker.engine == engine), None)

    def function(self, part: str) -> Callable[..., Any]:
        """The function that `write`, `check` or `fits` names. RequestError when there is none there."""
        named: str = getattr(self, part)
        module, _, name = named.partition(":")
        try:
            code = getattr(import_module(module), name, None)
        except (ImportError, ValueError) as error:
            raise RequestError(
                f"the format {self.name} cannot be used: {error}", where=f"{self.name}: {part}"
            ) from None
        if not callable(code):
            raise RequestError(
                f"the format {self.name} names {named!r}, where no function is",
                where=f"{self.name}: {part}",
                remedy="name it as module:function",
            )
        return code


# The table. Engines and hardware: read in vLLM 0.32's and SGLang's kernels and documentation, llama.cpp's and Ollama's,
# in November 2026. Bytes a weight were measured on SmolLM2-135M, of which embedding and head are a fifth.

LIKE_TRAINING = Taker("transformers", "CPU or GPU", "slow, for checking: the engine of training")
ON_LLAMACPP = (
    Taker("llamacpp", "x86 and Arm CPU; NVIDIA, AMD, Apple and Intel GPU"),
    Taker(
        "ollama",
        "x86 and Arm CPU; NVIDIA, AMD and Apple GPU",
        "renders no Jinja: it takes the nearest of its own templates, so token ids may differ from training's",
    ),
)


def gguf(name: str, bits: float, bytes_a_weight: float, stored: Gguf) -> Format:
    """A GGUF file, for llama.cpp and Ollama; what is not rounded plainly is calibrated."""
    return Format(
        name,
        bits,
        bytes_a_weight,
        ON_LLAMACPP,
        write="workbench.compress.gguf:write_gguf",
        check="workbench.compress.format_check:gguf_folder",
        fits="workbench.compress.preflight:gguf_fits",
        calibrated=not stored.plain,
        row_step=min(stored.block, 32),
        stored=stored,
    )


def compressed(
    name: str, bits: float, bytes_a_weight: float, scheme: Scheme, *takers: Taker, without_gpu: str = ""
) -> Format:
    """A folder in compressed-tensors form, for vLLM and SGLang."""
    return Format(
        name,
        bits,
        bytes_a_weight,
        (*takers, LIKE_TRAINING),
        write="workbench.compress.tensors:write_tensors",
        check="workbench.compress.format_check:compressed_folder",
        fits="workbench.compress.preflight:group_fits",
        calibrated=scheme.method != "nearest",
        row_step=16,  # kernels for 8-bit and 4-bit rows read so many weights at a time
        without_gpu=without_gpu,
        stored=scheme,
    )


SHIPPED = (
    gguf("gguf_f16", 16, 2.01, Gguf("F16", 1, plain="MOSTLY_F16")),
    gguf("gguf_q8_0", 8, 1.07, Gguf("Q8_0", 32, plain="MOSTLY_Q8_0")),
    gguf("gguf_q6_k", 6, 1.03, Gguf("Q6_K", 256)),
    gguf("gguf_q5_k_m", 5, 0.80, Gguf("Q5_K", 256)),
    gguf("gguf_q4_k_m", 4, 0.75, Gguf("Q4_K", 256)),
    compressed(
        # GPTQ gains nothing in eight bits: KL 0.0039 from the student against 0.0038, for nine times the time.
        "w8a8", 8, 1.25, Scheme("int", "I8", input_bits=8),
        Taker("vllm", "NVIDIA compute capability 7.5 (Turing); x86 and Arm CPU", "int8 by compressed-tensors"),
        Taker("sglang", "NVIDIA compute capability 8.0"),
    ),
    compressed(
        "fp8_dynamic", 8, 1.25, Scheme("float", "F8_E4M3", input_bits=8),
        Taker(
            "vllm",
            "NVIDIA compute capability 8.9 (Ada, Hopper and newer), AMD MI300",
            "older NVIDIA cards from 7.5 on keep the weights in 8 bits and compute in 16",
            gpu_only=True,
        ),
        Taker("sglang", "NVIDIA compute capability 8.9, AMD MI300"),
    ),
    compressed(
        "w4a16", 4, 0.87, Scheme("int", "I32", grouped=True, method="gptq"),
        Taker("vllm", "NVIDIA compute capability 8.0 (Marlin; 7.5 in recent releases); x86 CPU"),
        Taker("sglang", "NVIDIA compute capability 8.0 (Marlin)"),
    ),
    compressed(
        "awq", 4, 0.87, Scheme("int", "I32", grouped=True, symmetric=False, method="awq"),
        Taker(
            "vllm", "NVIDIA compute capability 8.0 (Marlin; 7.5 in recent releases); x86 CPU", "4 bits, zero points",
            gpu_only=True,
        ),
        Taker("sglang", "NVIDIA compute capability 8.0 (Marlin)"),
        without_gpu="w4a16 (GPTQ, 4 bits too)",
    ),
    Format(
        "nf4",
        4,
        0.85,
        (
            Taker(
                "vllm",
                "NVIDIA compute capability 7.5",
                "from 0.28 on with `pip install vllm-bnb-plugin`; one card only, no tensor parallelism",
                gpu_only=True,
                flags="--quantization bitsandbytes",  # compressed-tensors it reads in config.json, this it does not
                to_start="vLLM 0.28 and later need `pip install vllm-bnb-plugin` for this format.",
            ),
            Taker("sglang", "NVIDIA compute capability 7.5"),
            Taker("transformers", "CPU or NVIDIA GPU", "with bitsandbytes"),
        ),
        write="workbench.compress.tensors:write_nf4",
        check="workbench.compress.format_check:nf4_folder",
        # A block's scale would reach into the next row: bitsandbytes' product on a CPU with AVX512-BF16 fails there.
        row_step=64,
    ),
)  # fmt: skip
FORMATS = {format.name: format for format in SHIPPED}


def find_format(name: str, where: str = "") -> Format | None:
    """The format of that name, ours or an installed package's; None where nobody has it."""
    if name in FORMATS:
        return FORMATS[name]
    point = next((point for point in entry_points(GROUP) if point.name == name), None)
    if point is None:
        return None
    format = loaded(point, Format, where)
    if not format.takers or not format.write:
        raise RequestError(
            f"{point.value} names no engine that takes {name}, or no function that writes it",
            where=where,
            remedy="Format(…, takers=(Taker(…),), write='module:function')",
        )
    return replace(format, name=name)


def format_named(name: str, where: str = "format") -> Format:
    """`find_format`; RequestError with the nearest name where nobody has it."""
    format = find_format(name, where)
    if format is None:
        known = [*FORMATS, *(point.name for point in entry_points(GROUP))]
        raise RequestError(f"no format is called {name!r}", where=where, remedy=nearest(name, known))
    return format
