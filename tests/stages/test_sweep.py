"""Sweeps: each trial is worth a number, the best is named, and one parent holds them in MLflow; and Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from distil_project import SMALL, with_answers
from teacher_project import Done, Project, project, questions
from workbench.stages.sweep import end

SLURM = Path(__file__).parents[2] / "configs" / "launch" / "slurm.sub"
SHORT = ["method.max_steps=2", "method.evaluations=1", "until=train", "model.dtype=float32", "launch.device=cpu"]


@pytest.fixture
def swept(tiny_model: Path, tmp_path: Path) -> Any:
    """A project whose rows have answers of their own, and its sweep with these words."""
    made = project(tmp_path, questions(24), "", api="none", family="")
    recipe = json.loads((tmp_path / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    with_answers(made, "yes")

    def run(*words: str) -> tuple[Project, Done, list[dict[str, Any]]]:
        searched = {word.partition("=")[0] for word in words}  # Optuna keeps a value that is named once as it is
        fixed = [word for word in (*SMALL, *SHORT) if word.partition("=")[0] not in searched]
        done = made.run("train", *fixed, f"model.source=dir:{tiny_model}", *words, "-m")
        (path,) = tmp_path.glob("experiments/.sweeps/*/trials.jsonl")
        return made, done, [json.loads(line) for line in path.read_text().splitlines()]

    return run


@pytest.mark.slow
def test_a_sweep_names_its_best_trial_and_has_one_parent_in_mlflow(swept: Any) -> None:
    from mlflow import MlflowClient

    made, done, trials = swept("method.learning_rate=1e-5,5e-3")
    assert done.returncode == 0, done.stderr
    assert [trial["words"] for trial in trials] == [["method.learning_rate=1e-05"], ["method.learning_rate=0.005"]]
    best = max(trials, key=lambda trial: trial["value"])
    assert best["value"] > min(trial["value"] for trial in trials), "two rates, two losses"
    client = MlflowClient(f"sqlite:///{made.folder}/experiments/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mine"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("stage") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert parent.data.tags["best.run"] == Path(best["run"]).name
    assert parent.data.metrics["best"] == pytest.approx(best["value"])
    assert parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_sweep_with_a_trial_that_fails_ends_with_its_code(swept: Any) -> None:
    _, done, trials = swept("method.learning_rate=1e-3", "method.rank=0,4")
    assert done.returncode == 2, done.stderr
    assert [(trial["code"], trial["value"] is None) for trial in trials] == [(2, True), (0, False)]


@pytest.mark.parametrize(
    ("sweeper", "words"),
    [("optuna", ["1e-4", "interval(1e-5,1e-2)"]), ("optuna", ["1e-5,1e-4", "1e-3"]), ("basic", ["1e-4", "1e-3,1e-2"])],
)
def test_a_key_that_is_swept_over_is_named_once(sweeper: str, words: list[str], tmp_path: Path) -> None:
    if sweeper == "optuna":
        pytest.importorskip("optuna")
    made = project(tmp_path, questions(4), "", api="none", family="")
    rates = [f"method.learning_rate={word}" for word in words]
    done = made.run("plan", "recipe=./mine.yaml", f"hydra/sweeper={sweeper}", *rates, "-m")
    assert done.returncode == 2
    assert "method.learning_rate" in done.stderr
    assert "named more than once" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["method.rank=range(1,1000000000)"], ["seed=range(9e9,0,-1)"], ["method.rank=range(1,999)", "seed=range(1,999)"]],
    ids=str,
)
def test_a_sweep_without_an_end_is_refused_before_it_is_written_down(words: list[str], tmp_path: Path) -> None:
    made = project(tmp_path, questions(4), "", api="none", family="")
    done = made.run("plan", "recipe=./mine.yaml", *words, "-m")
    assert done.returncode == 2
    assert "more than 10,000 trials" in done.stderr


@pytest.mark.parametrize("values", ["glob(*)", "range(5,1)", "interval(1,9)"])
def test_a_sweep_that_has_no_trials_is_refused(values: str, tmp_path: Path) -> None:
    made = project(tmp_path, questions(4), "", api="none", family="")
    done = made.run("plan", "recipe=./mine.yaml", f"method.rank={values}", "-m")
    assert done.returncode == 2
    assert "error: method.rank: " in done.stderr


def test_a_trial_s_line_that_was_torn_ends_no_sweep(tmp_path: Path) -> None:
    line = json.dumps({"trial": 0, "words": [], "code": 3, "metric": None, "value": None, "run": None})
    (tmp_path / "trials.jsonl").write_text(f"{line}\n{line[:20]}")
    assert end(tmp_path) == 3


def test_a_word_takes_the_place_of_the_recipes_own_sweep_aloud(tmp_path: Path) -> None:
    made = project(tmp_path, questions(4), "", api="none", family="")
    recipe = json.loads((tmp_path / "mine.yaml").read_text())
    recipe["hydra"] = {"sweeper": {"params": {"method.rank": "4,8"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    done = made.run("plan", "recipe=./mine.yaml", "method.rank=2", "--cfg", "job", "-m")
    assert "method.rank=2 takes the place of the recipe's own sweep over method.rank" in done.stderr


@pytest.mark.proof
def test_optuna_searches_six_trials_and_ends_with_the_best_one_named(swept: Any) -> None:
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "method.learning_rate=interval(1e-5,1e-2)"]
    made, done, trials = swept(*words)
    assert done.returncode == 0, done.stderr
    assert len(trials) == 6
    assert len({trial["words"][0] for trial in trials}) == 6
    best = max(trials, key=lambda trial: trial["value"])
    (results,) = made.folder.glob("experiments/.sweeps/*/optimization_results.yaml")
    assert str(best["value"])[:8] in results.read_text()


@pytest.mark.proof
def test_submitit_runs_trials_in_processes_of_its_own(swept: Any) -> None:
    pytest.importorskip("submitit")
    _, done, trials = swept("hydra/launcher=submitit_local", "method.learning_rate=1e-3,1e-5")
    assert done.returncode == 0, done.stderr
    assert sorted(trial["trial"] for trial in trials) == [0, 1]
    assert all(trial["value"] is not None for trial in trials)


# What is submitted to Slurm.

FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $1" in
"scontrol show") echo node01; echo node02 ;;
"python -m") echo "WORKBENCH_TORCHRUN=$WORKBENCH_TORCHRUN" >>"$CALLS"
  trap 'echo stopped >>"$CALLS"; exit 143' TERM
  touch "$CALLS.started"
  for _ in $(seq "$LIFE"); do sleep 0.1; done ;;
esac
"""


