"""`cost` through the door: before a run and after it, what it refuses, and that it sends nothing."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main
from workbench.compose import composed_file
from workbench.deciding.inputs import NUMBERS
from workbench.recipe import sources_of, to_dict, weights_of
from workbench.runs import open_run, run_digest, stage
from workbench.sources import content_digests
from workbench.views.known_costs import RELEASED
from yardstick import cpu_seconds, start

RECIPE = """\
defaults: [workbench, {cost: cpu_2_cores}, _self_]
model: {source: "dir:model", licence: Apache-2.0}
data: {train: file:mine.csv, columns: {prompt: question, answer: answer}}
evaluate: {scorer: exact_match}
teacher:
  {api: openai, model: gpt-5.4-mini, key_variable: SOME_KEY, price_provider: openai, budget_usd: 10, route: openai_api,
   family: gpt, temperature: null}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.csv").write_text("question,answer\na,b\n")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    return tmp_path


def no_network(*_: object) -> None:
    raise AssertionError("something was to be sent")


def cost(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of the command."""
    assert main(["cost", "recipe=./mine.yaml", *words, "output=json"]) == 0
    return json.loads(capsys.readouterr().out)


def finished_run(project: Path, **load: Any) -> Path:
    """A run of that recipe with labels and an evaluation; `load` is its load test, if any."""
    recipe = composed_file("./mine.yaml")
    digest = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    cell = {"ci_low": None, "ci_high": None}
    arms = {
        "teacher": {"exact_match": {"value": 0.9, "ci_low": 0.86, "ci_high": 0.93},
                    "tokens_in_per_answer": {"value": 210.0} | cell, "tokens_per_answer": {"value": 33.0} | cell},
        "student": {"exact_match": {"value": 0.8, "ci_low": 0.75, "ci_high": 0.84}},
        "gguf_q8_0": {"exact_match": {"value": 0.79, "ci_low": 0.74, "ci_high": 0.83},
                      "kwh_per_1000": {"value": 0.011} | cell},
    }  # fmt: skip
    ledger = {"calls": 110, "outcomes": {"ok": 100, "error": 10}, "tokens_in": 22_000, "tokens_cached": 5_500,
              "tokens_out": 4_400, "tokens_reasoning": 1_100, "usd": 3.25}  # fmt: skip
    with open_run(project / "experiments", "mine", digest, to_dict(recipe), fresh=False) as run:
        with stage(run, "label", "x") as staging:
            (staging.folder / "summary.json").write_text(json.dumps({"in_all": ledger}))
        with stage(run, "evaluate", "x") as staging:
            report = {"primary": "exact_match", "n": 300, "arms": arms, "gate": {"shipped": ["student", "gguf_q8_0"]}}
            (staging.folder / "report.json").write_text(json.dumps(report))
        if load:
            (run.folder / "decide").mkdir()
            (run.folder / "decide" / "load.json").write_text(json.dumps(load))
    return run.folder


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in result["inputs"]}


def test_before_any_run_it_works_on_tables_and_assumptions_and_says_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", "recipe=./mine.yaml", "cost.requests_a_month=3e6"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("API", "self", "hybrid", "at your volume of 3 million requests a month", "at saturation",
                  "turns it", "mine has no run yet", "tokens_out*", "gpt-5.4-mini, genai-prices",
                  "read more than 90 days ago: usd_per_hour", "errors are priced at nothing"):  # fmt: skip
        assert words in text, words
    assert not (project / "experiments").exists()


def test_every_number_has_a_value_a_range_a_source_and_a_kind(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = cost(capsys)
    assert result["run"] is None
    for each in result["inputs"]:
        assert each["low"] <= each["value"] <= each["high"]
        assert each["source"]
        assert each["kind"] in ("measured", "table", "yours", "assumed")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each["as_of"]) or each["kind"] in ("assumed", "yours"), each
    assert sum(result["probability"].values()) == pytest.approx(1)
    assert result["intervals"][0]["low"] == 1e4
    assert result["tornado"]
    assert set(NUMBERS) >= {each["name"] for each in result["inputs"]}


def test_energy_is_told_in_kilowatt_hours_and_its_co2_only_where_the_power_is_known(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = cost(capsys, "cost.requests_a_month=1e6", "cost.kwh_per_1000_api=0.2")
    assert plain["energy"] == {"api": {"kwh_a_month": pytest.approx(200)}}, "at home it was not measured"
    words = ("cost.kwh_per_1000_self=0.05", "cost.escalated=0.25", "cost.grams_per_kwh=400")
    told = cost(capsys, "cost.requests_a_month=1e6", "cost.kwh_per_1000_api=0.2", *words)["energy"]
    assert {way: each["kwh_a_month"] for way, each in told.items()} == pytest.approx(
        {"api": 200.0, "self": 50.0, "hybrid": 50.0 + 0.25 * 200.0}
    )
    assert told["self"]["kg_co2_a_month"] == pytest.approx(20.0)
    before = cost(capsys, "cost.requests_a_month=1e6", "cost.kwh_per_1000_api=0.2", *words, "cost.hybrid=before")
    assert before["energy"]["hybrid"]["kwh_a_month"] == pytest.approx(0.75 * 50.0 + 0.25 * 200.0)


def test_a_finished_run_gives_its_own_figures_and_gets_the_page(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run(project)
    result = cost(capsys, "cost.usd_per_error=0.05")
    inputs = by_name(result)
    assert {name for name, each in inputs.items() if each["kind"] == "measured"} == {
        "labels_usd", "retry_factor", "tokens_in", "tokens_cached", "tokens_thought", "tokens_out", "evaluation_usd",
        "error_api", "error_self", "kwh_per_1000_self",
    }  # fmt: skip
    assert inputs["kwh_per_1000_self"]["value"] == 0.011
    assert inputs["labels_usd"]["value"] == 3.25
    assert inputs["retry_factor"]["value"] == pytest.approx(1.1)
    assert inputs["tokens_in"]["value"] == 210.0  # the teacher's on the test rows, before the ledger's mean
    assert inputs["tokens_thought"]["value"] == 10.0
    assert [inputs["error_self"][k] for k in ("value", "low", "high")] == pytest.approx([0.21, 0.17, 0.26])
    assert inputs["error_api"]["value"] == pytest.approx(0.1)
    kept = json.loads((folder / "decide" / "cost.json").read_text())
    assert kept["ways"] == result["ways"]
    page = (folder / "decide" / "cost.html").read_text()
    for name in inputs:
        assert f"<code>{name}" in page
    for words in ("at saturation", "at your volume", "What would turn it"):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_recipes_own_word_wins_over_what_was_measured(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(project)
    mine = by_name(cost(capsys, "cost.tokens_in=99", "cost.ranges.tokens_in=[50,200]"))["tokens_in"]
    assert (mine["value"], mine["low"], mine["high"], mine["kind"]) == (99.0, 50.0, 200.0, "yours")


LOAD = {"device": "cpu", "slo_seconds": 2.0, "answers_per_second": 3.5, "low": 3.3, "high": 3.7, "bundle": "gguf_q8_0",
        "engine": "llamacpp", "hardware": "x86_64 CPU", "made": "2026-11-28T08:00:00Z"}  # fmt: skip


def test_a_measured_capacity_is_taken_only_for_its_own_kind_of_machine_and_objective(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(project, **LOAD)
    taken = by_name(cost(capsys))["answers_per_second"]  # and not the noun's, which was read in a table
    assert [taken[k] for k in ("value", "low", "high", "kind")] == [3.5, 3.3, 3.7, "measured"]
    for words, why in (
        (["cost.device=cuda"], "was measured on cpu, and says nothing of cuda"),
        (["cost.slo_seconds=1"], "was measured for 2 s, not for 1 s"),
    ):
        assert main(["cost", "recipe=./mine.yaml", "cost.answers_per_second=null", *words]) == 2
        error = capsys.readouterr().err
        assert why in error
        assert "cost.answers_per_second" in error
        assert "cost.load=true" in error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cost=gpu_h100"], "nobody has measured what one machine (cuda) answers"),
        (["cost=gpu_h100", "cost.answers_per_second=40"], "nobody knows where this capacity was measured"),
        (["cost.ranges.engineers=[1,2,3]"], "cost.ranges.engineers: a range is two numbers"),
        (["cost.engineers=3", "cost.ranges.engineers=[1,2]"], "3 does not lie between 1 and 2"),
        (["cost.ranges.escalated=[0.1,1.5]"], "leaves what cost.escalated may be"),
        (["cost.sources.engineer=me"], "did you mean 'engineers'"),
        (["cost.as_of.engineers=yesterday"], "'yesterday' is no day"),
        (["cost.tokens_cached=900"], "cannot be cached"),
        (["cost.escalated=1.2"], "must be at most 1"),
        (["cost.api=no-such-model"], "no price is known for 'no-such-model'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key_with_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    if words[0] == "cost=gpu_h100":
        (project / "mine.yaml").write_text(RECIPE.replace("cpu_2_cores", "gpu_h100"))
    assert main(["cost", "recipe=./mine.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "→" in error


def test_the_installed_price_table_has_its_day() -> None:
    from importlib.metadata import version

    assert version("genai-prices") in RELEASED


def test_it_answers_at_once(project: Path) -> None:
    command = (sys.executable, "-m", "workbench", "cost", "recipe=./mine.yaml")
    (first, done), (second, _) = (cpu_seconds(*command, cwd=project) for _ in range(2))
    seconds = min(first, second)  # the better one, as the yardstick takes it
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stderr
    assert seconds < 6 * start(), "at once: see yardstick.py"
