"""Labels through the door, against a real server on loopback that fails in every documented way."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from teacher_project import Project, outcomes, project, questions
from teacher_server import TeacherServer, teacher_server

ALL_FAULTS = {
    "429": 0.04, "429_retry_after": 0.04, "500": 0.04, "503": 0.04, "reset": 0.02, "reset_after_work": 0.02,
    "timeout": 0.005, "slow_body": 0.02, "broken_http": 0.02, "cut_json": 0.02, "wrong_schema": 0.02, "refusal": 0.01,
    "empty": 0.005,
}  # fmt: skip
YES_NO = {"labels": ["yes", "no"]}


def check_books(made: Project, server: object, rows: int) -> None:
    """Every row has one outcome, every call one line on both sides, and the money agrees."""
    ids = Counter(line["id"] for name in ("labels", "rejected") for line in made.lines(name))
    assert len(ids) == rows, "no row is lost"
    assert set(ids.values()) == {1}, "no row is there twice"
    totals = server.totals()  # type: ignore[attr-defined]
    calls = made.ledger("SELECT COUNT(*) FROM attempts")[0][0]
    served = [c for c in server.calls() if c["path"] in ("/v1/chat/completions", "/v1/completions")]  # type: ignore[attr-defined]
    assert calls == len(served), "ledger and server agree to the call"
    assert made.ledger("SELECT COUNT(*) FROM attempts WHERE state != 'settled' OR outcome IS NULL")[0][0] == 0
    told, assumed = made.ledger("SELECT SUM(cost * (1 - assumed)), SUM(cost * assumed) FROM attempts")[0]
    unheard = sum(c["cost"] for c in served if c["status"] is None or c["fault"] in ("broken_http", "reset_after_work"))
    assert told / 1e9 == pytest.approx(totals["cost_usd"] - unheard, rel=1e-6, abs=1e-7)
    assert (assumed or 0) / 1e9 >= unheard, "what nobody told us is assumed at its worst"


@pytest.mark.slow
def test_every_row_of_a_failing_teacher_has_exactly_one_outcome_and_the_books_agree(tmp_path: Path) -> None:
    with teacher_server(answer="json", faults=ALL_FAULTS, timeout_s=3.0, retry_after=0.2, slow_s=0.1) as server:
        made = project(tmp_path, questions(400), server.url + "/v1", timeout_s=2.0, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        check_books(made, server, 400)
        found = outcomes(made)
        assert {"ok", "error", "truncated", "malformed", "refusal"} <= set(found)
        reasons = Counter(line["reason"] for line in made.lines("rejected"))
        assert set(reasons) <= {"truncated", "refusal", "malformed", "unanswered"}
        assert server.totals()["too_early"] == 0, "Retry-After was honoured"


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_ten_thousand_rows_with_thirty_percent_of_calls_failing(tmp_path: Path) -> None:
    with teacher_server(answer="json", faults=ALL_FAULTS, timeout_s=3.0, retry_after=0.2, slow_s=0.1) as server:
        made = project(tmp_path, questions(10_000), server.url + "/v1", timeout_s=2.0, concurrency=64, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        check_books(made, server, 10_000)


def test_the_same_command_again_buys_nothing_and_so_does_another_run_on_the_same_prompts(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(60), server.url + "/v1", **YES_NO)
        assert made.label().returncode == 0
        bought = len(server.calls())
        again = made.label()
        assert again.returncode == 0
        assert "nothing left to do" in again.stderr
        assert made.label("fresh=true").returncode == 0
        assert made.label("seed=4").returncode == 0, "another run, which asks the same"
        assert len(server.calls()) == bought
        assert made.label("teacher.max_new_tokens=65").returncode == 0, "another question to each prompt"
        calls = [c for c in server.calls() if c["number"] >= bought and c["prompt"].startswith("Is item")]
        assert len(calls) == 60, "only the run whose requests differ buys"


@pytest.mark.slow
def test_two_runs_at_once_on_the_same_prompts_buy_each_answer_once(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.05) as server:
        made = project(tmp_path, questions(150), server.url + "/v1", concurrency=8, **YES_NO)
        (tmp_path / "other.yaml").write_text((tmp_path / "mine.yaml").read_text())
        both = [made.start("label", f"recipe=./{name}.yaml") for name in ("mine", "other")]
        assert [process.wait(120) for process in both] == [0, 0]
        asked = Counter(c["prompt"] for c in server.calls() if c["prompt"].startswith("Is item"))
        assert len(asked) == 150
        assert set(asked.values()) == {1}
        for name in ("mine", "other"):
            (labels,) = tmp_path.glob(f"experiments/{name}/*/label/labels.jsonl")
            assert len(labels.read_text().splitlines()) == 150


def test_several_samples_at_temperature_0_are_refused(tmp_path: Path) -> None:
    done = project(tmp_path, questions(3), "http://127.0.0.1:9/v1").label("teacher.samples=3", "teacher.temperature=0")
    assert done.returncode == 2
    assert "teacher.samples" in done.stderr


@pytest.mark.slow
def test_a_budget_that_runs_out_ends_with_3_keeps_what_was_bought_and_goes_on_with_more(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.01) as server:
        made = project(tmp_path, questions(300), server.url + "/v1", budget_usd=0.004, concurrency=64, **YES_NO)
        done = made.label()
        assert done.returncode == 3, done.stderr
        assert "teacher.budget_usd" in done.stderr
        assert "a higher budget goes on" in done.stderr
        assert server.totals()["cost_usd"] <= 0.004
        kept = outcomes(made)["ok"]
        assert 0 < kept < 300
        assert len(made.lines("labels")) == kept, "everything bought is kept"
        assert made.label("teacher.budget_usd=1").returncode == 0
        assert outcomes(made)["ok"] == 300
        assert len(made.lines("labels")) == 300


def test_a_wrong_key_stops_after_one_request_with_one_clear_line(tmp_path: Path) -> None:
    with teacher_server() as server:
        made = project(tmp_path, questions(50), server.url + "/v1")
        done = made.label(key="sk-wrong")
        assert done.returncode == 2
        assert len(server.calls()) <= 2
        assert "teacher.key_variable" in done.stderr
        assert "Traceback" not in done.stderr
        assert "sk-wrong" not in done.stderr


def test_unknown_retired_unpriced_unbudgeted_models_and_a_missing_key_end_with_2(tmp_path: Path) -> None:
    with teacher_server(retired_models=["old-test"]) as server:
        made = project(tmp_path, questions(5), server.url + "/v1")
        for words, told in (
            (["teacher.model=nobody"], "knows no 'nobody'"),
            (["teacher.model=old-test"], "has retired 'old-test'"),
            (["teacher.price.input_mtok=null", "teacher.price.output_mtok=null"], "no price is known for 'gpt-test'"),
            (["teacher.budget_usd=null"], "no budget is set"),
            (["teacher.key_variable=NO_SUCH"], "NO_SUCH is not set"),
            (["teacher.api=nothing"], "no such API"),
        ):
            done = made.label(*words)
            assert done.returncode == 2, (words, done.stderr)
            assert told in done.stderr, (words, done.stderr)


def test_an_endpoint_that_is_not_there_is_said_in_one_line_and_is_no_wrong_request(tmp_path: Path) -> None:
    made = project(tmp_path, questions(5), "http://127.0.0.1:9/v1", attempts=2)
    done = made.label()
    assert done.returncode == 1
    assert "is it up?" in done.stderr


def test_a_recipe_without_a_teacher_has_nothing_to_label(tmp_path: Path) -> None:
    made = project(tmp_path, questions(5), "http://127.0.0.1:9")
    done = made.label("teacher.api=none")
    assert done.returncode == 2
    assert "no teacher" in done.stderr


def killed_again_and_again(made: Project, server: TeacherServer, times: int, seed: int) -> None:
    """Start the command and kill it after some of its calls, so many times; then let it end."""
    generator = random.Random(seed)
    for _ in range(times):
        calls = server.totals()["calls"] + generator.randint(1, 80)
        process = made.start("label", "recipe=./mine.yaml")
        while process.poll() is None and server.totals()["calls"] < calls:
            time.sleep(0.02)
        assert process.poll() is None, "it was still asking"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = made.label()
    assert done.returncode == 0, done.stderr


def check_repeats(server: object, rows: int, kills: int, concurrency: int) -> None:
    """No prompt that was answered and noted is asked again: repeats are at most what was in flight at a kill."""
    asked = Counter(c["prompt"] for c in server.calls() if c["prompt"].startswith("Is item"))  # type: ignore[attr-defined]
    assert len(asked) == rows
    repeats = sum(asked.values()) - rows
    assert repeats <= kills * concurrency, repeats


@pytest.mark.slow
def test_a_killed_run_never_sends_a_finished_row_again(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.05) as server:
        made = project(tmp_path, questions(600), server.url + "/v1", concurrency=8, **YES_NO)
        killed_again_and_again(made, server, 2, seed=1)
        check_repeats(server, 600, 2, 8)
        assert len(made.lines("labels")) == 600


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_twenty_kills_in_two_thousand_rows(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.1) as server:
        made = project(tmp_path, questions(2_000), server.url + "/v1", concurrency=4, **YES_NO)
        killed_again_and_again(made, server, 20, seed=2)
        check_repeats(server, 2_000, 20, 4)
        assert len(made.lines("labels")) == 2_000


def test_malformed_answers_are_mended_at_most_twice_and_every_turn_is_in_the_ledger(tmp_path: Path) -> None:
    script = [
        ["Is item 1 ", "perhaps"],
        ["That answer cannot be used", '{"label": "yes"}'],
        ["Is item", '{"label": "no"}'],
    ]
    with teacher_server(answer=script) as server:
        made = project(tmp_path, questions(3), server.url + "/v1", min_kept_share=0.1, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        labels = {line["id"]: line["answer"] for line in made.lines("labels")}
        assert labels == {"row-0": "no", "row-1": "yes", "row-2": "no"}
        assert outcomes(made) == {"ok": 3, "malformed": 1}


def test_samples_are_voted_on_and_disagreement_is_set_aside(tmp_path: Path) -> None:
    yes, no, neither = ('{"label": "' + word + '"}' for word in ("yes", "no", "maybe"))
    script = [["Is item 0 ", [yes, yes, no]], ["Is item 1 ", [yes, no, neither]], ["Reply", "yes"]]
    with teacher_server(answer=script) as server:
        made = project(tmp_path, questions(2), server.url + "/v1", samples=3, temperature=1.0, min_agreement=0.6,
                       repairs=0, min_kept_share=0.0, **YES_NO)  # fmt: skip
        done = made.label()
        assert done.returncode == 0, done.stderr
        (label,) = made.lines("labels")
        assert (label["id"], label["answer"], label["agreement"]) == ("row-0", "yes", pytest.approx(2 / 3))
        (rejected,) = made.lines("rejected")
        assert (rejected["id"], rejected["reason"]) == ("row-1", "disagreement")


def with_gold(made: Project, answers: list[str]) -> None:
    """Give the project's prompts answers of their own."""
    path = made.folder / "prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps(row | {"answer": answer}) for row, answer in zip(rows, answers, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def test_an_answer_that_differs_from_the_rows_own_is_set_aside_when_a_scorer_is_named(tmp_path: Path) -> None:
    script = [["Is item", '{"label": "yes"}'], ["Reply", "yes"]]
    with teacher_server(answer=script) as server:
        made = project(
            tmp_path, questions(4), server.url + "/v1", gold_scorer="exact_match", min_kept_share=0.2, **YES_NO
        )
        with_gold(made, ["yes", "no", "yes", "no"])
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert [line["id"] for line in made.lines("labels")] == ["row-0", "row-2"]
        assert {line["reason"] for line in made.lines("rejected")} == {"differs_from_gold"}


