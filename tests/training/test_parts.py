"""The plan of batches, the optimizer's masters, whole checkpoints, the proof, and the memory estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.recipe import Method, Model
from workbench.records import TokenRow
from workbench.training.batches import Cut, by_length, collate, plan_of, total_steps
from workbench.training.checkpoints import checkpoints_in, damage, last_sound, write_checkpoint
from workbench.training.memory import estimate_memory, fit
from workbench.training.optimizer import MasterAdamW
from workbench.training.student import fingerprint, fingerprints, prove_moved


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 40), st.integers(0, 3))
def test_every_pass_shows_each_row_once_and_a_step_has_its_rows_whatever_the_cut(
    count: int, batch: int, steps: int, seed: int
) -> None:
    how, lengths = Method(batch_size=batch, epochs=1e6, max_steps=steps), [(7 * i) % 31 + 1 for i in range(count)]
    plan = plan_of(lengths, how, seed, Cut(batch, 40))
    other = plan_of(lengths, how, seed, Cut(1, 7, packed=True))
    assert plan.steps == other.steps == steps
    shown = [sorted(row for part in plan.of_step(step) for row in part) for step in range(1, steps + 1)]
    assert shown == [sorted(row for part in other.of_step(step) for row in part) for step in range(1, steps + 1)]
    assert all(len(step) == batch for step in shown)
    order = [row for step in plan.rows for row in step]
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count)), "a pass is a permutation"


def test_the_plan_pads_little_and_depends_on_the_seed_alone() -> None:
    lengths = [20 + (i * 37) % 400 for i in range(1000)]
    how = Method(batch_size=8)
    plan = plan_of(lengths, how, 5, Cut(8, 10**6))
    assert plan == plan_of(lengths, how, 5, Cut(8, 10**6))
    assert plan.rows != plan_of(lengths, how, 6, Cut(8, 10**6)).rows
    parts = [part for step in range(1, plan.steps + 1) for part in plan.of_step(step)]
    padded = sum(len(part) * max(lengths[row] for row in part) for part in parts)
    assert padded / sum(lengths) < 1.12


def test_evaluation_batches_hold_every_row_within_their_tokens() -> None:
    lengths = [5, 300, 7, 120, 121, 9]
    batches = by_length(lengths, 256)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[r] for r in b) <= 256 for b in batches)


def test_steps_are_bounded_by_epochs_and_by_max_steps() -> None:
    assert total_steps(100, 8, 1.0, None) == 13
    assert total_steps(100, 8, 2.0, 5) == 5
    assert total_steps(100, 8, 1.0, 500) == 13


def test_padding_carries_no_loss_even_where_pad_is_the_stop_token() -> None:
    made = [TokenRow("a", (5, 6, 2), (False, True, True)), TokenRow("b", (5, 2), (False, True))]
    batch = collate(list(enumerate(made)), pad=2)
    assert batch["labels"].tolist() == [[-100, 6, 2], [-100, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_masters_let_bf16_weights_move_by_steps_too_small_for_bf16() -> None:
    live = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [live], "weight_decay": 0.0}], lr=1e-4)
    for _ in range(100):
        live.grad = torch.ones_like(live)
        optimizer.step()
    assert live.dtype == torch.bfloat16
    assert float(live[0]) == pytest.approx(0.99, abs=0.003)


def test_the_optimizer_goes_on_exactly_where_it_was_saved(tmp_path: Path) -> None:
    def step(optimizer: MasterAdamW, parameter: torch.nn.Parameter, times: int) -> None:
        for i in range(times):
            parameter.grad = torch.full_like(parameter, 0.5 + i)
            optimizer.step()

    first = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([first], lr=1e-3)
    step(optimizer, first, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second = torch.nn.Parameter(first.detach().clone())
    resumed = MasterAdamW([second], lr=1e-3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    step(optimizer, first, 5)
    step(resumed, second, 5)
    assert torch.equal(optimizer.masters[0], resumed.masters[0])
    assert all(state["exp_avg_sq"].dtype == torch.float32 for state in resumed.state.values())


def save(root: Path, step: int, best: int | None = None, request: str = "x") -> Path:
    progress = {"request": request, "progressed": {"best_step": best}}
    keep = [] if best is None else [best]
    return write_checkpoint(root, step, progress, lambda f: (f / "w.bin").write_text("w" * step) and None, keep)


def sound(root: Path) -> list[str]:
    return [path.name for path in checkpoints_in(root) if damage(path) is None]


def test_the_newest_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, best=10)
    assert sound(tmp_path) == ["step-00000010", "step-00000030", "step-00000040"]


def test_what_a_kill_left_half_written_is_never_seen(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / ".writing-20").mkdir()
    (tmp_path / ".writing-20" / "w.bin").write_text("w")
    (save(tmp_path, 30) / "w.bin").write_text("cut")
    assert sound(tmp_path) == ["step-00000010"]
    assert not (tmp_path / ".writing-20").exists()
    last = last_sound(tmp_path, "x", lambda text: None)
    assert last is not None
    assert last.name == "step-00000010"


def two_layers() -> torch.nn.Module:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net[0].requires_grad_(False)
    return net


def test_the_proof_counts_what_moved_and_names_what_did_not() -> None:
    net = two_layers()
    before = fingerprints(net)
    with pytest.raises(WorkbenchError, match=r"2 of 2 trained tensors did not move, the first 1\.weight"):
        prove_moved(net, before, "lora")
    with torch.no_grad():
        net[1].weight += 1e-3
        net[1].bias += 1e-3
    assert prove_moved(net, before, "lora") == 2


def test_the_proof_finds_one_changed_bit_in_the_base() -> None:
    net = two_layers()
    before = fingerprints(net)
    with torch.no_grad():
        net[1].weight += 1e-3
        net[1].bias += 1e-3
        net[0].weight[0, 0] = torch.nextafter(net[0].weight[0, 0], torch.tensor(9.0))
    with pytest.raises(WorkbenchError, match=r"base tensors changed.*0\.weight"):
        prove_moved(net, before, "lora")


def test_a_fingerprint_feels_order_shape_and_every_width() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        t = torch.arange(1, 20).to(dtype)
        assert fingerprint(t) != fingerprint(t.flip(0))
        assert fingerprint(t) == fingerprint(t.clone())
    assert fingerprint(torch.ones(4, 2)) != fingerprint(torch.ones(2, 4))


SMOL = Model(parameters=134_515_008, layers=30, hidden_size=576, intermediate_size=1536, vocabulary=49_152)


def test_memory_is_told_without_torch_and_orders_the_methods() -> None:
    import subprocess
    import sys

    code = "import workbench.training.memory, workbench.training.model, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    totals = {kind: estimate_memory(SMOL, Method(kind=kind))["total"] for kind in ("qlora", "lora", "full")}
    assert totals["qlora"] < totals["lora"] < totals["full"]
    lora = estimate_memory(SMOL, Method(rank=16))
    assert lora["trainable_parameters"] == pytest.approx(4_884_480, rel=0.15)


def test_an_unknown_shape_is_estimated_as_nothing_rather_than_guessed() -> None:
    assert estimate_memory(Model(), Method())["total"] == 0


def test_rows_and_recomputing_are_chosen_by_what_fits(tiny_model: Path) -> None:
    def padded(micro: int) -> int:
        return micro * 1000

    assert fit(tiny_model, Method(batch_size=8), "bfloat16", padded, 10**12) == (8, False)
    micro, _ = fit(tiny_model, Method(batch_size=8), "bfloat16", padded, 30_000_000)
    assert micro < 8
    assert fit(tiny_model, Method(batch_size=8), "bfloat16", padded, 1) == (1, True)
    assert fit(
        tiny_model, Method(batch_size=8, micro_batch_size=4, checkpointing="on"), "bfloat16", padded, 10**12
    ) == (4, True)
