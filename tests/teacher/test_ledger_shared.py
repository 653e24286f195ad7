"""One ledger for many processes: what one has bought or is buying, and what a dead one on another machine has left."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from odd_teacher import completion, odd_teacher
from teacher_project import project, questions
from teacher_server import teacher_server
from workbench.recipe import Teacher
from workbench.teacher import ledger as ledger_file
from workbench.teacher.client import MOST_AT_ONCE, at_once
from workbench.teacher.ledger import open_ledger
from workbench.teacher.wire import Reply, Usage

ELSEWHERE = "another-pod:7:1"


def left_by(path: Path, owner: str, requests: list[str], age_s: float, scope: str = "run") -> None:
    """A ledger with what such a process has reserved, so many seconds ago."""
    with open_ledger(path, scope) as ledger:
        for request in requests:
            assert ledger.reserve(request, "row", "t", 500, 10_000, "online")
        ledger.database.execute("UPDATE attempts SET owner = ?, started = ?", (owner, time.time() - age_s))


def test_what_a_process_on_another_machine_has_reserved_is_its_own_for_a_lease_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    left_by(path, ELSEWHERE, ["a", "b"], age_s=ledger_file.LEASE_S - 20)
    with open_ledger(path, "run") as ledger:
        assert ledger.in_flight("a")
        assert ledger.waits_for_others()
        assert ledger.settle_abandoned() == 0
        ledger.database.execute("UPDATE attempts SET started = ?", (time.time() - ledger_file.LEASE_S - 1,))
        assert not ledger.in_flight("a")
        assert ledger.settle_abandoned() == 2
        assert ledger.spending() == (1_000, 0), "at its worst: nobody knows what the provider did"


def test_a_sign_of_life_makes_the_lease_longer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    left_by(path, ELSEWHERE, ["a"], age_s=10 * ledger_file.LEASE_S)
    with open_ledger(path, "run") as ledger:
        ledger.database.execute("INSERT INTO owners VALUES (?, ?)", (ELSEWHERE, time.time() - 5))
        assert ledger.in_flight("a")
        ledger.database.execute("UPDATE owners SET seen = ?", (time.time() - ledger_file.LEASE_S - 1,))
        assert not ledger.in_flight("a")


def test_a_process_that_was_taken_for_dead_and_answers_after_all_is_booked_at_what_it_has_cost(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", "run") as late, open_ledger(tmp_path / "ledger.db", "run") as other:
        ticket = late.reserve("a", "row", "t", 500, 10_000, "online")
        assert ticket is not None
        late.database.execute("UPDATE attempts SET owner = ?, started = 0", (ELSEWHERE,))
        assert other.settle_abandoned() == 1
        assert other.spending() == (500, 0)
        late.settle(ticket, "ok", 120, reply=Reply("yes", "stop", "m", Usage(10, 0, 1)))
        assert other.spending() == (120, 0)
        answer = other.answer("a")
        assert answer is not None
        assert answer.text == "yes"


def test_a_run_goes_on_after_a_process_of_another_host_name_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "LEASE_S", 1.0)
    with odd_teacher(lambda body: completion("yes")) as server:
        made = project(tmp_path, questions(6), server.url, budget_usd=0.002)
        assert made.label().returncode == 0
        with closing(sqlite3.connect(tmp_path / "experiments" / "ledger.db")) as database:
            database.execute(
                "UPDATE attempts SET state = 'reserved', outcome = NULL, owner = ?, started = ? WHERE row = 'row-1' ",
                (ELSEWHERE, time.time()),
            )
            database.execute("UPDATE spending SET reserved = (SELECT reserved FROM attempts WHERE row = 'row-1')")
            database.commit()
        done = made.label("fresh=true")
        assert done.returncode == 0, done.stderr
        assert "counted at their worst price" in done.stderr
        assert made.ledger("SELECT reserved FROM spending") == [(0,)]


def test_a_ledger_of_an_earlier_version_takes_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with open_ledger(path, "run") as ledger:
        for column in ledger_file.LATER:
            ledger.database.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
    with open_ledger(path, "run") as ledger:
        ticket = ledger.reserve("a", "row", "t", 500, 10_000, "online")
        assert ticket is not None
        ledger.settle(ticket, "ok", 1, reply=Reply("yes", "stop", "m", Usage(1, 0, 1), reasoning="hm"))
        answer = ledger.answer("a")
        assert answer is not None
        assert answer.reasoning == "hm"


@pytest.mark.proof
def test_eight_processes_with_seeds_of_their_own_buy_each_of_150_answers_once(tmp_path: Path) -> None:
    with teacher_server(answer="json", latency_s=0.02) as server:
        made = project(tmp_path, questions(150), server.url + "/v1", concurrency=4, labels=["yes", "no"])
        for number in range(8):
            (tmp_path / f"run{number}.yaml").write_text((tmp_path / "mine.yaml").read_text())
        started = [made.start("label", f"recipe=./run{number}.yaml", f"seed={number}") for number in range(8)]
        assert [process.wait(300) for process in started] == [0] * 8
        asked = Counter(c["prompt"] for c in server.calls() if c["prompt"].startswith("Is item"))
        assert len(asked) == 150
        assert set(asked.values()) == {1}
        for number in range(8):
            (labels,) = tmp_path.glob(f"experiments/run{number}/*/label/labels.jsonl")
            assert len(labels.read_text().splitlines()) == 150


def test_a_server_that_is_started_here_is_asked_as_much_at_once_as_it_takes() -> None:
    assert at_once(Teacher(api="local_gguf", concurrency=64)) == MOST_AT_ONCE
    assert at_once(Teacher(api="local_gguf", concurrency=2)) == 2
    assert at_once(Teacher(api="openai", concurrency=64)) == 64
