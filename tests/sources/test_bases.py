"""A base that cannot be tuned is refused by `plan`, with the key, what it is, and the way out; a sound one is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from workbench.__main__ import main
from workbench.errors import RequestError
from workbench.sources.bases import causal_classes, quantized_by_name, refuse_untrainable

WORDS = {"<|im_start|>": 0, "<|im_end|>": 1, "user": 2, "assistant": 3, "Where": 4, "billing": 5, "is": 6, "\n": 7}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8,
         "num_hidden_layers": 1, "vocab_size": 8}  # fmt: skip
RECIPE = """
defaults: [workbench, {method: lora}, {evaluate: exact_match}, _self_]
model: {name: tiny, source: "dir:base", licence: Apache-2.0}
data: {train: "file:rows.jsonl", columns: {prompt: text, answer: label}, licence: CC0-1.0}
method: {max_steps: 1, evaluations: 1, validation_rows: 4}
"""
Plan = Callable[..., tuple[int, str]]


def write_tokenizer(folder: Path, added: dict[str, bool] | None = None, **settings: Any) -> None:
    """A tokenizer of eight words; `added` are tokens after those, and whether each is special."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="is"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    spec = json.loads(tokenizer.to_str())
    entries = [(0, "<|im_start|>", True), (1, "<|im_end|>", True)]
    entries += [(len(WORDS) + n, token, special) for n, (token, special) in enumerate((added or {}).items())]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [{"id": n, "content": t, "special": special, **flags} for n, t, special in entries]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))


def write_base(folder: Path, **config: Any) -> Path:
    """A whole model's folder, as far as it can be known without loading it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    write_tokenizer(folder)
    save_file(tensors(), folder / "model.safetensors")
    return folder


def refusal(base: Path) -> str:
    """What `plan`, `label` and `train` would say of the base; the door's own way to it has tests of its own below."""
    with pytest.raises(RequestError) as caught:
        refuse_untrainable(base, "model.source=dir:base")
    assert caught.value.where == "model.source=dir:base"
    return f"{caught.value.what} → {caught.value.remedy}"


