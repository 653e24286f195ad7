"""Merge, preflight and what a written format must show of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from workbench.compress.gguf import joined
from workbench.compress.preflight import converter_facts, known_tokenizer, preflight
from workbench.errors import WorkbenchError
from workbench.formats import format_named
from workbench.records import TokenRow


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


ROW = TokenRow("a", (5, 6, 7, 8, 9, 2), (False, False, False, True, True, True))


def adapter(base: Path, folder: Path, scale: float) -> Path:
    """A LoRA adapter on every linear layer, its B matrices random of size `scale`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    return folder


def test_a_merged_model_agrees_with_its_adapter_and_carries_tokenizer_template_and_stop_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    from workbench.compress.merge_adapter import merge

    made = adapter(tiny_model, tmp_path / "adapter", 0.05)
    facts = merge(
        tiny_model, made, tmp_path / "model", tokenizer=tokenizer_of(tiny_model), probe=[ROW], dtype="bfloat16"
    )
    assert facts["kl"] < 0.01
    assert facts["positions"] == 3
    assert "merges" not in facts
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert not list((tmp_path / "model").glob("adapter*"))


def test_two_models_are_compared_without_ever_holding_a_vocabulary_for_every_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from workbench.compress import merge_adapter as module

    words, positions = 5000, 700
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=words, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, tie_word_embeddings=True,
    )  # fmt: skip
    first, second = (Gemma2ForCausalLM(config).eval() for _ in range(2))
    ids = torch.randint(words, (positions + 1,))
    row = TokenRow("a", tuple(ids.tolist()), (False, *[True] * positions))
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1) for m in (first, second))
    most, softmax = [], module.functional.log_softmax

    def watched(logits: torch.Tensor, dim: int) -> torch.Tensor:
        most.append(len(logits))
        return softmax(logits, dim=dim)

    monkeypatch.setattr(module.functional, "log_softmax", watched)
    seen = [module.probed(model, [row]) for model in (first, second)]
    del first, second
    assert all(one.hidden[0].shape == (positions, 32) for one in seen), "kept are hidden states, no vocabulary"
    told = module.agreement(*seen)
    assert torch.is_grad_enabled(), "who compares can train afterwards"
    assert max(most) <= module.ROWS_AT_ONCE < positions
    assert told["kl"] == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-5)
    assert told["top_token_agreement"] == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    assert torch.allclose(seen[0][0], ours, atol=1e-5), "through the head that caps its logits"


def test_a_merge_is_made_on_the_card_where_its_memory_holds_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.compress import merge_adapter as module

    size = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    monkeypatch.setattr(module, "device_of", lambda wanted: "cuda" if wanted == "auto" else wanted)
    for free, place in ((10 * size, "cuda"), (2 * size, "cpu")):
        monkeypatch.setattr(module, "free_on_card", lambda free=free: free)
        assert module.merged_on(tiny_model, "auto") == place
    assert module.merged_on(tiny_model, "cpu") == "cpu"


def test_a_trained_stop_token_that_is_not_eos_is_pinned_for_engines(tiny_model: Path, tmp_path: Path) -> None:
    from workbench.compress.merge_adapter import merge

    made = adapter(tiny_model, tmp_path / "adapter", 0.05)
    row = TokenRow("a", (5, 6, 7, 8, 0), (False, False, False, True, True))
    merge(tiny_model, made, tmp_path / "model", tokenizer=tokenizer_of(tiny_model), probe=[row], dtype="bfloat16")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_merge_that_went_wrong_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.compress import merge_adapter as module

    def wrong(model, dtype):
        """Merged, but the head's weights are far too large."""
        merged = model.float().merge_and_unload()
        merged.get_output_embeddings().weight.data *= 50
        return merged.to(dtype)

    monkeypatch.setattr(module, "merged_in_fp32", wrong)
    made = adapter(tiny_model, tmp_path / "adapter", 0.5)
    with pytest.raises(WorkbenchError, match="differs from its adapter"):
        module.merge(
            tiny_model, made, tmp_path / "model", tokenizer=tokenizer_of(tiny_model), probe=[ROW], dtype="bfloat16"
        )


