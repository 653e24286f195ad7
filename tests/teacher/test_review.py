"""Labels that people read: written out, corrected, signed, and taken by the next run without asking again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teacher_project import Project, project, questions
from teacher_server import teacher_server
from workbench.errors import RequestError
from workbench.recipe import Teacher
from workbench.records import ToolCall
from workbench.stages.reviewed import review_in

LABELS = {"labels": ["yes", "no"]}


def reviewed(made: Project) -> list[dict[str, Any]]:
    return made.lines("to_review")


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "labels_reviewed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


REVIEW = "teacher.review=file:labels_reviewed.jsonl"


def test_what_a_person_has_corrected_and_signed_is_the_label_of_the_next_run(tmp_path: Path) -> None:
    with teacher_server(answer=[["Is item", '{"label": "yes"}'], ["question", '{"label": "yes"}']]) as server:
        made = project(tmp_path, questions(6), server.url + "/v1", **LABELS)
        assert made.label().returncode == 0
        rows = reviewed(made)
        assert {(row["answer"], row["by"], row["at"]) for row in rows} == {("yes", "", "")}
        assert next(row["prompt"] for row in rows if row["id"] == "row-2").endswith(questions(6)[2])
        by_id = {row["id"]: row for row in rows}
        by_id["row-1"] |= {"answer": "No", "by": "A. Reader", "at": "2026-11-28"}
        by_id["row-2"] |= {"answer": None, "by": "A. Reader", "at": "2026-11-28"}
        by_id["row-3"] |= {"by": "B. Reader", "at": "2026-11-28T09:30"}
        by_id["row-4"] |= {"answer": "no"}  # not signed: not taken
        write(tmp_path, rows)
        before, first = len(server.calls()), made.stage
        done = made.run("label", "recipe=./mine.yaml", REVIEW)
        assert done.returncode == 0, done.stderr
        assert "3 rows have a person's word (A. Reader 2, B. Reader 1)" in done.stderr
        assert len(server.calls()) == before, "nothing is asked again"
        (second,) = [p.parent for p in tmp_path.glob("experiments/mine/*/label/labels.jsonl") if p.parent != first]
        labels = {line["id"]: line for line in map(json.loads, (second / "labels.jsonl").read_text().splitlines())}
        assert (labels["row-1"]["answer"], labels["row-1"]["model"]) == (
            "no", "reviewed by A. Reader, 2026-11-28T00:00:00",
        )  # fmt: skip
        assert "row-2" not in labels
        assert [labels[row]["answer"] for row in ("row-3", "row-4")] == ["yes", "yes"]
        (rejected,) = map(json.loads, (second / "rejected.jsonl").read_text().splitlines())
        assert (rejected["id"], rejected["reason"]) == ("row-2", "struck_out")
        again = {row["id"]: row for row in map(json.loads, (second / "to_review.jsonl").read_text().splitlines())}
        assert (again["row-1"]["by"], again["row-2"]["answer"]) == ("A. Reader", None)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"id": "row-1", "answer": "maybe", "by": "A", "at": "2026-11-28"}, "labels_reviewed.jsonl:1"),
        ({"id": "row-1", "answer": "yes", "by": "A", "at": "someday"}, "`at` is no day"),
        ({"id": "nobody", "answer": "yes", "by": "A", "at": "2026-11-28"}, "no row of this recipe"),
        ({"id": "row-1", "answer": 1, "by": "A", "at": "2026-11-28"}, "an answer that is a text or null"),
        ({"id": "row-1", "answer": "yes", "by": "", "at": ""}, "none of its 1 rows is signed"),
    ],
)
def test_a_review_that_cannot_be_taken_is_named_by_its_row(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    write(tmp_path, [row])
    with teacher_server(answer="json") as server:
        done = project(tmp_path, questions(3), server.url + "/v1", **LABELS).label(REVIEW)
        assert done.returncode == 2, done.stderr
        assert why in done.stderr
        assert "teacher.review" in done.stderr


@pytest.mark.parametrize(
    "calls",
    ["say", {"name": "say"}, 7, ["say"], [{"arguments": "{}"}], [{"name": 7}], [{"name": "say", "arguments": 7}],
     [{"name": "say", "arguments": [1]}], [{"name": "say", "id": 7}], [None]], ids=str,
)  # fmt: skip
def test_calls_that_a_person_wrote_otherwise_than_the_labels_are_named_by_their_row(calls: Any) -> None:
    row = {"id": "row-1", "answer": "", "by": "A", "at": "2026-11-28", "tool_calls": calls}
    with pytest.raises(RequestError, match="f:3: tool_calls are not as in labels"):
        review_in("f:3", row, Teacher())


def test_a_signature_is_one_line_and_arguments_may_be_an_object() -> None:
    calls = [{"name": "say", "arguments": {"word": "yes"}, "id": None}]
    row = {"id": "row-1", "answer": "", "by": "A\n# B", "at": "2026-11-28", "tool_calls": calls}
    review = review_in("f:3", row, Teacher())
    assert review.by == "A # B"
    assert review.tool_calls == (ToolCall("say", '{"word": "yes"}', ""),)
