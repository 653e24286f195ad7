"""The formats in compressed-tensors form, side by side: how weights are stored, what shares a scale, what is seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
