"""A w8a8 model on a CPU: its products are the integers that a serving engine takes, and its answers the model's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workbench.engines.int8 import Int8Linear, run_in_int8


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_int8_product_worked_out_in_float64(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    weight = torch.randint(-128, 128, (48, 64), dtype=torch.int8)
    scale = torch.rand(48, 1).bfloat16() / 100
    shift = torch.randn(48).bfloat16() if bias else None
    inputs = torch.randn(3, rows, 64).bfloat16() * 4
    inputs[0, 0] = 0.0  # a token of zeros has no largest value
    layer = Int8Linear(SimpleNamespace(weight=weight, weight_scale=scale, bias=shift))

    exact = inputs.double()
    step = (exact.abs().amax(-1, keepdim=True).float().clamp(min=1e-10) / 127).double()
    wanted = (exact.float() / step.float()).round().double() @ weight.double().T * step * scale.double().flatten()
    wanted += shift.double() if bias else 0.0
    got = layer(inputs)
    assert got.dtype == torch.bfloat16
    assert got.shape == (3, rows, 48)
    assert torch.allclose(got.double(), wanted, rtol=2**-8, atol=1e-6)


def test_a_model_without_quantized_layers_is_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert not run_in_int8(model)
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.proof
def test_a_real_w8a8_folder_runs_in_int8_as_near_to_its_model_as_compressed_tensors_own_way(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.compress.preflight import write_format
    from workbench.engines import int8
    from workbench.engines.transformers import load

    texts = ["Permission is hereby granted, free of charge, to any person obtaining a copy of this software."] * 4
    for name in ("w8a8", "w4a16"):
        (tmp_path / name).mkdir()
        write_format(name, small_model, tmp_path / name, texts, rows=4, tokens=32)
    place = torch.device("cpu")

    def said(folder: Path) -> tuple[torch.Tensor, type]:
        model, tokenizer = load(folder, None, place)
        chat = [{"role": "user", "content": "Which licence is this?\n" + texts[0]}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            return model(ids).logits[0].float().log_softmax(-1), type(model.model.layers[0].mlp.up_proj)

    def distance(p: torch.Tensor, q: torch.Tensor) -> float:
        return float((p.exp() * (p - q)).sum(-1).mean())

    plain, _ = said(small_model)
    ours, kind = said(tmp_path / "w8a8")
    assert kind is int8.Int8Linear
    assert said(tmp_path / "w4a16")[1] is torch.nn.Linear, "another scheme is compressed-tensors' own"
    monkeypatch.setattr(int8, "run_in_int8", lambda model: False)
    theirs, kind = said(tmp_path / "w8a8")
    assert kind is torch.nn.Linear
    assert distance(plain, ours) < 1.3 * distance(plain, theirs)
    assert distance(plain, ours) < 0.2
