"""Rows with tools: sent as each provider documents it, and the calls of a reply become a label that trains calls."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from odd_teacher import completion, odd_teacher
from teacher_desk import RULES, desk, teacher_of
from teacher_project import KEY
from workbench.records import Label, Message, ToolCall
from workbench.teacher.labeller import Prompt, Rejected, label_all
from workbench.teacher.wire import anthropic_messages, make_request, openai_messages

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather", "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    },
)  # fmt: skip
BERN, ROME = (ToolCall("weather", f'{{"place": "{city}"}}') for city in ("Bern", "Rome"))
TURNS = (
    Message("system", "Be brief."),
    Message("user", "Bern and Rome?"),
    Message("assistant", "", "secret", (BERN, ROME)),
    Message("tool", "rain", name="weather"),
    Message("tool", "sun"),
    Message("user", "And Oslo?"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)


def calls(*made: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(made)
    ]


def asked(folder: Path, reply: dict[str, Any], **keys: Any) -> tuple[Label | Rejected, list[dict[str, Any]]]:
    """What comes of one row with tools, and what was sent for it."""

    async def work(url: str) -> Label | Rejected:
        teacher = teacher_of(labels=[], repairs=0, **keys)
        async with desk(folder, url, teacher) as opened:
            (outcome,) = [o async for o in label_all(opened, [Prompt("row", TURNS, tools=TOOLS)], RULES)]
            return outcome

    with odd_teacher(lambda body: reply) as server:
        url = server.url.removesuffix("/v1") if keys.get("api") == "anthropic" else server.url
        return asyncio.run(work(url)), server.bodies


def test_openai_is_sent_tools_calls_as_json_text_and_results_with_the_id_of_their_call(tmp_path: Path) -> None:
    reply = completion(None, "tool_calls", tool_calls=calls(("weather", '{"place": "Oslo"}')), reasoning="They ask.")
    label, (body,) = asked(tmp_path, reply)
    assert body["tools"] == list(TOOLS)
    assert body["messages"][2:5] == [
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": f"call_{n}", "type": "function", "function": {"name": "weather", "arguments": call.arguments}}
            for n, call in enumerate((BERN, ROME))]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_0"},
        {"role": "tool", "content": "sun", "tool_call_id": "call_1"},
    ]  # fmt: skip
    assert "secret" not in json.dumps(body), "what was thought before is not said again"
    assert isinstance(label, Label)
    assert label.tool_calls == (ToolCall("weather", '{"place": "Oslo"}', "c0"),)
    assert (label.answer, label.reasoning) == ("", "They ask.")


def test_anthropic_is_sent_blocks_and_its_tool_use_is_read(tmp_path: Path) -> None:
    reply = {"content": [{"type": "thinking", "thinking": "They ask."}, {"type": "text", "text": "I look."},
                         {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Oslo"}}],
             "stop_reason": "tool_use", "model": "c", "usage": {"input_tokens": 50, "output_tokens": 9}}  # fmt: skip
    label, (body,) = asked(tmp_path, reply, api="anthropic", model="claude-test")
    assert body["tools"] == [
        {"name": "weather", "description": "The weather of a place.",
         "input_schema": TOOLS[0]["function"]["parameters"]}  # type: ignore[index]
    ]  # fmt: skip
    assert body["system"] == "Be brief."
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "user"]
    assert [block["input"] for block in body["messages"][1]["content"]] == [{"place": "Bern"}, {"place": "Rome"}]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_0", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"},
    ]
    assert isinstance(label, Label)
    assert (label.answer, label.tool_calls) == ("I look.", (ToolCall("weather", '{"place": "Oslo"}', "t1"),))
    assert label.reasoning == "They ask."


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (("search", "{}"), "calls 'search'"),
        (("weather", "{}"), "lacks place"),
        (("weather", '{"place": "Oslo", "day": 1}'), "no argument day"),
    ],
)
def test_a_call_that_no_tool_takes_is_no_answer(tmp_path: Path, made: tuple[str, str], why: str) -> None:
    outcome, _ = asked(tmp_path, completion(None, "tool_calls", tool_calls=calls(made)))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed"
    assert why in outcome.details


def test_a_row_with_tools_may_be_answered_in_words(tmp_path: Path) -> None:
    label, _ = asked(tmp_path, completion("Which Oslo?"))
    assert isinstance(label, Label)
    assert (label.answer, label.tool_calls) == ("Which Oslo?", ())


def test_samples_that_call_the_same_in_another_order_agree(tmp_path: Path) -> None:
    two = [("weather", '{"place": "Oslo"}'), ("weather", '{"place":"Bern"}')]
    replies = iter([calls(*two), calls(*two[::-1]), calls(two[0])] * 2)

    async def work(url: str) -> Label | Rejected:
        async with desk(tmp_path, url, teacher_of(labels=[], samples=3, temperature=1.0, concurrency=1)) as opened:
            (outcome,) = [o async for o in label_all(opened, [Prompt("row", TURNS, tools=TOOLS)], RULES)]
            return outcome

    with odd_teacher(lambda body: completion(None, "tool_calls", tool_calls=next(replies))) as server:
        label = asyncio.run(work(server.url))
    assert isinstance(label, Label)
    assert (len(label.tool_calls), round(label.agreement, 2)) == (2, 0.67)


def test_a_plain_conversation_is_sent_as_it_always_was() -> None:
    turns = (Message("system", "s"), Message("user", "u"))
    assert openai_messages(turns) == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert anthropic_messages(turns) == [{"role": "user", "content": "u"}]
    with_tools = make_request(teacher_of(), "here", "row", turns, 0, tools=TOOLS)
    without = make_request(teacher_of(), "here", "row", turns, 0)
    assert with_tools.hash != without.hash
    assert with_tools.most_in > without.most_in
