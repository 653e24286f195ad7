"""A model that reads images or sound too is tuned as the text model that is a part of it: exactly that, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.sources import model_folder, model_is_here, refuse_untrainable

TEXT = {
    "gemma4": {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "pad_token_id": 0,
    },
    "mistral3": {
        "model_type": "mistral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    },
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}


def whole(kind: str, folder: Path) -> Any:
    """A tiny model of a family with a tower for images, saved in two shards as the hub's are."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    eyes = EYES | ({"num_key_value_heads": 2} if kind == "gemma4" else {"image_size": 28, "patch_size": 14})
    config = AutoConfig.for_model(
        kind, text_config=TEXT[kind], vision_config=eyes, tie_word_embeddings=kind == "gemma4"
    )
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder, max_shard_size="30KB")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (folder / "preprocessor_config.json").write_text("{}")
    return model


@pytest.mark.parametrize("kind", TEXT)
def test_the_text_part_answers_as_the_whole_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    model = whole(kind, tmp_path / "base")
    source = f"dir:{tmp_path / 'base'}"
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    assert not model_is_here(source), "it has yet to be taken out"
    folder = model_folder(source)
    assert model_is_here(source)
    refuse_untrainable(folder, source)
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "preprocessor_config.json").exists()
    made = folder.stat().st_mtime_ns
    assert model_folder(source) == folder
    assert folder.stat().st_mtime_ns == made, "once for each content"

    text, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    words = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        seen = model(input_ids=words, mm_token_type_ids=torch.zeros_like(words)) if kind == "gemma4" else model(words)
        assert torch.equal(text(words).logits, seen.logits)
    fewer = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in text.parameters())
    assert fewer > 0, "the towers stay behind"


def test_a_part_that_was_cut_short_is_refused_before_anything_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    whole("mistral3", tmp_path / "base")
    shard = sorted((tmp_path / "base").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(Exception, match="cut short"):
        model_folder(f"dir:{tmp_path / 'base'}")
    assert not list((tmp_path / "cache" / "text").glob("base-*[0-9]"))
