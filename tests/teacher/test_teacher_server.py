"""The pretend providers, held against the official SDKs: documented shapes, faults, and books that add up."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from providers import anthropic_wire, openai_wire
from providers.model import ANSWERS, BREAKS, DELIVERY, FAULTS, REFUSALS, Config, draw, fault_for, fitting
from teacher_server import TeacherServer, teacher_server

SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["red", "green"]},
        "why": {"type": "string", "maxLength": 9},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
        "sure": {"type": ["boolean", "null"]},
    },
    "required": ["label", "why", "score", "tags", "sure"],
    "additionalProperties": False,
    "$defs": {"tag": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}
STRICT = {"type": "json_schema", "json_schema": {"name": "wanted", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def calm() -> Iterator[TeacherServer]:
    """A server without faults, for tests that change nothing."""
    with teacher_server(models=["gpt-test", "claude-test", "old"], retired_models=["old"]) as server:
        yield server


def openai_client(server: TeacherServer, timeout: float = 5) -> Any:
    """OpenAI's SDK, which tries once."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.config.key, max_retries=0, timeout=timeout)


def anthropic_client(server: TeacherServer, timeout: float = 5) -> Any:
    """Anthropic's SDK, which tries once."""
    return anthropic.Anthropic(base_url=server.url, api_key=server.config.key, max_retries=0, timeout=timeout)


def chat(server: TeacherServer, prompt: str = "Which?", timeout: float = 5, **options: Any) -> Any:
    """One chat completion through OpenAI's SDK."""
    with openai_client(server, timeout) as client:
        return client.chat.completions.create(
            **{"model": "gpt-test", "messages": [{"role": "user", "content": prompt}], **options}
        )


def message(server: TeacherServer, prompt: str = "Which?", timeout: float = 5, **options: Any) -> Any:
    """One message through Anthropic's SDK."""
    with anthropic_client(server, timeout) as client:
        return client.messages.create(
            **{"model": "claude-test", "max_tokens": 99, "messages": [{"role": "user", "content": prompt}], **options}
        )


def satisfies(answer: dict[str, Any]) -> bool:
    """Whether an answer is what SCHEMA asks for."""
    return (
        list(answer) == SCHEMA["required"]
        and answer["label"] in ("red", "green")
        and len(answer["why"]) <= 9
        and answer["score"] in range(1, 6)
        and len(answer["tags"]) == 2
        and isinstance(answer["sure"], bool)
    )


# Answers


