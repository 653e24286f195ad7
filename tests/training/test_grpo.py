"""GRPO on tiny models: the loss against TRL's formula, a reward that rises, a hack that is stopped, cut runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from token_rows import method, rows
from workbench.errors import GateError, WorkbenchError
from workbench.recipe import Reward
from workbench.training.development import Development
from workbench.training.grpo import advantages, answer_terms, distance_to, on_rewards, rollout_file
from workbench.training.job import Job
from workbench.training.loop import train

NEW = 5


def go(base: Path, out: Path, events: list[dict[str, Any]] | None = None, *, reward: dict[str, Any] | None = None,
       score: Any = None, guard: Development | None = None, stop_at: int = 99,
       **changes: Any) -> dict[str, Any]:  # fmt: skip
    """A short training, rewarded for the word that token 10 is; `stop_at` breaks it off as a kill would."""
    word = AutoTokenizer.from_pretrained(base).decode([10])

    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    how = method(**{"learning_rate": 1e-2, "sample_answers": 0, "max_steps": 6, **changes})
    job = Job(base, how, rows(24), out, validation=rows(6, start=100), development=guard, seed=3, dtype="float32",
              device="cpu", threads=1, event=event)  # fmt: skip
    settings = Reward(**{"max_new_tokens": NEW, "samples": 6, "kl": 0.0, **(reward or {})})
    return train(on_rewards(job, settings, score or (lambda number, answer: float(answer.startswith(word)))))


@pytest.fixture(scope="module")
def unsure_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught a little of the plain rows: it says token 10 now and then."""
    folder = tmp_path_factory.mktemp("unsure")
    how = method(kind="full", learning_rate=5e-3, max_steps=18, evaluations=1, sample_answers=0)
    train(Job(tiny_model, how, rows(40), folder, seed=1, dtype="float32", device="cpu", threads=1))
    return folder / "model"


def test_advantages_are_scaled_within_the_group_as_trl_scales_them() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    found = advantages(reward)
    std = 3**-0.5  # of 1 0 0 1 with n − 1, as torch and TRL take it
    assert found[0].tolist() == pytest.approx(
        [0.5 / (std + 1e-4), -0.5 / (std + 1e-4)] * 1 + [-0.5 / (std + 1e-4), 0.5 / (std + 1e-4)]
    )
    assert not found[1].any(), "answers that earn the same teach nothing"


def test_the_loss_is_the_paper_s_clipped_ratio_and_its_estimate_of_the_distance() -> None:
    generator = torch.Generator().manual_seed(2)
    now, old, start = (torch.randn(50, generator=generator, dtype=torch.float64) * 0.3 - 2 for _ in range(3))
    gain = torch.randn(50, generator=generator, dtype=torch.float64)
    now.requires_grad_()
    terms, clipped = answer_terms(now, old, gain, 0.2)
    # TRL, GRPOTrainer: coef_1 = exp(logps − old), coef_2 = clamp(coef_1, 1 − ε, 1 + ε), loss = −min(coef_1 A, coef_2 A)
    ratio = (now - old).exp()
    wanted = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
    assert terms.tolist() == pytest.approx(wanted.tolist())
    terms.sum().backward()
    assert torch.equal(now.grad == 0, clipped), "a clipped token has no gradient"
    assert 5 < int(clipped.sum()) < 45
    # per_token_kl = exp(ref − logps) − (ref − logps) − 1
    moved = start - now.detach()
    assert distance_to(start, now.detach()).tolist() == pytest.approx((moved.exp() - moved - 1).tolist())


@pytest.mark.slow
def test_how_a_step_is_cut_changes_nothing_and_what_was_sampled_is_told(unsure_model: Path, tmp_path: Path) -> None:
    curves = []
    for micro in (8, 2):
        events: list[dict[str, Any]] = []
        go(unsure_model, tmp_path / str(micro), events, micro_batch_size=micro, max_steps=4, evaluations=1,
           reward={"kl": 0.01})  # fmt: skip
        curves.append([e["value"] for e in events if e.get("name") in ("train/reward", "validation/loss")])
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
    told = {e["name"] for e in events if e["kind"] == "metric"}
    names = ("reward_spread", "alike", "clipped", "kl", "answer_tokens", "answers_cut")
    assert {f"train/{name}" for name in names} <= told


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
def test_a_run_that_was_killed_ends_with_the_very_same_weights(
    unsure_model: Path, tmp_path: Path, updates: int
) -> None:
    changes = {"save_minutes": 1e-9, "dropout": 0.1, "reward": {"updates": updates, "kl": 0.05}}
    with pytest.raises(EOFError):
        go(unsure_model, tmp_path / "cut", stop_at=3, **changes)
    events: list[dict[str, Any]] = []
    assert go(unsure_model, tmp_path / "cut", events, **changes)["resumed_from"] == 3
    go(unsure_model, tmp_path / "whole", **changes)
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()
    if updates == 2:  # the fourth step learns a second time from the third's answers, which a new process has read
        assert any(e["value"] > 0 for e in events if e.get("name") == "train/kl")


def test_answers_that_are_not_as_they_were_sampled_are_not_learned_from(unsure_model: Path, tmp_path: Path) -> None:
    changes = {"save_minutes": 1e-9, "reward": {"updates": 2}}
    with pytest.raises(EOFError):
        go(unsure_model, tmp_path, stop_at=3, **changes)
    path = rollout_file(tmp_path, 2)
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(WorkbenchError, match="not as they were written"):
        go(unsure_model, tmp_path, **changes)


def test_a_planted_reward_hack_is_stopped_and_the_best_checkpoint_is_kept(unsure_model: Path, tmp_path: Path) -> None:
    """The reward is for saying one word over and over; the guard asks what was wanted, which it is taught first."""
    taught = tmp_path / "taught"
    how = method(kind="full", learning_rate=1e-2, max_steps=30, evaluations=1, sample_answers=0)
    train(Job(unsure_model, how, rows(40), taught, seed=1, dtype="float32", device="cpu", threads=1))
    base = taught / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    wanted, hack = tokenizer.decode([10, 11, 12]), tokenizer.decode([11])
    judging = rows(6, start=100)
    guard = Development(
        judging, lambda number, answer: float(answer == wanted), NEW, 0.1, decides=False,
        key="method.reward.guard_drop", remedy="look at what the scorer rewards",
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    with pytest.raises(GateError) as stopped:
        go(base, tmp_path / "out", events, guard=guard, max_steps=40, evaluations=20, learning_rate=3e-2,
           reward={"temperature": 3.0}, score=lambda number, answer: answer.count(hack) / NEW)  # fmt: skip
    assert stopped.value.where == "method.reward.guard_drop"
    assert "lack of reward" in str(stopped.value)
    scores = [e["value"] for e in events if e.get("name") == "development/score"]
    lacks = [e["value"] for e in events if e.get("name") == "validation/loss"]
    assert scores[-1] < max(scores) - 0.1
    assert lacks[-1] < lacks[0]
    steps = [e["step"] for e in events if e.get("name") == "development/score"]
    best = steps[scores.index(max(scores))]
    assert (tmp_path / "out" / "checkpoints" / f"step-{best:08d}").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_start_that_the_distance_is_taken_to_is_the_student_s_own(unsure_model: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    go(unsure_model, tmp_path, events, max_steps=4, reward={"kl": 0.5}, warmup_share=0.0, evaluations=1)
    kl = [e["value"] for e in events if e.get("name") == "train/kl"]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-5
