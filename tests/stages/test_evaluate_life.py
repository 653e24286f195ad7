"""An evaluation through the door: kills repeat nothing, a new arm asks itself alone, champion and teacher take part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bundle_project import new_project, only_run, stages
from teacher_project import project, questions
from teacher_server import teacher_server
from workbench.__main__ import main
from workbench.evaluation.gate import kept
from workbench.recipe.schema import Gate

QUICK = ["evaluate.energy=false", "evaluate.general=null", "evaluate.harmful=null"]
NO_STORE = ["evaluate.champion=false", "tracking.uri=http://127.0.0.1:9"]  # making one takes seconds


@pytest.fixture(scope="module")
def champion(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose student has become champion, made once; copy what you change."""
    folder = new_project(tmp_path_factory.mktemp("champion") / "project", tiny_model)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "recipe=./mine.yaml", *QUICK]) == 0
    finally:
        os.chdir(before)
    return folder


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluate" / "report.json").read_text())


def lines(path: Path) -> dict[str, float]:
    """The finished answers of a file: key → seconds."""
    found = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut off
        found[row["key"]] = row["seconds"]
    return found


@pytest.mark.slow
def test_a_student_that_has_just_become_champion_leaves_nothing_to_do(
    champion: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(champion)
    assert main(["train", "recipe=./mine.yaml", *QUICK]) == 0
    assert "nothing left to do" in capfd.readouterr().err
    report = report_of(only_run(champion))
    assert "champion" not in report["arms"], "one set of weights is not asked under two names"
    for name in ("peak_memory_bytes", "answers_per_second", "seconds_per_answer"):
        assert report["arms"]["student"][name]["value"] > 0, name


@pytest.mark.slow
def test_the_next_student_is_held_against_the_champion_and_still_is_once_it_has_replaced_it(
    champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(shutil.copytree(champion, tmp_path / "project")))
    first = only_run(Path()).name
    command = ["train", "recipe=./mine.yaml", *QUICK, "method.learning_rate=1e-2", "gate.champion_margin=1.0"]
    assert main(command) == 0
    (run,) = [p.parent for p in Path().glob("experiments/mine/*/run.json") if p.parent.name != first]
    report = report_of(run)
    assert report["replaces"]["run"] == first
    assert {"champion", "student"} <= set(report["arms"])
    (check,) = [c for c in report["gate"]["checks"] if c["name"] == "not_worse_than_champion"]
    assert (check["arm"], check["limit"]) == ("student", -1.0)
    before = stages(run)["evaluate"]
    capfd.readouterr()
    assert main(command) == 0
    assert "nothing left to do" in capfd.readouterr().err
    assert main([*command, "evaluate.confidence=0.9", "until=evaluate"]) == 0
    assert stages(run)["evaluate"]["fingerprint"] != before["fingerprint"]
    assert "champion" in report_of(run)["arms"], "it is judged against what it replaced, not against itself"


@pytest.mark.slow
def test_a_registry_out_of_reach_is_said_and_no_error(
    champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(shutil.copytree(champion, tmp_path / "project")))
    words = ["train", "recipe=./mine.yaml", *QUICK, "until=evaluate", "evaluate.confidence=0.9"]
    assert main([*words, "tracking.uri=http://127.0.0.1:9"]) == 0
    assert "champion is not asked: the registry could not be asked" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_the_teacher_answers_the_test_rows_once_its_key_is_there_and_is_not_paid_twice(
    tiny_model: Path, tmp_path: Path
) -> None:
    words = ["train", "recipe=./mine.yaml", *QUICK, *NO_STORE, f"model.source=dir:{tiny_model}", "model.sha256=null"]
    words += ["method.max_steps=2", "method.evaluations=1", "evaluate.max_new_tokens=4", "evaluate.few_shot=0"]
    words += ["evaluate.adapter=false", "gate.min_rows=5", "gate.baseline=base"]
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(20), server.url + "/v1", labels=["yes", "no"])
        assert made.run(*words, "until=merge").returncode == 0
        labelled = len(server.calls())
        without = made.run(*words, "until=evaluate", key="")
        run = only_run(made.folder)
        assert "teacher is left out: teacher.key_variable" in " ".join(without.stderr.split())
        assert list(report_of(run)["absent"]) == ["teacher"]
        assert len(server.calls()) == labelled

        server.set(latency_s=0.2)
        made.run(*words, "until=evaluate", "teacher.concurrency=2")
        server.set(latency_s=0)
        report = report_of(run)
        assert list(report["arms"]) == ["base", "teacher", "student"]
        bought = len(server.calls())
        assert bought >= labelled + 12
        rows = [json.loads(line) for line in (run / "evaluate/predictions/teacher.jsonl").read_text().splitlines()]
        assert all(row["usd"] > 0 and row["latency"] > 0 and row["tokens_out"] > 0 for row in rows)
        waited = statistics.median(row["latency"] for row in rows)
        assert 0.2 <= waited < 0.4, "the wait for a turn is not the teacher's"
        paid = report["arms"]["teacher"]["usd_per_1000"]["value"]
        assert paid == pytest.approx(1000 * sum(row["usd"] for row in rows) / 12)
        assert any((c["candidate"], c["baseline"]) == ("student", "teacher") for c in report["comparisons"])

        assert "nothing left to do" in made.run(*words, "until=evaluate", key="").stderr, "what it said is kept"
        made.run(*words, "until=evaluate", "evaluate.confidence=0.9", key="")
        assert report_of(run)["arms"]["teacher"]["usd_per_1000"]["value"] == paid
        assert len(server.calls()) == bought


