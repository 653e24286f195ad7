"""Feeding MLflow from a run folder: all of it, once, however often it is asked and wherever it was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tracking_runs import RECIPE, HandMade, new_experiments, whole_run
from workbench.errors import WorkbenchError
from workbench.recipe import Tracking
from workbench.tracking import catch_up, store_uri
from workbench.tracking.run_record import fold_stages, metric_name, read_events, torn_lines
from workbench.tracking.store import connect


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    return new_experiments(tmp_path / "experiments")


def runs_of(experiments: Path) -> dict[str, Any]:
    """Every run in the store by name; fails when two share one."""
    with connect(store_uri(Tracking(), experiments)) as client:
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), f"doubled: {names}"
    return {run.info.run_name: run for run in found}


def points(experiments: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    with connect(store_uri(Tracking(), experiments)) as client:
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def artefact_text(experiments: Path, run: Any, name: str) -> str:
    with connect(store_uri(Tracking(), experiments)) as client:
        return Path(client.download_artifacts(run.info.run_id, name)).read_text()


def test_a_whole_run_arrives_with_its_stages_values_curves_data_and_files(experiments: Path) -> None:
    run = whole_run(experiments)
    fed = catch_up(run.folder, Tracking(), experiments)
    there = runs_of(experiments)
    parent, train = there["tiny/0badcafe"], there["train"]
    assert set(there) == {"tiny/0badcafe", "train", "merge", "quantize/gguf_q8_0", "quantize/gguf_q4_k_m",
                          "bundle/student", "bundle/gguf_q8_0",
                          "evaluate", "register"}  # fmt: skip
    assert fed["run_id"] == parent.info.run_id
    assert all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in there.values() if r is not parent)
    assert train.info.status == "FINISHED"
    assert train.info.end_time - train.info.start_time == pytest.approx(15_000, abs=3000)
    assert there["register"].info.status == "KILLED", "started, never ended, and nobody is at work"

    params = parent.data.params
    assert params["method.target_modules"] == '["q_proj"]'
    assert params["method.rank"] == "16", "what is compared in every table, set or not"
    assert "method.micro_batch_size" not in params, "what nobody has set is in recipe.yaml alone"
    assert len(params["data.system"]) == 6000, "MLflow refuses a longer one"
    assert len(params) == 8
    assert {k: parent.data.tags[k] for k in ("recipe", "digest", "git", "gate", "versions.torch")} == {
        "recipe": "tiny", "digest": "0badcafe", "git": "a3c0800", "gate": "passed", "versions.torch": "2.13.0"
    }  # fmt: skip
    assert points(experiments, parent, "loss") == [(s, 2.0 / s) for s in range(1, 6)]
    (data,) = train.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("notices train", "a" * 36, "training")
    assert parent.data.metrics["student/category_accuracy"] == pytest.approx(0.685)
    assert parent.data.metrics["student_vs_base_few_shot/category_accuracy_delta"] == 0.205
    assert artefact_text(experiments, parent, "report.html") == "<h1>report</h1>"
    assert "dropped 3 rows" in artefact_text(experiments, parent, "said.txt")
    table = json.loads(artefact_text(experiments, parent, "samples.json"))
    assert table["data"] == [[5, "Which licence?", "MIT", "BSD"]]


def test_a_run_s_parameters_are_those_that_a_person_compares() -> None:
    from dataclasses import asdict

    from workbench.compose import composed_file
    from workbench.tracking.content import compared
    from workbench.tracking.run_record import flatten

    recipe = asdict(composed_file("legal_lora"))
    kept = compared(recipe)
    assert len(dict(flatten(recipe))) > 200
    assert len(kept) < 60
    assert {"method.rank", "method.learning_rate", "data.train", "quantize.gguf_q8_0.format", "seed"} <= set(kept)
    assert not {"method.weight_decay", "teacher.timeout_s", "model.notes"} & set(kept)
    (recipe["method"])["weight_decay"] = 0.5
    assert compared(recipe)["method.weight_decay"] == 0.5, "until somebody sets it"


def test_feeding_again_adds_only_what_is_new(experiments: Path) -> None:
    run = HandMade(experiments).train(steps=3)
    assert catch_up(run.folder, Tracking(), experiments)["metrics"] == 3
    assert runs_of(experiments)["train"].info.status == "KILLED"
    assert catch_up(run.folder, Tracking(), experiments)["metrics"] == 0

    run.event("stage_started", "train")  # resumed
    for step in (4, 5):
        run.event("metric", "train", name="loss", value=2.0 / step, step=step)
    run.trained()
    assert catch_up(run.folder, Tracking(), experiments)["metrics"] == 2
    there = runs_of(experiments)
    assert there["train"].info.status == "FINISHED"
    assert [step for step, _ in points(experiments, there["tiny/0badcafe"], "loss")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_feed_killed_midway_leaves_nothing_doubled(experiments: Path) -> None:
    run = whole_run(experiments)
    program = f"""
