"""A route through the door: chosen on validation rows, told once on the test, refused where it should be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import screenshots
from bundle_project import only_run
from page_reader import Page, at, says
from route_project import new_route_project, new_rows, teacher_answers
from teacher_server import TeacherServer, teacher_server
from workbench.__main__ import main
from workbench.bundles.manifest import check_signature
from workbench.deciding.identity import voided
from workbench.signing_keys import public_key_of, signing_key

MODELS = ("gpt-route", "gpt-alike")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """No vLLM for so small a model, no MLflow, which is held elsewhere, and a key for the teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", "sk-teacher-test-key")
        patch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[TeacherServer]:
    with teacher_server(answer=teacher_answers(), models=MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def made(tiny_model: Path, server: TeacherServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is trained, evaluated, bundled and routed once; copy what you change."""
    folder = new_route_project(tmp_path_factory.mktemp("route") / "project", tiny_model, server.url + "/v1")
    code, _, said = run(folder, "train", "until=bundle")
    assert code == 0, said
    code, shown, said = run(folder, "route")
    assert code == 0, said
    (folder / "first.txt").write_text(shown + said)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


def run(folder: Path, verb: str, *words: str) -> tuple[int, str, str]:
    """One command in the project: its exit code, what it showed, what it said."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(shown), redirect_stderr(said):
        code = main([verb, "recipe=./mine.yaml", *words])
    return code, shown.getvalue(), " ".join(said.getvalue().split())


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((only_run(folder) / "route" / "report.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    files = (only_run(folder) / "evaluate" / "predictions").glob("*.jsonl")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_route_keeps_at_home_what_the_student_knows_and_its_promise_and_its_figures_are_in_the_report(
    made: Path,
) -> None:
    report, folder = report_of(made), only_run(made) / "route"
    assert report["passed"]
    chosen, test = report["chosen"], report["test"]
    assert (report["arm"], chosen["kind"], chosen["score"]) == ("student", "cascade", "logprob")
    assert chosen["auroc"] > 0.7, "it is unsure of the sales"
    assert chosen["harmful"] <= chosen["allowed"]
    assert test["harm"]["value"] <= 0.05
    assert 0.3 < 1 - test["escalated"]["value"] < 0.8
    assert test["differences"]["cascade_vs_random_mix"]["ci_low"] > 0
    assert test["arms"]["cascade"]["value"] > test["arms"]["student"]["value"]
    assert (report["look"]["number"], report["look"]["level"]) == (1, 0.95)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert {"route.yaml", "report.json", "report.html", "validation/student.jsonl", "validation/teacher.jsonl"} == set(
        manifest["files"]
    )
    assert manifest["route_sha256"] == hashlib.sha256((folder / "route.yaml").read_bytes()).hexdigest()
    bundle = only_run(made) / "bundle" / "student" / "MANIFEST.json"
    assert manifest["proven_for"]["bundle"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert check_signature(folder, public_key_of(signing_key())).startswith("signed by")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.quoted) > 40
    wrong = [entry for entry in page.quoted if not says(entry[3], entry[1], at(report, entry[0]))]
    assert wrong == []
    assert not [words for words in page.around if any(letter.isdigit() for letter in words)]
    shown = (made / "first.txt").read_text()
    assert "kept at home" in shown
    assert "240 rows of data.validation decide" in shown


@pytest.mark.slow
def test_no_test_row_is_asked_and_the_predictions_stay_as_they_were_and_a_changed_route_is_a_second_look(
    project: Path, server: TeacherServer
) -> None:
    before, start = hashes(project), len(server.calls())
    code, shown, said = run(project, "route", "route.most_harm=0.08")
    assert code == 0, said
    assert hashes(project) == before
    texts = {row["text"] for row in new_rows("test")}
    assert not [call for call in server.calls(start) if any(text in call.get("prompt", "") for text in texts)]
    report = report_of(project)
    assert (report["look"]["number"], report["look"]["level"]) == (2, 0.975)
    assert "look 2 at this test: its intervals are widened to 97.5 %" in said
    assert "97.5 % intervals, look 2 at this test" in shown
    code, _, said = run(project, "route", "route.most_harm=0.08")
    assert code == 0
    assert "done already" in said
    code, _, said = run(project, "route")
    assert report_of(project)["look"]["number"] == 1, "the first route told again is no further look"


def test_shuffled_scores_are_refused_as_no_better_than_a_random_mix(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.stages.route import choosing, route

    plain, draw = choosing.cascade_scores, np.random.default_rng(5)

    def shuffled(pairs: Any, score: str) -> list[float]:
        return draw.permutation(plain(pairs, score)).tolist()

    monkeypatch.setattr(choosing, "cascade_scores", shuffled)
    monkeypatch.setattr(route, "cascade_scores", shuffled)
    code, _, said = run(project, "route", "route.certainty=0.951")
    assert code == 3
    assert "no better than a random mix" in said
    assert [each["name"] for each in report_of(project)["refused"]] == ["no_better_than_a_random_mix"]
    assert not (only_run(project) / "route" / "MANIFEST.json").exists(), "what was refused is no route"
    assert run(project, "route", "route.certainty=0.951")[0] == 3, "and is refused again without any work"


def test_a_promise_that_so_few_rows_cannot_prove_is_refused_with_the_rows_that_it_takes_before_the_test_is_opened(
    project: Path,
) -> None:
    looks = (project / "experiments" / "looks.jsonl").read_text()
    code, _, said = run(project, "route", "route.most_harm=0.01")
    assert code == 3
    assert "240 rows cannot prove 1 points" in said
    assert "takes 299 rows" in said
    assert "59 more rows" in said
    assert report_of(project)["test"] is None
    assert (project / "experiments" / "looks.jsonl").read_text() == looks


@pytest.mark.slow
def test_a_teacher_no_better_than_the_student_needs_no_router(project: Path) -> None:
    with teacher_server(answer=[["", "yes"]], models=MODELS) as alike:
        words = [f"route.teacher.base_url={alike.url}/v1", "route.teacher.model=gpt-alike"]
        code, _, said = run(project, "route", *words)
        assert code == 1, "its answers to the test are not there, and are not asked here"
        assert "teacher's answers to the test are another's" in said
        assert "the route that was here is void: the teacher's model string changed" in said
        assert "proven for openai:gpt-route, now openai:gpt-alike" in said
        code, _, said = run(project, "evaluate", *words)
        assert code == 0, said
        code, _, said = run(project, "route", *words)
    assert code == 3
    assert "no router is needed: ship the student" in said


@pytest.mark.slow
def test_a_changed_bundle_voids_the_route_which_is_said(project: Path) -> None:
    code, _, said = run(project, "bundle", "bundle.intended_use=stocks")
    assert code == 0
    assert "this run's route is void: the bundle's files changed" in said
    code, _, said = run(project, "route", "bundle.intended_use=stocks")
    assert code == 0
    assert "the route that was here is void: the bundle's files changed" in said
    assert report_of(project)["look"]["number"] == 2, "what was proven for other files is another route"


def test_a_route_is_not_proven_for_weights_that_have_changed_since_they_were_bundled(project: Path) -> None:
    weights = only_run(project) / "merge" / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, said = run(project, "route", "route.certainty=0.951")
    assert code == 1
    assert f"{weights.parent}: these files are not the ones the stage made" in said


def test_every_part_that_a_route_was_proven_for_is_named_when_it_changes() -> None:
    proven = dict.fromkeys(("bundle", "template", "asked"), "a" * 64) | {"teacher": "x:1", "engine": "llamacpp 1"}
    assert voided(proven, proven) == []
    found = voided(proven, proven | {"template": "b" * 64, "engine": "llamacpp 2"})
    assert found == [
        "the prompt's rendering changed: proven for aaaaaaaaaaaa, now bbbbbbbbbbbb",
        "the engine's version changed: proven for llamacpp 1, now llamacpp 2",
    ]


def test_the_plan_says_what_a_promise_needs_and_what_asking_would_cost(project: Path) -> None:
    code, shown, said = run(project, "plan", "route.most_harm=0.01")
    assert code == 0, said
    words = " ".join(shown.split())
    assert (
        "1 points (sure, 95 %) takes 299 rows at least; at most 240 of data.validation can decide: 59 too few" in words
    )
    assert "answers of gpt-route to 240 validation rows, and for `evaluate` to 160 test rows" in words


def test_a_hybrid_costs_what_the_route_was_told_on_the_test_and_nothing_of_a_refused_one(project: Path) -> None:
    def inputs(*words: str) -> dict[str, Any]:
        code, shown, said = run(project, "cost", "cost=cpu_2_cores", "output=json", *words)
        assert code == 0, said
        return {each["name"]: each for each in json.loads(shown)["inputs"]}

    told, test = inputs(), report_of(project)["test"]
    for name in ("escalated", "harm"):
        figures = [told[name][end] for end in ("value", "low", "high")]
        assert figures == [test[name][end] for end in ("value", "ci_low", "ci_high")]
        assert told[name]["kind"] == "measured"
        assert "the route (cascade by logprob) on 160 test rows" in told[name]["source"]
    assert inputs("cost.hybrid=before")["escalated"]["kind"] == "assumed", "it was told of another order of asking"
    assert inputs("cost.harm=0.01")["harm"]["value"] == 0.01, "your own word wins"
    assert run(project, "route", "route.most_harm=0.01")[0] == 3
    assert inputs()["escalated"]["kind"] == "assumed"


def test_the_evaluation_ends_with_what_could_stay_at_home_and_the_command_that_proves_it(made: Path) -> None:
    folder = only_run(made) / "evaluate"
    home = json.loads((folder / "report.json").read_text())["home"]
    assert home["arm"] == "student"
    assert 0.3 < home["share"] < 0.9
    assert "is no promise" in home["sentence"]
    assert home["command"].startswith("python -m workbench route recipe=")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.index("What could stay at home") > html.index("How this was made")
    assert "distillation" not in json.loads((folder / "report.json").read_text()), "nothing was learned of this teacher"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_real_browser_shows_the_page_without_an_error_a_request_or_a_sideways_scroll(
    browser: screenshots.Browser, made: Path, width: int, dark: bool
) -> None:
    browser.events.clear()
    browser.look(width, 900, dark=dark)
    browser.go(str(only_run(made) / "route" / "report.html"), 1.0)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) is dark
    methods = [event.get("method") for event in browser.events]
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file://") and url.endswith("/report.html") for url in asked)
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(methods)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["route.teacher.api=none"], "route.teacher.api"),
        (["route.scores=[logprob,entropy]"], "route.scores"),
        (["route.scores=[logprob,least]", "route.promise=on_average"], "route.promise"),
        (["route.arm=gguf_q8_0"], "route.arm"),
    ],
)
def test_a_route_that_cannot_be_is_a_wrong_request(project: Path, words: list[str], key: str) -> None:
    code, _, said = run(project, "route", *words)
    assert code == 2
    assert key in said
