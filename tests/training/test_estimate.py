"""What training takes is counted as autograd keeps it, forecast from what was measured, and told in `plan`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import go

from workbench.__main__ import main
from workbench.recipe import Method, Model
from workbench.training import checkpoints, loop
from workbench.training.forecast import Estimate, forecast, on_line
from workbench.training.memory import (
    Shape,
    checkpoint_bytes,
    estimate_memory,
    footprint,
    kept_of_layer,
    shape_named,
    training_bytes,
)
from workbench.training.model import with_adapter
from workbench.views import foreseen

LLAMA = Shape(8_030_261_248, 32, 4096, 14_336, 128_256, 4096, 1024, 32, 8, tied=False)
QWEN = Shape(8_190_735_360, 36, 4096, 12_288, 151_936, 4096, 1024, 32, 8, tied=False, head_norms=True)
LLAMA_KEYS = Model(parameters=8_030_261_248, layers=32, hidden_size=4096, intermediate_size=14_336, vocabulary=128_256)


def test_a_layer_of_eight_billion_keeps_what_was_measured_of_it() -> None:
    assert kept_of_layer(LLAMA, Method(rank=16), 2) == 184_680
    assert kept_of_layer(QWEN, Method(rank=16), 2) == 188_936


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_what_autograd_keeps_of_a_layer_is_what_is_counted(family: str, kind: str, attention: str) -> None:
    import transformers

    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8, "num_key_value_heads": 2}
    settings = Method(kind=kind, rank=4)

    def kept(layers: int, tokens: int) -> int:
        config = getattr(transformers, f"{family}Config")(
            **sizes, num_hidden_layers=layers, vocab_size=64, head_dim=16, attn_implementation=attention
        )
        model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16)
        model.config.use_cache = False
        if kind == "lora":
            model = with_adapter(model, settings)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if (storage := tensor.untyped_storage()).data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        return sum(storage.nbytes() for storage in storages.values())

    shape = Shape(0, 1, 128, 320, 64, 128, 32, 8, 2, head_norms=family == "Qwen3")
    for tokens in (32, 128):
        counted = tokens * kept_of_layer(shape, settings, 2, tokens if attention == "eager" else 0)
        assert kept(3, tokens) - kept(2, tokens) == pytest.approx(counted, rel=0.1)


def test_a_card_widens_no_head_and_a_cpu_does() -> None:
    here, card = (footprint(LLAMA, Method(), "bfloat16", 1, 512, False, device=d) for d in ("cpu", "cuda"))
    assert here["logits"] - card["logits"] == 4 * 128_256 * 4096


def test_an_untied_head_stays_as_wide_as_the_embedding_when_a_base_is_four_bit() -> None:
    settings = Method(kind="qlora")
    for shape in (LLAMA, shape_named(LLAMA_KEYS)):
        ends = 2 * 128_256 * 4096
        wanted = (8_030_261_248 - ends) * 0.52 + 2 * ends
        assert footprint(shape, settings, "bfloat16", 1, 512, False)["weights"] == pytest.approx(wanted)
    small = Shape(134_515_008, 30, 576, 1536, 49_152)
    assert small.ends == 49_152 * 576, "a small model's head is its embedding"


def test_full_fine_tuning_takes_24_bytes_a_parameter_and_its_checkpoints_112_gigabytes() -> None:
    parts = footprint(LLAMA, Method(kind="full"), "bfloat16", 1, 512, False, device="cuda")
    held = sum(parts[name] for name in ("weights", "gradients", "optimizer", "update"))
    assert held / LLAMA.parameters == 24
    assert checkpoint_bytes(LLAMA, Method(kind="full"), "bfloat16") == pytest.approx(112.4e9, rel=0.001)
    assert training_bytes(LLAMA, Method(kind="full"), "bfloat16") > 4 * 112e9


def test_the_loss_of_a_distillation_and_a_teacher_s_weights_are_counted() -> None:
    plain, taught = (
        footprint(LLAMA, Method(distil=kinds), "bfloat16", 1, 512, False, device="cuda", beside=beside)
        for kinds, beside in (([], 0), (["logprobs"], 16 * 10**9))
    )
    assert taught["logits"] > 1.4 * plain["logits"]
    assert taught["total"] - plain["total"] > 16 * 10**9


def test_qlora_of_eight_billion_fits_the_card_that_its_recipe_names() -> None:
    settings = Method(kind="qlora", max_length=2048, micro_batch_size=1, checkpointing="on")
    assert 6e9 < estimate_memory(LLAMA_KEYS, settings)["total"] < 24e9


def test_a_plan_cuts_its_batches_by_the_memory_that_is_free(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.recipe import Launch, Recipe

    model, launch = Model(source=f"dir:{tiny_model}"), Launch(device="cpu")
    recipe = Recipe(name="mine", model=model, method=Method(batch_size=8), launch=launch)
    seen = {}
    for free in (10**12, 10**7):
        monkeypatch.setattr(foreseen, "available_memory", lambda device, free=free: free)
        ahead = foreseen.foreseen(recipe, [400, 300], 80, tiny_model)
        assert ahead is not None
        seen[free] = ahead.parts
    assert (seen[10**12]["micro_batch_size"], seen[10**12]["checkpointing"]) == (8, False)
    assert (seen[10**7]["micro_batch_size"], seen[10**7]["checkpointing"]) == (1, True)
    assert seen[10**7]["total"] < seen[10**12]["total"] / 4


# Checkpoints are spaced by what one costs.


def test_checkpoints_take_a_twentieth_of_the_time_at_most(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoints.pause(2.0, took=1.0) == 120
    assert checkpoints.pause(2.0, took=60.0) == 1200
    written: list[int] = []
    real = loop.save

    def slow(*given: Any) -> None:
        written.append(given[-1])
        time.sleep(1.0)  # far longer than a step
        real(*given)

    monkeypatch.setattr(loop, "save", slow)
    go(tiny_model, tmp_path / "out", save_minutes=2 * checkpoints.EVERY_STEP, evaluations=1, sample_answers=0)
    assert len(written) == 2, "once, as soon as one is due, and again at the end"
    assert written[-1] == 12


# A forecast is the line through what was measured.


def test_a_line_goes_through_what_was_measured_and_never_below_nothing() -> None:
    points = [(1e9, 1.7e9), (2e9, 2.4e9), (4e9, 3.8e9)]
    assert on_line(points, 3e9) == pytest.approx(3.1e9)
    assert on_line(points[:1], 2e9) == pytest.approx(3.4e9), "one size tells no share that stays"
    assert on_line(points[:1], 2e9, grows=False) == pytest.approx(2.7e9), "of memory the libraries take a part"
    assert on_line([(1.0, 5.0), (2.0, 4.0)], 100.0) == pytest.approx(4.5, rel=0.03), "more is never less"
    assert on_line([(1.0, 1.0), (2.0, 4.0)], 1.0) > 0
    assert on_line([], 1.0) is None
    of_it = {"memory_bytes": 10, "step_operations": 1e9}
    past = {"estimate": of_it, "peak_memory_bytes": 30, "seconds": 8.0, "steps": 4}
    seen = forecast(Estimate("cpu", "float32", 20, 2e9, 10), [past])
    assert (seen.memory_bytes, seen.seconds, seen.runs) == (40, pytest.approx(40.0), 1)


RECIPE = """\
defaults: [workbench, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: file:mine.jsonl}}
method: {{learning_rate: 1e-3, epochs: 1, max_steps: {steps}, batch_size: 4, evaluations: 1, sample_answers: 0}}
launch: {{device: cpu}}
"""


@pytest.mark.slow
def test_a_run_tells_its_forecast_beside_what_happened(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
    with (tmp_path / "mine.jsonl").open("w") as stream:
        for number in range(60):
            words = " ".join(f"w{number * k % 89}x{number}" for k in range(6))
            stream.write(json.dumps({"prompt": words, "completion": "red" if number % 2 else "blue"}) + "\n")

    def planned(steps: int) -> dict[str, Any]:
        (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model, steps=steps))
        capsys.readouterr()
        assert main(["plan", "recipe=./mine.yaml", "output=json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    before = planned(3)
    assert before["numbers"]["forecast_training_seconds"] is None
    assert "not known" in before["training"]["time"]
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    assert "no earlier training here told more" in capsys.readouterr().err
    (path,) = tmp_path.glob("experiments/mine/*/run.json")
    facts = json.loads(path.read_text())["stages"]["train"]["facts"]
    after = planned(6)["numbers"]
    assert after["forecast_memory_bytes"] == pytest.approx(facts["peak_memory_bytes"], rel=0.05)
    assert after["forecast_training_seconds"] == pytest.approx(2 * facts["seconds"], rel=0.05)
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    assert "were forecast" in capsys.readouterr().err
