"""A recipe's life through the public door, on a tiny random model: what reruns, what does not, what is kept."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import files
from workbench.__main__ import main
from workbench.recipe import Recipe
from workbench.runs import Run
from workbench.runs import stage as open_stage
from workbench.tracking.run_record import fold_stages, read_events

RECIPE = """\
# a dozen lines are all that a table of one's own needs
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data:
  train: file:mine.csv
  columns: {{prompt: "Kunden Frage", answer: "Antwort (neu)"}}
  system: Answer in one word.
method: {{learning_rate: 1e-3, epochs: 1000, max_steps: {steps}, evaluations: 2,
  sample_answers: 1, save_minutes: 0.001}}
evaluate: {{few_shot: 2, max_new_tokens: 4, general: null, harmful: null, energy: false}}
gate: {{min_rows: 5}}
"""


def new_project(folder: Path, model: Path) -> Path:
    """A folder with a 50-row CSV whose columns have odd names, and a recipe of ten lines."""
    colours = ["red", "blue", "green", "black", "white"]
    with (folder / "mine.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["Kunden Frage", "Nr.", "Antwort (neu)"])
        for number in range(50):
            words = " ".join(f"w{(number * 7 + k * k) % 97}x{number}" for k in range(6))
            writer.writerow([f"Which colour has item {number}, {words}?", number, colours[number % 5]])
    (folder / "mine.yaml").write_text(RECIPE.format(model=model, steps=4))
    return folder


@pytest.fixture
def project(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that has not run yet."""
    monkeypatch.chdir(tmp_path)
    return new_project(tmp_path, tiny_model)


