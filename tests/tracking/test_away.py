"""A tracking server that is silent, slow, broken or dead holds nothing up; what it missed it gets later, once."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hole_server import HOW, hole_server
from tracking_runs import SHIPPED, HandMade, new_experiments, whole_run
from workbench.__main__ import main
from workbench.files import sweep
from workbench.recipe import Recipe, Tracking
from workbench.runs import Run
from workbench.runs import stage as open_stage
from workbench.stages import feeding
from workbench.stages.lifecycle import fed_tracking
from workbench.tracking import GIVEN_UP, AwayError, catch_up, register, store_uri
from workbench.tracking import bounds as tracking_bounds
from workbench.tracking.run_record import points, read_events
from workbench.tracking.store import connect


@pytest.fixture(autouse=True)
def nothing_given_up() -> None:
    GIVEN_UP.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may take one second. MLflow is imported before the clock runs."""
    importlib.import_module("mlflow")
    monkeypatch.setattr(tracking_bounds, "CALL_S", 1.0)
    monkeypatch.setattr("workbench.tracking.store.CALL_S", 1.0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\n" + "".join(f"q{n}?,a{n}\n" for n in range(40)))
    (tmp_path / "mine.yaml").write_text(
        "defaults: [workbench, {evaluate: exact_match}, _self_]\n"
        f"model: {{source: 'dir:{tiny_model}', licence: Apache-2.0}}\n"
        "data: {train: 'file:mine.csv', columns: {prompt: question, answer: answer}}\n"
    )
    new_experiments(tmp_path / "experiments")
    return tmp_path


def curve(experiments: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    """The points of the one parent run that the store has; none where there is no run yet."""
    with connect(store_uri(Tracking(), experiments)) as client:
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.stage = 'all'")
        assert len(runs) <= 1
        history = [m for run in runs for m in client.get_metric_history(run.info.run_id, name)]
    return sorted((m.step, m.value) for m in history)


def statuses(experiments: Path) -> dict[str, str]:
    with connect(store_uri(Tracking(), experiments)) as client:
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return {run.data.tags["stage"]: run.info.status for run in runs}


def training(work: Callable[[Run], None]) -> Callable[[str], Callable[[object, Run], bool]]:
    """Every stage writes three steps of a curve and does `work`."""

    def stage(_: object, run: Run) -> bool:
        with open_stage(run, "train", "f") as staging:
            (staging.folder / "adapter.txt").write_text("weights")
            for step in (1, 2, 3):
                run.event("metric", stage="train", name="train/loss", value=1.0 / step, step=step)
            work(run)
        return True

    return lambda _: stage


@pytest.mark.parametrize("how", HOW)
def test_a_server_that_is_none_is_given_up_in_seconds(tmp_path: Path, impatient: None, how: str) -> None:
    run = HandMade(tmp_path).train()
    with hole_server(how) as address:
        begun = time.monotonic()
        with pytest.raises(AwayError) as refusal:
            catch_up(run.folder, Tracking(uri=address), tmp_path)
        assert time.monotonic() - begun < 12
    assert "events.jsonl keeps everything" in str(refusal.value)
    assert address in GIVEN_UP


@pytest.mark.parametrize("how", ["health only", "500"])
def test_registering_with_a_server_that_is_none_fails_in_seconds(tmp_path: Path, impatient: None, how: str) -> None:
    run = whole_run(tmp_path)
    with hole_server(how) as address:
        begun = time.monotonic()
        with pytest.raises(AwayError):
            register(run.folder, Tracking(uri=address), tmp_path, passed=True, shipped=SHIPPED)
        assert time.monotonic() - begun < 12


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", "500", "drip", "drips its answers"])
def test_no_stage_waits_for_a_server_and_what_it_missed_is_fed_once_later(
    project: Path, own_feeder: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    seconds = []

    def work(run: Run) -> None:
        seconds.append(-time.monotonic())
        while not GIVEN_UP:  # the feeder's word comes while the stage is at work
            time.sleep(0.05)
            assert time.monotonic() + seconds[-1] < 60
        seconds[-1] = time.monotonic()

    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", training(work))
    with hole_server(how) as address:
        assert main(["train", "recipe=./mine.yaml", "until=train", f"tracking.uri={address}"]) == 0
        assert time.monotonic() - seconds[0] < 12, "the end of the command does not wait either"
    shown = capfd.readouterr().err
    assert shown.count("nothing waits for it") == 1
    (folder,) = (project / "experiments" / "mine").iterdir()
    for _ in range(2):
        catch_up(folder, Tracking(), project / "experiments")
    assert curve(project / "experiments") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_a_life_ends_without_its_aliases_where_no_server_answers_and_register_alone_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(_: object, run: Run) -> bool:
        raise AwayError("the MLflow server does not answer: no answer in 3 s", where="tracking.uri=http://there")

    done = training(lambda run: None)("")
    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", lambda name: stage if name == "register" else done)
    assert main(["train", "recipe=./mine.yaml"]) == 0
    shown = capfd.readouterr().err
    assert "no alias has moved" in shown
    assert "python -m workbench register recipe=mine" in shown
    assert main(["train", "recipe=./mine.yaml", "output=json"]) == 0
    assert '"registered": false' in capfd.readouterr().out
    assert main(["register", "recipe=./mine.yaml"]) == 1
    assert "does not answer" in capfd.readouterr().err


def test_after_a_signal_a_slow_store_is_not_waited_for_and_is_fed_all_the_same(
    tmp_path: Path, own_feeder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends SIGTERM kills soon after; what feeds MLflow is a process of its own, and ends by itself."""
    code = f"import sys, time; sys.stdin.read(); time.sleep(2); open({str(tmp_path / 'fed')!r}, 'w')"
    real = subprocess.Popen
    monkeypatch.setattr(feeding.subprocess, "Popen", lambda _, **how: real([sys.executable, "-c", code], **how))
    monkeypatch.setattr(feeding, "STOPPED_S", 0.1)
    run = Run(tmp_path / "experiments" / "mine" / "12345678", "mine", "12345678")
    with pytest.raises(KeyboardInterrupt), fed_tracking(Recipe(), run):
        raise KeyboardInterrupt
    assert not (tmp_path / "fed").exists(), "the command has ended before"
    deadline = time.monotonic() + 60
    while not (tmp_path / "fed").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_curve_is_in_mlflow_while_the_stage_is_still_at_work(
    project: Path, own_feeder: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    live = []

    def work(run: Run) -> None:
        begun = time.monotonic()
        while len(curve(project / "experiments")) < 3 and time.monotonic() - begun < 120:
            time.sleep(0.2)
        live.append((len(curve(project / "experiments")), statuses(project / "experiments")))

    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", training(work))
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    assert live == [(3, {"all": "RUNNING", "train": "RUNNING"})]
    assert statuses(project / "experiments") == {"all": "FINISHED", "train": "FINISHED"}
    assert "live in MLflow: http://127.0.0.1:5000/#/experiments/" in capfd.readouterr().err


@pytest.mark.slow
def test_a_feeder_that_is_killed_leaves_nothing_undone_and_nothing_doubled(
    project: Path, own_feeder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(run: Run) -> None:
        begun = time.monotonic()
        while not (run.folder / "tracking.json").exists() and time.monotonic() - begun < 120:
            time.sleep(0.01)
        mine = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "stages.feeding"], capture_output=True, text=True)
        for number in mine.stdout.split():
            os.kill(int(number), signal.SIGKILL)

    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", training(work))
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    assert [step for step, _ in curve(project / "experiments")] == [1, 2, 3]
    assert statuses(project / "experiments") == {"all": "FINISHED", "train": "FINISHED"}


@pytest.mark.slow
def test_a_run_that_is_killed_is_killed_in_mlflow_soon_after(project: Path) -> None:
    program = f"""
import os, signal, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_away import training
from workbench.__main__ import main
from workbench.stages import lifecycle

def work(run):
    while not (run.folder / "tracking.json").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

lifecycle.stage_function = training(work)
main(["train", "recipe=./mine.yaml", "until=train"])
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    begun = time.monotonic()
    while statuses(project / "experiments").get("train") != "KILLED" and time.monotonic() - begun < 120:
        time.sleep(0.2)
    assert statuses(project / "experiments") == {"all": "KILLED", "train": "KILLED"}
    assert [step for step, _ in curve(project / "experiments")] == [1, 2, 3]


def test_steps_that_are_gone_through_again_after_a_kill_are_one_point_each(tmp_path: Path) -> None:
    experiments = new_experiments(tmp_path)
    run = HandMade(experiments)
    for attempt in (range(1, 6), range(4, 8)):
        run.event("stage_started", "train")
        for step in attempt:
            run.event("metric", "train", name="train/loss", value=2.0 / step, step=step)
            speed = 100.0 + attempt.start + step  # another each time
            run.event("metric", "train", name="train/tokens_per_second", value=speed, step=step)
        catch_up(run.folder, Tracking(), experiments)
    assert curve(experiments) == [(step, 2.0 / step) for step in range(1, 8)]
    assert [step for step, _ in curve(experiments, "train/tokens_per_second")] == list(range(1, 8))
    (run.folder / "tracking.json").unlink()
    catch_up(run.folder, Tracking(), experiments)
    assert len(curve(experiments)) == 7
    assert len(list(points(read_events(run.folder / "events.jsonl")))) == 14


def test_what_a_clock_does_not_tell_and_comes_out_otherwise_is_shown(tmp_path: Path) -> None:
    run = HandMade(tmp_path)
    for value in (1.0, 0.7):
        run.event("metric", "train", name="train/loss", value=value, step=1)
    assert [value for _, value in points(read_events(run.folder / "events.jsonl"))] == [1.0, 0.7]


def test_an_answer_that_grows_is_waited_for_and_one_that_stands_still_is_not(tmp_path: Path, impatient: None) -> None:
    def fetched(times: int) -> str:
        for number in range(times):
            (tmp_path / str(number)).write_bytes(bytes(400_000))
            time.sleep(0.5)
        if times == 1:
            time.sleep(30)
        return json.dumps(times)

    assert tracking_bounds.while_growing(tmp_path, "files", lambda: fetched(5)) == "5"
    with pytest.raises(AwayError, match="came in 1 s"):
        tracking_bounds.while_growing(tmp_path, "files", lambda: fetched(1))


def test_what_mlflow_was_about_to_send_is_swept_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, tempfile\nfrom workbench.tracking.store import own_temporary_files\n"
        "with own_temporary_files():\n    open(tempfile.mkdtemp() + '/report.html', 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    place = tmp_path / "tmp"
    place.mkdir()
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(place)}, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert list(left.rglob("report.html"))
    os.utime(left, (time.time() - 3600,) * 2)
    sweep(place)
    assert not list(place.iterdir())