def test_an_adapter_merged_twice_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    from workbench.compress import merge_adapter as module

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_output_embeddings().weight.data *= 20  # a random head is so flat that no merge could show in it
    model.save_pretrained(base)
    made = adapter(base, tmp_path / "adapter", 0.2)
    given = {"tokenizer": tokenizer_of(tiny_model), "probe": [ROW], "dtype": "bfloat16"}
    assert module.merge(base, made, tmp_path / "once", **given)["kl"] < module.MOST_KL / 3
    once = module.merged_in_fp32
    monkeypatch.setattr(module, "merged_in_fp32", lambda m, d: once(module.adapted(once(m, d), made), d))
    with pytest.raises(WorkbenchError, match=r"differs from its adapter.*\n.*not been merged into it before"):
        module.merge(base, made, tmp_path / "twice", **given)
    assert not (tmp_path / "twice").exists()


def test_a_qlora_is_merged_into_both_bases_and_the_closer_one_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from workbench.compress.merge_adapter import merge

    made = adapter(tiny_model, tmp_path / "adapter", 0.05)
    facts = merge(
        tiny_model, made, tmp_path / "model", tokenizer=tokenizer_of(tiny_model), probe=[ROW], dtype="bfloat16",
        kind="qlora",
    )  # fmt: skip
    assert facts["kept"] == "dequantized_base"
    assert facts["kl"] == facts["merges"]["dequantized_base"] < facts["merges"]["original_base"]
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    weight = "model.layers.0.self_attn.q_proj.weight"
    kept, base = (
        AutoModelForCausalLM.from_pretrained(p).state_dict()[weight] for p in (tmp_path / "model", tiny_model)
    )
    assert len(kept.unique()) > 16
    assert 0 < (kept - base).abs().mean() < 0.02


SHAPE = {"hidden_size": 576, "intermediate_size": 1536}


def test_shapes_that_k_quants_cannot_divide_are_said_and_allowed() -> None:
    (verdict,) = preflight(SHAPE, None, ["gguf_q4_k_m"])
    assert verdict.ok
    assert "576" in verdict.why
    assert "q8_0" in verdict.why


def test_four_bit_weights_take_the_largest_group_that_divides_else_a_whole_row() -> None:
    (verdict,) = preflight(SHAPE, None, ["w4a16"])
    assert (verdict.ok, verdict.why) == (True, "groups of 64, the largest of 128, 64, 32 to divide 576, 1536")
    (verdict,) = preflight({"hidden_size": 560, "intermediate_size": 1536}, None, ["w4a16"])
    assert verdict.ok
    assert "one scale a channel" in verdict.why
    heads = {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 5, "head_dim": 96}
    (verdict,) = preflight(heads, None, ["w4a16"])
    assert verdict.why.startswith("groups of 32"), "the output projection's width is heads × head_dim"


def test_awq_without_a_gpu_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.compress.preflight.cuda_is_here", lambda: False)
    (verdict,) = preflight(SHAPE, None, ["awq"])
    assert not verdict.ok
    assert "CUDA" in verdict.why
    assert "w4a16" in verdict.remedy
    monkeypatch.setattr("workbench.compress.preflight.cuda_is_here", lambda: True)
    (verdict,) = preflight(SHAPE, None, ["awq"])
    assert verdict.ok


def test_a_hidden_gpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.compress.preflight import cuda_is_here

    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_is_here()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_is_here()


def test_formats_without_blocks_take_what_their_kernels_read_at_once() -> None:
    odd = {"hidden_size": 560, "intermediate_size": 1544}
    assert [v.ok for v in preflight(odd, None, ["gguf_f16", "nf4", "fp8_dynamic"])] == [True, False, False]
    fine = {"hidden_size": 560, "intermediate_size": 1536}
    verdicts = preflight(fine, None, ["gguf_f16", "fp8_dynamic", "nf4"])
    assert [v.ok for v in verdicts] == [True, True, False]
    assert "560 is no multiple of 64" in verdicts[2].why


def test_k_quants_that_would_have_no_row_of_their_own_type_are_refused() -> None:
    (verdict,) = preflight({"hidden_size": 576, "intermediate_size": 1504}, None, ["gguf_q5_k_m"])
    assert not verdict.ok
    assert "gguf_q8_0" in verdict.remedy


@pytest.mark.parametrize("name", ["gguf_q8_0", "gguf_q4_k_m", "w8a8", "w4a16", "fp8_dynamic"])
def test_shapes_that_no_block_divides_are_refused_with_a_way_out(name: str) -> None:
    (verdict,) = preflight({"hidden_size": 570, "intermediate_size": 1536}, None, [name])
    assert not verdict.ok
    assert "570" in verdict.why
    assert name in verdict.remedy