def test_a_chat_completion_has_the_documented_shape_and_is_charged(calm: TeacherServer) -> None:
    before = calm.totals()
    answer = chat(calm, "Grüße?", temperature=0.0, seed=4, max_completion_tokens=50)
    text = answer.choices[0].message.content
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "gpt-test", "stop")
    assert text == calm.expected("Grüße?") == chat(calm, "Grüße?").choices[0].message.content
    assert answer.usage.prompt_tokens == 2  # eight bytes
    assert answer.usage.completion_tokens == -(-len(text.encode()) // 4)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    call = calm.calls(before["calls"])[0]
    assert (call["prompt"], call["status"], call["path"]) == ("Grüße?", 200, "/v1/chat/completions")
    assert call["cost"] == pytest.approx((2 * 1.0 + answer.usage.completion_tokens * 4.0) / 1e6)
    assert calm.totals()["cost_usd"] - before["cost_usd"] == pytest.approx(2 * call["cost"])


def test_a_message_has_the_documented_shape(calm: TeacherServer) -> None:
    answer = message(calm, system="Be brief.")
    assert (answer.type, answer.role) == ("message", "assistant")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.content[0].text == calm.expected("Which?")
    assert answer.usage.input_tokens == 4  # fifteen bytes, the system prompt included
    assert answer.usage.cache_read_input_tokens == answer.usage.cache_creation_input_tokens == 0


def test_log_probabilities_come_with_bytes_and_ranked_alternatives(calm: TeacherServer) -> None:
    choice = chat(calm, "tokens", logprobs=True, top_logprobs=20).choices[0]
    tokens = choice.logprobs.content
    assert bytes(b for token in tokens for b in token.bytes).decode() == choice.message.content
    assert len(tokens) == -(-len(choice.message.content.encode()) // 4)
    for token in tokens:
        ranked = [top.logprob for top in token.top_logprobs]
        assert len(ranked) == 20
        assert ranked == sorted(ranked, reverse=True)
        assert token.top_logprobs[0].token == token.token
        assert len({top.token for top in token.top_logprobs}) == 20
    assert chat(calm, "tokens", logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_structured_answers_satisfy_the_schema(calm: TeacherServer) -> None:
    assert satisfies(json.loads(chat(calm, response_format=STRICT).choices[0].message.content))
    answer = message(calm, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert satisfies(json.loads(answer.content[0].text))
    tools = [{"name": "answer", "input_schema": SCHEMA}]
    answer = message(calm, tools=tools, tool_choice={"type": "tool", "name": "answer"})
    assert answer.stop_reason == "tool_use"
    assert satisfies(answer.content[0].input)
    spoken = chat(calm, "any json", response_format={"type": "json_object"}).choices[0].message.content
    assert isinstance(json.loads(spoken), dict)


def test_a_schema_is_filled_the_same_way_for_the_same_prompt() -> None:
    assert fitting(SCHEMA, SCHEMA, "a") == fitting(SCHEMA, SCHEMA, "a") != fitting(SCHEMA, SCHEMA, "b")


def test_answers_can_be_labels_or_scripted_by_prompt_and_sample() -> None:
    with teacher_server(answer="label", labels=["yes", "no"]) as server:
        assert {chat(server, f"q{i}").choices[0].message.content for i in range(8)} == {"yes", "no"}
        server.set(answer=[["red", ["A", "B", "A"]], ["blue", {"label": "x"}]])
        samples = [c.message.content for c in chat(server, "is it red?", n=3, seed=0).choices]
        assert samples == ["A", "B", "A"]
        assert chat(server, "is it red?", seed=1).choices[0].message.content == "B"
        assert [message(server, "red").content[0].text for _ in range(3)] == ["A", "B", "A"]
        assert json.loads(chat(server, "is it blue?").choices[0].message.content) == {"label": "x"}
        assert chat(server, "else").choices[0].message.content == server.expected("else")
        server.set(answer="label", variety=0.5)
        assert len({chat(server, "one", seed=i).choices[0].message.content for i in range(12)}) == 2


def test_limits_and_stops_end_an_answer_where_they_should(calm: TeacherServer) -> None:
    cut = chat(calm, max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert len(cut.choices[0].message.content) == 12
    assert message(calm, max_tokens=1).stop_reason == "max_tokens"
    assert chat(calm, stop="ho").choices[0].message.content == "ec"
    stopped = message(calm, stop_sequences=["ho"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "ho", "ec")


def test_cached_and_reasoning_tokens_are_reported_and_priced() -> None:
    price = {"input": 2.0, "output": 8.0, "cached": 0.5}
    with teacher_server(cached_share=0.5, reasoning_tokens=10, price=price) as server:
        usage = chat(server, "x" * 400).usage
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (100, 50)
        assert usage.completion_tokens_details.reasoning_tokens == 10
        expected = (50 * 2.0 + 50 * 0.5 + usage.completion_tokens * 8.0) / 1e6
        assert server.totals()["cost_usd"] == pytest.approx(expected)
        usage = message(server, "x" * 400).usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (50, 50)
        assert server.totals()["cost_usd"] == pytest.approx(2 * expected)
        assert chat(server, max_completion_tokens=10).choices[0].finish_reason == "length"


def test_models_are_listed_for_both_sdks(calm: TeacherServer) -> None:
    assert [m.id for m in openai_client(calm).models.list()] == ["gpt-test", "claude-test"]
    assert openai_client(calm).models.retrieve("gpt-test").id == "gpt-test"
    assert [m.id for m in anthropic_client(calm).models.list()] == ["gpt-test", "claude-test"]
    with pytest.raises(openai.NotFoundError, match="deprecated"):
        openai_client(calm).models.retrieve("old")


# Requests that are not as documented


def test_the_known_fields_are_those_of_the_sdks() -> None:
    from anthropic.types import message_create_params as messages
    from openai.types.chat import completion_create_params as chats

    sent_as_headers, of_the_older_version = {"user_profile_id", "workspace_id"}, set(anthropic_wire.GONE)
    assert set(openai_wire.FIELDS) == set(chats.CompletionCreateParamsBase.__annotations__) | {"stream"}
    known = set(messages.MessageCreateParamsBase.__annotations__) | {"stream"}
    assert set(anthropic_wire.FIELDS) == (known | of_the_older_version) - sent_as_headers


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["x"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", None),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "row": 3}]}, "messages[0].row", "unknown_parameter"),
        ({"temperature": "0"}, "temperature", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"top_logprobs": 5}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"response_format": {"type": "json_object"}}, "messages", None),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {
            "type": "object", "properties": {"a": {"type": "string"}}}}}}, "response_format", None),
    ],
)  # fmt: skip
def test_openai_says_what_is_wrong_with_a_request(
    calm: TeacherServer, change: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(calm, extra_body=change)
    assert (refusal.value.param, refusal.value.code, refusal.value.type) == (param, code, "invalid_request_error")
    assert refusal.value.request_id


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 1}, "seed: Extra inputs are not permitted"),
        ({"max_tokens": None}, "max_tokens: Input should be a valid integer"),
        ({"temperature": 0.5}, "temperature: Extra inputs are not permitted"),
        ({"metadata": 3}, "metadata: Input should be a valid object"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "non-empty content"),
        ({"messages": [{"role": "user", "content": "x", "row": 1}]}, "messages.0.row: Extra inputs"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "additionalProperties"),
        ({"tool_choice": {"type": "tool", "name": "none"}}, "not found"),
    ],
)
def test_anthropic_says_what_is_wrong_with_a_request(calm: TeacherServer, change: dict[str, Any], why: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=why) as refusal:
        message(calm, extra_body=change)
    assert refusal.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    assert refusal.value.body["request_id"] == refusal.value.request_id  # type: ignore[index]


