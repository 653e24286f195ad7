"""Every format is what it says it is, and a folder that is not is caught by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from workbench.compress.format_check import really_quantized
from workbench.compress.preflight import group_size, write_format
from workbench.errors import WorkbenchError
from workbench.records import Message, TokenRow

TEXTS = [f"<|im_start|>user\nNotice {n}: permission is hereby granted, free of charge<|im_end|>\n" for n in range(8)]
ROW = TokenRow("a", (5, 6, 7, 8, 9, 2), (False, False, False, True, True, True))
COMPANY = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a merge leaves it, with two stop tokens."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2], "pad_token_id": 2, "do_sample": false}')
    return folder


def written(merged: Path, folder: Path, format: str) -> dict[str, Any]:
    """The format's own writer, on few short rows."""
    return write_format(format, merged, folder, TEXTS, rows=8, tokens=48)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "least", "most"),
    [
        ("w4a16", 4.2, 5),
        ("fp8_dynamic", 8, 8.5),
        ("nf4", 4.1, 7),
    ],
)  # NF4 has 1.3 kB of tables a layer, which weigh on layers as small as these
def test_a_format_is_written_proven_with_its_parent_s_company_and_answers_almost_like_it(
    merged: Path, tmp_path: Path, format: str, least: float, most: float
) -> None:
    from workbench.compress.merge_adapter import agreement, folder_logprobs
    from workbench.engines import transformers_engine

    facts = written(merged, tmp_path, format)
    assert least <= facts["bits_per_weight"] <= most
    assert facts.get("group_size") == (64 if format == "w4a16" else None)
    assert all((tmp_path / name).read_bytes() == (merged / name).read_bytes() for name in COMPANY)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*COMPANY, "config.json", "model.safetensors"])
    apart = agreement(folder_logprobs(merged, [ROW], device="cpu"), folder_logprobs(tmp_path, [ROW], device="cpu"))
    assert 0 < apart["kl"] < 0.02
    assert apart["flip_rate"] == pytest.approx(1 - apart["top_token_agreement"])
    with transformers_engine(tmp_path, device="cpu") as ask:
        assert len(list(ask([[Message("user", "permission")]] * 2, 4))) == 2
    for other in {"w8a8", "w4a16", "awq", "fp8_dynamic", "nf4", "bf16"} - {format}:
        with pytest.raises(WorkbenchError, match=r"quantization_config|says quantized"):
            really_quantized(tmp_path, other)


def test_the_group_is_the_largest_that_divides_every_width() -> None:
    assert group_size([576, 1536]) == 64
    assert group_size([4096, 11008]) == 128
    assert group_size([96, 64]) == 32
    assert group_size([64, 80]) is None


def test_a_16_bit_folder_is_proven_and_refused_as_anything_else(merged: Path) -> None:
    facts = really_quantized(merged, "bf16")
    assert facts["bits_per_weight"] == 16
    assert list(facts["dtypes"]) == ["BF16"]
    with pytest.raises(WorkbenchError, match="linear layers are stored as BF16, not F16"):
        really_quantized(merged, "float16")
    with pytest.raises(WorkbenchError, match="no quantization_config"):
        really_quantized(merged, "w8a8")


W8A8 = {
    "quant_method": "compressed-tensors",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 8, "type": "int", "symmetric": True}, "input_activations": {"num_bits": 8},
        }
    },
}  # fmt: skip


def planted(folder: Path, tensors: dict[str, Any], config: dict[str, Any] | None) -> Path:
    """A folder with these tensors and this quantization_config, and an embedding in 16 bits."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(8, 64).bfloat16()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    return folder


def layer(name: str, dtype: str, rows: int = 8, columns: int = 64) -> dict[str, Any]:
    """A linear layer's weights and scales."""
    import torch

    weight = torch.zeros(rows, columns, dtype=getattr(torch, dtype))
    return {f"{name}.weight": weight, f"{name}.weight_scale": torch.zeros(rows, 1).bfloat16()}


def test_eight_bit_layers_are_counted_with_their_scales(tmp_path: Path) -> None:
    facts = really_quantized(planted(tmp_path, layer("a.q_proj", "int8"), W8A8), "w8a8")
    assert facts["bits_per_weight"] == 8 + 16 / 64


def test_a_quantized_folder_with_a_layer_that_is_still_16_bit_is_caught(tmp_path: Path) -> None:
    import torch

    tensors = layer("a.q_proj", "int8") | {"a.down_proj.weight": torch.zeros(8, 64).bfloat16()}
    with pytest.raises(WorkbenchError, match=r"not quantized: the linear layer a\.down_proj is still BF16"):
        really_quantized(planted(tmp_path, tensors, W8A8), "w8a8")
    with pytest.raises(WorkbenchError, match="quantized tensors in a folder that should have none"):
        really_quantized(planted(tmp_path, tensors, None), "bf16")


