"""Capacity at an objective: what arrivals that do not wait for answers find of a server whose queue is known."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiny_gguf import write_tiny_gguf
from workbench.bundles.parity import Reference
from workbench.compose import checked, find_recipe
from workbench.deciding.capacity import CLOSE, capacity
from workbench.engines.arrivals import alone, under_load
from workbench.engines.served import serve_bundle
from workbench.records import Answer, Example, Message
from workbench.stages.evaluate.arms import Arm
from workbench.stages.evaluate.evaluate import at_volume
from workbench.stages.evaluate.one_asker import is_served, waits_of
from workbench.views.load_test import measured


def test_the_search_ends_within_a_tenth_of_the_rate_that_just_keeps_the_objective() -> None:
    for truth in (0.3, 7.0, 90.0):
        tried: list[float] = []

        def p95(rate: float, truth: float = truth, tried: list[float] = tried) -> float:
            tried.append(rate)
            return 1.0 if rate <= truth else 9.0

        most = capacity(p95, 2.0, 4.0)
        assert most.kept <= truth < most.passed == pytest.approx(CLOSE * most.kept)
        assert len(tried) < 30


def test_where_the_search_begins_does_not_change_what_it_finds() -> None:
    """A first rate comes from a wait that was measured, and no two of those are equal."""
    ends = {capacity(lambda rate: 2.0 * rate / 7.3, 2.0, start).kept for start in (0.2, 1.0, 1.07, 4.4, 40.0)}
    assert len(ends) == 1
    assert 7.3 / CLOSE < ends.pop() <= 7.3


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
    waits = under_load(server, 200.0, 20, seed=1, patience=5.0)
    assert waits.askers == 20
    assert server.most > 10
    assert waits.p95 > 0.6  # the last of twenty waits for those before it
    assert waits.p95 > 1.5 * waits.p50


def test_a_rate_is_met_exactly_and_every_rate_by_one_pattern_of_arrivals() -> None:
    seen: dict[float, list[float]] = {}
    for rate in (100.0, 400.0):
        started, came = time.perf_counter(), seen.setdefault(rate, [])
        under_load(lambda row, came=came, started=started: came.append(time.perf_counter() - started), rate, 40, 3, 1.0)
        assert len(came) == 40
        assert max(came) <= 40 / rate * 1.5 + 0.2, "as many as the rate says, in the time that it says"
    slow, fast = sorted(seen[100.0]), sorted(seen[400.0])
    assert slow[20] / slow[-1] == pytest.approx(fast[20] / fast[-1], abs=0.25)


def test_who_has_no_answer_in_time_counts_as_waiting_for_ever() -> None:
    waits = under_load(OneAtATime(0.2), 100.0, 10, seed=1, patience=0.3)
    assert waits.p95 == float("inf")


def test_one_asker_alone_is_asked_for_so_long_and_five_times_at_least() -> None:
    assert alone(OneAtATime(0.02), 20, within=0.001).askers == 5
    assert 5 <= alone(OneAtATime(0.02), 20, within=0.15).askers < 12


class Engine:
    """Says the same to every prompt, so many seconds later; `prompts` are those it was asked."""

    def __init__(self, seconds: float, *, tells: bool = True):
        self.seconds, self.tells = seconds, tells
        self.prompts, self.longest = [], []  # type: tuple[list[str], list[int]]

    def __call__(self, prompts: Any, longest: int, schema: Any = None, tools: Any = None) -> Iterator[Any]:
        for place, prompt in enumerate(prompts):
            self.prompts.append(prompt[-1].content)
            self.longest.append(longest)
            time.sleep(self.seconds)
            yield place, Answer("yes", "stop", 3, 1, 0.0, first_token=self.seconds / 2 if self.tells else None)


KEPT = {"askers": 5, "p50": 4.3, "p95": 6.1, "first_token_p50": 2.5, "each": [4.3] * 5}


def test_what_one_asker_waits_is_measured_once_and_never_taken_from_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Example(f"r{i}", (Message("user", f"text {i}"), Message("assistant", "yes"))) for i in range(3)]
    arm = Arm("gguf_q8_0", "a1", 1, "llamacpp", nullcontext)
    places, engine = (tmp_path / "new", tmp_path / "old"), Engine(0.01)
    assert waits_of(arm, engine, items, 8, places, False) == {}, "nobody wanted it, and nothing is asked"
    assert engine.prompts == []
    first = waits_of(arm, engine, items, 8, places, True)
    assert 0.01 <= first["latency_p50"] <= first["latency_p95"]
    assert first["first_token_p50"] == pytest.approx(0.005)
    assert len(set(engine.prompts)) == len(engine.prompts) == 21, "no text twice: an engine remembers"
    asked = len(engine.prompts)
    for again in ((tmp_path / "newer", places[0]), places):  # kept beside the answers, and taken over with them
        assert waits_of(arm, engine, items, 8, again, False) == first
    assert len(engine.prompts) == asked
    other = replace(arm, digest="b2")
    assert waits_of(other, engine, items, 8, places, False) == {}
    assert waits_of(other, Engine(0.03), items, 8, places, True)["latency_p50"] > 2 * first["latency_p50"]
    silent = Engine(0.01, tells=False)
    waits = waits_of(replace(arm, digest="c3"), silent, items, 8, places, True)
    assert waits["first_token_p50"] >= 0.01, "an engine that does not tell it is asked for one token"
    assert (silent.longest[-5:], set(silent.longest[:-5])) == ([1] * 5, {8})
    assert len(set(silent.prompts)) == len(silent.prompts)
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    student = replace(arm, name="student", served_by="vllm")
    (places[0] / "student.alone.json").write_text(json.dumps(KEPT | {"of": "a1 in vllm 0.32.0"}))
    assert waits_of(student, engine, items, 8, places, True)["latency_p95"] == 6.1, "it stands where vLLM is not here"
    assert waits_of(replace(student, digest="b2"), engine, items, 8, places, True) == {}, "and is nobody else's"
    assert len(engine.prompts) == asked
    for served_by, name in (("transformers", "student"), ("openai", "teacher"), ("llamacpp", "teacher")):
        assert not is_served(replace(arm, name=name, served_by=served_by))


def test_dollars_at_your_volume_are_those_of_whole_machines_paid_by_the_month() -> None:
    recipe = checked(find_recipe("legal_lora"), ["launch.usd_per_hour=2", "cost.requests_a_month=1e5"])
    figures = {"answers_per_second": 4.0, "usd_per_1000": 1000 * 2 / 3600 / 4}
    assert at_volume(recipe, figures) == {"usd_per_1000_at_volume": pytest.approx(2 * 730 / 100)}
    month = 4.0 * 730 * 3600  # answers of one machine
    for load, machines in ((1.0, 1), (0.1, 1), (1.5, 2)):
        at = replace(recipe, cost=replace(recipe.cost, requests_a_month=load * month))
        assert at_volume(at, figures)["usd_per_1000_at_volume"] == pytest.approx(
            figures["usd_per_1000"] * machines / load
        )
    assert at_volume(replace(recipe, cost=replace(recipe.cost, requests_a_month=None)), figures) == {}


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