def test_wrong_methods_addresses_and_bodies_are_refused(calm: TeacherServer) -> None:
    openly = {"Authorization": f"Bearer {calm.config.key}"}
    private = {"x-api-key": calm.config.key, "anthropic-version": "2023-06-01"}
    with httpx2.Client(base_url=calm.url) as client:
        for method, path, headers, status in (
            ("GET", "/v1/chat/completions", openly, 405), ("POST", "/v1/completions", openly, 404),
            ("DELETE", "/v1/batches", openly, 405), ("POST", "/v1/chat/completions", openly, 400),
            ("POST", "/v1/chat/completions", {}, 401), ("GET", "/v1/messages", private, 405),
            ("POST", "/v1/messages", private, 400), ("POST", "/v1/messages", {"x-api-key": calm.config.key}, 400),
            ("POST", "/v1/messages", openly, 400), ("POST", "/v1/messages", {}, 401),
            ("GET", "/v1/messages/else/where", private, 404),
        ):  # fmt: skip
            answer = client.request(method, path, headers=headers, content=b"{")
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), (method, path)
            assert answer.json()["error"]["message"]
        late = {**private, "anthropic-version": "2099-01-01"}
        assert client.post("/v1/messages", headers=late, json={}).status_code == 400


def test_the_older_version_of_anthropics_api_takes_a_temperature_and_the_newer_does_not(calm: TeacherServer) -> None:
    body = {"model": "claude-test", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "temperature": 0.5}
    for version, temperature, status in (
        ("2023-06-01", 0.5, 200), ("2023-06-01", 1.5, 400), ("2026-10-21", 0.5, 400)
    ):  # fmt: skip
        headers = {"x-api-key": calm.config.key, "anthropic-version": version}
        answer = httpx2.post(f"{calm.url}/v1/messages", headers=headers, json={**body, "temperature": temperature})
        assert answer.status_code == status


def test_keys_models_and_credit_are_checked_as_documented(calm: TeacherServer) -> None:
    with openai.OpenAI(base_url=f"{calm.url}/v1", api_key="sk-wrong-key", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            client.chat.completions.create(model="gpt-test", messages=[{"role": "user", "content": "x"}])
        assert refusal.value.code == "invalid_api_key"
        assert "sk-wrong-key" not in str(refusal.value)
    with anthropic.Anthropic(base_url=calm.url, api_key="wrong", max_retries=0) as other:
        with pytest.raises(anthropic.AuthenticationError):
            other.messages.create(model="claude-test", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    for name, words in (("old", "has been deprecated"), ("gpt-none", "does not exist")):
        with pytest.raises(openai.NotFoundError, match=words) as missing:
            chat(calm, model=name)
        assert missing.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError, match=f"model: {name}"):
            message(calm, model=name)
    with teacher_server(quota_usd=0) as server:
        with pytest.raises(openai.RateLimitError) as broke:
            chat(server)
        assert (broke.value.code, broke.value.type) == ("insufficient_quota", "insufficient_quota")
        with pytest.raises(anthropic.APIStatusError, match="credit balance") as poor:
            message(server)
        assert poor.value.status_code == 402
        server.set(quota_code="enforced_spend_limit_reached")
        with pytest.raises(anthropic.RateLimitError) as limit:
            message(server)
        assert limit.value.body["error"]["details"]["error_code"] == "enforced_spend_limit_reached"  # type: ignore[index]
        assert server.totals()["cost_usd"] == 0


def test_a_model_may_lack_features_for_a_probe_to_find() -> None:
    with teacher_server(unsupported=["logprobs", "seed"], max_top_logprobs=5, extra_fields=["top_k"]) as server:
        with pytest.raises(openai.BadRequestError) as refusal:
            chat(server, seed=1)
        assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "seed")
        assert chat(server, extra_body={"top_k": 3}).choices
        server.set(unsupported=[])
        with pytest.raises(openai.BadRequestError, match="<= 5"):
            chat(server, logprobs=True, top_logprobs=6)


