"""The providers' HTTP interfaces, spoken as they document them: one call is one request, and nothing is tried again.

OpenAI: platform.openai.com/docs/api-reference. Anthropic: docs.anthropic.com/en/api.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from workbench import __version__

AGENT = {"User-Agent": f"llm-workbench/{__version__}"}
OPENAI_HOST = "api.openai.com"
# The current version takes no `temperature`; the one before it does, for models that still have one.
ANTHROPIC_VERSION, ANTHROPIC_WITH_TEMPERATURE = "2026-10-21", "2023-06-01"
PAGE = 100  # entries of one page of a list, the most that both providers give


class StatusError(Exception):
    """An answer whose status is no success. `body` is its JSON, or its text where it is none."""

    def __init__(self, response: httpx.Response):
        self.response, self.status_code = response, response.status_code
        text = response.text.strip()
        try:
            self.body: Any = json.loads(text)
        except ValueError:
            self.body = text
        super().__init__(text or f"status {response.status_code} without a word")


@dataclass(frozen=True)
class Api:
    """A way to a provider: the client to send through, the address below which paths lie, the headers with the key."""

    http: httpx.AsyncClient
    base_url: str
    headers: Mapping[str, str]

    async def call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **content: Any
    ) -> httpx.Response:
        """One request to a path below the base, or to a whole address that the provider gave. Raises StatusError."""
        url = path if "://" in path else f"{self.base_url.rstrip('/')}{path}"
        response = await self.http.request(method, url, headers={**self.headers, **(headers or {})}, **content)
        if not response.is_success:
            raise StatusError(response)
        return response

    async def entries(self, path: str, after: str) -> AsyncIterator[dict[str, Any]]:
        """Every entry of a list, page after page; `after` is the name of the parameter that asks for the next one."""
        cursor: dict[str, str] = {}
        while True:
            page = (await self.call("GET", path, params={"limit": str(PAGE), **cursor})).json()
            for entry in page["data"]:
                yield entry
            if not page.get("has_more") or not page["data"]:
                return
            cursor = {after: page["data"][-1]["id"]}


def openai_api(key: str, base_url: str, http: httpx.AsyncClient) -> Api:
    """OpenAI's own service, or anything that speaks as it does."""
    headers = {**AGENT, "Authorization": f"Bearer {key}"}
    if httpx.URL(base_url).host == OPENAI_HOST:  # who pays, for a key of several organisations; nobody else's business
        named = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
        headers |= {header: os.environ[name] for header, name in named.items() if os.environ.get(name)}
    return Api(http, base_url, headers)


def anthropic_api(key: str, base_url: str, http: httpx.AsyncClient) -> Api:
    """Anthropic's service."""
    return Api(http, base_url, {**AGENT, "x-api-key": key, "anthropic-version": ANTHROPIC_VERSION})


def version_for(*bodies: Mapping[str, Any]) -> dict[str, str]:
    """The header that names the version of Anthropic's API which takes all of these bodies."""
    return {"anthropic-version": ANTHROPIC_WITH_TEMPERATURE} if any("temperature" in body for body in bodies) else {}
