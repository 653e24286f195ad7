"""Memory: what tensors free is kept for the next ones, and given back when asked, or when a model is let go of."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from workbench.engines.device import keep_at_most, keep_freed_memory, release_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
kept = []
for size in range(1, 60):  # holes of many sizes between tensors that stay
    hole = torch.ones(size, 2**18)
    kept.append(torch.ones(1000))
    del hole
print(before, resident(), end=" ")
keep_at_most(10 * 2**30)
print(resident(), end=" ")
{release}
print(resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
@pytest.mark.parametrize("release", ["release_freed_memory()", "keep_at_most(2**20)"])
def test_freed_memory_is_kept_until_it_is_released_or_more_than_may_be_kept(release: str) -> None:
    program = PROGRAM.replace("{release}", release)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, kept, still, released = map(float, done.stdout.split())
    assert kept - before > 50, "no page went back by itself"
    assert still - before > 50, "less than may be kept stays"
    assert released - before < 0.2 * (kept - before), "all of it went back when asked, holes too"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for torch's calls to a card: each `empty_cache` notes how many layers are alive by then."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    noted: list[int] = []

    def empty_cache() -> None:
        noted.append(sum(isinstance(one, LlamaDecoderLayer) for one in gc.get_objects()))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    return noted


@pytest.mark.slow
def test_each_use_of_a_model_hands_the_card_s_memory_back_once_the_model_is_gone(
    tiny_model: Path, card: list[int]
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from workbench.compress.merge_adapter import folder_logprobs
    from workbench.engines import transformers_engine
    from workbench.records import Message, TokenRow

    gc.collect()
    others = sum(isinstance(one, LlamaDecoderLayer) for one in gc.get_objects())
    with transformers_engine(tiny_model, device="cpu") as ask:
        list(ask([[Message("user", "free of charge")]], 2))
        assert not card, "while it is asked, what torch keeps is its own"
    assert card == [others], "the function that asks is still here, the model is not"
    seen = folder_logprobs(tiny_model, [TokenRow("a", (5, 6, 7, 2), (False, False, True, True))], device="cpu")
    assert card == [others, others]
    assert seen[0].shape[0] == 2, "what the model saw is asked for when it is gone"


def test_what_torch_keeps_of_freed_tensors_on_the_card_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from workbench.training.model import available_memory

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
    assert available_memory("cuda") == 55


def test_four_bit_weights_are_asked_on_the_device_that_they_were_loaded_to(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    from workbench.engines.transformers import load

    folder = shutil.copytree(tiny_model, tmp_path / "nf4")
    config = json.loads((folder / "config.json").read_text())
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": four_bits}))
    plain, met = transformers.AutoModelForCausalLM.from_pretrained, []

    def from_pretrained(_: Path, *, device_map: dict[str, str], **settings: object) -> torch.nn.Module:
        """Stands in for bitsandbytes with a card, which is a device without numbers here."""
        model = plain(tiny_model, **settings).to(device_map[""])
        model.config.quantization_config = four_bits
        model.register_forward_pre_hook(
            lambda _, args, given: met.append(given["input_ids"].device.type), with_kwargs=True
        )
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model, _ = load(folder, None, torch.device("meta"))
    assert met == ["meta"], "ids are where the weights are"
    assert model.device.type == "meta"