# Faults


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusing_fault_costs_nothing_and_passes(name: str) -> None:
    status = 400 if name == "blocked" else int(name[:3])
    with teacher_server(faults={name: 1.0}, fault_depth=1, retry_after=7) as server:
        for ask, errors in ((chat, openai), (message, anthropic)):
            with pytest.raises(errors.APIStatusError) as refusal:
                ask(server)
            assert refusal.value.status_code == status
            assert refusal.value.response.headers.get("retry-after") == ("7" if name == "429_retry_after" else None)
        totals = server.totals()
        assert (totals["by_fault"], totals["cost_usd"]) == ({name: 2}, 0)
        assert chat(server).choices[0].message.content == message(server).content[0].text == server.expected("Which?")


@pytest.mark.parametrize("name", [*BREAKS, *DELIVERY])
def test_a_broken_connection_is_charged_where_the_work_was_done(name: str) -> None:
    with teacher_server(faults={name: 1.0}, fault_depth=1, timeout_s=0.2, slow_s=0.6) as server:
        for ask, errors in ((chat, openai), (message, anthropic)):
            start = time.monotonic()
            if name == "slow_body":
                assert ask(server)
                assert time.monotonic() - start > 0.5
                continue
            with pytest.raises(errors.APIConnectionError):
                ask(server)
            if name.startswith("timeout"):
                assert time.monotonic() - start > 0.19
        totals = server.totals()
        assert totals["by_fault"] == {name: 2}
        assert totals["charged"] == (2 if name in DELIVERY else 0)
        assert (totals["cost_usd"] > 0) == (name in DELIVERY)
        delivered = [call["status"] for call in server.calls()]
        assert delivered == ([200, 200] if name in ("slow_body", "broken_http") else [None, None])


def test_a_client_that_gives_up_leaves_nothing_behind() -> None:
    with teacher_server(faults={"timeout_after_work": 1.0}) as server:
        with pytest.raises(openai.APITimeoutError):
            chat(server, timeout=0.2)
        server.set(faults={})
        assert chat(server)
        assert (server.totals()["charged"], server.totals()["peak_in_flight"]) == (2, 1)


def test_useless_answers_are_charged_and_look_as_documented() -> None:
    with teacher_server(fault_depth=0) as server:
        answers = {}
        for name in ANSWERS:
            server.set(faults={name: 1.0})
            answers[name] = chat(server, response_format=STRICT).choices[0]
        with pytest.raises(json.JSONDecodeError):
            json.loads(answers["cut_json"].message.content)
        assert answers["cut_json"].finish_reason == "length"
        assert list(json.loads(answers["wrong_schema"].message.content)) == ["unexpected"]
        assert answers["refusal"].message.content is None
        assert answers["refusal"].message.refusal.startswith("I'm sorry")
        assert answers["filtered"].finish_reason == "content_filter"
        assert answers["empty"].message.content == ""
        assert server.totals()["charged"] == len(ANSWERS)
        server.set(faults={"refusal": 1.0})
        assert (message(server).stop_reason, message(server).content) == ("refusal", [])
        server.set(faults={"empty": 1.0})
        assert (message(server).content, message(server).usage.output_tokens) == ([], 1)
        server.set(faults={"cut_json": 1.0})
        assert message(server).stop_reason == "max_tokens"
        server.set(faults={"filtered": 1.0})
        charged = server.totals()["charged"]
        with pytest.raises(anthropic.BadRequestError, match="content filtering"):
            message(server)
        assert server.totals()["charged"] == charged


