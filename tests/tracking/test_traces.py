"""Answers as MLflow's traces: there once, with the scorer's word; and what people write on them comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracking_runs import HandMade, new_experiments
from workbench.__main__ import main
from workbench.privacy.redact import redact
from workbench.recipe import Recipe, Teacher, Tracking
from workbench.stages.reviewed import reviews_of
from workbench.tracking import Egress, catch_up, reviewed, store_uri
from workbench.tracking.store import connect

ROWS = [
    {"id": "7", "prompt": "Which licence?", "answer": "BSD", "expected": "MIT", "scores": {"exact_match": 0.0}},
    {
        "id": "8",
        "prompt": "And this?",
        "answer": "MIT",
        "expected": "MIT",
        "scores": {"exact_match": 1.0, "f1": 0.5},
        "seconds": 0.25,
    },
]


def answered(experiments: Path, rows: list[dict[str, Any]] | None = None, stage: str = "evaluate") -> HandMade:
    run = HandMade(experiments)
    run.event("stage_started", stage)
    run.write(
        f"{stage}/{'to_' * (stage == 'label')}review.jsonl",
        "".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)),
    )
    run.done(stage, stage)
    return run


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    return new_experiments(tmp_path / "experiments")


def traces(experiments: Path, run_id: str | None = None) -> list[Any]:
    from mlflow.tracing.client import TracingClient

    with connect(store_uri(Tracking(), experiments)) as client:
        ids = [e.experiment_id for e in client.search_experiments()]
        found = list(TracingClient(store_uri(Tracking(), experiments)).search_traces(locations=ids, run_id=run_id))
    return sorted(found, key=lambda trace: trace.info.request_preview)


def write(experiments: Path, trace: Any, assessment: Any) -> None:
    """What a person does in MLflow's page."""
    from mlflow.tracing.client import TracingClient

    TracingClient(store_uri(Tracking(), experiments)).log_assessment(trace.info.trace_id, assessment)


def by_hand(name: str, value: object, who: str = "ann@example.org") -> Any:
    from mlflow.entities import AssessmentSource, Expectation

    return Expectation(name, value, AssessmentSource("HUMAN", who))


def test_each_answer_is_a_trace_of_the_run_with_the_right_answer_and_the_scorer_s_word(experiments: Path) -> None:
    run = answered(experiments)
    fed = catch_up(run.folder, Tracking(), experiments)
    right, wrong = traces(experiments, fed["run_id"])
    (span,) = wrong.data.spans
    assert span.inputs["messages"][0]["content"] == "Which licence?"
    assert span.outputs["choices"][0]["message"]["content"] == "BSD"
    words = {a.name: (a.expectation or a.feedback).value for a in wrong.info.assessments}
    assert words == {"expected_response": "MIT", "exact_match": False}
    assert {a.name: (a.expectation or a.feedback).value for a in right.info.assessments} == {
        "expected_response": "MIT", "exact_match": True, "f1": 0.5}  # fmt: skip
    assert {a.source.source_type for a in wrong.info.assessments} == {"CODE"}
    assert right.info.execution_duration == 250, "milliseconds, as it was measured"


def test_feeding_again_doubles_no_trace_and_loses_no_word_of_a_person(experiments: Path) -> None:
    run = answered(experiments)
    catch_up(run.folder, Tracking(), experiments)
    write(experiments, traces(experiments)[1], by_hand("expected_response", "ISC"))
    (run.folder / "tracking.json").unlink()
    catch_up(run.folder, Tracking(), experiments)
    assert len(traces(experiments)) == 2
    assert len(traces(experiments)[1].info.assessments) == 3

    run.write("evaluate/review.jsonl", json.dumps(ROWS[0] | {"answer": "Apache"}) + "\n")  # evaluated again
    run.event("stage_started", "evaluate")
    catch_up(run.folder, Tracking(), experiments)
    there = {trace.info.response_preview for trace in traces(experiments)}
    assert there == {"BSD", "Apache"}, "what a person has written on stays, what nobody has goes"


