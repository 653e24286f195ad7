"""Capacity at an objective: what arrivals that do not wait for answers find of a server whose queue is known."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tiny_gguf import write_tiny_gguf
from workbench.bundles.parity import Reference
from workbench.compose import checked, find_recipe
from workbench.deciding.capacity import CLOSE, capacity
from workbench.engines.arrivals import alone, under_load
from workbench.engines.served import serve_bundle
from workbench.records import Message
from workbench.views.load_test import measured


def test_the_search_ends_within_a_tenth_of_the_rate_that_just_keeps_the_objective() -> None:
    for truth in (0.3, 7.0, 90.0):
        tried: list[float] = []

        def p95(rate: float, truth: float = truth, tried: list[float] = tried) -> float:
            tried.append(rate)
            return 1.0 if rate <= truth else 9.0

        most = capacity(p95, 2.0, 4.0)
        assert most.kept <= truth < most.passed <= CLOSE * most.kept
        assert len(tried) < 30


def test_one_bad_measurement_does_not_end_the_search() -> None:
    bad = iter([False, True, False] + [False] * 50)
    most = capacity(lambda rate: 9.0 if rate > 50 or next(bad) else 1.0, 2.0, 4.0)
    assert most.kept > 45


def test_where_no_rate_keeps_the_objective_none_is_told() -> None:
    assert capacity(lambda rate: 9.0, 2.0, 4.0).kept == 0.0


class OneAtATime:
    """A server that takes so long for each request, one after the other."""

    def __init__(self, seconds: float):
        self.seconds, self.lock, self.most, self.waiting = seconds, threading.Lock(), 0, 0

    def __call__(self, row: int) -> float | None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        with self.lock:
            time.sleep(self.seconds)
        self.waiting -= 1
        return self.seconds / 4


def test_one_request_alone_takes_what_the_server_takes() -> None:
    waits = alone(OneAtATime(0.02), 10)
    assert waits.askers == 10
    assert 0.02 <= waits.p50 <= waits.p95
    assert waits.first_token_p50 == pytest.approx(0.005)


def test_arrivals_do_not_wait_for_answers_and_a_wait_begins_at_the_arrival() -> None:
    # 200 a second at a server of 20 a second: an asker who waited for the one before would never see a queue.
    server = OneAtATime(0.05)
    waits = under_load(server, 200.0, 0.1, seed=1, patience=5.0)
    assert waits.askers == 20
    assert server.most > 10
    assert waits.p95 > 0.6  # the last of twenty waits for those before it
    assert waits.p95 > 1.5 * waits.p50


def test_who_has_no_answer_in_time_counts_as_waiting_for_ever() -> None:
    waits = under_load(OneAtATime(0.2), 100.0, 0.1, seed=1, patience=0.3)
    assert waits.p95 == float("inf")


@pytest.mark.slow
def test_a_real_server_is_loaded_up_to_the_objective_and_a_stopwatch_outside_agrees(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf")
    recipe = checked(find_recipe("legal_lora"), ["cost.slo_seconds=0.5", "cost.load_seconds=2"])
    row = Reference("a", (Message("user", "permission is hereby granted " * 20),), (1,), (2,), ({2: 0.0},), "", None)
    with serve_bundle(tmp_path, "llamacpp", context=1024, parallel=4, threads=1) as server:
        seen = measured(server, [row] * 20, 64, recipe)
        outside = subprocess.run(
            [sys.executable, "-c", STOPWATCH, server.url], capture_output=True, text=True, check=True, timeout=120
        )
    assert seen["answers_per_second"] > 0
    assert seen["alone"]["askers"] == 20
    assert 0 < seen["alone"]["first_token_p50"] < seen["alone"]["p50"] <= seen["alone"]["p95"]
    kept = [level for level in seen["levels"] if level["rate"] == seen["answers_per_second"]]
    assert min(level["p95"] for level in kept if level["p95"]) <= 0.5
    # Another process, another client; half as much again allows for a machine that has other work.
    assert float(outside.stdout) == pytest.approx(seen["alone"]["p50"], rel=0.5)


STOPWATCH = """
import json, statistics, sys, time, urllib.request
seen = []
for i in range(21):
    text = f"({1000 + i}) " + "permission is hereby granted " * 20
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 64, "temperature": 0}
    started = time.perf_counter()
    call = urllib.request.Request(sys.argv[1] + "/v1/chat/completions", json.dumps(body).encode(),
                                  {"Content-Type": "application/json"})
    urllib.request.urlopen(call).read()
    seen.append(time.perf_counter() - started)
print(statistics.median(seen[1:]))
"""