def test_a_fault_befalls_a_conversation_no_more_often_than_its_depth() -> None:
    with teacher_server(faults={"wrong_schema": 1.0}, fault_depth=2) as server:
        turns = [{"role": "user", "content": "first"}]
        for _ in range(3):
            said = chat(server, messages=turns).choices[0].message.content
            turns += [{"role": "assistant", "content": said}, {"role": "user", "content": "Mend it."}]
        assert [call["fault"] for call in server.calls()] == ["wrong_schema", "wrong_schema", None]
        few_shot = [{"role": "user", "content": "demo"}, {"role": "assistant", "content": "x"}]
        for i in range(3):
            chat(server, messages=[*few_shot, {"role": "user", "content": f"row {i}"}])
        assert [call["fault"] for call in server.calls(3)] == ["wrong_schema"] * 3
        chat(server, "first", seed=1)
        assert server.calls(6)[0]["fault"] == "wrong_schema"  # another sample is another conversation


@pytest.mark.slow
def test_faults_depend_on_the_seed_and_not_on_the_order_of_arrival() -> None:
    played = []
    for order in (range(30), reversed(range(30))):
        with teacher_server(faults={"500": 0.3, "empty": 0.2}, fault_depth=1) as server:
            for i in order:
                try:
                    chat(server, f"row {i}")
                except openai.InternalServerError:
                    chat(server, f"row {i}")
            played.append(sorted((call["prompt"], str(call["fault"])) for call in server.calls()))
    assert played[0] == played[1]
    assert {fault for _, fault in played[0]} == {"500", "empty", "None"}


def test_shares_of_faults_are_kept_over_many_calls() -> None:
    config = Config(faults={"429": 0.05, "reset": 0.10, "cut_json": 0.15})
    drawn = [fault_for(config, FAULTS, str(i).encode(), 0, 0) for i in range(20_000)]
    for name, share in config.faults.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.01)
    assert [fault_for(Config(faults=config.faults, instant=True), FAULTS, b"1", i, 0) for i in range(9)] == [None] * 9
    assert 0.49 < sum(draw(i) for i in range(20_000)) / 20_000 < 0.51


@pytest.mark.parametrize("faults", [{"tiemout": 0.1}, {"429": 0.6, "500": 0.6}])
def test_faults_that_cannot_be_played_are_refused(faults: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"), teacher_server(faults=faults):
        pass


def test_an_attempt_before_retry_after_is_noticed() -> None:
    with teacher_server(faults={"429_retry_after": 1.0}, fault_depth=1, retry_after=0.3) as server:
        for wait, early in ((0.0, 1), (0.35, 1)):
            prompt = f"after {wait}"
            with pytest.raises(openai.RateLimitError):
                chat(server, prompt)
            time.sleep(wait)
            chat(server, prompt)
            assert server.totals()["too_early"] == early


def test_faults_can_befall_batch_requests_too() -> None:
    paths = ["/v1/messages/batches"]
    with teacher_server(faults={"reset_after_work": 1.0}, fault_paths=paths, fault_depth=1) as server:
        requests: list[Any] = [{"custom_id": "a", "params": {"model": "claude-test", "max_tokens": 9, "messages": [
            {"role": "user", "content": "x"}]}}]  # fmt: skip
        with pytest.raises(anthropic.APIConnectionError):
            anthropic_client(server).messages.batches.create(requests=requests)
        server.set(faults={})
        assert len(list(anthropic_client(server).messages.batches.list())) == 1  # it was created all the same


# The books


def test_the_books_hold_every_byte_call_and_key() -> None:
    with teacher_server(keep_bodies=True) as server:
        chat(server, "a secret prompt", extra_headers={"x-own": "header value"})
        with pytest.raises(openai.NotFoundError):
            chat(server, model="none")
        received = server.bytes_received()
        for part in ("POST /v1/chat/completions HTTP/1.1", "a secret prompt", "header value", server.config.key):
            assert part.encode() in received
        first, second = server.calls()
        assert first["key"] == second["key"] != server.config.key
        assert [first["number"], second["number"], second["status"]] == [0, 1, 404]
        assert len(first["body_sha256"]) == 64
        totals = server.totals()
        assert (totals["calls"], totals["by_status"], totals["connections"]) == (2, {"200": 1, "404": 1}, 2)


def test_settings_change_while_it_runs() -> None:
    with teacher_server() as server:
        server.set(key="sk-other")
        assert chat(server)
        server.set(models=["gpt-new"])
        with pytest.raises(openai.NotFoundError):
            chat(server)
        with pytest.raises(TypeError):
            server.set(fautls={})
    assert server.process.exitcode == 0
    server.stop()


def test_more_requests_than_allowed_at_once_are_turned_away() -> None:
    async def flood(server: TeacherServer) -> list[int]:
        headers = {"Authorization": f"Bearer {server.config.key}"}
        async with httpx2.AsyncClient(base_url=server.url, headers=headers) as client:
            body = {"model": "gpt-test", "messages": [{"role": "user", "content": "x"}]}
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(12)))
            return [answer.status_code for answer in answers]

    with teacher_server(max_in_flight=4, latency_s=0.5) as server:
        statuses = asyncio.run(flood(server))
        assert (statuses.count(200), statuses.count(429)) == (4, 8)
        assert server.totals()["charged"] == 4