def test_a_corrected_answer_comes_back_by_its_row_with_who_and_when(
    experiments: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = answered(experiments)
    catch_up(run.folder, Tracking(), experiments)
    assert reviewed(run.folder, Tracking(), experiments) == {}, "what the workbench has written is no review"
    trace = traces(experiments)[1]
    write(experiments, trace, by_hand("expected_response", "GPL"))
    write(experiments, trace, by_hand("expected_response", {"license": "ISC"}, "bo"))
    write(experiments, trace, by_hand("mood", "glad"))
    out = tmp_path / "reviewed.jsonl"
    assert main(["review", "recipe=tiny", f"to={out}", f"experiments={experiments}"]) == 0
    assert out.read_text() == "", "test rows are nothing to train on"
    (row,) = map(json.loads, (tmp_path / "reviewed.test.jsonl").read_text().splitlines())
    assert (row["id"], json.loads(row["answer"]), row["by"]) == ("7", {"license": "ISC"}, "bo")
    assert set(row) == {"id", "answer", "by", "at"}
    assert row["at"].startswith("20")
    assert "1 corrected answers to test rows" in capfd.readouterr().err


def test_a_right_answer_that_is_changed_in_place_is_a_correction_too(experiments: Path) -> None:
    from mlflow.entities import Expectation
    from mlflow.tracing.client import TracingClient

    run = answered(experiments)
    catch_up(run.folder, Tracking(), experiments)
    trace = traces(experiments)[1]
    (wanted,) = [a for a in trace.info.assessments if a.name == "expected_response"]
    client = TracingClient(store_uri(Tracking(), experiments))
    client.update_assessment(trace.info.trace_id, wanted.assessment_id, Expectation("expected_response", "GPL"))
    (row,) = reviewed(run.folder, Tracking(), experiments)["evaluate"].values()
    assert (row["id"], row["answer"], row["by"]) == ("7", "GPL", "not named in MLflow")


def test_of_internal_rows_traces_hold_placeholders_and_corrections_get_the_originals_back(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.tracking.outbound.is_remote", lambda *_: True)
    log: list[object] = []
    egress = Egress(redact, log.append)
    row = {"id": "ann@acme.org", "prompt": "Who wrote? ann@acme.org", "answer": "bo@acme.org", "expected": "ann"}
    run = answered(experiments, [row])
    run.write("recipe.yaml", json.dumps({"name": "tiny", "data": {"privacy": "internal"}}))
    catch_up(run.folder, Tracking(), experiments, egress)
    (trace,) = traces(experiments)
    assert "acme" not in json.dumps(trace.to_dict())
    assert trace.info.request_preview == "Who wrote? [EMAIL_1]"
    assert log
    write(experiments, trace, by_hand("expected_response", "[EMAIL_1], surely"))
    (back,) = reviewed(run.folder, Tracking(), experiments, egress)["evaluate"].values()
    assert (back["id"], back["answer"]) == ("ann@acme.org", "ann@acme.org, surely")


def test_of_restricted_rows_no_trace_leaves(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracking.outbound.is_remote", lambda *_: True)
    run = answered(experiments)
    run.write("recipe.yaml", json.dumps({"name": "tiny", "data": {"privacy": "restricted"}}))
    catch_up(run.folder, Tracking(), experiments, Egress(redact, lambda _: None))
    assert traces(experiments) == []


def test_labels_of_a_teacher_are_traces_too_and_the_next_run_takes_a_correction(
    experiments: Path, tmp_path: Path
) -> None:
    run = answered(
        experiments,
        [{"id": "3", "prompt": "Which licence?", "answer": "BSD"}, {"id": "4", "answer": None}],
        stage="label",
    )
    catch_up(run.folder, Tracking(), experiments)
    (trace,) = traces(experiments)
    assert (trace.info.tags["workbench.stage"], trace.info.assessments) == ("label", [])
    write(experiments, trace, by_hand("expected_response", "MIT"))
    out = tmp_path / "reviewed.jsonl"
    assert main(["review", "recipe=tiny", f"to={out}", f"experiments={experiments}"]) == 0
    teacher = Recipe(teacher=Teacher(api="openai", model="m", review=f"file:{out}"))
    assert {r.id: (r.answer, r.by) for r in reviews_of(teacher, {"3"}).values()} == {"3": ("MIT", "ann@example.org")}


@pytest.mark.parametrize(("words", "key"), [(["recipe=tiny"], "to"), (["to=x"], "recipe"), (["recipe=no", "to=x"], "")])
def test_a_review_that_lacks_something_is_told_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["review", *words]) == 2
    assert (key or "has no run") in capfd.readouterr().err
