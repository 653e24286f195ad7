"""The four wire formats, against servers that check a request as the providers' documents do; batches that survive."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from teacher_project import KEY, outcomes, project, questions
from teacher_server import TeacherServer, teacher_server

YES_NO = {"labels": ["yes", "no"]}
CLAUDE = {
    "api": "anthropic", "model": "claude-test", "route": "mistral_api", "family": "mistral", "temperature": None,
}  # fmt: skip
BATCH = {"batch": True, "poll_seconds": 0.05}


def at(server: TeacherServer, api: str) -> str:
    """Where an SDK is pointed for this API."""
    return server.url if api == "anthropic" else server.url + "/v1"


def settings(api: str) -> dict[str, object]:
    """The teacher section for an API."""
    return (CLAUDE if api == "anthropic" else {}) | YES_NO


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_online_requests_are_as_documented_and_answers_are_read(tmp_path: Path, api: str) -> None:
    with teacher_server(answer="json", cached_share=0.5, reasoning_tokens=7) as server:
        made = project(tmp_path, questions(20), at(server, api), **settings(api))
        done = made.label()
        assert done.returncode == 0, done.stderr
        path = "/v1/messages" if api == "anthropic" else "/v1/chat/completions"
        calls = [c for c in server.calls() if c["path"] == path and c["prompt"].startswith("Is item")]
        assert [c["status"] for c in calls] == [200] * 20
        for line in made.lines("labels"):
            prompt = questions(20)[int(line["id"].removeprefix("row-"))]
            schema = {"type": "object", "properties": {"label": {"type": "string", "enum": ["yes", "no"]}}}
            assert line["answer"] == json.loads(server.expected(prompt, schema))["label"]
        spent = made.ledger("SELECT SUM(cost) FROM attempts")[0][0]
        assert spent / 1e9 == pytest.approx(server.totals()["cost_usd"], rel=1e-6)
        cached, tokens = made.ledger("SELECT SUM(tokens_cached), SUM(tokens_in) FROM attempts WHERE kind = 'online'")[0]
        assert 0 < cached < tokens


@pytest.mark.slow
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_batch_costs_half_and_what_it_lacks_is_asked_one_by_one(tmp_path: Path, api: str) -> None:
    faults = {"batch_error": 0.1, "batch_expired": 0.1, "wrong_schema": 0.1}
    with teacher_server(answer="json", faults=faults, fault_depth=1, batch_polls=3) as server:
        made = project(tmp_path, questions(60), at(server, api), batch_rows=25, **BATCH, **settings(api))
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert len(made.lines("labels")) == 60
        kinds = Counter(dict(made.ledger("SELECT kind, COUNT(*) FROM attempts WHERE outcome = 'ok' GROUP BY kind")))
        assert kinds["batch"] > 30
        assert kinds["online"] > 0
        lines = [c for c in server.calls() if c["batch"]]
        assert len({c["batch"] for c in lines}) == 3
        paid = Counter(c["prompt"] for c in server.calls() if c["cost"] and c["fault"] != "wrong_schema")
        assert max(n for prompt, n in paid.items() if prompt.startswith("Is item")) == 1, "nothing is paid twice"
        spent = made.ledger("SELECT SUM(cost) FROM attempts")[0][0]
        assert spent / 1e9 == pytest.approx(server.totals()["cost_usd"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_batch_outlives_the_process_that_sent_it(tmp_path: Path, api: str) -> None:
    with teacher_server(answer="json", batch_polls=10_000) as server:
        made = project(tmp_path, questions(30), at(server, api), **BATCH, **settings(api))
        process = made.start("label", "recipe=./mine.yaml")
        deadline = time.monotonic() + 60
        while not submitted(made):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        server.set(batch_polls=0)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert "of an earlier attempt" in done.stderr
        assert len(made.lines("labels")) == 30
        assert outcomes(made) == {"ok": 30}
        paid = Counter(c["prompt"] for c in server.calls() if c["cost"] and c["prompt"].startswith("Is item"))
        assert set(paid.values()) == {1}


def submitted(made: object) -> bool:
    """Whether a batch has its provider's id."""
    import sqlite3

    try:
        return bool(made.ledger("SELECT COUNT(*) FROM batches WHERE remote IS NOT NULL")[0][0])  # type: ignore[attr-defined]
    except sqlite3.OperationalError:
        return False


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_batch_whose_receipt_was_lost_is_looked_for_and_not_sent_twice(tmp_path: Path, api: str) -> None:
    paths = ["/v1/batches", "/v1/messages/batches"]
    with teacher_server(answer="json", faults={"reset_after_work": 1.0}, fault_depth=1, fault_paths=paths) as server:
        made = project(tmp_path, questions(12), at(server, api), **BATCH, **settings(api))
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert len({c["batch"] for c in server.calls() if c["batch"]}) == 1
        paid = Counter(c["prompt"] for c in server.calls() if c["cost"] and c["prompt"].startswith("Is item"))
        assert set(paid.values()) == {1}
        assert len(made.lines("labels")) == 12


def test_a_batch_that_the_provider_fails_whole_falls_back_to_single_calls(tmp_path: Path) -> None:
    with teacher_server(answer="json", batch_failure="token_limit_exceeded") as server:
        made = project(tmp_path, questions(10), server.url + "/v1", **BATCH, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert "failed" in done.stderr
        assert len(made.lines("labels")) == 10


def test_a_batch_stops_at_the_budget(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(200), server.url + "/v1", budget_usd=0.002, **BATCH, **YES_NO)
        done = made.label()
        assert done.returncode == 3, done.stderr
        assert server.totals()["cost_usd"] <= 0.002


def test_log_probabilities_are_stored_with_their_bytes_in_under_200_bytes_a_token(tmp_path: Path) -> None:
    import pyarrow.parquet

    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(100), server.url + "/v1", logprobs=20, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        table = pyarrow.parquet.read_table(made.stage / "logprobs.parquet").to_pydict()
        assert {len(top) for top in table["top_tokens"]} == {20}
        texts: dict[str, bytes] = {}
        for identity, token in zip(table["id"], table["token"], strict=True):
            texts[identity] = texts.get(identity, b"") + token
        for line in made.lines("labels"):
            assert json.loads(texts[line["id"]])["label"] == line["answer"], "the bytes are the answer's"
        size = json.loads((made.stage / "summary.json").read_text())["logprobs"]
        assert size["bytes_a_token"] <= 200


def test_what_the_endpoint_cannot_do_is_found_by_asking_once_and_said(tmp_path: Path) -> None:
    with teacher_server(
        answer=[["Is item", '{"label": "yes"}']], unsupported=["logprobs", "response_format", "seed"]
    ) as server:
        made = project(tmp_path, questions(5), server.url + "/v1", **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert "takes no JSON schema" in done.stderr
        assert len(made.lines("labels")) == 5
        before = len(server.calls())
        assert made.label("fresh=true").returncode == 0
        assert len(server.calls()) == before, "the probe's finding is kept, and so are the answers"
        wants = made.label("teacher.logprobs=5")
        assert wants.returncode == 2
        assert "teacher.logprobs" in wants.stderr


def test_the_key_is_nowhere_but_in_the_header(tmp_path: Path) -> None:
    with teacher_server(answer="json", keep_bodies=True) as server:
        made = project(tmp_path, questions(5), server.url + "/v1", **YES_NO)
        done = made.label()
        assert KEY.encode() in server.bytes_received()
        assert KEY.encode() not in made.everything()
        assert KEY not in done.stdout + done.stderr
