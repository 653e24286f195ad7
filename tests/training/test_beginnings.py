"""How training begins and ends otherwise: from an adapter, PiSSA, regex layers, NEFTune, patience, WSD, row weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from token_rows import method, rows
from workbench.errors import RequestError
from workbench.recipe import Recipe
from workbench.training.adapter import start_adapter
from workbench.training.development import Development
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.model import check_targets, is_regex, load_model
from workbench.training.neftune import row_noise
from workbench.training.optimizer import schedule_for


def go(base: Path, out: Path, events: list[dict[str, Any]] | None = None, stop_at: int = 99, seed: int = 3,
       made: list[Any] | None = None, development: Development | None = None, start: Path | None = None,
       **changes: Any) -> dict[str, Any]:  # fmt: skip
    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    how = method(**{"sample_answers": 0, **changes})
    job = Job(base, how, made or rows(40), out, validation=rows(8, start=100), development=development, seed=seed,
              dtype="float32", device="cpu", threads=1, start=start, event=event)  # fmt: skip
    return train(job)


def losses(events: list[dict[str, Any]], name: str = "train/loss") -> list[float]:
    return [e["value"] for e in events if e.get("name") == name]


# A row's weight.


def test_a_step_of_rows_that_all_weigh_one_half_is_the_same_step(tiny_model: Path, tmp_path: Path) -> None:
    curves = []
    for weight in (1.0, 0.5, 3.0):
        events: list[dict[str, Any]] = []
        go(
            tiny_model,
            tmp_path / str(weight),
            events,
            made=[replace(row, weight=weight) for row in rows(40)],
            max_steps=3,
        )
        curves.append(losses(events))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_the_loss_of_rows_with_weights_is_their_weighted_mean_a_token(tiny_model: Path, tmp_path: Path) -> None:
    made = [replace(row, weight=0.25 if n % 2 else 2.0) for n, row in enumerate(rows(8))]
    events: list[dict[str, Any]] = []
    go(tiny_model, tmp_path, events, made=made, kind="full", max_steps=1, warmup_share=0.0, evaluations=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    total = count = 0.0
    for row in made:
        with torch.no_grad():
            table = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        lost = -sum(float(table[i - 1, row.input_ids[i]]) for i, t in enumerate(row.trained) if t)
        total, count = total + row.weight * lost, count + row.weight * sum(row.trained)
    assert losses(events)[0] == pytest.approx(total / count, rel=1e-4)


# Going on from an adapter.


def test_training_goes_on_from_an_adapter_and_another_make_is_refused_with_the_keys(
    tiny_model: Path, tmp_path: Path
) -> None:
    first: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "a", first)
    recipe = Recipe(method=method())
    recipe.model.adapter = f"dir:{tmp_path / 'a' / 'adapter'}"
    recipe.method.alpha = 32
    folder = start_adapter(recipe.model, recipe.method)
    assert folder == tmp_path / "a" / "adapter"
    again: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "b", again, start=folder, learning_rate=1e-4, max_steps=2)
    assert losses(again)[0] < losses(first)[0] - 0.5, "it begins where the other ended"
    recipe.method.rank, recipe.method.rslora = 8, True
    with pytest.raises(RequestError) as refused:
        start_adapter(recipe.model, recipe.method)
    assert refused.value.remedy == "method.rank=4 method.rslora=false"
    with pytest.raises(RequestError, match=r"no adapter_config\.json"):
        recipe.model.adapter = f"dir:{tiny_model}"
        start_adapter(recipe.model, recipe.method)


def test_a_run_s_folder_stands_for_its_adapter(tiny_model: Path, tmp_path: Path) -> None:
    go(tiny_model, tmp_path / "run" / "train", max_steps=2, warmup_share=0.0, evaluations=1)
    (tmp_path / "run" / "run.json").write_text("{}")
    recipe = Recipe(method=method())
    recipe.model.adapter, recipe.method.alpha = f"dir:{tmp_path / 'run'}", 32
    assert start_adapter(recipe.model, recipe.method) == tmp_path / "run" / "train" / "adapter"


# PiSSA.


def test_a_pissa_adapter_starts_as_the_base_moves_and_is_written_for_the_whole_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    plain: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "zero", plain, learning_rate=3e-3)
    events: list[dict[str, Any]] = []
    summary = go(tiny_model, tmp_path / "pissa", events, adapter_init="pissa", learning_rate=3e-3)
    assert losses(events)[0] == pytest.approx(losses(plain)[0], abs=1e-4), "nothing has moved yet"
    config = json.loads((tmp_path / "pissa" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "pissa" / "adapter")).eval()
    total = count = 0.0
    for row in rows(8, start=100):
        with torch.no_grad():
            table = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        total -= sum(float(table[i - 1, row.input_ids[i]]) for i, t in enumerate(row.trained) if t)
        count += sum(row.trained)
    assert total / count == pytest.approx(summary["best_validation_loss"], abs=1e-3)
    assert not list((tmp_path / "pissa").glob("pissa*"))


# Layers by a regular expression.


def test_one_entry_with_regex_signs_chooses_layers_by_their_whole_names(tiny_model: Path, tmp_path: Path) -> None:
    how = method(target_modules=[r".*layers\.1.*(q_proj|v_proj)"])
    model = load_model(tiny_model, how, dtype="float32", device="cpu", longest=32, seed=1)
    wrapped = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(wrapped) == 2
    assert all(".layers.1.self_attn." in name for name in wrapped)
    assert not is_regex(["q_proj"])
    assert not is_regex(["self_attn.q_proj"])
    assert not is_regex([".*q_proj", "v_proj"])
    check_targets(tiny_model, how)
    check_targets(tiny_model, method(target_modules=["q_proj", "nothing"]))
    for names in ([".*nothing"], ["(q_proj"], ["nothing"]):
        with pytest.raises(RequestError, match=r"no layer of the model|no regular expression") as refused:
            check_targets(tiny_model, method(target_modules=names))
        assert refused.value.where == "method.target_modules"
        with pytest.raises(RequestError, match=r"not found|unterminated"):
            load_model(tiny_model, method(target_modules=names), dtype="float32", device="cpu", longest=32, seed=1)


# NEFTune.


def test_the_noise_has_the_paper_s_size_and_depends_on_the_row_the_step_and_the_seed_alone() -> None:
    ids = list(range(40))
    noise = row_noise(ids, False, 64, 5.0, "3 7")
    bound = 5.0 / math.sqrt(40 * 64)
    assert noise.shape == (40, 64)
    assert float(noise.abs().max()) <= bound
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), "uniform"
    assert torch.equal(noise, row_noise(ids, False, 64, 5.0, "3 7"))
    assert not torch.equal(noise, row_noise(ids, False, 64, 5.0, "3 8"))


@pytest.mark.slow
def test_neftune_changes_what_is_learned_from_alone_and_resumes_exactly_whatever_the_micro_batch(
    tiny_model: Path, tmp_path: Path
) -> None:
    changes = {"neftune": 20.0, "save_minutes": 1e-9, "max_steps": 6, "evaluations": 1}
    curves = []
    for micro in (8, 2):
        events: list[dict[str, Any]] = []
        go(tiny_model, tmp_path / str(micro), events, micro_batch_size=micro, **changes)
        curves.append(losses(events) + losses(events, "validation/loss"))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    quiet: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "quiet", quiet, max_steps=6, evaluations=1)
    assert losses(quiet)[0] != pytest.approx(curves[0][0], abs=1e-4)
    with pytest.raises(EOFError):
        go(tiny_model, tmp_path / "cut", stop_at=3, micro_batch_size=8, **changes)
    go(tiny_model, tmp_path / "cut", micro_batch_size=8, **changes)
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "8"))
    assert one.read_bytes() == other.read_bytes()


# Patience, and which step is the best.


@pytest.mark.slow
def test_training_ends_when_its_patience_is_spent_and_the_best_step_stays_also_when_it_is_killed(
    tiny_model: Path, tmp_path: Path
) -> None:
    changes = {"learning_rate": 0.5, "max_steps": 40, "evaluations": 20, "patience": 2, "schedule": "constant",
               "warmup_share": 0.0}  # fmt: skip
    events: list[dict[str, Any]] = []
    whole = go(tiny_model, tmp_path / "whole", events, **changes)
    assert whole["steps"] < 40
    looks = losses(events, "validation/loss")
    assert looks.index(min(looks)) == len(looks) - 1 - 2
    assert whole["best_step"] == whole["steps"] - 2 * 2
    assert any("2 looks brought nothing better" in e.get("text", "") for e in events)
    with pytest.raises(EOFError):
        go(tiny_model, tmp_path / "cut", stop_at=whole["steps"] - 2, **changes)
    again = go(tiny_model, tmp_path / "cut", **changes)
    assert (again["steps"], again["best_step"]) == (whole["steps"], whole["best_step"])
    once_more = go(tiny_model, tmp_path / "cut", **changes)
    assert once_more["steps"] == whole["steps"], "a run that ended so takes no further step when it is asked again"
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_the_best_step_is_the_development_score_s_where_there_is_one(tiny_model: Path, tmp_path: Path) -> None:
    scores = iter([0.5, 0.9, 0.9, 0.2] + [0.0] * 9)
    now: list[float] = []

    def score(number: int, answer: str) -> float:
        if number == 0:
            now.append(next(scores))
        return now[-1]

    events: list[dict[str, Any]] = []
    held = Development(rows(3, start=200), score, 4)
    summary = go(tiny_model, tmp_path, events, development=held, max_steps=12, evaluations=4)
    looks = losses(events, "validation/loss")
    assert looks[3] < looks[2] < looks[1], "by its loss the last step were the best"
    assert summary["best_step"] == 9, "of equal scores the one with the lower loss"
    assert summary["development_score"] == 0.9
    assert any("step 9 had the highest development score (0.900)" in e.get("text", "") for e in events)
    told = go(tiny_model, tmp_path / "guard", development=replace(held, decides=False), max_steps=4, evaluations=2)
    assert told["best_step"] == 4, "a guard decides nothing"


# Warm-up, stable, decay.


def test_wsd_rises_stays_and_falls_to_nought() -> None:
    how = method(schedule="wsd", warmup_share=0.1, decay_share=0.2, learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedule_for(optimizer, how, 20)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert rates[2:17] == pytest.approx([1.0] * 15)
    assert rates[16:] == pytest.approx([1.0, 0.75, 0.5, 0.25])