async def insist(session: Any, server: TeacherServer, row: int) -> dict[str, Any]:
    """Ask until an answer comes that can be used; gives it."""
    import aiohttp

    body = {"model": "gpt-test", "response_format": STRICT, "messages": [{"role": "user", "content": f"row {row}"}]}
    for _ in range(10):
        try:
            async with session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    continue
                choice = (await answer.json())["choices"][0]
        except (aiohttp.ClientError, TimeoutError):
            continue
        if choice["finish_reason"] == "stop" and satisfies(json.loads(choice["message"]["content"] or "{}")):
            return dict(choice)
    raise AssertionError(f"row {row} was lost")


def test_a_stubborn_client_gets_every_row_through_a_storm_of_faults_and_the_sums_agree() -> None:
    names = [name for name in FAULTS if not name.startswith("batch_")]

    async def storm(server: TeacherServer) -> list[dict[str, Any]]:
        import aiohttp

        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {server.config.key}"}) as session:
            return await asyncio.gather(*(insist(session, server, row) for row in range(400)))

    with teacher_server(faults=dict.fromkeys(names, 0.3 / len(names)), slow_s=0.1, timeout_s=0.2) as server:
        answers = asyncio.run(storm(server))
        for row, choice in enumerate(answers):
            assert choice["message"]["content"] == server.expected(f"row {row}", SCHEMA)
        calls, totals = server.calls(), server.totals()
        assert len(calls) == totals["calls"]
        assert set(totals["by_fault"]) == set(names)
        in_vain = {name: times for name, times in totals["by_fault"].items() if name != "slow_body"}
        assert sum(in_vain.values()) == len(calls) - 400
        assert totals["cost_usd"] == pytest.approx(sum(call["cost"] for call in calls))
        charged = {call["fault"] for call in calls if call["cost"]}
        assert charged == {None, *DELIVERY, *ANSWERS}


def test_a_server_does_not_outlive_the_process_that_started_it() -> None:
    program = (
        "import os\nfrom teacher_server import teacher_server\n"
        "with teacher_server() as server:\n    print(server.process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1] / "support", stdout=subprocess.PIPE, text=True
    )
    status, deadline = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 5
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Batches


def batch_file(count: int, **changes: Any) -> io.BytesIO:
    """An input file of so many lines; `changes` go to line 1."""
    lines = []
    for i in range(count):
        body = {"model": "gpt-test", "messages": [{"role": "user", "content": f"row {i}"}]}
        line = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append({**line, **changes} if i == 1 else line)
    file = io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())
    file.name = "rows.jsonl"
    return file


def openai_batch(client: Any, file: io.BytesIO, **options: Any) -> Any:
    """Upload a file and start a batch."""
    uploaded = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )


def rows_of(client: Any, file: str | None) -> dict[str, Any]:
    """The lines of a result file by their custom_id."""
    lines = client.files.content(file).text.splitlines() if file else []
    return {line["custom_id"]: line for line in map(json.loads, lines)}


