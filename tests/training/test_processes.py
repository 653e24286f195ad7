"""Several processes that train together on the CPU, over gloo: the same curve, and nothing lost when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from distil_project import SMALL, run_of, with_answers
from teacher_project import Project, project, questions
from token_rows import method, rows
from workbench.errors import GateError, RequestError, WorkbenchError
from workbench.recipe import Launch
from workbench.training.batches import Cut, Plan
from workbench.training.development import Development
from workbench.training.fitting import share
from workbench.training.handover import read_job, write_job
from workbench.training.job import Job, request_of
from workbench.training.loop import train
from workbench.training.processes import failure, starter, train_together
from workbench.training.targets import TokenTargets
from workbench.training.world import World

STEPS = 6
PATIENCE_S = 240.0


def taught(row_id: str) -> TokenTargets:
    """A teacher's word on a row's four answer tokens, of which it does not know the last."""
    ids = ((10, 20), (11, 21), (12, 22), ())
    return TokenTargets(ids, (*(((-0.3, -1.5 - len(row_id) / 10),) * 3), ()))


def job_in(base: Path, out: Path, **changes: Any) -> Job:
    """Six steps of weighted rows in float32, some with a teacher's word, held against gold rows as they go.

    A step's rate is small, for Adam makes a whole step of a rounding near 0.
    """
    how = {"max_steps": STEPS, "learning_rate": 2e-3, "evaluations": 2, "sample_answers": 1, "micro_batch_size": 2}
    learned = [replace(row, weight=1.0 if number % 3 else 0.5) for number, row in enumerate(rows(40))]
    judged = rows(9, start=100)
    targets = {} if changes.get("kind") == "full" else {row.id: taught(row.id) for row in learned[::2]}
    return Job(
        base, method(**{**how, **changes}), learned, out, validation=judged, targets=targets,
        development=Development(judged[:3], lambda number, answer: number / 4, 4), seed=3, dtype="float32",
        device="cpu", threads=1,
    )  # fmt: skip


def curve(job: Job, processes: int = 1) -> dict[tuple[str, int], float]:
    """Every loss and score that is told, by its name and step; the summary's best step stands beside them."""
    losses: dict[tuple[str, int], float] = {}
    names = ("train/loss", "validation/loss", "train/grad_norm", "development/score")

    def event(kind: str, **fields: Any) -> None:
        if kind == "metric" and fields["name"] in names:
            losses[fields["name"], fields["step"]] = fields["value"]

    heard = replace(job, event=event)
    summary = train(heard) if processes == 1 else train_together(heard, Launch(processes=processes))
    return losses | {("best", 0): summary["best_step"], ("tokens", 0): summary["trained_tokens"]}


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_have_the_curve_of_one(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    alone = curve(job_in(tiny_model, tmp_path / "one", kind=kind))
    both = curve(job_in(tiny_model, tmp_path / "two", kind=kind), 2)
    assert both == pytest.approx(alone, abs=1e-4)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    weights = {"lora": "adapter", "full": "model"}[kind]
    assert sorted(p.name for p in (tmp_path / "two" / weights).iterdir()) == sorted(
        p.name for p in (tmp_path / "one" / weights).iterdir()
    )
    assert not (tmp_path / "two" / "processes").exists()


DRIVER = """
import sys
from pathlib import Path
from dataclasses import replace
from test_processes import curve, job_in
base, out, kind = sys.argv[1:]
curve(job_in(Path(base), Path(out), kind=kind, save_minutes=0.0), 2)
"""


def until(seen: Callable[[], Any], child: subprocess.Popen[bytes]) -> Any:
    """What is seen, once it is there and the child still at work."""
    end = time.monotonic() + PATIENCE_S
    while not (value := seen()):
        assert child.poll() is None, "it ended before"
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


def processes_of(folder: Path) -> list[int]:
    """The processes that train in this folder, by rank."""
    notes = [json.loads(path.read_text()) for path in sorted((folder / "processes").glob("process-*.json"))]
    return [note["pid"] for note in notes]


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_training_killed_with_two_processes_goes_on_with_one_and_with_three(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    alone = curve(job_in(tiny_model, tmp_path / "alone", kind=kind))
    out = tmp_path / "killed"
    paths = [str(Path(__file__).parent), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_model), str(out), kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    until(lambda: (out / "checkpoints" / "step-00000003").is_dir(), child)
    pids = processes_of(out)
    child.kill()
    child.wait()
    end = time.monotonic() + PATIENCE_S
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end, "a process outlived the lifecycle"
        time.sleep(0.05)
    subprocess.run(["cp", "-r", str(out), str(tmp_path / "three")], check=True)
    for folder, processes in ((out, 1), (tmp_path / "three", 3)):
        rest = curve(job_in(tiny_model, folder, kind=kind, save_minutes=0.0), processes)
        assert ("train/loss", 1) not in rest, "it began anew"
        assert rest == pytest.approx({key: alone[key] for key in rest}, abs=1e-4)


@pytest.mark.proof
def test_a_life_survives_a_process_that_dies_and_a_sigterm(tiny_model: Path, tmp_path: Path) -> None:
    made = own_rows(tmp_path)
    words = [
        "train", *SMALL, f"model.source=dir:{tiny_model}", "model.dtype=float32", "until=train",
        "method.max_steps=2000", "method.epochs=9999", "method.save_minutes=0.02", "method.evaluations=1",
    ]  # fmt: skip
    both = [*words, "launch=torchrun", "launch.processes=2", "launch.device=cpu"]
    command = [sys.executable, "-m", "workbench"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *both], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def checkpoints() -> list[str]:
        return sorted(p.parent.name for p in tmp_path.glob("experiments/mine/*/.train.staging/checkpoints/*/state.pt"))

    # A process that dies.
    child = start()
    until(checkpoints, child)
    (run,) = tmp_path.glob("experiments/mine/*")
    victim = processes_of(run / ".train.staging")[1]
    os.kill(victim, signal.SIGKILL)
    _, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 1, errors
    assert f"process 1 of 2 (host {os.uname().nodename}, pid {victim}) died without a word" in errors.decode()
    assert "Traceback" not in errors.decode()

    # A SIGTERM.
    child = start()
    until(lambda: "resumed from step" in (run / "events.jsonl").read_text(), child)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 143, errors
    assert "a checkpoint is written" in (run / "events.jsonl").read_text()

    # And on, alone.
    done = made.run(*words)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert len([e for e in events if "resumed from step" in e.get("text", "")]) == 2
    assert run_of(made) == run


def own_rows(folder: Path) -> Project:
    """A project whose rows have answers of their own."""
    made = project(folder, questions(24), "", api="none", family="")
    recipe = json.loads((folder / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    with_answers(made, "yes")
    return made


# What needs no second process.


def test_every_row_of_a_step_is_one_process_s_own() -> None:
    lengths = [7, 30, 12, 9, 40, 22, 5, 31, 18, 26]
    for packed in (False, True):
        plan = Plan(lengths, [[5, 3, 8, 1, 9, 2, 7]], Cut(3, 64, packed))
        for size in range(1, 9):
            shares = [share(plan, 1, World(rank, size)) for rank in range(size)]
            assert sorted(row for cuts in shares for cut in cuts for row in cut) == [1, 2, 3, 5, 7, 8, 9]
            assert max(len(cut) for cuts in shares for cut in cuts) <= 3
            assert max(sum(lengths[row] for row in cut) for cuts in shares for cut in cuts) <= 64


def test_a_job_read_from_its_files_is_of_the_same_request(tiny_model: Path, tmp_path: Path) -> None:
    job = job_in(tiny_model, tmp_path / "out", kind="lora", target_modules=["q_proj", "v_proj"])
    write_job(job, tmp_path)
    read = read_job(tmp_path)
    assert request_of(read, "float32") == request_of(job, "float32")
    assert (read.rows, read.validation, read.targets) == (job.rows, job.validation, job.targets)
    assert read.development is not None
    assert read.development.rows == job.development.rows  # type: ignore[union-attr]


def test_torchrun_is_told_where_machines_meet_and_gives_way_to_one_s_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = starter(Launch(processes=8, nodes=2, rendezvous="node01:29500"), tmp_path)
    assert {"--nproc-per-node=8", "--nnodes=2", "--rdzv-endpoint=node01:29500", "--rdzv-backend=c10d"} <= set(words)
    own = [word for word in words if word.startswith("--log-dir=")]
    assert own == [f"--log-dir={tmp_path}/torchrun"], "else it leaves a folder among the system's temporary ones"
    assert "--standalone" in starter(Launch(processes=2), tmp_path)
    monkeypatch.setenv("WORKBENCH_TORCHRUN", "srun torchrun '--rdzv-id=a b'")
    assert starter(Launch(processes=2), tmp_path) == ["srun", "torchrun", "--rdzv-id=a b"]


def note(rank: int, state: str, at: str = "1", **about: str) -> dict[str, Any]:
    return {"rank": rank, "host": "node01", "pid": 7, "at": at, "state": state, **about}


@pytest.mark.parametrize(
    ("states", "kind", "text"),
    [
        ([note(0, "failed", what="RuntimeError: closed"), note(1, "running")], WorkbenchError, "process 1 of 2"),
        ([note(0, "asked to end"), note(1, "failed", what="OutOfMemoryError")], WorkbenchError, "1 of 2"),
        ([note(0, "failed", "1", what="RuntimeError: gone"),
          note(1, "failed", "2", what="it fell", where="w", remedy="r", kind="GateError")], GateError, "it fell"),
        ([], WorkbenchError, "no such host"),
    ],
)  # fmt: skip
def test_the_process_that_ended_the_others_is_named(
    tmp_path: Path, states: list[dict[str, Any]], kind: type[WorkbenchError], text: str
) -> None:
    (tmp_path / "torchrun.log").write_text("Traceback\nsocket: no such host\n")
    error = failure(tmp_path, states, 2)
    assert type(error) is kind
    assert text in str(error)


def test_a_loss_of_its_own_is_refused_before_a_process_starts(tiny_model: Path, tmp_path: Path) -> None:
    job = replace(job_in(tiny_model, tmp_path), loss=lambda job, student: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(RequestError, match="only answers are trained in several processes"):
        train_together(job, Launch(processes=2))


def test_more_processes_than_the_machine_could_ever_run_are_not_started(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="1,000,000 processes"):
        train_together(job_in(tmp_path, tmp_path / "out"), Launch(processes=1_000_000))
    assert not (tmp_path / "out").exists()


def test_what_several_processes_cannot_train_is_refused_by_its_key(tmp_path: Path) -> None:
    made = own_rows(tmp_path)
    for words, where in (
        (["launch.processes=2", "method.learn=[dpo]"], "launch.processes"),
        (["launch.processes=2", "method=full", "method.optimizer=adamw_8bit"], "method.optimizer"),
        (["launch.nodes=2"], "launch.rendezvous"),
        (["launch.nodes=2", "launch.rendezvous=node01"], "launch.rendezvous"),
    ):
        done = made.run("train", *SMALL, *words)
        assert done.returncode == 2, done.stderr
        assert f"error: {where}" in done.stderr
    assert not (tmp_path / "experiments").exists()
