"""The way from the command to a step, kinds of training from elsewhere, and a training killed again and again."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_sft import go

import workbench
from distil_project import SMALL, run_of, with_answers
from teacher_project import Project, project, questions
from workbench.errors import RequestError
from workbench.recipe.methods import distilled, kind_named
from workbench.training.progress import Progressed, Watch

FRAMES = 6  # of this project's own, from the command to the optimizer


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's part of these lives is held elsewhere."""
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)


def without_teacher(folder: Path) -> Project:
    """A project whose rows have answers of their own."""
    made = project(folder, questions(24), "", api="none", family="")
    recipe = json.loads((folder / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    with_answers(made, "yes")
    return made


@pytest.fixture
def steps() -> Iterator[list[list[str]]]:
    """This project's own frames on the stack, outermost first, at every optimizer step that is taken meanwhile."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    home, taken = str(Path(workbench.__file__).parent), list[list[str]]()

    def hook(*_: Any) -> None:
        frame, own = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(home):
                own.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back  # type: ignore[assignment]
        taken.append(own[::-1])

    handle = register_optimizer_step_pre_hook(hook)
    yield taken
    handle.remove()


def test_few_frames_lie_between_the_command_and_the_optimizer_s_step(
    tiny_model: Path, tmp_path: Path, steps: list[list[str]]
) -> None:
    words = [*SMALL, f"model.source=dir:{tiny_model}", "model.dtype=float32", "until=train"]
    done = without_teacher(tmp_path).run("train", *words)
    assert done.returncode == 0, done.stderr
    assert len(steps) == 3
    assert steps[0][0] == "__main__.main"
    assert steps[0][-2:] == ["train.run", "loop.train"], "one frame between the stage's door and the step"
    assert all(len(own) <= FRAMES for own in steps), steps[0]


PLUGIN = '''
"""A kind of training in one file: the rows' answers, each token by the chance that it has (DFT, arXiv 2508.05629)."""

from dataclasses import replace

from workbench.recipe.methods import Kind


def dft(job, student):
    from workbench.training.distil import answers, plain_head
    from workbench.training.losses import trained_positions

    def summed(batch):
        mask, target = trained_positions(batch["labels"])
        every = target.new_tensor(range(len(target)))
        likely = plain_head(student.decoder, batch, mask, student.vocabulary).likely(every, target)
        return -(likely * likely.detach().exp()).sum()

    return replace(answers(job, student), summed=summed)


def job(task, start, out):
    from workbench.stages.train.kinds.supervised import text

    return replace(text(task, start, out), loss=dft)


KIND = Kind("dft", job, answers=False)
'''


def test_a_kind_of_training_from_an_installed_package_is_one_file_and_is_named_like_any_other(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dft_kind.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    offered = [EntryPoint("dft", "dft_kind:KIND", "workbench.methods")]
    monkeypatch.setattr("workbench.recipe.methods.entry_points", lambda group: offered)
    words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[dft]", "until=train",
             "method.teach.headroom=null", "method.teach.development_rows=0"]  # fmt: skip
    made = without_teacher(tmp_path)
    done = made.run("train", *words)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (run_of(made) / "events.jsonl").read_text().splitlines()]
    losses = [e["value"] for e in events if e.get("name") == "train/loss"]
    assert len(losses) == 3
    assert max(losses) < 0.2, "−p log p of a word that has a chance of one in 287"
    assert "training" in made.run("plan", *words).stdout


def test_kinds_are_found_by_name_and_an_unknown_one_is_met_with_the_nearest() -> None:
    assert [kind.name for kind in distilled(["text", "on_policy"])] == ["text", "on_policy"]
    assert kind_named("on_policy").weights
    assert not kind_named("sft").answers
    with pytest.raises(RequestError, match="no kind of distillation") as refused:
        distilled(["preferense"])
    assert "preference" in str(refused.value)
    with pytest.raises(RequestError, match="where nothing is distilled"):
        distilled(["sft"])


def test_no_private_name_of_trl_or_transformers_is_used_and_no_trainer_of_theirs_is_changed() -> None:
    for path in sorted((Path(workbench.__file__).parent / "training").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("trl", "transformers"):
                assert not [name.name for name in node.names if name.name.startswith("_")], path
                assert not [name.name for name in node.names if name.name.endswith("Trainer")], path
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                assert not [base for base in bases if "Trainer" in base], path


def test_no_kind_s_file_imports_torch_until_its_job_is_made() -> None:
    code = "import workbench.stages.train.kinds, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"kind": "full", "dtype": "bfloat16"}, {"optimizer": "adamw_8bit"}])
def test_a_run_cut_off_anywhere_ends_with_the_very_same_weights(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    class Killed(BaseException):
        pass

    class Events(list[dict[str, Any]]):
        def append(self, event: dict[str, Any]) -> None:
            if event.get("name") == "train/loss" and event["step"] == 6:
                raise Killed

    how = {"max_steps": 8, "micro_batch_size": 4, "learning_rate": 2e-3, "save_minutes": 1e-9, **changes}
    with pytest.raises(Killed):
        go(tiny_model, tmp_path / "cut", Events(), **how)
    assert go(tiny_model, tmp_path / "cut", **how)["resumed_from"] == 5
    go(tiny_model, tmp_path / "whole", **how)
    part = "model" if changes.get("kind") == "full" else "adapter"
    one, other = (sorted((tmp_path / name / part).glob("*.safetensors"))[0] for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_kind_that_another_goes_on_from_is_trained_again_once_its_weights_are_damaged(
    tiny_model: Path, tmp_path: Path
) -> None:
    from workbench.recipe import Method, Recipe
    from workbench.records import Example, Message
    from workbench.runs import Run
    from workbench.stages.train.task import Start, Task, jobs
    from workbench.training.loop import train

    how = Method(max_steps=2, evaluations=1, learning_rate=2e-3, distil=["text", "text"], sample_answers=0)
    recipe, said = Recipe(method=how), list[str]()
    recipe.model.dtype, recipe.launch.threads, recipe.launch.device = "float32", 1, "cpu"

    def event(kind: str, **fields: Any) -> None:
        said.extend([fields["text"]] if kind == "said" else [])

    rows = [Example(f"e{n}", (Message("user", f"Is it {n}?"), Message("assistant", "yes"))) for n in range(16)]
    task = Task(recipe, Run(tmp_path, "mine", "x"), tiny_model, rows, {}, {}, [], None, event)

    def go_through() -> int:
        return len([train(job) for job in jobs(task, Start(tiny_model), tmp_path)])

    assert go_through() == 2
    weights = tmp_path / "before" / "1_text" / "adapter" / "adapter_model.safetensors"
    first = weights.read_bytes()
    assert go_through() == 1, "the first is whole"
    weights.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    assert go_through() == 2
    assert any("adapter_model.safetensors is not as it was written: it is trained again" in line for line in said)
    assert weights.read_bytes() == first


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param("2", marks=pytest.mark.slow),
        pytest.param("50", marks=(pytest.mark.proof, pytest.mark.timeout(3600))),
    ],
)
def test_a_training_killed_at_random_moments_ends_with_the_very_same_weights(
    tiny_model: Path, tmp_path: Path, kills: str
) -> None:
    script = Path(__file__).parents[1] / "support" / "kills.py"
    command = [sys.executable, str(script), str(tiny_model), str(tmp_path), kills, os.environ.get("KILLS_SEED", "1")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert f"{kills} of {kills}" in done.stdout, done.stdout + done.stderr[-2000:]


def test_the_loop_s_optimizer_keeps_float32_state_for_16_bit_weights(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from workbench.recipe import Method
    from workbench.training.optimizer import groups_of, optimizer_for

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    decayed, still = groups_of(model, 0.1)
    named = {id(p): name for name, p in model.named_parameters()}
    assert {named[id(p)] for p in still["params"]} == {name for name in named.values() if "norm" in name}
    assert len(decayed["params"]) + len(still["params"]) == len(named)
    optimizer = optimizer_for(model, Method(kind="full"), "bfloat16")
    assert all(p.dtype == torch.float32 for group in optimizer.param_groups for p in group["params"])


def test_a_long_training_is_told_from_its_first_step_on_and_then_ever_less_often() -> None:
    points: list[tuple[int, float]] = []

    def event(kind: str, **fields: Any) -> None:
        if fields["name"] == "train/loss":
            points.append((fields["step"], fields["value"]))

    watch = Watch(100_000, Progressed(), event, screen=SimpleNamespace(step=lambda *_: None))  # type: ignore[arg-type]
    for step in range(1, 501):
        watch.stepped(step, {"loss": float(step)}, 8, 4, 0.1)
    assert [step for step, _ in points] == [1, 2, 4, 8, 16, 32, 64, 128, 200, 400]
    assert points[2] == (4, 3.5), "the mean since the line before"
    assert points[-1] == (400, 300.5)