def test_an_answer_that_the_judge_grades_low_is_set_aside_and_the_grading_is_in_the_ledger(tmp_path: Path) -> None:
    grades = [["Is item 0 of shelf 0 in stock?\n\nAnswer", '{"grade": 3}'], ["Grade the answer", '{"grade": 9}']]
    with teacher_server(answer=[*grades, ["Is item", '{"label": "yes"}'], ["Reply", "yes"]]) as server:
        made = project(tmp_path, questions(3), server.url + "/v1", judge_at_least=0.7, min_kept_share=0.2, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        (rejected,) = made.lines("rejected")
        assert (rejected["id"], rejected["reason"]) == ("row-0", "judged_low")
        assert outcomes(made)["ok"] == 6, "three answers and three grades"


def test_too_low_a_kept_share_ends_with_3_and_names_the_file_with_the_reasons(tmp_path: Path) -> None:
    with teacher_server(faults={"refusal": 0.8}, fault_depth=0, answer="json") as server:
        made = project(tmp_path, questions(40), server.url + "/v1", **YES_NO)
        done = made.label()
        assert done.returncode == 3, done.stderr
        assert "rejected.jsonl" in done.stderr
        assert {line["reason"] for line in made.lines("rejected")} == {"refusal"}


def test_a_rationale_is_asked_with_the_answer_and_kept_beside_it(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(5), server.url + "/v1", rationale=True, **YES_NO)
        assert made.label().returncode == 0
        assert all(line["rationale"] and line["answer"] in ("yes", "no") for line in made.lines("labels"))


def test_equal_prompts_are_bought_once(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.02) as server:
        made = project(tmp_path, ["Is it so?"] * 1 + questions(3), server.url + "/v1", **YES_NO)
        rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
        rows += [{"id": f"again-{n}", "text": "Is it so?", "answer": f"own {n}"} for n in range(4)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert made.label().returncode == 0
        assert Counter(c["prompt"] for c in server.calls())["Is it so?"] == 1
        assert len(made.lines("labels")) == 8


def test_prompts_that_repeat_an_evaluation_row_are_not_sent(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, [*questions(5), "test question number 3", "Validation  question number 4"],
                       server.url + "/v1", **YES_NO)  # fmt: skip
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert not [c for c in server.calls() if "question number" in c["prompt"]]
        assert len(made.lines("labels")) == 5


def test_plan_says_what_labelling_would_cost_and_sends_nothing(tmp_path: Path) -> None:
    with teacher_server() as server:
        made = project(tmp_path, questions(50), server.url + "/v1", **YES_NO)
        done = made.run("plan", "recipe=./mine.yaml", "output=json")
        assert done.returncode == 0, done.stderr
        teacher = json.loads(done.stdout)["teacher"]
        assert "50 calls for 50 prompts" in teacher["asks"]
        assert "allow" in teacher["terms"]
        assert server.calls() == []
