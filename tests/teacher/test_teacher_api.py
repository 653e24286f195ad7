"""The providers' interfaces as we speak them: headers, errors, pages and lines, against an answering function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from workbench.teacher.batch import json_lines, line_of, openai_line
from workbench.teacher.client import Api, StatusError, anthropic_api, openai_api, version_for

OPENAI, OTHER = "https://api.openai.com/v1", "https://gateway.example/v1"


def call(make: Callable[[httpx.AsyncClient], Api], answer: Callable[[httpx.Request], httpx.Response]) -> Any:
    """What one GET of /thing gives."""

    async def work() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            return await make(http).call("GET", "/thing")

    return asyncio.run(work())


def sent(make: Callable[[httpx.AsyncClient], Api]) -> httpx.Request:
    """The request that a call makes."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    call(make, answer)
    return seen[0]


def test_each_provider_gets_its_own_headers_and_a_path_below_its_address() -> None:
    openai = sent(lambda http: openai_api("k", OTHER + "/", http))
    assert (str(openai.url), openai.headers["authorization"]) == (OTHER + "/thing", "Bearer k")
    anthropic = sent(lambda http: anthropic_api("k", "https://api.anthropic.com", http))
    assert anthropic.headers["x-api-key"] == "k"
    assert anthropic.headers["anthropic-version"] == "2026-10-21"
    assert openai.headers["user-agent"].startswith("llm-workbench/")


def test_the_paying_organisation_is_named_to_openai_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    assert sent(lambda http: openai_api("k", OPENAI, http)).headers["openai-organization"] == "org-1"
    assert "openai-organization" not in sent(lambda http: openai_api("k", OTHER, http)).headers
    assert "openai-project" not in sent(lambda http: openai_api("k", OPENAI, http)).headers


@pytest.mark.parametrize(
    ("response", "body", "words"),
    [
        (httpx.Response(429, json={"error": {"message": "slow"}}), {"error": {"message": "slow"}}, "slow"),
        (httpx.Response(502, text="<html>bad gateway</html>"), "<html>bad gateway</html>", "bad gateway"),
        (httpx.Response(500), "", "status 500 without a word"),
        (httpx.Response(307, headers={"location": "https://elsewhere.example"}), "", "status 307"),
    ],
)
def test_a_status_that_is_no_success_is_an_error_with_what_was_said(
    response: httpx.Response, body: Any, words: str
) -> None:
    with pytest.raises(StatusError, match=words) as caught:
        call(lambda http: openai_api("k", OPENAI, http), lambda request: response)
    assert (caught.value.status_code, caught.value.body) == (response.status_code, body)


@pytest.mark.parametrize("after", ["after", "after_id"])
def test_a_list_is_followed_page_after_page(after: str) -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        first = int(request.url.params.get(after, "-1")) + 1
        return httpx.Response(200, json={"data": [{"id": str(first)}, {"id": str(first + 1)}], "has_more": first < 4})

    async def work() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            return [entry["id"] async for entry in openai_api("k", OPENAI, http).entries("/batches", after)]

    assert asyncio.run(work()) == ["0", "1", "2", "3", "4", "5"]
    assert asked == [{"limit": "100"}, {"limit": "100", after: "1"}, {"limit": "100", after: "3"}]


def test_a_batch_with_a_temperature_goes_to_the_version_that_takes_one() -> None:
    assert version_for({"model": "a"}, {"temperature": 0.7}) == {"anthropic-version": "2023-06-01"}
    assert version_for({"model": "a"}) == {}


def test_a_line_ends_at_a_line_feed_and_at_no_other_sign_of_a_text() -> None:
    answer = "one\u2028two\u2029three\x85four\x0cfive"
    lines = [
        {"custom_id": str(i), "response": {"status_code": 200, "body": {"text": answer}}, "error": None}
        for i in range(2)
    ]
    body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + "\n"
    read = [line_of(line, openai_line) for line in json_lines(httpx.Response(200, content=body.encode()))]
    assert [(line.request, line.payload) for line in read] == [("0", {"text": answer}), ("1", {"text": answer})]