import os, signal
from pathlib import Path
from workbench.recipe import Tracking
from workbench.tracking import catch_up, feed as verdict
verdict.feed_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
catch_up(Path({str(run.folder)!r}), Tracking(), Path({str(experiments)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    catch_up(run.folder, Tracking(), experiments)
    there = runs_of(experiments)
    assert len(there) == 9
    assert len(points(experiments, there["tiny/0badcafe"], "loss")) == 5
    assert len(points(experiments, there["tiny/0badcafe"], "student/category_accuracy")) == 1
    assert len(there["train"].inputs.dataset_inputs) == 1


@pytest.mark.slow
def test_what_a_killed_feed_has_written_for_sending_goes_with_the_next_one(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(experiments)
    program = f"""
import os, signal
from pathlib import Path
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from workbench.recipe import Tracking
from workbench.tracking import catch_up
LocalArtifactRepository.log_artifact = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
catch_up(Path({str(run.folder)!r}), Tracking(), Path({str(experiments)!r}))
"""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size], "it was about to send"
    for path in temporary.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    catch_up(run.folder, Tracking(), experiments)
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["catch_up", "MLflow"])
def test_a_store_whose_tables_a_kill_has_left_half_made_is_made_whole_by_the_next_feed(
    experiments: Path, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.tracking.store.connect", connect)  # no store that was made before the tests
    run = whole_run(experiments)
    (experiments / "mlflow.db").unlink(missing_ok=True)
    act = f"catch_up(Path({str(run.folder)!r}), Tracking(), Path({str(experiments)!r}))"
    if maker == "MLflow":  # by its own way, in the store's place
        act = f"MlflowClient({store_uri(Tracking(), experiments)!r}).search_experiments()"
    program = f"""
import os, signal
from pathlib import Path
from alembic import op
from mlflow import MlflowClient
from workbench.recipe import Tracking
from workbench.tracking import catch_up
real = op.create_table
def dying(name, *args, **kwargs):
    made = real(name, *args, **kwargs)
    if name == "datasets":
        os.kill(os.getpid(), signal.SIGKILL)
    return made
op.create_table = dying
{act}
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (experiments / "mlflow.db").exists() == (maker == "MLflow")
    assert catch_up(run.folder, Tracking(), experiments)["metrics"] > 0
    assert len(runs_of(experiments)) == 9
    assert not list(experiments.glob("*.partial*")), "nothing is left beside it"


def test_a_lost_memory_or_a_deleted_store_is_fed_again_without_doubling(experiments: Path) -> None:
    run = whole_run(experiments)
    first = catch_up(run.folder, Tracking(), experiments)
    (run.folder / "tracking.json").unlink()
    assert catch_up(run.folder, Tracking(), experiments)["run_id"] == first["run_id"]
    assert len(points(experiments, runs_of(experiments)["tiny/0badcafe"], "loss")) == 5

    new_experiments(experiments)  # the store is replaced by an empty one, tracking.json stays
    again = catch_up(run.folder, Tracking(), experiments)
    assert again["run_id"] != first["run_id"]
    assert len(points(experiments, runs_of(experiments)["tiny/0badcafe"], "loss")) == 5


def test_a_stage_that_was_deleted_in_the_ui_comes_back_whole(experiments: Path) -> None:
    run = whole_run(experiments)
    fed = catch_up(run.folder, Tracking(), experiments)
    with connect(store_uri(Tracking(), experiments)) as client:
        client.delete_run(fed["stages"]["train"])
    catch_up(run.folder, Tracking(), experiments)
    assert len(points(experiments, runs_of(experiments)["tiny/0badcafe"], "loss")) == 5


def test_a_value_changed_later_is_told_and_the_param_stays(experiments: Path) -> None:
    run = HandMade(experiments).train()
    catch_up(run.folder, Tracking(), experiments)
    changed = RECIPE | {"method": RECIPE["method"] | {"rank": 8}, "evaluate": {"limit": 50}}
    run.write("recipe.yaml", json.dumps(changed))
    fed = catch_up(run.folder, Tracking(), experiments)
    parent = runs_of(experiments)["tiny/0badcafe"]
    assert parent.data.params["method.rank"] == "16"
    assert parent.data.tags["changed.method.rank"] == "8"
    assert parent.data.params["evaluate.limit"] == "50", "what is set for the first time is new"
    assert fed["said"] == ["method.rank is now 8; the param keeps the first value"]


def test_a_stage_still_at_work_is_running_not_killed(experiments: Path) -> None:
    run = HandMade(experiments).train()
    with FileLock(run.folder / ".lock"):
        catch_up(run.folder, Tracking(), experiments)
        assert runs_of(experiments)["train"].info.status == "RUNNING"
    catch_up(run.folder, Tracking(), experiments)
    assert runs_of(experiments)["train"].info.status == "KILLED"


def test_a_failed_stage_is_failed_until_it_is_started_again(experiments: Path) -> None:
    run = HandMade(experiments).train()
    run.event("stage_failed", "train", why="WorkbenchError: loss is not finite")
    catch_up(run.folder, Tracking(), experiments)
    train = runs_of(experiments)["train"]
    assert (train.info.status, train.data.tags["why"]) == ("FAILED", "WorkbenchError: loss is not finite")
    run.event("stage_started", "train")
    run.trained()
    catch_up(run.folder, Tracking(), experiments)
    assert runs_of(experiments)["train"].info.status == "FINISHED"


def test_a_torn_last_line_is_left_for_later(experiments: Path) -> None:
    run = HandMade(experiments).train(steps=2)
    path = run.folder / "events.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b'{"at": "2026-09-21T14:13:')
    assert len(read_events(path)) == before.count(b"\n")
    assert fold_stages(read_events(path), live=False)["train"].status == "KILLED"
    path.write_bytes(before + b'{"at": "2026-09-21T14:13:{"at": "2026-\n')
    assert len(read_events(path)) == before.count(b"\n")


def test_what_a_run_writes_while_it_is_fed_is_not_taken_for_torn(experiments: Path) -> None:
    run = HandMade(experiments).train(steps=2)
    path = run.folder / "events.jsonl"
    with path.open("a") as stream:
        stream.write('{"at": "2026-09-\n')
    run.event("said", "train", text="a whole line")
    events = read_events(path)
    run.train(steps=3)
    assert torn_lines(path, events) == 1


@pytest.mark.parametrize(
    ("name", "kept"),
    [("https://x.org/a", "https:/x.org/a"), ("../a", "a"), ("/a//b/", "a/b"), ("..", "_"), ("train/loss", "train/loss"),
     ("mlflow.note.content", "mlflow.note.content"), ("f1 (macro)?", "f1 _macro__")],
)  # fmt: skip
def test_a_name_that_could_be_a_path_is_one_that_mlflow_takes(name: str, kept: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(name) == kept
    _validate_metric_name(kept)


def test_a_file_outside_the_run_is_never_logged(experiments: Path) -> None:
    run = HandMade(experiments).train()
    (experiments / "secret.txt").write_text("not yours")
    run.event("file", "train", path="../../secret.txt", title="?")
    assert catch_up(run.folder, Tracking(), experiments)["said"] == [
        "../../secret.txt lies outside the run's folder and was not logged"
    ]


def test_a_page_of_a_stage_at_work_is_waited_for_and_one_that_never_came_is_told(experiments: Path) -> None:
    run = HandMade(experiments).train()
    run.event("file", "train", path="train/page.html", title="page")
    assert catch_up(run.folder, Tracking(), experiments)["said"] == []
    run.trained()
    assert catch_up(run.folder, Tracking(), experiments)["said"] == ["train/page.html is not there and was not logged"]


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "accepts and stays silent"])
def test_a_dead_server_is_an_answer_in_seconds_and_loses_nothing(experiments: Path, answers: bool) -> None:
    run = HandMade(experiments).train()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen()
        uri = f"http://someone:hidden@127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(WorkbenchError, match="does not answer") as caught:
            catch_up(run.folder, Tracking(uri=uri), experiments)
        assert time.monotonic() - started < 10
    assert "events.jsonl keeps everything" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert catch_up(run.folder, Tracking(), experiments)["metrics"] == 5


def test_two_feeds_at_once_do_not_double_a_run(experiments: Path) -> None:
    run = whole_run(experiments)
    threads = [threading.Thread(target=catch_up, args=(run.folder, Tracking(), experiments)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(points(experiments, runs_of(experiments)["tiny/0badcafe"], "loss")) == 5


def test_the_environment_is_left_as_it_was(experiments: Path) -> None:
    before = dict(os.environ)
    catch_up(HandMade(experiments).train().folder, Tracking(), experiments)
    assert dict(os.environ) == before


def test_importing_the_room_does_not_import_mlflow() -> None:
    program = "import sys, workbench.tracking, workbench.views.ui; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
