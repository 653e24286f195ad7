"""OpenAI's side of `teacher_server`: requests checked and answers shaped as the API reference says.

Chat completions, models, files and batches; error objects {error: {message, type, param, code}}.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

from providers.model import TOKEN_BYTES, Asked, Config, RefusedError, Said, Usage, draw, tokens_of

NAME, REQUEST_ID, CHAT = "openai", "x-request-id", "/v1/chat/completions"
ENDPOINTS = ("/v1/responses", CHAT, "/v1/embeddings", "/v1/completions", "/v1/moderations", "/v1/images/generations",
             "/v1/images/edits", "/v1/videos")  # fmt: skip
ROLES = ("system", "assistant", "user", "function", "tool", "developer")
DECIMAL, INTEGER, STRING, BOOLEAN, ARRAY, OBJECT = (float, int), (int,), (str,), (bool,), (list,), (dict,)
# Each documented field: what it may be, and the bounds of a number. Null is taken wherever a field may be left out.
FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (STRING,), "messages": (ARRAY,), "temperature": (DECIMAL, 0, 2), "top_p": (DECIMAL, 0, 1),
    "frequency_penalty": (DECIMAL, -2, 2), "presence_penalty": (DECIMAL, -2, 2), "n": (INTEGER, 1, 128),
    "max_tokens": (INTEGER, 1, None), "max_completion_tokens": (INTEGER, 1, None), "seed": (INTEGER, None, None),
    "logprobs": (BOOLEAN,), "top_logprobs": (INTEGER, 0, 20), "stop": ((str, list),), "response_format": (OBJECT,),
    "stream": (BOOLEAN,), "stream_options": (OBJECT,), "store": (BOOLEAN,), "metadata": (OBJECT,), "user": (STRING,),
    "logit_bias": (OBJECT,), "modalities": (ARRAY,), "audio": (OBJECT,), "prediction": (OBJECT,), "tools": (ARRAY,),
    "tool_choice": ((str, dict),), "parallel_tool_calls": (BOOLEAN,), "functions": (ARRAY,),
    "function_call": ((str, dict),), "reasoning_effort": (STRING,), "verbosity": (STRING,), "service_tier": (STRING,),
    "prompt_cache_key": (STRING,), "prompt_cache_retention": (STRING,), "safety_identifier": (STRING,),
    "web_search_options": (OBJECT,), "prompt_cache_options": (OBJECT,), "moderation": (OBJECT,),
}  # fmt: skip
MESSAGE = {"role", "content", "name", "refusal", "audio", "tool_calls", "tool_call_id", "function_call"}
TYPES = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", list: "an array", dict: "an object"}
WORDS = (" the", " a", " of", " and", "{", "}", '"', ":", " is", " not", ".", ",", " to", " in", " or", " it", " as",
         " be", " by", " on", " at", " an", " no")  # fmt: skip
FAULTS: dict[str, tuple[int, str, str | None, str | None]] = {
    "408": (408, "Request timed out.", "server_error", None),
    "409": (409, "The request conflicts with another one; try again.", "invalid_request_error", None),
    "429": (429, "Rate limit reached for requests per min (RPM). Please try again later.", "requests",
            "rate_limit_exceeded"),
    "500": (500, "The server had an error while processing your request. Sorry about that!", "server_error", None),
    "503": (503, "The engine is currently overloaded, please try again later.", "server_error", None),
    "529": (529, "The engine is currently overloaded, please try again later.", "server_error", None),
    "blocked": (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                "invalid_request_error", "invalid_prompt"),
}  # fmt: skip


def refused(
    status: int, message: str, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> RefusedError:
    """An error as OpenAI words it."""
    return RefusedError(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def fault(name: str, config: Config) -> RefusedError:
    """The answer that a fault of the REFUSALS stands for."""
    if name in ("502", "504"):
        return RefusedError(int(name), f"<html><head><title>{name}</title></head><body>cloudflare</body></html>")
    status, message, kind, code = FAULTS[name.removesuffix("_retry_after")]
    answer = refused(status, message, None, code, kind or "")
    if name == "429_retry_after":
        answer.headers["retry-after"] = str(config.retry_after)
    return answer


def check_key(headers: Any, config: Config) -> str:
    """The key that was sent; raises 401 where it is missing or wrong."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not key:
        raise refused(401, "You didn't provide an API key. You need to provide your API key in an Authorization header "
                           "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).")  # fmt: skip
    if key != config.key:
        shown = f"{key[:4]}{'*' * max(0, len(key) - 8)}{key[-4:]}"
        raise refused(401, f"Incorrect API key provided: {shown}. You can find your API key at "
                           "https://platform.openai.com/account/api-keys.", None, "invalid_api_key")  # fmt: skip
    return str(key)


