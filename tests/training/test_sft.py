"""Training end to end on a tiny model: it learns, stops, resumes, proves itself, and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from token_rows import STEPS, method, rows
from workbench.errors import RequestError, WorkbenchError
from workbench.records import TokenRow
from workbench.training.batches import evaluation_steps
from workbench.training.job import Job
from workbench.training.loop import train


def go(base: Path, out: Path, events: list | None = None, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    kept = events if events is not None else []
    job = Job(
        base, method(**changes), rows(40), out, validation=rows(8, start=100), seed=3, dtype=dtype, device="cpu",
        threads=1, event=lambda kind, **fields: kept.append({"kind": kind, **fields}),
    )  # fmt: skip
    return train(job)


def loss_of(base: Path, adapter: Path, judged: list[TokenRow]) -> float:
    """Mean loss of an adapter on disk, through PEFT and the model's own forward."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from workbench.training.batches import collate
    from workbench.training.losses import plain_loss

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    batch = collate(list(enumerate(judged)), pad=2)
    with torch.no_grad():
        total = plain_loss(model, batch["input_ids"], batch["labels"], batch["attention_mask"])
    return float(total) / sum(sum(row.trained) for row in judged)


def test_a_lora_run_learns_tells_and_writes(tiny_model: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    summary = go(tiny_model, tmp_path, events, dtype="bfloat16", max_steps=60)
    assert summary["best_validation_loss"] < 5.5  # a guess costs 5.7, and the frozen head allows little better
    assert summary["last_validation_loss"] < summary["first_validation_loss"]
    assert summary["moved_tensors"] == summary["trained_tensors"] == 2 * 2 * 7
    assert summary["steps"] == 60
    assert summary["trained_tokens"] == 60 * 8 * 4
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not [p for p in (tmp_path / "adapter").iterdir() if p.suffix in (".bin", ".pt", ".py")]
    metrics = {(e["name"], e["step"]) for e in events if e["kind"] == "metric"}
    for name in ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "train/memory_gb"):
        assert {step for n, step in metrics if n == name} == set(range(1, 61))
    assert {step for n, step in metrics if n == "validation/loss"} == {20, 40, 60}
    samples = [e for e in events if e["kind"] == "sample"]
    assert [e["step"] for e in samples] == [20, 40, 60]
    assert samples[0].keys() == {"kind", "step", "prompt", "expected", "answer"}


