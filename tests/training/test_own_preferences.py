"""Learning from one's own pairs and judged answers: losses against TRL's and the papers', and runs that are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from token_rows import method, rows
from workbench.errors import RequestError
from workbench.recipe import Method, Prefer, Recipe
from workbench.records import Example, Message, TokenRow
from workbench.runs import Run
from workbench.stages.train.kinds import pairs as kinds
from workbench.stages.train.kinds.supervised import sft
from workbench.stages.train.task import Start, Task
from workbench.training.dpo import Pair
from workbench.training.job import HeldOut, Job
from workbench.training.kto import Judged, judgement_loss, mismatched, on_judged
from workbench.training.loop import train
from workbench.training.orpo import odds_loss, on_odds


def pairs(count: int, start: int = 0) -> list[Pair]:
    """The plain rows, each against an answer of another length."""
    made = []
    for n, chosen in enumerate(rows(count, start), start):
        prompt = chosen.input_ids[:-4]
        ids = (*prompt, *(30 + j for j in range(1 + n % 5)), 2)
        made.append(Pair(chosen, TokenRow(chosen.id, ids, tuple(j >= len(prompt) for j in range(len(ids))))))
    return made


def judged(count: int, start: int = 0) -> list[Judged]:
    """Each chosen answer called good, each rejected one bad."""
    made = []
    for pair in pairs(count, start):
        made += [Judged(pair.chosen, True), Judged(replace(pair.rejected, id=pair.rejected.id + "~"), False)]
    return made


def odds(job: Job) -> Job:
    return on_odds(job, pairs(40), pairs(8, start=100), 0.3)


def kto(job: Job) -> Job:
    return on_judged(job, judged(20), judged(4, start=100), Prefer(beta=0.2))


def go(
    made: Callable[[Job], Job],
    base: Path,
    out: Path,
    events: list[Any] | None = None,
    stop_at: int = 99,
    **changes: Any,
) -> dict[str, Any]:
    """A short training; `stop_at` a step breaks it off as a kill would, after that step's checkpoint."""

    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    def compared(before: HeldOut, after: HeldOut) -> dict[str, Any]:
        return {"before": list(before.values), "after": list(after.values)}

    how = method(**{"learning_rate": 5e-3, "sample_answers": 0, **changes})
    job = Job(base, how, [], out, seed=3, dtype="float32", device="cpu", threads=1, event=event, compared=compared)
    return train(made(job))


def test_orpo_s_odds_ratio_is_trl_s_and_its_text_part_the_chosen_answer_s_mean_loss() -> None:
    from trl.experimental.orpo import ORPOTrainer

    means = -torch.rand(9, 2, generator=torch.Generator().manual_seed(1)).double() * 3 - 0.01
    trl = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_, mean_margin = ORPOTrainer.odds_ratio_loss(trl, means[:, 0], means[:, 1])
    loss, margin = odds_loss(means, 0.3)
    assert (loss + means[:, 0]).tolist() == pytest.approx((-theirs).tolist(), rel=1e-5)
    assert float(margin.mean()) == pytest.approx(float(mean_margin), rel=1e-5)
    assert torch.isfinite(odds_loss(torch.zeros(1, 2), 0.3)[0]).all(), "a certain answer has no infinite odds"


def test_kto_s_loss_is_that_of_its_paper_on_either_side_of_z() -> None:
    reward, good, z = torch.tensor([0.4, -0.2, 0.4, -0.2]), torch.tensor([True, True, False, False]), 0.1
    found = judgement_loss(reward, good, z, Prefer(good_weight=2.0, bad_weight=0.5)).tolist()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    wanted = [2 * (1 - sigmoid(0.3)), 2 * (1 - sigmoid(-0.3)), 0.5 * (1 - sigmoid(-0.3)), 0.5 * (1 - sigmoid(0.3))]
    assert found == pytest.approx(wanted)


def test_kto_s_validation_loss_is_the_paper_s_with_z_over_all_its_rows(tiny_model: Path, tmp_path: Path) -> None:
    """A row costs ½ while nothing has moved; after a step it is computed here from both models."""
    from peft import PeftModel

    events: list[dict[str, Any]] = []
    changes = {"max_steps": 2, "save_minutes": 1e-9, "evaluations": 2, "schedule": "constant", "warmup_share": 0.0}
    go(kto, tiny_model, tmp_path, events, **changes)
    (first_step, *_) = (e["value"] for e in events if e.get("name") == "train/loss")
    assert first_step == pytest.approx(0.5, abs=1e-6)
    (loss, *_) = (e["value"] for e in events if e.get("name") == "validation/loss")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()

    def likely(model: Any, row: TokenRow) -> float:
        with torch.no_grad():
            table = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        return sum(float(table[i - 1, row.input_ids[i]]) for i, t in enumerate(row.trained) if t)

    made = judged(4, start=100)
    beside = mismatched(made, 3)
    before = [(likely(base, pair.chosen), likely(base, pair.rejected)) for pair in beside]
    (first,) = (tmp_path / "checkpoints").glob("step-*1")
    moved = PeftModel.from_pretrained(base, str(first)).eval()
    after = [(likely(moved, pair.chosen), likely(moved, pair.rejected)) for pair in beside]
    z = max(0.0, sum(a[1] - b[1] for a, b in zip(after, before, strict=True)) / len(made))
    sides = [1 if one.good else -1 for one in made]
    rewards = [0.2 * (a[0] - b[0]) for a, b in zip(after, before, strict=True)]
    wanted = [1 - 1 / (1 + math.exp(-side * (r - 0.2 * z))) for side, r in zip(sides, rewards, strict=True)]
    assert loss == pytest.approx(sum(wanted) / len(wanted), abs=2e-5)