def test_an_openai_batch_goes_through_its_states_and_comes_back_shuffled() -> None:
    with teacher_server(batch_polls=4) as server, openai_client(server) as client:
        batch = openai_batch(client, batch_file(40), metadata={"run": "a1"})
        assert (batch.status, batch.metadata, batch.output_file_id) == ("validating", {"run": "a1"}, None)
        states = [client.batches.retrieve(batch.id) for _ in range(4)]
        assert [state.status for state in states] == ["in_progress", "in_progress", "finalizing", "completed"]
        assert [state.request_counts.completed for state in states] == [10, 20, 30, 40]
        rows = rows_of(client, states[-1].output_file_id)
        assert list(rows) != sorted(rows, key=lambda name: int(name[1:]))
        for i in range(40):
            answer = rows[f"r{i}"]["response"]
            assert (answer["status_code"], rows[f"r{i}"]["error"]) == (200, None)
            assert answer["body"]["choices"][0]["message"]["content"] == server.expected(f"row {i}")
        assert states[-1].error_file_id is None
        assert [found.id for found in client.batches.list()] == [batch.id]
        calls, totals = server.calls(), server.totals()
        assert totals["lines"] == 40
        full = sum((c["usage"]["input"] * 1.0 + c["usage"]["output"] * 4.0) / 1e6 for c in calls if c["batch"])
        assert totals["cost_usd"] == pytest.approx(full / 2)
        assert {c["custom_id"] for c in calls if c["batch"] == batch.id} == set(rows)
        assert client.files.delete(states[-1].output_file_id).deleted
        assert [file.purpose for file in client.files.list()] == ["batch"]


def test_lines_of_an_openai_batch_fail_expire_or_are_wrong_one_by_one() -> None:
    faults = {"batch_error": 0.2, "batch_expired": 0.2, "refusal": 0.2}
    with teacher_server(batch_polls=1, faults=faults, fault_depth=1) as server, openai_client(server) as client:
        batch = openai_batch(client, batch_file(40, body={"model": "gpt-test"}))
        done = client.batches.retrieve(batch.id)
        assert done.status == "expired"
        good, bad = rows_of(client, done.output_file_id), rows_of(client, done.error_file_id)
        played = {call["custom_id"]: call["fault"] for call in server.calls() if call["batch"]}
        assert set(good) | set(bad) == set(played)
        for name, line in bad.items():
            if played[name] == "batch_expired":
                assert (line["response"], line["error"]["code"]) == (None, "batch_expired")
            else:
                status = 400 if name == "r1" else 500
                assert (line["error"], line["response"]["status_code"]) == (None, status)
                assert line["response"]["body"]["error"]["message"]
        assert any(line["response"]["body"]["choices"][0]["message"]["refusal"] for line in good.values())
        assert done.request_counts.completed == len(good)
        assert done.request_counts.failed == len(bad)
        assert server.totals()["charged"] == len(good)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"custom_id": "r0"}, "duplicate_custom_id"),
        ({"url": "/v1/embeddings"}, "url_mismatch"),
        ({"method": ""}, "missing_required_parameter"),
        ({"body": {"model": "claude-test"}}, "model_mismatch"),
    ],
)
def test_a_bad_input_file_makes_an_openai_batch_that_fails(calm: TeacherServer, changes: Any, code: str) -> None:
    with openai_client(calm) as client:
        batch = openai_batch(client, batch_file(3, **changes))
        assert batch.status == "validating"
        failed = client.batches.retrieve(batch.id)
        assert failed.status == "failed"
        assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, 2)
        assert failed.output_file_id is None
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.create(file=batch_file(1), purpose="elsewhere")
        with pytest.raises(openai.BadRequestError, match="24h"):
            client.batches.create(input_file_id="f", endpoint="/v1/chat/completions", completion_window="1h")
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_none")


