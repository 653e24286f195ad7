"""Replies that no document describes: each is one row's matter, and none is booked below what it must have cost."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from odd_teacher import completion, is_probe, odd_teacher
from teacher_project import Project, project, questions
from teacher_server import teacher_server
from workbench.teacher import batch as batches
from workbench.teacher.labeller import grade_in
from workbench.teacher.payload import read_reply
from workbench.teacher.wire import Request

SETTINGS: dict[str, Any] = {"concurrency": 2, "attempts": 2, "min_kept_share": 0.0, "budget_usd": 1.0}
CASE = re.compile(r"Case (\d+)\.")
STRANGE: dict[str, Any] = {
    "half of a surrogate pair": completion("\ud83d"),
    "a number": completion(7),
    "a list of texts": completion([{"type": "text", "text": "no"}]),
    "an object": completion({"a": 1}),
    "nothing": completion(None),
    "an end that is an object": completion("yes", {"a": 1}),
    "usage past all belief": completion("yes", usage={"prompt_tokens": 10**30, "completion_tokens": 1}),
    "usage below nothing": completion("yes", usage={"prompt_tokens": -1_000_000, "completion_tokens": -1_000_000}),
    "usage in words": completion("yes", usage={"prompt_tokens": "many", "completion_tokens": [1]}),
    "no usage": completion("yes", usage=None),
    "a list as usage": completion("yes", usage=[1, 2]),
    "more cached than asked": completion(
        "yes", usage={"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10**6}}
    ),
    "no choice": {"choices": []},
    "choices that are nothing": {"choices": [None]},
    "a list": [1, 2],
    "a page of HTML": ("text/html", b"<html><body>Sign in to the gateway</body></html>"),
    "a stream": ("text/event-stream", b'data: {"choices": [{"index": 0}]}\n\ndata: [DONE]\n'),
    "half of a JSON text": ("application/json", b'{"choices": [{"index": 0, "mess'),
    "nesting without end": ("application/json", b"[" * 100_000),
    "a busy upstream": {"error": {"message": "upstream is busy", "code": 429}, "choices": None},
    "a failed upstream": {"choices": [{"error": {"message": "gone", "code": 502}, "finish_reason": "error"}]},
    "a name of a megabyte": completion("yes") | {"model": "m" * 1_000_000},
    "an answer of brackets": completion("[" * 3_000),
    "a call nested without end": completion(None, tool_calls=[{"function": {"name": "f", "arguments": "[" * 3_000}}]),
    "a refusal nested without end": (400, b"[" * 100_000),
    "usage that is no number": ("application/json", json.dumps(completion("yes")).replace('": 20', '": NaN').encode()),
}  # fmt: skip


def in_one_run(folder: Path, replies: dict[str, Any]) -> tuple[Project, Any]:
    """Rows of which each second one gets one of these replies whenever it is asked, and the others a plain yes."""
    names = list(replies)
    prompts = [
        text for n, text in enumerate(questions(len(names))) for text in (f"{text} Case {n}.", f"Plainly: {text}")
    ]

    def reply(body: dict[str, Any]) -> Any:
        case = CASE.search(json.dumps(body["messages"]))
        return replies[names[int(case[1])]] if case else completion("yes")

    with odd_teacher(reply) as server:
        made = project(folder, prompts, server.url, **SETTINGS)
        return made, made.label()


def test_a_strange_reply_costs_its_row_at_most_and_is_never_booked_below_nothing(tmp_path: Path) -> None:
    made, done = in_one_run(tmp_path, STRANGE)
    assert done.returncode == 0, done.stderr
    rows = [line["id"] for part in ("labels", "rejected") for line in made.lines(part)]
    assert sorted(row for row in rows if row.startswith("row-")) == sorted(f"row-{n}" for n in range(2 * len(STRANGE)))
    answers = {line["id"]: line["answer"] for line in made.lines("labels")}
    assert all(answers[f"row-{2 * n + 1}"] == "yes" for n in range(len(STRANGE)))
    assert made.ledger("SELECT COUNT(*) FROM attempts WHERE cost < 0 OR state != 'settled'") == [(0,)]
    reasons = {line["id"]: line["reason"] for line in made.lines("rejected")}
    outcome = {name: answers.get(f"row-{2 * n}") or reasons[f"row-{2 * n}"] for n, name in enumerate(STRANGE)}
    assert outcome == {
        "half of a surrogate pair": "malformed", "a number": "unreadable", "a list of texts": "no",
        "an object": "unreadable", "nothing": "malformed", "an end that is an object": "unreadable",
        "usage past all belief": "yes", "usage below nothing": "yes", "usage in words": "yes", "no usage": "yes",
        "a list as usage": "yes", "more cached than asked": "yes", "no choice": "unanswered",
        "choices that are nothing": "unreadable", "a list": "unreadable", "a page of HTML": "unreadable",
        "a stream": "unreadable", "half of a JSON text": "unanswered", "nesting without end": "unanswered",
        "a busy upstream": "unanswered", "a failed upstream": "unanswered", "a name of a megabyte": "yes",
        "an answer of brackets": "[" * 3_000, "a call nested without end": "unreadable",
        "a refusal nested without end": "refused_by_provider", "usage that is no number": "yes",
    }  # fmt: skip
    assert made.ledger("SELECT COUNT(*), SUM(cost) FROM attempts WHERE status = 400") == [(1, 0)], "and is not repeated"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (("text/html", b"<html><body>Sign in to the gateway</body></html>"), ["text/html", "Sign in to the gateway"]),
        (("text/event-stream", b"data: {}\n\ndata: [DONE]\n\n"), ["text/event-stream", "data: {}"]),
    ],
)
def test_an_endpoint_that_gives_a_page_or_a_stream_is_named_after_one_question(
    tmp_path: Path, bad: Any, words: list[str]
) -> None:
    with odd_teacher(lambda body: bad) as server:
        done = project(tmp_path, questions(5), server.url).label()
        assert done.returncode == 2, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
        assert len(server.bodies) == 1
        assert server.bodies[0]["stream"] is False


def test_an_error_within_a_success_is_sorted_by_its_code(tmp_path: Path) -> None:
    with odd_teacher(lambda body: {"error": {"message": "this key is not known", "code": 401}}) as server:
        done = project(tmp_path, questions(5), server.url).label()
        assert done.returncode == 2
        assert "teacher.key_variable" in done.stderr
        assert len(server.bodies) == 1
    asked = iter(range(1_000))

    def busy(body: dict[str, Any]) -> Any:
        if not is_probe(body) and next(asked) % 2:
            return {"choices": None, "usage": None, "error": {"message": "upstream is busy", "code": 429}}
        return completion("yes")

    folder = tmp_path / "busy"
    folder.mkdir()
    with odd_teacher(busy) as server:
        made = project(folder, questions(10), server.url, concurrency=2, attempts=10)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert len([line for line in made.lines("labels") if line["id"].startswith("row-")]) == 10
        assert made.ledger("SELECT SUM(cost) FROM attempts WHERE outcome = 'error' AND status = 429") == [(0,)]


def lies(usage: Any) -> Callable[[dict[str, Any]], Any]:
    """A teacher that says yes and states this usage of it."""
    return lambda body: completion("yes", usage=usage)


FALSE_USAGE: tuple[Any, ...] = (
    None, {}, {"prompt_tokens": -5_000, "completion_tokens": -9}, {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": float("nan"), "completion_tokens": "3"}, {"prompt_tokens": 1e30, "completion_tokens": 1e30},
    {"prompt_tokens": True, "completion_tokens": 0.5}, "none",
)  # fmt: skip


def test_a_usage_that_cannot_be_is_replaced_by_a_count_of_the_words(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Any:
        case = CASE.search(json.dumps(body["messages"]))
        return completion("yes", usage=FALSE_USAGE[int(case[1])] if case else None)

    with odd_teacher(reply) as server:
        made = project(tmp_path, [f"{'word ' * 50}Case {n}." for n in range(len(FALSE_USAGE))], server.url)
        assert made.label().returncode == 0
        columns = "tokens_in, tokens_cached, tokens_out, cost, assumed"
        rows = made.ledger(f"SELECT {columns} FROM attempts WHERE row LIKE 'row-%'")
        assert len(rows) == len(FALSE_USAGE)
        for tokens_in, cached, out, cost, assumed in rows:
            assert tokens_in >= 50, "five bytes a word, one token a word"
            assert (cached, assumed) == (0, 1)
            assert out >= 1
            assert cost >= 50 * 1000 + 4 * 1000


def test_cached_tokens_are_never_more_than_the_prompt_has(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1_000_000}}
    with odd_teacher(lies(usage)) as server:
        made = project(tmp_path, questions(3), server.url)
        assert made.label().returncode == 0
        assert made.ledger("SELECT DISTINCT tokens_in, tokens_cached FROM attempts WHERE kind = 'online'") == [(20, 20)]


def test_a_bill_far_past_the_limit_is_booked_and_stops_the_stage_with_what_to_do(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 64 * 50}

    def reply(body: dict[str, Any]) -> Any:
        return completion("yes", usage=usage if not is_probe(body) else None)

    with odd_teacher(reply) as server:
        made = project(tmp_path, questions(200), server.url, concurrency=2)
        done = made.label()
        assert done.returncode == 1, done.stderr
        assert "3,200 tokens" in done.stderr
        assert "teacher.max_new_tokens" in done.stderr
        assert len(server.rows) <= 2, "no more than were under way"
        booked = made.ledger("SELECT SUM(cost) FROM attempts WHERE kind = 'online'")[0][0]
        assert booked == len(server.rows) * (20 * 1000 + 3_200 * 4000), "what the provider will ask for"


def test_a_bill_a_little_past_the_limit_is_booked_and_later_calls_are_reserved_at_as_much(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 128}
    with odd_teacher(lies(usage)) as server:
        made = project(tmp_path, questions(60), server.url, concurrency=1, budget_usd=0.02)
        done = made.label()
        assert done.returncode == 3, done.stderr
        assert made.ledger("SELECT SUM(cost) FROM attempts")[0][0] <= 0.02 * 1e9


def test_what_a_server_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    sly = "\x1b]0;owned\x07\x1b[2J\x9b31mred"
    replies = [
        (400, {"error": {"message": sly}}),
        {"error": {"message": sly, "code": 401}},
        ("text/html", sly.encode()),
    ]
    for number, bad in enumerate(replies):
        folder = tmp_path / str(number)
        folder.mkdir()
        with odd_teacher(lambda body, bad=bad: bad) as server:  # type: ignore[misc]
            done = project(folder, questions(3), server.url).label()
            assert done.returncode == 2
            assert not any(sign in done.stderr + done.stdout for sign in "\x1b\x07\x9b")
            assert "owned" in done.stderr


def test_anthropic_s_words_are_held_to_the_same_counts() -> None:
    request = Request("row", {}, "hash", 500, 64, text_bytes=300)
    payload = {"content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn", "model": "c",
               "usage": {"input_tokens": -50, "cache_read_input_tokens": 1e30, "output_tokens": 1}}  # fmt: skip
    usage = read_reply("anthropic", payload, request).usage
    assert (usage.tokens_in, usage.cached, usage.out, usage.own_in) == (100, 0, 1, True)


def endless(pause: float) -> Iterator[bytes]:
    """A JSON text that never ends, fast or drop by drop."""
    yield b'{"choices": [{"message": {"content": "'
    while True:
        time.sleep(pause)
        yield b"a" * (1 if pause else 1_000_000)


def test_a_reply_without_an_end_stops_the_stage_and_names_the_endpoint(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return completion("yes") if is_probe(body) else ("application/json", endless(0))

    with odd_teacher(reply) as server:
        made = project(tmp_path, questions(3), server.url, **SETTINGS)
        done = made.label()
    assert done.returncode == 1
    assert "teacher.base_url: the reply is longer than 64,000,000 bytes" in done.stderr
    assert len(server.rows) <= 3


def test_a_reply_that_drips_is_given_up_after_the_time_for_one_request(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return ("application/json", endless(0.05)) if CASE.search(json.dumps(body)) else completion("yes")

    with odd_teacher(reply) as server:
        made = project(tmp_path, ["Is it so? Case 1.", *questions(3)], server.url, **SETTINGS | {"timeout_s": 0.5})
        done = made.label()
    assert done.returncode == 0, done.stderr
    rejected = {line["id"]: line for line in made.lines("rejected")}
    assert list(rejected) == ["row-0"]
    assert len(made.lines("labels")) == 3


def test_a_grade_of_brackets_is_none() -> None:
    assert grade_in("[" * 3_000) is None
    assert grade_in('{"grade": 7}') == 7


def changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    """Makes a line with other fields."""
    return lambda line: json.dumps(line | fields).encode()


# Lines of a batch's output that name no request, and such that name one and answer it in no documented way.
NAMELESS: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    lambda line: b"half of a li", lambda line: b"[1]", lambda line: b"7", lambda line: b"null",
    lambda line: b"[" * 3_000, lambda line: b"\xff\xfe", changed(custom_id=None), changed(custom_id=["x"]),
)  # fmt: skip
SHAPELESS: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    changed(response=[1]), changed(response={"status_code": 200}), changed(response={"status_code": 200, "body": None}),
    changed(response={"status_code": 200, "body": [1]}), changed(response={"status_code": 200, "body": "yes"}),
)  # fmt: skip
REFUSED: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    changed(response=None, error="overloaded"), changed(response={"status_code": 500, "body": "gone"}),
    changed(response={"status_code": 500, "body": {"error": ["gone"]}}),
)  # fmt: skip


def test_a_strange_line_of_a_batch_costs_its_row_at_most_and_is_booked_at_its_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, real = (*NAMELESS, *SHAPELESS, *REFUSED), batches.json_lines

    def spoiled(response: Any) -> Any:
        lines = response.content.strip().split(b"\n")
        lines[: len(spoil)] = [make(json.loads(line)) for make, line in zip(spoil, lines, strict=False)]
        return real(SimpleNamespace(content=b"\n".join(lines)))  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "json_lines", spoiled)
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(30), server.url + "/v1", batch=True, poll_seconds=0.05, labels=["yes", "no"])
        done = made.label()
    assert done.returncode == 0, done.stderr
    assert len([line for line in made.lines("labels") if line["id"].startswith("row-")]) == 30
    assert f"{len(NAMELESS)} lines cannot be read" in done.stderr
    assert made.ledger("SELECT COUNT(*) FROM attempts WHERE state != 'settled' OR cost < 0") == [(0,)]
    booked = made.ledger("SELECT outcome, cost = reserved, cost = 0 FROM attempts WHERE kind = 'batch'")
    lost, free = len(NAMELESS) + len(SHAPELESS), len(REFUSED)
    assert Counter(booked)[("error", 1, 0)] == lost
    assert Counter(booked)[("error", 0, 1)] == free
    assert len(booked) > lost + free
