"""Anthropic's side of `teacher_server`: requests checked and answers shaped as the API reference says.

Messages; error objects {type: error, error: {type, message}, request_id}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from providers.model import Asked, Config, RefusedError, Said, Usage, tokens_of

NAME, REQUEST_ID, MESSAGES, BATCHES = "anthropic", "request-id", "/v1/messages", "/v1/messages/batches"
VERSIONS = ("2023-06-01", "2026-10-21")
GONE = ("temperature", "top_p", "top_k")  # with version 2026-10-21
SPEND_LIMIT = "enforced_spend_limit_reached"
NUMBER, INTEGER, STRING, BOOLEAN, LIST, OBJECT = (float, int), (int,), (str,), (bool,), (list,), (dict,)
# Each documented field: what it may be, and the bounds of a number.
FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (STRING,), "messages": (LIST,), "max_tokens": (INTEGER, 1, None), "system": ((str, list),),
    "temperature": (NUMBER, 0, 1), "top_p": (NUMBER, 0, 1), "top_k": (INTEGER, 0, None), "stop_sequences": (LIST,),
    "tools": (LIST,), "tool_choice": (OBJECT,), "output_config": (OBJECT,), "metadata": (OBJECT,), "stream": (BOOLEAN,),
    "thinking": (OBJECT,), "service_tier": (STRING,), "cache_control": (OBJECT,), "container": ((str, dict),),
    "inference_geo": (STRING,), "diagnostics": (OBJECT,), "speed": (STRING,),
}  # fmt: skip
NULLABLE = ("cache_control", "container", "inference_geo", "diagnostics", "speed")
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
FAULTS: dict[str, tuple[int, str, str]] = {
    "408": (408, "timeout_error", "Request timed out"),
    "409": (409, "conflict_error", "The request conflicts with another one"),
    "429": (429, "rate_limit_error", "This request would exceed your account's rate limit. Please try again later."),
    "500": (500, "api_error", "Internal server error"),
    "503": (503, "api_error", "Service unavailable"),
    "504": (504, "timeout_error", "The request timed out while processing"),
    "529": (529, "overloaded_error", "Overloaded"),
    "blocked": (400, "invalid_request_error", "Output blocked by content filtering policy"),
}


def refused(status: int, kind: str, message: str) -> RefusedError:
    """An error as Anthropic words it; the server adds the request's id."""
    return RefusedError(status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": None})


def invalid(message: str) -> RefusedError:
    """The answer to a request that is not as documented."""
    return refused(400, "invalid_request_error", message)


def fault(name: str, config: Config) -> RefusedError:
    """The answer that a fault of the REFUSALS stands for."""
    if name == "502":
        return RefusedError(502, "<html><head><title>502</title></head><body>cloudflare</body></html>")
    answer = refused(*FAULTS[name.removesuffix("_retry_after")])
    if name == "429_retry_after":
        answer.headers["retry-after"] = str(config.retry_after)
    return answer


def check_key(headers: Any, config: Config) -> str:
    """The key that was sent, in either header; raises 401 without the right one, 400 without a known API version."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    key = headers.get("x-api-key") or (token if scheme == "Bearer" else "")
    if not key:
        raise refused(401, "authentication_error", "x-api-key header is required")
    if key != config.key:
        raise refused(401, "authentication_error", "invalid x-api-key")
    if "anthropic-version" not in headers:
        raise invalid("anthropic-version: header is required")
    if headers["anthropic-version"] not in VERSIONS:
        raise invalid(f"anthropic-version: {json.dumps(headers['anthropic-version'])} is not a valid version")
    return str(key)


def no_route(method: str, path: str, known: bool) -> RefusedError:
    """The answer at an address that is not there, or that does not take this method."""
    if known:
        return refused(405, "invalid_request_error", "Method Not Allowed")
    return refused(404, "not_found_error", "Not Found")


def no_credit(config: Config) -> RefusedError:
    """The answer to everyone whose credit is used up, or whose monthly limit is reached: a 429 that does not pass."""
    if config.quota_code == SPEND_LIMIT:
        answer = refused(429, "rate_limit_error", "You have reached your monthly API usage limit.")
        answer.body["error"]["details"] = {"error_code": SPEND_LIMIT}
        return answer
    return refused(402, "billing_error", "Your credit balance is too low to access the Anthropic API. Please go to "
                                         "Plans & Billing to upgrade or purchase credits.")  # fmt: skip


def check_model(model: str, config: Config) -> None:
    """Raises 404 for a model that is retired or was never there."""
    if model in config.retired_models or model not in config.models:
        raise refused(404, "not_found_error", f"model: {model}")


def check_field(name: str, value: Any) -> None:
    """Raises 400 where a documented field has a wrong type or leaves its bounds."""
    types, *bounds = FIELDS[name]
    if value is None and name in NULLABLE:
        return
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise invalid(f"{name}: Input should be a valid {TYPES[types[0]]}")
    low, high = bounds or (None, None)
    if low is not None and value < low:
        raise invalid(f"{name}: Input should be greater than or equal to {low}")
    if high is not None and value > high:
        raise invalid(f"{name}: Input should be less than or equal to {high}")


def text_of(content: Any, where: str) -> str:
    """The text of a message's or system prompt's content; raises 400 where it is neither text nor blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise invalid(f"{where}: Input should be a valid string or list of content blocks")
    for i, block in enumerate(content):
        if "type" not in block:
            raise invalid(f"{where}.{i}.type: Field required")
        if block["type"] == "text" and not block.get("text"):
            raise invalid(f"{where}.{i}: text content blocks must be non-empty")
    return "".join(block.get("text", "") for block in content)


def texts_of(messages: Sequence[Any]) -> list[str]:
    """The text of each message; raises 400 where one is not of the documented form."""
    texts = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid(f"messages.{i}: Input should be a valid object")
        for name in ("role", "content"):
            if name not in message:
                raise invalid(f"messages.{i}.{name}: Field required")
        for name in message.keys() - {"role", "content"}:
            raise invalid(f"messages.{i}.{name}: Extra inputs are not permitted")
        after_user = i > 0 and messages[i - 1]["role"] == "user"
        if message["role"] not in ("user", "assistant") and not (message["role"] == "system" and after_user):
            raise invalid(f"messages.{i}.role: Input should be 'user' or 'assistant', or 'system' after a user turn")
        texts.append(text_of(message["content"], f"messages.{i}.content"))
        if not message["content"] and not (message["role"] == "assistant" and i == len(messages) - 1):
            raise invalid(f"messages.{i}: all messages must have non-empty content except for the optional final "
                          "assistant message")  # fmt: skip
    return texts


def check_closed(schema: Any) -> None:
    """Raises 400 where a schema leaves an object open."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise invalid("output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set "
                      "to false")  # fmt: skip
    for part in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), schema.get("items")):
        check_closed(part)


def schema_of(body: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """(the schema that the answer must satisfy, the tool that must be called); raises 400 where either is not valid."""
    wanted = body.get("output_config", {}).get("format")
    if wanted is not None:
        if wanted.get("type") != "json_schema":
            raise invalid("output_config.format.type: Input should be 'json_schema'")
        if not isinstance(wanted.get("schema"), dict):
            raise invalid("output_config.format.schema: Field required")
        check_closed(wanted["schema"])
        return wanted["schema"], None
    tools = {}
    for i, tool in enumerate(body.get("tools", [])):
        for name in ("name", "input_schema"):
            if name not in tool:
                raise invalid(f"tools.{i}.{name}: Field required")
        tools[tool["name"]] = tool["input_schema"]
    chosen = body.get("tool_choice", {"type": "auto"})
    match chosen.get("type"):
        case "tool" if chosen.get("name") in tools:
            return tools[chosen["name"]], chosen["name"]
        case "tool":
            raise invalid(f"tool_choice: Tool '{chosen.get('name')}' not found in provided tools")
        case "any" if tools:
            return next(iter(tools.values())), next(iter(tools))
        case "auto" | "none":
            return None, None
    raise invalid("tool_choice: Input should be 'auto', 'any', 'tool' or 'none', with tools to choose from")


def read(body: Any, config: Config, version: str | None = None) -> Asked:
    """What a body of a message asks; raises RefusedError where it is not as the reference says."""
    if not isinstance(body, dict):
        raise invalid("The request body is not valid JSON")
    for name in body:
        gone = version == VERSIONS[1] and name in GONE
        if gone or name in config.unsupported or (name not in FIELDS and name not in config.extra_fields):
            raise invalid(f"{name}: Extra inputs are not permitted")
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            raise invalid(f"{name}: Field required")
    for name in body.keys() & FIELDS.keys():
        check_field(name, body[name])
    check_model(body["model"], config)
    if not body["messages"]:
        raise invalid("messages: at least one message is required")
    if body.get("stream"):
        raise invalid("stream: this test server does not stream")
    system, texts = text_of(body.get("system", ""), "system"), texts_of(body["messages"])
    users = [text for message, text in zip(body["messages"], texts) if message["role"] == "user"]
    schema, tool = schema_of(body)
    return Asked(
        messages=body["messages"], prompt=users[-1] if users else "", input_tokens=tokens_of("".join((system, *texts))),
        limit=body["max_tokens"], schema=schema, stops=tuple(body.get("stop_sequences", [])), tool=tool,
    )  # fmt: skip


def write(number: int, body: dict[str, Any], asked: Asked, answers: Sequence[Said], usage: Usage) -> dict[str, Any]:
    """The message."""
    said = answers[0]
    reason = {"stop": "stop_sequence" if said.stopped_by else "end_turn", "length": "max_tokens"}.get(said.finish)
    content: list[dict[str, Any]] = [{"type": "text", "text": said.text}] if said.text else []
    if said.finish == "refusal":
        reason, content = "refusal", []
    elif asked.tool and reason == "end_turn" and said.text:
        reason = "tool_use"
        given = json.loads(said.text) if said.text.startswith("{") else {"text": said.text}
        content = [{"type": "tool_use", "id": f"toolu_{number:012x}", "name": asked.tool, "input": given}]
    details = {"type": "refusal", "category": None, "explanation": said.text}
    return {
        "id": f"msg_{number:012x}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": said.stopped_by,
        "stop_details": details if reason == "refusal" else None,
        "usage": usage_json(usage),
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage as messages report it: the cached tokens are not among the input tokens."""
    return {
        "input_tokens": usage.input - usage.cached,
        "output_tokens": usage.output,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "service_tier": "standard",
    }


def model_json(name: str) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    return {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
