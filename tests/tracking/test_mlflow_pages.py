"""MLflow in a real browser: the curve of a run that is training, and what a person writes on an answer."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

import screenshots
from bundle_project import new_project, only_run
from teacher_project import project, questions
from teacher_server import teacher_server
from tracking_runs import new_experiments
from workbench.tracking import free_port

T = TypeVar("T")
ENDLESS = [
    "method.max_steps=20000", "method.epochs=20000", "method.learning_rate=1e-4", "method.batch_size=32",
    "until=train",
]  # fmt: skip
CHART = """[...document.querySelectorAll('.js-plotly-plot')].filter(
    (plot) => plot.data && plot.data.some((line) => line.x && line.x.length > 1)).length"""
WRITE = """fetch('/ajax-api/3.0/mlflow/traces/%(trace)s/assessments', {method: 'POST',
    headers: {'Content-Type': 'application/json'}, body: JSON.stringify({assessment: %(assessment)s})})
    .then((reply) => { window.written = reply.status; })"""


def awaited(look: Callable[[], T], seconds: float = 90.0) -> T:
    """What `look` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return seen


@contextmanager
def ui(folder: Path) -> Iterator[str]:
    """The address of `workbench ui` on the project's runs; ended as a person ends it."""
    command = [sys.executable, "-m", "workbench", "ui", f"port={free_port(5400)}"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        line = next(line for line in process.stderr if line.startswith("open "))
        yield line.split()[1].partition("/#")[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def first_step(folder: Path) -> datetime | None:
    """When the run's first loss was written; None where there is none yet."""
    for path in folder.glob("experiments/mine/*/events.jsonl"):
        for line in path.read_text().splitlines():
            if '"train/loss"' in line:
                return datetime.fromisoformat(json.loads(line)["at"])
    return None


def charts(browser: screenshots.Browser, page: str) -> int:
    """How many charts with points a page shows that is opened now: MLflow adds none to one that is open."""
    browser.go("about:blank", 0.0)
    browser.go(page, 0.0)
    for _ in range(20):
        time.sleep(0.25)
        if count := browser.evaluate(CHART):
            return int(count)
    return 0


@pytest.mark.slow
def test_the_curve_of_a_run_that_is_training_is_on_mlflow_s_page_half_a_minute_after_its_first_step(
    browser: screenshots.Browser, tiny_model: Path, tmp_path: Path
) -> None:
    folder, told = new_project(tmp_path / "project", tiny_model), tmp_path / "told.txt"
    new_experiments(folder / "experiments")
    browser.look(1440, 1000)
    browser.know_mlflow()
    with ui(folder) as address, told.open("w") as stream:
        command = [sys.executable, "-m", "workbench", "train", "recipe=./mine.yaml", *ENDLESS]
        training = subprocess.Popen(command, cwd=folder, stderr=stream, stdout=subprocess.DEVNULL)
        try:
            (page,) = awaited(lambda: re.findall(r"live in MLflow: \S+?(/#/\S+)", told.read_text()))
            awaited(lambda: first_step(folder))
            awaited(lambda: charts(browser, f"{address}{page}/model-metrics"))
            shown = datetime.now(UTC)
            assert training.poll() is None, "it is training still"
            begun = first_step(folder)
            assert begun
            took = (shown - begun).total_seconds()
            print(f"the curve was shown {took:.1f} s after the first step")
            again = time.monotonic()
            assert charts(browser, f"{address}{page}/model-metrics")
            opening = time.monotonic() - again
            assert took < max(30.0, 8 * opening), "half a minute, where a page opens within four seconds"
            browser.go(f"{address}{page}", 0.5)
            awaited(lambda: browser.evaluate("document.body.innerText.includes('Running')"))
        finally:
            training.send_signal(signal.SIGINT)
            assert training.wait(120) == 130


@pytest.mark.slow
def test_a_label_that_a_person_corrects_in_mlflow_is_the_label_of_the_next_run(
    browser: screenshots.Browser, tmp_path: Path
) -> None:
    with teacher_server(answer=[["Is item", '{"label": "yes"}'], ["question", '{"label": "yes"}']]) as server:
        made = project(tmp_path, questions(6), server.url + "/v1", labels=["yes", "no"])
        new_experiments(tmp_path / "experiments")
        assert made.label().returncode == 0
        run = only_run(tmp_path)
        with ui(tmp_path) as address:
            browser.go(address, 1.0)
            awaited(lambda: browser.evaluate("location.port && document.readyState === 'complete'"))
            with closing(sqlite3.connect(tmp_path / "experiments" / "mlflow.db")) as store:
                ((trace,), *_) = store.execute("SELECT request_id FROM trace_info")
            browser.evaluate(WRITE % {"trace": trace, "assessment": json.dumps({
                "trace_id": trace, "assessment_name": "expected_response", "expectation": {"value": "no"},
                "source": {"source_type": "HUMAN", "source_id": "ann@example.org"},
            })})  # fmt: skip
            assert awaited(lambda: browser.evaluate("window.written")) == 200
        calls = len(server.calls())
        assert made.run("review", "recipe=mine", "to=reviewed.jsonl").returncode == 0
        (row,) = map(json.loads, (tmp_path / "reviewed.jsonl").read_text().splitlines())
        assert (row["answer"], row["by"]) == ("no", "ann@example.org")
        done = made.label("teacher.review=file:reviewed.jsonl")
        assert done.returncode == 0, done.stderr
        assert len(server.calls()) == calls, "nothing is asked again"
    (labels,) = [path for path in tmp_path.glob("experiments/mine/*/label/labels.jsonl") if run not in path.parents]
    answers = {line["id"]: line["answer"] for line in map(json.loads, labels.read_text().splitlines())}
    assert answers[row["id"]] == "no"
    assert sorted(answers.values()) == ["no"] + ["yes"] * 5