def test_an_answer_that_is_not_a_prompt_s_own_is_another_row_s_and_the_same_whoever_asks() -> None:
    made = judged(20)
    beside = mismatched(made, 3)
    assert beside == mismatched(made, 3) != mismatched(made, 4)
    for one, pair in zip(made, beside, strict=True):
        start = one.row.answer_start
        assert pair.chosen == one.row
        assert pair.rejected.input_ids[:start] == one.row.input_ids[:start]
        assert pair.rejected.input_ids != one.row.input_ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", [odds, kto])
def test_what_is_better_rises_on_held_out_rows_too_and_how_a_step_is_cut_changes_nothing(
    tiny_model: Path, tmp_path: Path, kind: Callable[[Job], Job]
) -> None:
    curves = []
    for micro in (8, 2):
        events: list[dict[str, Any]] = []
        summary = go(kind, tiny_model, tmp_path / str(micro), events, micro_batch_size=micro)
        curves.append([e["value"] for e in events if e.get("name") in ("train/loss", "validation/loss")])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert summary["last_validation_loss"] < summary["first_validation_loss"]
    before, after = sum(summary["before"]), sum(summary["after"])
    assert after > before if kind is odds else after < before


@pytest.mark.slow
@pytest.mark.parametrize("kind", [odds, kto])
def test_a_run_that_was_killed_ends_with_the_very_same_weights(
    tiny_model: Path, tmp_path: Path, kind: Callable[[Job], Job]
) -> None:
    changes = {"save_minutes": 1e-9, "max_steps": 6}
    with pytest.raises(EOFError):
        go(kind, tiny_model, tmp_path / "cut", stop_at=3, **changes)
    assert go(kind, tiny_model, tmp_path / "cut", **changes)["resumed_from"] == 3
    go(kind, tiny_model, tmp_path / "whole", **changes)
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_rows_that_are_all_called_the_same_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    good = [Judged(pair.chosen, True) for pair in pairs(6)]
    with pytest.raises(RequestError, match="all 6 rows are called good"):
        on_judged(Job(tiny_model, method(), [], tmp_path), good, [], Prefer())


def task_of(base: Path, folder: Path, examples: list[Example], **changes: Any) -> tuple[Task, list[str]]:
    lines: list[str] = []

    def event(kind: str, **fields: Any) -> None:
        lines.extend([fields["text"]] if kind == "said" else [])

    how = Method(max_steps=3, evaluations=1, learning_rate=2e-3, warmup_share=0.0, epochs=3.0, **changes)
    recipe = Recipe(method=how)
    recipe.model.dtype, recipe.launch.threads = "float32", 1
    return Task(recipe, Run(folder, "mine", "x"), base, examples, {}, {}, [], None, event, examples[:4]), lines


def example(n: int, **more: Any) -> Example:
    return Example(f"e{n}", (Message("user", f"Question {n}?"), Message("assistant", "yes")), f"g{n}", **more)


def test_pairs_are_rendered_from_both_endings_and_weigh_what_their_row_says(tiny_model: Path, tmp_path: Path) -> None:
    other = (Message("assistant", "no"),)
    task, lines = task_of(tiny_model, tmp_path, [example(n, rejected=other, weight=1.0 + n) for n in range(8)])
    summary = train(kinds.dpo(task, Start(tiny_model), tmp_path / "out"))
    assert summary["held_out"]["rows"] == 4
    assert lines[0].startswith("8 pairs")
    (pair, *_) = kinds.pairs_of(task, task.examples[3:4])
    assert (pair.chosen.weight, pair.rejected.weight) == (4.0, 4.0)
    both = kinds.judged_of(task, task.examples[:1])
    assert [one.good for one in both] == [True, False]
    with pytest.raises(RequestError, match="no rejected answer"):
        kinds.pairs_of(task, [example(1)])
    with pytest.raises(RequestError, match="good or bad"):
        kinds.judged_of(task, [example(1)])


def test_an_answer_that_is_called_bad_is_never_trained_on_as_text(tiny_model: Path, tmp_path: Path) -> None:
    made = [example(n, good=n % 2 == 0) for n in range(8)]
    task, lines = task_of(tiny_model, tmp_path, made)
    job = sft(task, Start(tiny_model), tmp_path / "out")
    assert [row.id for row in job.rows] == ["e0", "e2", "e4", "e6"]
    assert [row.id for row in job.validation] == ["e0", "e2"]
    assert lines[0] == "sft learns 4 of 8 rows: the others are called bad"
    with pytest.raises(RequestError, match="all 4 rows are called bad"):
        sft(replace(task, examples=made[1::2]), Start(tiny_model), tmp_path / "out")