def submitted(folder: Path, life: str) -> subprocess.Popen[bytes]:
    """slurm.sub at work where srun, scontrol and python only note how they were called."""
    for name in ("scontrol", "srun", "python"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "LIFE": life, "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[01-02]",
    }  # fmt: skip
    return subprocess.Popen(["bash", str(SLURM), "recipe=legal_lora", "method.rank=8"], env=environment, cwd=folder)


def test_what_is_submitted_starts_one_life_whose_training_srun_and_torchrun_start(tmp_path: Path) -> None:
    assert submitted(tmp_path, "0").wait() == 0
    calls = (tmp_path / "calls").read_text()
    for part in (
        "python -m workbench train recipe=legal_lora method.rank=8 launch=slurm launch.nodes=2 launch.processes=8 "
        "launch.rendezvous=node01:29500",
        "WORKBENCH_TORCHRUN=srun --nodes=2 --ntasks-per-node=1",
        "torchrun --nnodes=2 --nproc-per-node=8",
        "--rdzv-endpoint=node01:29500 --rdzv-id=77",
    ):
        assert part in calls
    assert "requeue" not in calls


def test_a_job_whose_time_is_up_writes_a_checkpoint_and_is_put_back(tmp_path: Path) -> None:
    child = submitted(tmp_path, "3000")
    while not (tmp_path / "calls.started").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 143
    assert "stopped\nscontrol requeue 77\n" in (tmp_path / "calls").read_text()


def test_the_shell_and_its_checker_find_no_fault_in_what_is_submitted() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    checker = shutil.which("shellcheck")
    if checker:
        assert subprocess.run([checker, str(SLURM)], capture_output=True, text=True).stdout == ""