def test_the_adapter_written_gives_the_loss_that_was_told(tiny_model: Path, tmp_path: Path) -> None:
    summary = go(tiny_model, tmp_path)
    told = loss_of(tiny_model, tmp_path / "adapter", rows(8, start=100))
    assert told == pytest.approx(summary["best_validation_loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"checkpointing": "on"}])
def test_how_a_step_is_cut_does_not_change_what_is_learned(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    # Adam divides by the gradient's own size: a rounding of 1e-7 near zero is a whole step, so the rate is small.
    whole = go(tiny_model, tmp_path / "whole", micro_batch_size=8, learning_rate=2e-3)
    cut = go(tiny_model, tmp_path / "cut", learning_rate=2e-3, **changes)
    assert whole["first_validation_loss"] - whole["last_validation_loss"] > 0.01
    assert cut["last_validation_loss"] == pytest.approx(whole["last_validation_loss"], abs=5e-4)


def test_the_same_seed_gives_the_same_loss(tiny_model: Path, tmp_path: Path) -> None:
    first, second = go(tiny_model, tmp_path / "a", dropout=0.1), go(tiny_model, tmp_path / "b", dropout=0.1)
    assert first["last_validation_loss"] == second["last_validation_loss"]


@pytest.mark.parametrize(
    "changes", [{"dora": True}, {"rslora": True}, {"optimizer": "adamw_8bit"}, {"schedule": "constant"}]
)
def test_every_choice_of_method_trains(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = go(tiny_model, tmp_path, dtype="bfloat16", **changes)
    assert summary["last_validation_loss"] < 5.7


def test_full_fine_tuning_writes_a_model_with_its_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    summary = go(tiny_model, tmp_path, dtype="bfloat16", kind="full", learning_rate=3e-3)
    assert summary["trainable_parameters"] > 60_000
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "model").iterdir()}


def test_qlora_trains_twenty_steps_through_nf4_on_the_cpu_and_its_adapter_moves(
    tiny_model: Path, tmp_path: Path
) -> None:
    summary = go(tiny_model, tmp_path, dtype="bfloat16", kind="qlora", max_steps=20)
    assert summary["moved_tensors"] == summary["trained_tensors"] > 0
    assert summary["last_validation_loss"] < summary["first_validation_loss"]


def test_an_evaluation_before_training_leaves_the_gradients_of_nf4_layers_whole(tiny_model: Path) -> None:
    import bitsandbytes as bnb

    from workbench.training.batches import collate
    from workbench.training.losses import answer_loss
    from workbench.training.model import load_model

    settings = {"device": "cpu", "longest": 32, "seed": 1}
    packed = load_model(tiny_model, method(kind="qlora"), dtype="bfloat16", **settings)
    plain = load_model(tiny_model, method(kind="lora"), dtype="float32", **settings)
    layers = dict(packed.named_modules())
    for name, layer in plain.named_modules():
        four = layers.get(name)
        if isinstance(four, bnb.nn.Linear4bit):
            layer.weight.data = bnb.functional.dequantize_4bit(four.weight.data, four.weight.quant_state).float()
    torch.manual_seed(0)
    pairs = [(p, plain.get_parameter(n)) for n, p in packed.named_parameters() if p.requires_grad]
    for left, right in pairs:
        left.data = torch.randn_like(left) * 0.05
        right.data = left.data.float()
    batch = collate(list(enumerate(rows(8))), pad=2)
    packed.eval()
    with torch.no_grad():
        answer_loss(packed.get_base_model(), batch["input_ids"], batch["labels"])
    packed.train()
    for model in (packed, plain):
        answer_loss(model.get_base_model(), batch["input_ids"], batch["labels"]).backward()
    for left, right in pairs:
        assert (left.grad.float() - right.grad).norm() / right.grad.norm() < 0.05


def test_the_step_with_the_lowest_validation_loss_is_what_is_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.training.progress import Watch

    events: list[dict[str, Any]] = []
    told = Watch.evaluated
    monkeypatch.setattr(Watch, "evaluated", lambda self, step, loss: told(self, step, loss + (step > 8)))
    summary = go(tiny_model, tmp_path, events)
    losses = {e["step"]: e["value"] for e in events if e.get("name") == "validation/loss"}
    assert summary["best_step"] == min(losses, key=losses.__getitem__) == 8
    assert summary["best_validation_loss"] == losses[8]
    assert any("its weights stay" in e.get("text", "") for e in events)
    kept = loss_of(tiny_model, tmp_path / "adapter", rows(8, start=100))
    assert kept == pytest.approx(losses[8], abs=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.training import distil

    real = distil.answer_loss
    calls = []

    def breaks(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(distil, "answer_loss", breaks)
    with pytest.raises(WorkbenchError, match=r"loss is nan at step 3, rows (r\d+(, )?){8}"):
        go(tiny_model, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_did_not_move_is_no_result(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="did not move"):
        go(tiny_model, tmp_path, learning_rate=1e-30)


def test_what_cannot_train_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"method\.target_modules"):
        go(tiny_model, tmp_path, target_modules=["no_such_layer"])
    with pytest.raises(RequestError, match="loss scaling"):
        go(tiny_model, tmp_path, dtype="float16")
    with pytest.raises(RequestError, match="trains nothing"):
        train(Job(tiny_model, method(), [TokenRow("a", (1, 2), (False, False))], tmp_path, device="cpu", threads=1))


def test_evaluations_are_spread_and_the_last_step_is_among_them() -> None:
    assert evaluation_steps(100, 4) == {25, 50, 75, 100}
    assert evaluation_steps(2, 5) == {1, 2}


SCRIPT = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from token_rows import method, rows
from workbench.training.job import Job
from workbench.training.loop import train

def event(kind, **fields):
    print(kind, fields, flush=True)
    if kind == "metric" and fields["name"] == "train/loss":
        time.sleep(0.15)

train(Job(Path({base!r}), method(save_minutes=0.003, dropout=0.1), rows(40), Path({out!r}),
          validation=rows(8, start=100), seed=3, dtype="bfloat16", device="cpu", threads=1, event=event))
"""


def interrupted(base: Path, out: Path, signal_number: int) -> tuple[int, str]:
    """Train in a process of its own and send it a signal once a few steps are logged."""
    code = SCRIPT.format(tests=str(Path(__file__).parents[1] / "support"), base=str(base), out=str(out))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
    said, deadline = "", time.monotonic() + 120
    assert child.stdout is not None
    while time.monotonic() < deadline:
        line = child.stdout.readline()
        said += line
        if "train/loss" in line and "'step': 7" in line:
            child.send_signal(signal_number)
            break
    rest, errors = child.communicate(timeout=60)
    return child.returncode, said + rest + errors


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_stopped(
    tiny_model: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    code, said = interrupted(tiny_model, tmp_path / "cut", signal_number)
    if signal_number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert "KeyboardInterrupt" in said
        assert "a checkpoint is written" in said
    events: list[dict[str, Any]] = []
    resumed = go(tiny_model, tmp_path / "cut", events, dtype="bfloat16", save_minutes=0.003, dropout=0.1)
    assert 0 < resumed["resumed_from"] <= 8
    assert any(e.get("text") == f"resumed from step {resumed['resumed_from']}" for e in events)
    whole = go(tiny_model, tmp_path / "whole", dtype="bfloat16", dropout=0.1)
    for key in ("first_validation_loss", "last_validation_loss", "best_validation_loss"):
        assert resumed[key] == pytest.approx(whole[key], abs=2e-3)
    for key in ("best_step", "total_tokens", "trained_tokens", "moved_tensors"):
        assert resumed[key] == whole[key]


def test_checkpoints_of_another_request_are_not_gone_on_from(tiny_model: Path, tmp_path: Path) -> None:
    go(tiny_model, tmp_path)
    events: list[dict[str, Any]] = []
    assert go(tiny_model, tmp_path, events, learning_rate=1e-2)["resumed_from"] is None
    assert any("starting over" in e.get("text", "") for e in events)


def test_a_run_killed_after_its_last_step_only_writes_what_was_missing(tiny_model: Path, tmp_path: Path) -> None:
    first = go(tiny_model, tmp_path)
    second = go(tiny_model, tmp_path)
    assert second["resumed_from"] == STEPS
    assert second["best_validation_loss"] == first["best_validation_loss"]
    assert second["moved_tensors"] == first["moved_tensors"]


def dtypes(folder: Path) -> set[str]:
    """The dtypes of the tensors in a folder's safetensors files."""
    from safetensors.torch import load_file

    return {str(tensor.dtype) for path in folder.glob("*.safetensors") for tensor in load_file(path).values()}


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_a_cpu_without_bfloat16_computes_in_float32_says_so_and_writes_bfloat16(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    events: list = []
    monkeypatch.setattr("workbench.engines.device.computes_16_bits", lambda: False)
    go(tiny_model, tmp_path / "a", events, dtype="bfloat16", kind=kind, max_steps=3)
    texts = [event["text"] for event in events if event["kind"] == "said"]
    assert any("in float32: this CPU does not compute bfloat16" in text for text in texts)
    assert dtypes(tmp_path / "a" / ("model" if kind == "full" else "adapter")) == {"torch.bfloat16"}
    monkeypatch.setattr("workbench.engines.device.computes_16_bits", lambda: True)
    narrow: list = []
    go(tiny_model, tmp_path / "b", narrow, dtype="bfloat16", kind=kind, max_steps=3)
    losses = [
        [e["value"] for e in kept if e["kind"] == "metric" and e["name"] == "train/loss"] for kept in (events, narrow)
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert losses[0] != losses[1]


def test_checkpoints_of_a_cpu_with_bfloat16_are_not_gone_on_from_on_one_without(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.engines.device.computes_16_bits", lambda: True)
    go(tiny_model, tmp_path, dtype="bfloat16", max_steps=2)
    assert go(tiny_model, tmp_path, dtype="bfloat16", max_steps=2)["resumed_from"] == 2
    monkeypatch.setattr("workbench.engines.device.computes_16_bits", lambda: False)
    assert go(tiny_model, tmp_path, dtype="bfloat16", max_steps=2)["resumed_from"] is None