def test_a_cancelled_batch_keeps_what_was_done() -> None:
    with teacher_server(batch_polls=2) as server, openai_client(server) as client:
        batch = openai_batch(client, batch_file(10))
        client.batches.retrieve(batch.id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = client.batches.retrieve(batch.id)
        assert done.status == "cancelled"
        assert len(rows_of(client, done.output_file_id)) == 5
        left = rows_of(client, done.error_file_id)
        assert {line["error"]["code"] for line in left.values()} == {"batch_cancelled"}
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
        server.set(batch_failure="token_limit_exceeded")
        failed = client.batches.retrieve(openai_batch(client, batch_file(2)).id)
        assert (failed.status, failed.errors.data[0].code) == ("failed", "token_limit_exceeded")
        assert server.totals()["charged"] == 5


def requests_of(count: int) -> list[Any]:
    """Requests of a message batch."""
    return [
        {"custom_id": f"r{i}", "params": {"model": "claude-test", "max_tokens": 50, "messages": [
            {"role": "user", "content": f"row {i}"}]}} for i in range(count)
    ]  # fmt: skip


def test_a_message_batch_ends_and_gives_every_result_once() -> None:
    faults = {"batch_error": 0.2, "batch_expired": 0.2}
    with teacher_server(faults=faults, fault_depth=1, batch_polls=3) as server, anthropic_client(server) as client:
        requests = requests_of(40)
        requests[3]["params"]["temprature"] = 1
        batch = client.messages.batches.create(requests=requests)
        assert (batch.processing_status, batch.results_url) == ("in_progress", None)
        assert client.messages.batches.retrieve(batch.id).request_counts.processing == 40
        with pytest.raises(anthropic.AnthropicError):  # looks a second time, and finds no results_url
            list(client.messages.batches.results(batch.id))
        done = client.messages.batches.retrieve(batch.id)
        assert (done.processing_status, done.request_counts.processing) == ("ended", 0)
        results = {line.custom_id: line.result for line in client.messages.batches.results(batch.id)}
        assert len(results) == 40
        kinds = [result.type for result in results.values()]
        counts = done.request_counts
        assert (counts.succeeded, counts.errored, counts.expired) == tuple(
            map(kinds.count, ("succeeded", "errored", "expired"))
        )
        assert min(counts.succeeded, counts.errored, counts.expired) > 0
        for i, (name, result) in enumerate(sorted(results.items(), key=lambda item: int(item[0][1:]))):
            if result.type == "succeeded":
                assert result.message.content[0].text == server.expected(f"row {i}")
            elif name == "r3":
                assert result.error.error.type == "invalid_request_error"
        again = client.messages.batches.create(requests=[requests_of(40)[int(n[1:])] for n, r in results.items()
                                                         if r.type != "succeeded"])  # fmt: skip
        client.messages.batches.retrieve(again.id)
        client.messages.batches.retrieve(again.id)
        assert {line.result.type for line in client.messages.batches.results(again.id)} == {"succeeded"}
        assert server.totals()["charged"] == 40
        assert [found.id for found in client.messages.batches.list()] == [again.id, batch.id]
        assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"


def test_message_batches_refuse_ids_that_repeat_or_are_malformed_and_can_be_cancelled(calm: TeacherServer) -> None:
    with anthropic_client(calm) as client:
        for ids in (["a", "a"], ["row 1"], ["x" * 65]):
            requests = [{**request, "custom_id": name} for request, name in zip(requests_of(2), ids)]
            with pytest.raises(anthropic.BadRequestError, match="custom_id"):
                client.messages.batches.create(requests=requests)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.batches.create(requests=[])
        batch = client.messages.batches.create(requests=requests_of(6))
        client.messages.batches.retrieve(batch.id)
        assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
        counts = client.messages.batches.retrieve(batch.id).request_counts
        assert (counts.succeeded, counts.canceled) == (3, 3)
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve("msgbatch_none")


# Speed


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def hammer(server: TeacherServer, count: int, workers: int = 32) -> None:
    """So many chat completions over as many connections as workers, by a bare client."""
    import aiohttp

    numbers = iter(range(count))
    headers = {"Authorization": f"Bearer {server.config.key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=workers)) as session:

        async def work() -> None:
            for i in numbers:
                body = {"model": "gpt-test", "messages": [{"role": "user", "content": f"row {i} " + "word " * 30}]}
                async with session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
                    await answer.read()

        await asyncio.gather(*(work() for _ in range(workers)))


@pytest.mark.proof
@pytest.mark.parametrize("count", [10_000, 100_000])
def test_an_instant_answer_takes_well_under_a_millisecond_of_the_server(count: int) -> None:
    with teacher_server(instant=True) as server:
        asyncio.run(hammer(server, 200))
        cpu, memory, start = cpu_seconds(server.process.pid), memory_mb(server.process.pid), time.monotonic()
        asyncio.run(hammer(server, count))
        seconds, used = time.monotonic() - start, cpu_seconds(server.process.pid) - cpu
        grown = memory_mb(server.process.pid) - memory
        start = time.monotonic()
        assert len(server.calls()) == server.totals()["charged"] == count + 200
        fetched = time.monotonic() - start
        print(f"\n{count:,} calls: {count / seconds:,.0f} a second, {used / count * 1e6:.0f} µs of the server a call, "
              f"log {grown:.0f} MB, fetched in {fetched:.1f} s")  # fmt: skip
        assert used / count < 0.0006
