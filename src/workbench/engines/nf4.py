"""NF4 with double quantization (arXiv 2305.14314): one setting for training, merging and the nf4 format."""

from __future__ import annotations

from typing import Any


def nf4_config(dtype: Any) -> Any:
    """bitsandbytes' configuration; products are taken in `dtype`, a torch dtype."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_unpacked(model: Any) -> Any:
    """Leave the 4-bit weights in their own layout, and give the model back.

    bitsandbytes repacks its weights at the first forward in evaluation mode on a CPU with AVX512-BF16, and the packed
    product has no backward: training after an evaluation would lose its gradients without a word. It also rounds
    otherwise than the product that was trained with.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