def test_a_config_that_promises_what_the_weights_are_not_is_caught(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="stored as F8_E4M3"):
        really_quantized(planted(tmp_path, layer("a.q_proj", "float8_e4m3fn"), W8A8), "w8a8")
    with pytest.raises(WorkbenchError, match="stored as I8 with"):
        really_quantized(planted(tmp_path, {"a.q_proj.weight": layer("a", "int8")["a.weight"]}, W8A8), "w8a8")
    with pytest.raises(WorkbenchError, match="bitsandbytes's"):
        really_quantized(planted(tmp_path, layer("a", "int8"), W8A8 | {"quant_method": "bitsandbytes"}), "w8a8")
    with pytest.raises(WorkbenchError, match=r"\(8, 'int', True, 8\), wanted is \(4, 'int', True, None\)"):
        really_quantized(planted(tmp_path, layer("a", "int8"), W8A8), "w4a16")


def test_packed_weights_of_another_width_than_the_config_says_are_caught(tmp_path: Path) -> None:
    import torch

    config = json.loads(json.dumps(W8A8))
    config["config_groups"]["group_0"] = {"weights": {"num_bits": 4, "type": "int", "symmetric": True}}

    def packed(columns: int) -> dict[str, Any]:
        return {
            "a.q_proj.weight_packed": torch.zeros(8, columns, dtype=torch.int32),
            "a.q_proj.weight_scale": torch.zeros(8, 2).bfloat16(),
            "a.q_proj.weight_shape": torch.tensor([8, 64]),
        }

    facts = really_quantized(planted(tmp_path, packed(8), config), "w4a16")
    assert facts["bits_per_weight"] == 4 + (16 * 16 + 128) / 512
    with pytest.raises(WorkbenchError, match=r"takes 8\.0 bits a weight, wanted are 4"):
        really_quantized(planted(tmp_path, packed(16), config), "w4a16")


def test_nf4_that_is_no_nf4_is_caught(tmp_path: Path) -> None:
    import torch

    config = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }  # fmt: skip
    with pytest.raises(WorkbenchError, match="still BF16"):
        really_quantized(planted(tmp_path, {"a.q_proj.weight": torch.zeros(8, 64).bfloat16()}, config), "nf4")
    with pytest.raises(WorkbenchError, match="not as NF4"):
        really_quantized(planted(tmp_path, layer("a.q_proj", "uint8"), config), "nf4")
    with pytest.raises(WorkbenchError, match="'fp4'"):
        really_quantized(planted(tmp_path, layer("a", "uint8"), config | {"bnb_4bit_quant_type": "fp4"}), "nf4")


def test_a_folder_without_weights_or_with_broken_ones_is_caught(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"no config\.json"):
        really_quantized(tmp_path, "w8a8")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WorkbenchError, match="no safetensors"):
        really_quantized(tmp_path, "bf16")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header....")
    with pytest.raises(WorkbenchError, match="no safetensors header"):
        really_quantized(tmp_path, "bf16")
    with pytest.raises(WorkbenchError, match=r"0 \.gguf files"):
        really_quantized(tmp_path, "gguf_q8_0")


def gguf_of(folder: Path, kinds: dict[str, str]) -> Path:
    """A folder with a GGUF file whose tensors [2 rows of 256] have these types."""
    import gguf
    import numpy as np

    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, kind in kinds.items():
        of = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[of]
        writer.add_tensor(name, np.zeros((2, 256 // block * size), np.uint8), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.mark.parametrize(
    ("format", "kind", "bits"),
    [
        ("gguf_q8_0", "Q8_0", 8.5),
        ("gguf_q6_k", "Q6_K", 6.5625),
        ("gguf_q4_k_m", "Q4_K", 4.5),
        ("gguf_q5_k_m", "Q5_K", 5.5),
        ("gguf_f16", "F16", 16),
    ],
)
def test_a_gguf_file_is_proven_by_the_types_of_its_linear_layers(
    tmp_path: Path, format: str, kind: str, bits: float
) -> None:
    one, two = "blk.0.attn_q.weight", "blk.0.ffn_up.weight"
    folder = gguf_of(tmp_path / "good", {"token_embd.weight": "F16", one: kind, two: kind})
    facts = really_quantized(folder, format)
    assert facts["bits_per_weight"] == pytest.approx(bits, abs=0.001)
    assert facts["fallback"] == []
    other = "Q8_0" if format in ("gguf_f16", "gguf_q6_k") else "Q6_K"
    with pytest.raises(WorkbenchError, match=f"no {kind} tensor"):
        really_quantized(gguf_of(tmp_path / "other", {"token_embd.weight": kind, one: other}), format)
    if format != "gguf_f16":
        with pytest.raises(WorkbenchError, match="not quantized: linear layers are still wide"):
            really_quantized(gguf_of(tmp_path / "wide", {one: kind, two: "BF16"}), format)
    mixed = gguf_of(tmp_path / "mixed", {one: kind, two: other})
    if "_k" in format:
        assert really_quantized(mixed, format)["fallback"] == [other]
    else:
        with pytest.raises(WorkbenchError, match=f"{other} beside {kind}|still wide"):
            really_quantized(mixed, format)