def no_route(method: str, path: str, known: bool) -> RefusedError:
    """The answer at an address that is not there, or that does not take this method."""
    return refused(405 if known else 404, f"Invalid {'method for ' if known else ''}URL ({method} {path})")


def no_credit(config: Config) -> RefusedError:
    """The answer to everyone whose credit is used up."""
    return refused(429, "You exceeded your current quota, please check your plan and billing details.", None,
                   config.quota_code, "insufficient_quota")  # fmt: skip


def check_model(model: str, config: Config) -> None:
    """Raises 404 for a model that is retired or was never there."""
    if model in config.retired_models:
        raise refused(404, f"The model `{model}` has been deprecated, learn more here: "
                           "https://platform.openai.com/docs/deprecations", None, "model_not_found")  # fmt: skip
    if model not in config.models:
        raise refused(404, f"The model `{model}` does not exist or you do not have access to it.", None,
                      "model_not_found")  # fmt: skip


def is_a(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a JSON value is of one of these types; true and false are no numbers."""
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def check_field(name: str, value: Any) -> None:
    """Raises 400 where a documented field has a wrong type or leaves its bounds."""
    types, *bounds = FIELDS[name]
    if not is_a(value, types):
        got = "null" if value is None else TYPES[type(value)]
        raise refused(400, f"Invalid type for '{name}': expected {TYPES[types[0]]}, but got {got} instead.", name,
                      "invalid_type")  # fmt: skip
    low, high = bounds or (None, None)
    kind = "integer" if types == INTEGER else "decimal"
    if low is not None and value < low:
        raise refused(400, f"Invalid '{name}': {kind} below minimum value. Expected a value >= {low}, but got {value} "
                           "instead.", name, f"{kind}_below_min_value")  # fmt: skip
    if high is not None and value > high:
        raise refused(400, f"Invalid '{name}': {kind} above maximum value. Expected a value <= {high}, but got {value} "
                           "instead.", name, f"{kind}_above_max_value")  # fmt: skip


def text_of(message: dict[str, Any], where: str) -> str:
    """A message's text; raises 400 where the message is not of the documented form."""
    if not isinstance(message, dict):
        raise refused(400, f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    for name in message.keys() - MESSAGE:
        raise refused(400, f"Unknown parameter: '{where}.{name}'.", f"{where}.{name}", "unknown_parameter")
    if "role" not in message:
        role = f"{where}.role"
        raise refused(400, f"Missing required parameter: '{role}'.", role, "missing_required_parameter")
    if message["role"] not in ROLES:
        raise refused(400, f"Invalid value: '{message['role']}'. Supported values are: {', '.join(map(repr, ROLES))}.",
                      f"{where}.role", "invalid_value")  # fmt: skip
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content):
        return "".join(part.get("text", "") for part in content)
    if content is None and message["role"] == "assistant":
        return ""
    raise refused(400, f"Invalid value for 'content': expected a string, got {json.dumps(content)}.",
                  f"{where}.content")  # fmt: skip


def check_strict(schema: Any, name: str, context: tuple[str, ...] = ()) -> None:
    """Raises 400 where a strict schema leaves an object open or a property optional."""
    if not isinstance(schema, dict):
        return
    properties, why = schema.get("properties", {}), ""
    if schema.get("type") == "object":
        missing = [part for part in properties if part not in schema.get("required", [])]
        if schema.get("additionalProperties") is not False:
            why = "'additionalProperties' is required to be supplied and to be false."
        elif missing:
            why = ("'required' is required to be supplied and to be an array including every key in properties. "
                   f"Missing '{missing[0]}'.")  # fmt: skip
    if why:
        raise refused(400, f"Invalid schema for response_format '{name}': In context={context}, {why}",
                      "response_format")  # fmt: skip
    for key, part in properties.items():
        check_strict(part, name, (*context, "properties", key))
    check_strict(schema.get("items"), name, (*context, "items"))
    for key, part in schema.get("$defs", {}).items():
        check_strict(part, name, (*context, "$defs", key))


def schema_of(wanted: dict[str, Any], texts: Sequence[str]) -> dict[str, Any] | None:
    """The schema that the answer must satisfy; raises 400 where `response_format` is not as documented."""
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            if not any("json" in text.lower() for text in texts):
                raise refused(400, "'messages' must contain the word 'json' in some form, to use 'response_format' of "
                                   "type 'json_object'.", "messages")  # fmt: skip
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
        case "json_schema":
            given = wanted.get("json_schema") or {}
            for name in ("name", "schema"):
                if name not in given:
                    param = f"response_format.json_schema.{name}"
                    raise refused(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", given["name"]):
                raise refused(400, "Invalid 'response_format.json_schema.name': string does not match pattern. "
                                   "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
                              "response_format.json_schema.name", "invalid_value")  # fmt: skip
            if given.get("strict"):
                check_strict(given["schema"], given["name"])
            return dict(given["schema"])
    raise refused(400, f"Invalid value: '{wanted.get('type')}'. Supported values are: 'json_object', 'json_schema', "
                       "and 'text'.", "response_format.type", "invalid_value")  # fmt: skip


def read(body: Any, config: Config, version: str | None = None) -> Asked:
    """What a body of a chat completion asks; raises RefusedError where it is not as the reference says."""
    if not isinstance(body, dict):
        raise refused(400, "We could not parse the JSON body of your request. The OpenAI API expects a JSON payload.")
    for name in body:
        if name in config.unsupported:
            raise refused(400, f"Unsupported parameter: '{name}' is not supported with this model.", name,
                          "unsupported_parameter")  # fmt: skip
        if name not in FIELDS and name not in config.extra_fields:
            raise refused(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    for name in ("model", "messages"):
        if name not in body:
            raise refused(400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    given = {name: value for name, value in body.items() if value is not None or name in ("model", "messages")}
    for name in given.keys() & FIELDS.keys():
        check_field(name, given[name])
    check_model(given["model"], config)
    if not given["messages"]:
        raise refused(400, "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty "
                           "array instead.", "messages", "empty_array")  # fmt: skip
    texts = [text_of(message, f"messages[{i}]") for i, message in enumerate(given["messages"])]
    top, stops = given.get("top_logprobs"), given.get("stop", [])
    if top is not None and not given.get("logprobs"):
        raise refused(400, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
    if (top or 0) > config.max_top_logprobs:
        raise refused(400, f"Invalid 'top_logprobs': integer above maximum value. Expected a value <= "
                           f"{config.max_top_logprobs}, but got {top} instead.", "top_logprobs",
                      "integer_above_max_value")  # fmt: skip
    if isinstance(stops, list) and len(stops) > 4:
        raise refused(400, f"Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array "
                           f"with length {len(stops)} instead.", "stop", "array_above_max_length")  # fmt: skip
    if given.get("stream"):
        raise refused(400, "This test server does not stream.", "stream", "unsupported_value")
    users = [text for message, text in zip(given["messages"], texts) if message["role"] == "user"]
    return Asked(
        messages=given["messages"], prompt=users[-1] if users else "", input_tokens=tokens_of("".join(texts)),
        limit=given.get("max_completion_tokens", given.get("max_tokens")), seed=given.get("seed"),
        choices=given.get("n", 1), schema=schema_of(given.get("response_format", {"type": "text"}), texts),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        logprobs=(top or 0) if given.get("logprobs") else None,
    )  # fmt: skip


def logprobs_of(text: str, count: int) -> list[dict[str, Any]]:
    """The tokens of an answer with their log probabilities, bytes and `count` alternatives, likeliest first."""
    raw, tokens = text.encode(), []
    for start in range(0, len(raw), TOKEN_BYTES):
        piece = raw[start : start + TOKEN_BYTES]
        likely = 0.4 + 0.55 * draw("logprob", text, start)
        shift = int(draw("words", piece) * len(WORDS))
        others = [word for word in (*WORDS[shift:], *WORDS[:shift]) if word.encode() != piece][: max(0, count - 1)]
        ranked = [(piece, likely), *((word.encode(), (1 - likely) / 2**i) for i, word in enumerate(others, 1))]
        shown = [
            {"token": b.decode(errors="backslashreplace"), "logprob": round(math.log(p), 6), "bytes": list(b)}
            for b, p in ranked
        ]
        tokens.append({**shown[0], "top_logprobs": shown[:count]})
    return tokens


def choice(index: int, said: Said, asked: Asked) -> dict[str, Any]:
    """One choice of a chat completion."""
    finish = {"filter": "content_filter", "refusal": "stop"}.get(said.finish, said.finish)
    refusal = said.text if said.finish == "refusal" else None
    logprobs = None if asked.logprobs is None else {"content": logprobs_of(said.text, asked.logprobs), "refusal": None}
    return {
        "index": index,
        "message": {"role": "assistant", "content": None if refusal else said.text, "refusal": refusal,
                    "annotations": []},
        "logprobs": logprobs,
        "finish_reason": finish,
    }  # fmt: skip


def write(number: int, body: dict[str, Any], asked: Asked, answers: Sequence[Said], usage: Usage) -> dict[str, Any]:
    """The chat completion."""
    return {
        "id": f"chatcmpl-{number:012x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice(i, said, asked) for i, said in enumerate(answers)],
        "usage": usage_json(usage),
        "service_tier": "default",
        "system_fingerprint": "fp_teacher",
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage as chat completions report it."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": 0,
                                      "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    }  # fmt: skip


def model_json(name: str) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "teacher-server"}