@pytest.mark.slow
def test_general_and_harmful_questions_go_to_base_and_student_alone_and_public_prompts_are_kept_for_compare(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new_project(tmp_path / "project", tiny_model)
    rows = [{"id": f"q{n}", "prompt": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(3)]
    (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(folder)
    words = ["train", "recipe=./mine.yaml", "evaluate.few_shot=0"]
    words += [f"evaluate.{name}=file:general.jsonl" for name in ("general", "harmful")]
    words += ["gate.baseline=base", "gate.forgetting=1.0", *NO_STORE, "until=evaluate"]
    assert main([*words, "gate.override=because"]) == 2
    assert "gate.override" in capfd.readouterr().err
    assert not list(folder.glob("experiments/mine/*")), "a bad override is refused before any work"
    assert main(words) == 0
    run = only_run(folder)
    report = report_of(run)
    assert list(report["arms"]) == ["base", "adapter", "student"]
    assert list(report["general"]["arms"]) == list(report["refusals"]["arms"]) == ["base", "student"]
    assert [c["arm"] for c in report["gate"]["checks"] if c["name"] == "forgetting"] == ["student"]
    told = kept(report, Gate(forgetting=0.0, refusals=0.0), "a format")
    assert not told, "a format is not refused for what it was not asked"
    assert sorted(json.loads((run / "evaluate/prompts.json").read_text())) == sorted(
        json.loads(line)["id"] for line in (run / "evaluate/predictions/student.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("count", "shares"),
    [
        pytest.param(30, (0.4,), marks=pytest.mark.slow),
        pytest.param(500, (0.2, 0.6), marks=(pytest.mark.proof, pytest.mark.timeout(900))),
    ],
)
def test_many_rows_and_six_arms_killed_and_started_again_repeat_no_finished_answer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, shares: tuple[float, ...]
) -> None:
    more = "quantize: {four: {format: nf4}, eight: {format: fp8_dynamic}}\n"
    folder = new_project(tmp_path / "project", tiny_model, more=more)
    rows = "".join(f"Which colour has thing {n} of {n * n % 997} and a{n} b{n * 7}?,red\n" for n in range(count))
    (folder / "test.csv").write_text("question,answer\n" + rows)
    monkeypatch.chdir(folder)
    words = ["recipe=./mine.yaml", "data.test=file:test.csv", "evaluate.batch_tokens=512", "evaluate.champion=false"]
    assert main(["train", *words, "until=quantize"]) == 0
    run = only_run(folder)
    place = run / ".evaluate.staging" / "predictions"
    finished: dict[str, dict[str, float]] = {}
    for share in shares:
        with subprocess.Popen(
            [sys.executable, "-m", "workbench", "evaluate", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                answered = sum(p.read_text().count("\n") for p in place.glob("*.jsonl")) if place.is_dir() else 0
                if answered >= share * 6 * count:
                    break
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was still asking"
        now = {p.stem: lines(p) for p in place.glob("*.jsonl")}
        assert all(now[arm][key] == seconds for arm, known in finished.items() for key, seconds in known.items())
        finished = now
    assert main(["evaluate", *words]) in (0, 3)
    made = run / "evaluate" / "predictions"
    for arm, known in finished.items():
        told = lines(made / f"{arm}.jsonl")
        assert len(told) == count, arm
        assert {key: told[key] for key in known} == known, arm
    whole = {p.stem: lines(p) for p in made.glob("*.jsonl")}
    assert len(whole) == 6
    recipe = folder / "mine.yaml"
    recipe.write_text(recipe.read_text().replace(more, "quantize: {small: {format: w4a16}," + more.partition("{")[2]))
    assert main(["train", *words, "until=evaluate"]) in (0, 3)
    after = {p.stem: lines(p) for p in made.glob("*.jsonl")}
    assert set(after) - set(whole) == {"small"}
    assert {arm: after[arm] for arm in whole} == whole, "only the new arm was asked"