@pytest.fixture(scope="module")
def trained_once(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run ended with `until=train`."""
    folder = new_project(tmp_path_factory.mktemp("trained"), tiny_model)
    with contextlib.chdir(folder):
        assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to go on with."""
    folder = Path(shutil.copytree(trained_once, tmp_path / "trained"))
    monkeypatch.chdir(folder)
    return folder


def only_run(project: Path) -> Path:
    """The one run's folder."""
    (run,) = [p.parent for p in project.glob("experiments/mine/*/run.json")]
    return run


def stages(run: Path) -> dict[str, dict]:
    return json.loads((run / "run.json").read_text())["stages"]


def test_a_csv_with_odd_columns_is_trained_judged_and_registered_by_a_recipe_under_15_lines(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len((project / "mine.yaml").read_text().splitlines()) < 15
    code = main(["train", "recipe=./mine.yaml"])
    shown = "".join(capfd.readouterr())
    assert code == 3, "a random model proves nothing, and the gate says so"
    run = only_run(project)
    assert list(stages(run)) == ["train", "merge", "evaluate", "register"]
    report = json.loads((run / "evaluate" / "report.json").read_text())
    assert list(report["arms"]) == ["base", "base_few_shot", "adapter", "student"]
    assert report["n"] == 10
    assert (run / "evaluate" / "report.html").is_file()
    for words in ("35 rows", "base_few_shot", "adapter → student (merging)", "next:", "the gate said no"):
        assert words in shown, words

    capfd.readouterr()
    started = time.monotonic()
    assert main(["train", "recipe=./mine.yaml"]) == 3
    assert time.monotonic() - started < 10
    assert "nothing left to do" in capfd.readouterr().err


@pytest.mark.slow
def test_until_stops_the_next_command_goes_on_and_an_evaluate_key_reruns_evaluation_alone(trained: Path) -> None:
    assert list(stages(only_run(trained))) == ["train"]
    assert main(["train", "recipe=./mine.yaml", "until=evaluate"]) == 3
    before = stages(only_run(trained))
    assert list(before) == ["train", "merge", "evaluate"]
    assert main(["train", "recipe=./mine.yaml", "until=evaluate", "evaluate.confidence=0.9"]) == 3
    after = stages(only_run(trained))
    assert after["train"] == before["train"]
    assert after["merge"] == before["merge"]
    assert after["evaluate"]["fingerprint"] != before["evaluate"]["fingerprint"]


@pytest.mark.slow
def test_a_method_key_and_changed_rows_make_a_new_run_each(trained: Path) -> None:
    main(["train", "recipe=./mine.yaml", "until=train", "method.learning_rate=2e-3"])
    assert len(list((trained / "experiments" / "mine").iterdir())) == 2
    with (trained / "mine.csv").open("a") as stream:
        stream.write("Which colour has item 51 of all?;51;red\n")
    main(["train", "recipe=./mine.yaml", "until=train"])
    assert len(list((trained / "experiments" / "mine").iterdir())) == 3


def test_a_stage_alone_says_what_it_needs_first(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "recipe=./mine.yaml"]) == 1
    assert "recipe=./mine.yaml" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda p: p.write_text(p.read_text().replace("Antwort (neu)", "Antwort", 1)), "data.columns.answer"),
        (lambda p: p.write_text(p.read_text().replace(";red\n", ";\n")), "data.max_bad_share"),
    ],
)
def test_bad_rows_and_columns_are_refused_by_name(
    project: Path, spoil: Callable[[Path], int], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(project / "mine.csv")
    assert main(["train", "recipe=./mine.yaml"]) == 2
    assert named in capfd.readouterr().err


def test_an_answer_cut_by_max_length_is_refused_naming_the_row(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe=./mine.yaml", "method.max_length=40"]) == 2
    shown = capfd.readouterr().err
    assert "mine.csv:" in shown
    assert "max_length" in shown


@pytest.mark.slow
def test_too_long_rows_are_dropped_aloud_where_the_recipe_says_so(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = (project / "mine.csv").read_text().splitlines()
    long = [" ".join([*(f"y{n}x{k}" for k in range(150)), row]) for n, row in enumerate(rows) if row.endswith(";red")]
    (project / "mine.csv").write_text("\n".join([*(row for row in rows if not row.endswith(";red")), *long]) + "\n")
    words = ["recipe=./mine.yaml", "method.max_length=200"]
    assert main(["train", *words]) == 2
    refused = capfd.readouterr().err
    assert re.search(r"mine.csv:\d+", refused)
    assert "method.too_long=drop" in refused
    assert main(["plan", *words, "method.too_long=drop"]) == 0
    planned = re.search(r"(\d+) left out", capfd.readouterr().out)
    assert main(["train", *words, "method.too_long=drop", "until=merge"]) == 0
    said = re.search(r"more than 200 tokens: (\d+) of (\d+) training rows", capfd.readouterr().err)
    assert planned
    assert said
    assert 0 < int(said[1]) <= 10
    assert planned[1] == said[1]
    told = [stages(path.parent).get("train") for path in project.glob("experiments/mine/*/run.json")]
    assert [stage["facts"]["rows"] for stage in told if stage] == [int(said[2]) - int(said[1])]
    assert main(["train", *words, "method.too_long=drop", "method.max_length=16"]) == 2
    assert "method.max_length" in capfd.readouterr().err


@pytest.mark.slow
def test_kill_9_in_the_middle_of_training_resumes_and_no_half_stage_is_in_the_manifest(
    project: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(RECIPE.format(model=tiny_model, steps=100))
    command = [sys.executable, "-m", "workbench", "train", "recipe=./mine.yaml", "until=train"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if list(project.glob("experiments/mine/*/.train.staging/checkpoints/step-????????")):
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was still training"
    assert stages(only_run(project)) == {}
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    assert "resumed from step" in capfd.readouterr().err
    assert list(stages(only_run(project))) == ["train"]
    assert stages(only_run(project))["train"]["facts"]["steps"] == 100


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_sigterm_with_143_and_both_resume(project: Path, tiny_model: Path) -> None:
    (project / "mine.yaml").write_text(RECIPE.format(model=tiny_model, steps=2000))
    command = [sys.executable, "-m", "workbench", "train", "recipe=./mine.yaml", "until=train"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            events = "experiments/mine/*/events.jsonl"
            while time.monotonic() < deadline:
                if any("train/loss" in p.read_text() for p in project.glob(events)):
                    break
                time.sleep(0.1)
            process.send_signal(number)
            _, shown = process.communicate(timeout=60)
        assert process.returncode == code, shown
        assert "goes on from here" in shown
        assert "Traceback" not in shown
        for path in project.glob(events):
            path.write_text("")


def test_plan_prints_one_json_object_and_runs_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=./mine.yaml", "output=json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["data"]["rows"] == "35 train, 5 validation, 10 test"
    assert not (project / "experiments").exists()


def test_preview_marks_the_answer_and_its_stop_token_as_trained_and_nothing_else(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "recipe=./mine.yaml", "output=json", "rows=3"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert len(shown["rows"]) == 3
    for row in shown["rows"]:
        trained = [part["text"] for part in row["parts"] if part["trained"]]
        assert len(trained) == 1
        assert trained[0].removesuffix("<|im_end|>") in ("red", "blue", "green", "black", "white")
        assert trained[0].endswith("<|im_end|>")


@pytest.mark.slow
def test_other_base_weights_under_the_same_folder_are_another_run_and_never_merged_into(
    project: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_model, project / "base"))
    words = ["recipe=./mine.yaml", "model.source=dir:base"]
    assert main(["train", *words, "until=train"]) == 0
    weights = base / "model.safetensors"
    before, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    capfd.readouterr()
    assert main(["merge", *words]) == 1
    shown = capfd.readouterr().err
    assert "model.source=dir:base holds other bytes than in the run" in shown
    assert not list(project.glob("experiments/mine/*/merge"))
    weights.write_bytes(content)
    assert main(["merge", *words]) == 0


def test_weights_that_have_changed_since_they_were_made_go_no_further_and_are_made_anew_once_they_are_gone(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = only_run(trained)
    before, adapter = stages(run)["train"]["artefacts"], run / "train" / "adapter"
    content = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(content)
    assert main(["merge", "recipe=./mine.yaml"]) == 1
    shown = capfd.readouterr().err
    assert f"{adapter}: these files are not the ones the stage made" in shown
    assert list(stages(run)) == ["train"]
    shutil.rmtree(adapter)
    assert main(["train", "recipe=./mine.yaml", "until=merge"]) == 0
    assert "train/adapter is not there any more: it is made anew" in capfd.readouterr().err
    assert stages(run)["train"]["artefacts"] == before


def test_a_disk_without_room_for_training_is_refused_before_it_begins(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 60_000)
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 1
    shown = capfd.readouterr().err
    assert str(only_run(project)) in shown
    assert "no space left for train" in shown
    assert "60,000 bytes" in shown
    run = only_run(project)
    assert not (run / ".train.staging").exists()
    manifest = json.loads((run / "run.json").read_text())
    manifest["stages"]["train"] = {"fingerprint": run.name, "artefacts": [], "facts": {}, "seconds": 1, "finished": ""}
    (run / "run.json").write_text(json.dumps(manifest))
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0, "with nothing left to do, it needs no room"


@pytest.mark.parametrize(
    ("done", "stage", "least"),
    [
        ([], "train", 100_000),
        (["train"], "train", 0),
        (["train"], "merge", 100_000),
        (["train", "merge"], "quantize", 40_000),
        (["train", "merge", "quantize/small"], "quantize", 0),
    ],
)
def test_what_a_stage_will_write_is_known_before_and_nothing_is_asked_for_what_is_done(
    done: list[str], stage: str, least: int, project: Path
) -> None:
    from workbench.compose import composed
    from workbench.recipe import read
    from workbench.runs import open_run
    from workbench.stages.disk_space import needed

    with (project / "mine.yaml").open("a") as stream:
        stream.write("quantize: {small: {format: nf4}}\n")
    recipe: Recipe = read(composed(project / "mine.yaml", []), "mine")
    with open_run(project / "experiments", "mine", "00000000", {}, fresh=False) as run:
        for name in done:
            with open_stage(run, name, "f") as staging:
                (staging.folder / "model").mkdir()
                (staging.folder / "model" / "model.safetensors").write_bytes(bytes(100_000))
        assert (needed(recipe, run, stage) >= least) if least else (needed(recipe, run, stage) == 0)


def test_a_stage_stopped_by_a_signal_is_killed_in_mlflow_at_once_not_at_the_next_command(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []

    def catch_up(folder: Path, *_: object, **__: object) -> dict[str, list[str]]:
        fed.append(
            {name: state.status for name, state in fold_stages(read_events(folder / "events.jsonl"), live=True).items()}
        )
        return {"said": []}

    def stopped(recipe: object, run: Run) -> bool:
        with open_stage(run, "train", "f"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return True

    monkeypatch.setattr("workbench.tracking.catch_up", catch_up)
    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", lambda _: stopped)
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 143
    assert fed == [{"train": "KILLED"}]


def test_a_torn_line_among_the_events_is_left_out_of_the_training_curve_aloud(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from workbench.runs import open_run
    from workbench.stages.evaluate.evaluate import training_curve

    with open_run(project / "experiments", "mine", "00000000", {}, fresh=False) as run:
        run.event("metric", stage="train", name="train/loss", value=2.0, step=1)
        with (run.folder / "events.jsonl").open("a") as stream:
            stream.write('{"kind": "metric", "name": "train/lo\n')
        run.event("metric", stage="train", name="train/loss", value=1.0, step=2)
        assert training_curve(run) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert "1 torn lines" in capfd.readouterr().err


def test_a_store_that_cannot_be_fed_when_all_is_done_is_said_and_no_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from workbench.compose import composed
    from workbench.recipe import read
    from workbench.runs import open_run
    from workbench.stages.lifecycle import feed_the_end

    recipe: Recipe = read(composed(project / "mine.yaml", []), "mine")
    with open_run(project / "experiments", "mine", "00000000", {}, fresh=False) as run, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(project / "mine.csv"))
        feed_the_end(recipe, run)
    assert "mine.csv" in capfd.readouterr().err


def test_a_longer_run_of_the_same_recipe_says_how_to_go_on_from_the_one_that_is_trained(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(recipe: Recipe, run: Run) -> bool:
        with open_stage(run, "train", run.digest) as staging:
            (staging.folder / "adapter").write_text("weights")
            staging.facts, staging.artefacts = {"steps": recipe.method.max_steps}, ["adapter"]
        return True

    monkeypatch.setattr("workbench.stages.lifecycle.stage_function", lambda name: trained)
    words = ["train", "recipe=./mine.yaml", "until=train"]
    for more in ([], ["method.max_steps=10"], ["method.max_steps=10", "seed=5"]):
        assert main([*words, *more]) == 0
    texts = {}
    for path in project.glob("experiments/mine/*/events.jsonl"):
        events = map(json.loads, path.read_text().splitlines())
        texts[path.parent.name] = [event["text"] for event in events if event["kind"] == "said"]
    assert len(texts) == 3
    (digest,) = [name for name, lines in texts.items() if lines]
    assert len(texts[digest]) == 2, "a run with another seed is no longer one of any other"
    before, command = texts[digest]
    shorter = before.split()[2]
    assert f"the run {shorter} is the same but for its length (4 steps): this one begins anew" in before
    assert shorter in texts.keys() - {digest}
    assert f"model.adapter=dir:experiments/mine/{shorter}" in command
    assert "recipe=./mine.yaml" in command
    assert command.endswith("method.max_steps=6"), "what is left of the ten"
