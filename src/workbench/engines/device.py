"""The machine under a model: its device, the cores that are ours, the memory that is kept, and NF4's one setting."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def device_of(wanted: str = "auto") -> str:
    """`wanted`, or for `auto` cuda where torch sees one, else cpu."""
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def name_of(device: str) -> str:
    """A device in words: "CPU", or what the card is called."""
    import torch

    return str(torch.cuda.get_device_name()) if device == "cuda" else "CPU"


def computed_in(dtype: str, device: str) -> str:
    """The dtype that `device` computes a model of `dtype` in: float32 in bfloat16's place, on a CPU without it.

    There a product of bfloat16 matrices takes 4 times as long as one of float32, and a head's gradient 150 times.
    """
    return "float32" if dtype == "bfloat16" and device == "cpu" and not computes_16_bits() else dtype


def computes_16_bits() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself: AVX512-BF16, AMX, or ARM's."""
    import torch

    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def widen(model: PreTrainedModel) -> PreTrainedModel:
    """The model computed in float32, its values as they are; four-bit weights stay, and are multiplied in float32."""
    import torch

    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16):
                    tensor.data = tensor.data.float()
    model.config.dtype = torch.float32
    return model


def threads_of(wanted: int | None = None) -> int:
    """`wanted` threads, else what OMP_NUM_THREADS says, else as many as there are cores that this process may use.

    Two programs that each take all cores wait for each other by spinning, and both become many times slower.
    """
    from_environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted or from_environment.isdecimal():
        return wanted or max(1, int(from_environment))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Freed memory is kept: on a CPU, giving every large tensor back to the system costs more than computing on it.
#
# Rows of many lengths leave holes that none of the next tensors fits in, so that what is kept grows and grows (15 GB in
# 400 steps of training a model of 135 million parameters): once it is too much, all of it is given back.

# glibc's mallopt(3): no block by mmap, nothing trimmed, the heap grown by 256 MiB at a time.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
MOST_KEPT = 4 * 2**30  # bytes


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) tells, in bytes; of it we read `fordblks`, what is free in its heaps."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def keep_freed_memory() -> None:
    """Have glibc reuse the memory that tensors free; other systems and libraries are left as they are."""
    mallopt = of_glibc("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 256 * 1024 * 1024)


def keep_at_most(most: int = MOST_KEPT) -> None:
    """Give what is free back once it is more than so many bytes: looked at after each step or batch."""
    usage = of_glibc("mallinfo2")
    if usage:
        usage.restype = Mallinfo2
        if usage().fordblks > most:
            release_freed_memory()


def release_freed_memory() -> None:
    """Give what is free back to the system now."""
    trim = of_glibc("malloc_trim")
    if trim:
        trim(0)


def release_memory() -> None:
    """Give back what a model held, on the device and in the process, once nobody holds the model any more.

    Each use of a model ends with it: what torch keeps for its next tensors, no other program on the card can have, and
    neither vLLM nor a training's estimate sees it as free.
    """
    gc.collect()  # a model and its hooks hold each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    release_freed_memory()


def free_on_card() -> int:
    """Bytes of the CUDA device that torch can still give: the card's own, and what it keeps of freed tensors."""
    import torch

    return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def of_glibc(name: str) -> Any:
    """One of its functions; None on another system or with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


# NF4 with double quantization (arXiv 2305.14314): one setting for training, merging and the nf4 format.


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """bitsandbytes' configuration; products are taken in `dtype`, a torch dtype."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Leave the 4-bit weights in their own layout, and give the model back.

    bitsandbytes repacks its weights at the first forward in evaluation mode on a CPU with AVX512-BF16, and the packed
    product has no backward: training after an evaluation would lose its gradients without a word. It also rounds
    otherwise than the product that was trained with.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