def test_a_tokenizer_the_gguf_converter_does_not_know_is_refused(tiny_model: Path) -> None:
    text, known = converter_facts()
    assert len(known) > 50, "the converter's list was found"
    assert len(text) > 300
    assert not known_tokenizer(tiny_model / "tokenizer.json")
    (verdict,) = preflight(SHAPE, tiny_model / "tokenizer.json", ["gguf_q8_0"])
    assert not verdict.ok
    assert "tokenizer" in verdict.why


def test_calibration_samples_are_long_enough_and_hold_every_row() -> None:
    texts = [f"row {n} " * 10 for n in range(40)]
    samples = joined(texts, 64)
    assert all(len(sample) > 384 for sample in samples)
    assert len(samples) > 2


TEXTS = [
    f"<|im_start|>user\nNotice {n}: licensed under the Apache License, Version 2.0.<|im_end|>\n" for n in range(96)
]


@pytest.mark.slow
def test_a_real_model_s_tokenizer_is_known_to_the_converter(small_model: Path) -> None:
    assert known_tokenizer(small_model / "tokenizer.json")


@pytest.mark.slow
def test_eight_bit_tensors_are_int8_smaller_and_answer(small_model: Path, tmp_path: Path) -> None:
    from workbench.compress.preflight import write_format
    from workbench.engines import transformers_engine
    from workbench.records import Message

    facts = write_format("w8a8", small_model, tmp_path, TEXTS, rows=16, tokens=64)
    assert 8 < facts["bits_per_weight"] < 8.1
    assert facts["dtypes"]["I8"] > 1e8
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert size < 0.75 * (small_model / "model.safetensors").stat().st_size
    with transformers_engine(tmp_path) as ask:
        ((_, answer),) = ask([(Message("user", "What is the capital of France?"),)], 24)
    assert answer.text.strip()


@pytest.mark.slow
def test_a_gguf_file_has_its_types_template_and_stop_token_and_llama_cpp_gives_the_same_token_count(
    small_model: Path, tmp_path: Path
) -> None:
    from workbench.compress.gguf import inspect
    from workbench.compress.preflight import write_format
    from workbench.engines import llamacpp_engine, transformers_engine
    from workbench.records import Message

    facts = write_format("gguf_q8_0", small_model, tmp_path, TEXTS, rows=96, tokens=64)
    assert facts["bits_per_weight"] == 8.5
    assert [p.name for p in tmp_path.iterdir()] == [facts["file"]]
    prompts = [(Message("user", text),) for text in ("What is the capital of France?", "v 2.0\n 5 x² ½", "利用 ☃")]
    with llamacpp_engine(tmp_path / facts["file"], parallel=2) as ask:
        served = dict(ask(prompts, 24))
    with transformers_engine(small_model) as ask:
        plain = dict(ask(prompts, 24))
    assert all(served[i].text.strip() for i in range(3))
    assert [served[i].tokens_in for i in range(3)] == [plain[i].tokens_in for i in range(3)]

    other = tmp_path / "other"
    shutil.copytree(small_model, other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(WorkbenchError, match="chat template"):
        inspect(tmp_path / facts["file"], other, format_named("gguf_q8_0"))
    with pytest.raises(WorkbenchError, match="no Q4_K tensor"):
        inspect(tmp_path / facts["file"], small_model, format_named("gguf_q4_k_m"))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        pytest.param("gguf_f16", 16, 16, marks=pytest.mark.slow),
        pytest.param("gguf_q6_k", 6.5, 8.5, marks=pytest.mark.proof),  # minutes of rounding each
        pytest.param("gguf_q5_k_m", 5.5, 7, marks=pytest.mark.proof),
    ],
)
def test_other_gguf_types_load_and_answer(
    small_model: Path, tmp_path: Path, name: str, least: float, most: float
) -> None:
    from workbench.compress.preflight import write_format
    from workbench.engines import llamacpp_engine
    from workbench.records import Message

    facts = write_format(name, small_model, tmp_path, TEXTS, rows=96, tokens=64)
    assert least <= facts["bits_per_weight"] <= most
    with llamacpp_engine(tmp_path / facts["file"], parallel=1) as ask:
        ((_, answer),) = ask([(Message("user", "What is the capital of France?"),)], 24)
    assert "Paris" in answer.text