def tensors() -> dict[str, np.ndarray]:
    layer = "model.layers.0.mlp.up_proj.weight"
    return {"model.embed_tokens.weight": np.zeros((8, 4), np.float16), layer: np.zeros((8, 4), np.float16)}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """`plan` in a folder with a recipe and rows: its exit code, and all that it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    rows = [{"text": f"Where is order {n}", "label": "billing"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words: str) -> tuple[int, str]:
        code = main(["plan", "recipe=./mine.yaml", *words])
        shown = capsys.readouterr()
        return code, " ".join((shown.out + shown.err).split())

    return run


QUANTIZED = {
    "8 bits in blocks": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "GPTQ": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "AWQ": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
    "an older key": {"compression_config": {"format": "int-quantized"}},
    "MLX": {"quantization": {"group_size": 64, "bits": 4}},
    "within the text part": {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
}


@pytest.mark.parametrize("config", QUANTIZED.values(), ids=QUANTIZED)
def test_a_quantized_copy_is_refused_by_how_it_was_quantized(config: dict[str, Any], tmp_path: Path) -> None:
    words = refusal(write_base(tmp_path / "base", **config))
    key, note = next(iter(config.get("text_config", config).items()))
    method = note.get("quant_method") or note.get("format") or key
    assert f"config.json has a {key} ({method}" in words
    assert "16-bit repository" in words
    assert "method=qlora" in words


def test_plan_refuses_a_quantized_copy_with_exit_2_naming_the_key(plan: Plan, tmp_path: Path) -> None:
    write_base(tmp_path / "base", quantization_config={"quant_method": "fp8"})
    code, shown = plan()
    assert code == 2
    assert "error: model.source=dir:base: config.json has a quantization_config (fp8)" in shown


@pytest.mark.parametrize("name", ["q_proj.qweight", "q_proj.weight", "experts.down_proj_blocks"])
def test_packed_weights_are_known_by_their_types_where_the_config_says_nothing(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    save_file(tensors() | {f"model.layers.0.{name}": np.zeros((8, 4), np.uint8)}, base / "model.safetensors")
    (base / "quantize_config.json").write_text('{"bits": 4}')
    assert "stored as U8, and quantize_config.json lies beside them" in refusal(base)


def test_whole_numbers_in_a_buffer_are_no_quantized_weights(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    mask = {"transformer.h.0.attn.bias": np.ones((4, 4), np.uint8), "model.position_ids": np.arange(4)}
    save_file(tensors() | mask, base / "model.safetensors")
    refuse_untrainable(base, "it is sound")


def test_plan_refuses_a_word_of_the_tokenizer_beyond_the_embedding_and_names_it(plan: Plan, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_tokenizer(base, {"<dept>": False})
    code, shown = plan()
    assert code == 2
    assert "model.source=dir:base: the tokenizer has 9 tokens, the embedding 8 rows" in shown
    assert "<dept>" in shown
    assert "resize_token_embeddings(9)" in shown


@pytest.mark.parametrize("role", ["pad_token", "bos_token"])
def test_a_sign_beyond_the_embedding_that_the_tokenizer_itself_writes_is_refused(role: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_tokenizer(base, {"[PAD]": True}, **{role: "[PAD]"})
    assert "[PAD]" in refusal(base)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sign_beyond_the_embedding_is_refused_where_a_row_holds_it_and_only_then(
    split: str, plan: Plan, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    write_tokenizer(base, {"<image>": True})
    code, shown = plan()
    assert code == 0
    assert "no row of the embedding for <image>" in shown
    rows = tmp_path / "more.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Where is <image> {n}", "label": "is"}) + "\n" for n in range(12)))
    code, shown = plan("data.train=file:more.jsonl" if split == "train" else "data.test=file:more.jsonl")
    assert code == 2
    assert "more.jsonl" in shown
    assert "<image>" in shown


def test_an_embedding_with_more_rows_than_tokens_is_sound(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    padded = {"model.embed_tokens.weight": np.zeros((64, 4), np.float16)}
    save_file(tensors() | padded, base / "model.safetensors")
    write_tokenizer(base, {"<dept>": False})
    refuse_untrainable(base, "it is sound")


def test_what_a_trainer_left_beside_the_weights_stays_unread_and_is_named(plan: Plan, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "checkpoint-5/optimizer.pt"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"\x80\x04 this is never unpickled")
    code, shown = plan()
    assert code == 0
    assert "training_args.bin: the safetensors are taken" in shown
    assert "checkpoint-5/optimizer.pt" in shown
    (base / "pytorch_model.bin").write_bytes(b"x")
    code, shown = plan()
    assert code == 2
    assert "delete or move pytorch_model.bin" in shown


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
    "encoder by its type": ({"model_type": "roberta", "architectures": ["RobertaForCausalLM"]}, "is an encoder"),
    "encoder and decoder": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "an encoder with a decoder",
    ),
    "images alone": ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "writes no text (vit)"),
    "images and text": (
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {"x": 1}},
        "has a part for vision",
    ),
    "classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    "embedder": ({"architectures": ["LlamaModel"]}, "LlamaModel writes no text"),
    "unknown here": ({"model_type": "llama99", "architectures": ["Llama99ForCausalLM"]}, "no language model of type"),
}


@pytest.mark.parametrize(("config", "words"), OTHERS.values(), ids=OTHERS)
def test_a_model_that_is_no_decoder_of_text_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused = refusal(write_base(tmp_path / "base", **config))
    assert words in refused
    assert "→ name" in refused


def test_which_types_are_language_models_is_read_from_transformers_without_importing_it() -> None:
    assert causal_classes()["llama"] == "LlamaForCausalLM"
    assert causal_classes()["qwen3"] == "Qwen3ForCausalLM"
    assert "vit" not in causal_classes()


def shard(base: Path) -> None:
    """The same weights in two files with their index."""
    (base / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, (tensor, value) in zip(names, tensors().items(), strict=True):
        save_file({tensor: value}, base / name)
    index = {"weight_map": dict(zip(tensors(), names, strict=True))}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_missing_shard_is_named_with_and_without_an_index(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    shard(base)
    refuse_untrainable(base, "it is whole")
    (base / "model-00002-of-00002.safetensors").unlink()
    for _ in ("by the index", "by the names"):
        assert "1 of 2 shards missing: model-00002-of-00002.safetensors" in refusal(base)
        (base / "model.safetensors.index.json").unlink(missing_ok=True)


def test_weights_that_are_cut_short_or_only_a_pointer_are_named(tmp_path: Path) -> None:
    weights = write_base(tmp_path / "base") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    assert f"cut short: {len(whole) - 5} of {len(whole)} bytes" in refusal(weights.parent)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    assert "git lfs pull" in refusal(weights.parent)
    weights.write_bytes(b"\x10")
    assert "is no safetensors file" in refusal(weights.parent)


def test_a_folder_that_holds_something_else_says_what_and_the_way_out(plan: Plan, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "org/seven"}')
    (base / "adapter_model.safetensors").write_bytes(b"")
    code, shown = plan()
    assert code == 2
    assert "model.source=dir:base: this is an adapter of org/seven, not a model → name the base, org/seven" in shown
    for path in base.iterdir():
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"")
    assert "its weights are pickled (pytorch_model.bin)" in plan()[1]
    write_base(base / "checkpoint-20")
    assert "no model lies here itself, but in checkpoint-20 → name one: base/checkpoint-20" in plan()[1]


def test_weights_without_a_tokenizer_or_a_model_type_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "tokenizer.json").unlink()
    assert "no tokenizer lies beside the weights" in refusal(base)
    (base / "config.json").write_text("{}")
    assert "config.json has no model_type" in refusal(base)


def test_float16_is_refused_by_plan_already(plan: Plan, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    code, shown = plan("model.dtype=float16")
    assert (code, "model.dtype" in shown) == (2, True)


def test_the_look_at_a_base_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    import subprocess

    base = write_base(tmp_path / "base")
    code = (
        "import sys; from pathlib import Path; from workbench.sources import refuse_untrainable; "
        f"refuse_untrainable(Path({str(base)!r}), 'x'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("source", "doubted"),
    [
        ("hf:org/Seven-8B-FP8", True),
        ("hf:org/Seven-1B-Instruct-bnb-4bit", True),
        ("hf:org/seven-AWQ@main", True),
        ("hf:org/Seven-GPTQ-Int4", True),
        ("hf:org/Seven-8B-w4a16", True),
        ("hf:org/Seven-8B-Instruct", False),
        ("hf:awq/Seven-4B-it", False),
        ("hf:org/phi-4-mini", False),
    ],
)
def test_a_repository_that_is_not_here_is_doubted_by_its_name_alone(source: str, doubted: bool) -> None:
    assert bool(quantized_by_name(source)) == doubted


def test_weights_that_the_folder_lacks_are_refused_before_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_torch

    from workbench.recipe import Method
    from workbench.training.model import load_model

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_torch(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.up_proj\.weight are not in its safetensors"):
        load_model(base, Method(), dtype="bfloat16", device="cpu", longest=32, seed=0)
