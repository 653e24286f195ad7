"""The linear layers of a w8a8 model on a CPU, as a serving engine runs them: int8 times int8, summed in int32."""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 127


class Int8Linear(nn.Module):
    """y = (q(x) Wᵀ) · s_x · s_W + b, with q(x) = round(x / s_x) in int8 and a scale s_x = max|x| / 127 for each token.

    The scheme of LLM.int8() (arXiv 2208.07339, equation 4) with every feature quantized, as vLLM's int8 kernels have
    it. `layer` is a linear layer with int8 weights [out, in] and their scales [out, 1].
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.weight_KN: torch.Tensor
        self.scale_N: torch.Tensor
        self.register_buffer("weight_KN", layer.weight.detach().t().contiguous())
        self.register_buffer("scale_N", layer.weight_scale.detach().flatten().float())
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x_MK = inputs.reshape(-1, inputs.shape[-1])
        scale_M1 = x_MK.abs().amax(dim=-1, keepdim=True).float().clamp_(min=1e-10) / LARGEST
        rounded_MK = (x_MK / scale_M1).round_().to(torch.int8)
        y_MN = (torch._int_mm(rounded_MK, self.weight_KN) * scale_M1).mul_(self.scale_N)
        if self.bias is not None:
            y_MN += self.bias
        return y_MN.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def run_in_int8(model: nn.Module) -> bool:
    """Put `Int8Linear` in place of the quantized layers of a compressed-tensors model, if all of them are w8a8.

    Only before the first forward pass, which would unpack them to 16 bits. Gives whether it was done.
    """
    quantized = {name: layer for name, layer in model.named_modules() if hasattr(layer, "quantization_scheme")}
    if not quantized or not all(map(fits, quantized.values())):
        return False
    for name, layer in quantized.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Int8Linear(layer))
    return True


def fits(layer: nn.Module) -> bool:
    """Whether it is a linear layer with int8 weights, a scale a row, and inputs that get an int8 scale a token."""
    weights, inputs = layer.quantization_scheme.weights, layer.quantization_scheme.input_activations
    weight = getattr(layer, "weight", None)  # packed formats have none yet
    return (
        type(layer) is nn.Linear
        and weight is not None
        and weight.dtype == torch.int8
        and layer.weight_scale.shape == (layer.out_features, 1)
        and bool(weights.symmetric)
        and inputs is not None
        and (inputs.num_bits, inputs.type, inputs.strategy, inputs.dynamic) == (8, "int", "token", True)
        and bool(inputs.symmetric)
    )
