"""The wall: many calls at once never pass it, in whatever order they end; and the pace that providers want."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from teacher_desk import labelled, teacher_of
from teacher_project import KEY, questions
from teacher_server import teacher_server
from workbench.errors import GateError, WorkbenchError
from workbench.records import Message
from workbench.teacher import ledger as ledger_file
from workbench.teacher.calls import Pace
from workbench.teacher.labeller import Prompt
from workbench.teacher.ledger import NANO, open_ledger


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"row-{n}", (Message("user", text),)) for n, text in enumerate(questions(count))]


MANY = pytest.param(range(2, 50), marks=(pytest.mark.proof, pytest.mark.timeout(1200)))


@pytest.mark.parametrize("seeds", [pytest.param(range(2), marks=pytest.mark.slow), MANY])
def test_64_calls_at_once_never_pass_a_budget_that_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: range
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    faults = {"500": 0.05, "429": 0.05, "reset_after_work": 0.03, "wrong_schema": 0.05}
    for seed in seeds:
        budget = 0.002 + 0.00003 * seed
        with teacher_server(answer="json", faults=faults, seed=seed, latency_s=0.005) as server:
            folder = tmp_path / str(seed)
            teacher = teacher_of(concurrency=64, budget_usd=budget)
            kept, _, ended = labelled(folder, server.url + "/v1", teacher, prompts(200))
            assert isinstance(ended, GateError), ended
            assert ended.exit_code == 3
            assert 0 < server.totals()["cost_usd"] <= budget
            with open_ledger(folder / "ledger.db", "run") as ledger:
                spent, reserved = ledger.spending()
                assert reserved == 0
                assert spent <= budget * NANO
                bought = ledger.database.execute("SELECT COUNT(*) FROM attempts WHERE outcome = 'ok'").fetchone()[0]
                assert kept == bought, "everything bought is kept"
            sent = server.totals()["calls"]
            more, _, ended = labelled(
                folder, server.url + "/v1", teacher_of(concurrency=64, budget_usd=5.0), prompts(200)
            )
            assert ended is None
            assert more >= kept
            asked = [c["prompt"] for c in server.calls() if c["number"] >= sent and c["prompt"].startswith("Is item")]
            assert len(asked) < 200 + 60, "what was bought before is not asked again"


def test_reservations_of_a_dead_process_count_at_their_worst_and_those_of_a_living_one_stand(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", "run") as ledger:
        for request, owner in (("a", "no-such-host:1:0"), ("b", None)):
            ticket = ledger.reserve(request, "row", "t", 500, 10_000, "online")
            assert ticket is not None
            dead = owner or f"{ledger.owner.split(':')[0]}:999999:1"
            ledger.database.execute("UPDATE attempts SET owner = ? WHERE id = ?", (dead, ticket.attempt))
        assert ledger.spending() == (0, 1000)
        assert ledger.settle_abandoned() == 1
        assert ledger.spending() == (500, 500)
        assert ledger.in_flight("a")
        assert not ledger.in_flight("b")


def test_a_ledger_that_many_runs_make_at_the_same_moment_opens_for_all(tmp_path: Path) -> None:
    def spent(path: Path, gate: threading.Barrier) -> tuple[int, int]:
        gate.wait()
        with open_ledger(path, "run") as ledger:
            return ledger.spending()

    with ThreadPoolExecutor(4) as pool:
        for n in range(25):
            gate = threading.Barrier(4)
            opened = [pool.submit(spent, tmp_path / str(n) / "ledger.db", gate) for _ in range(4)]
            assert [each.result() for each in opened] == [(0, 0)] * 4


def test_a_reservation_that_would_pass_the_wall_is_not_made(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", "run") as ledger:
        assert ledger.reserve("a", "row", "t", 60, 100, "online")
        assert ledger.reserve("b", "row", "t", 41, 100, "online") is None
        assert ledger.reserve("c", "row", "t", 40, 100, "online")


def test_a_429_halves_what_is_sent_at_once_and_a_round_of_calm_raises_it_by_one() -> None:
    async def story() -> list[int]:
        pace = Pace(16, clock=lambda: 0.0)
        pace.in_flight = 16
        pace.throttled(None)
        seen = [pace.allowed]
        pace.throttled(None)
        seen.append(pace.allowed)
        for _ in range(20):
            pace.answered()
        return [*seen, pace.allowed]

    assert asyncio.run(story()) == [8, 4, 7]


def test_limits_a_minute_space_the_requests_and_retry_after_stops_them_all() -> None:
    now = 0.0
    pace = Pace(8, requests_per_minute=60, tokens_per_minute=6000, clock=lambda: now)
    assert pace.starts_in(10) == 0
    assert pace.starts_in(10) == pytest.approx(1.0), "sixty a minute is one a second"
    now = 1.0
    assert pace.starts_in(600) == 0
    now = 2.0
    assert pace.starts_in(10) == pytest.approx(5.0), "600 tokens take six seconds of 6000 a minute"
    pace.throttled(30.0)
    assert pace.starts_in(10) == pytest.approx(30.0)


def test_a_ledger_on_a_full_disk_says_so_and_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "SCHEMA", f"PRAGMA max_page_count = 2; {ledger_file.SCHEMA}")
    with pytest.raises(WorkbenchError) as caught, open_ledger(tmp_path / "ledger.db", "run"):
        pass
    assert "no space left" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "not a ledger" not in str(caught.value)
