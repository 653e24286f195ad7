"""What a provider's JSON says: the answer, thoughts and calls parted, why it ended, and a usage that cannot lie.

What is counted here is money: a figure that no call can have is not believed, whoever states it, and one that is
missing is replaced by a count of our own, so that no reply is booked at less than it must have cost.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.dialects import parted
from workbench.errors import WorkbenchError
from workbench.privacy.secrets import masked
from workbench.records import ToolCall
from workbench.teacher.wire import Finish, Reply, Request, Usage, pack

BROKEN = "\ufffd"  # stands for what is no character: half of a surrogate pair, a byte sequence cut in two
NAME_LENGTH = 200  # a model's name is not longer
# Tokens from bytes. No tokenizer in use takes 12 bytes a token on average, nor makes one of each 3 of plain text: a
# stated figure below the first is not believed, and the second stands in for one that is missing.
MOST_BYTES_A_TOKEN, OWN_BYTES_A_TOKEN = 12, 3
MOST_TOKENS = 20_000_000  # no model reads or writes as many in one call: such a figure is none
TWICE, BESIDE = 2, 256  # how far past its limit an answer's bill may lie and still be one
GATEWAY_WORDS = 16_384  # tokens


class ShapeError(WorkbenchError):
    """An answer without the documented shape. `usage` is what it states of its tokens; None where it states nothing."""

    def __init__(self, what: str, usage: Usage | None, again: bool = False):
        self.usage, self.again = usage, again
        super().__init__(what)


class ErrorInReply(WorkbenchError):  # noqa: N818
    """An error that came where an answer was due, under a status that promised one."""

    def __init__(self, status: int, message: str, code: str, usage: Usage | None):
        self.status, self.message, self.code, self.usage = status, message, code, usage
        super().__init__(message)


@dataclass(frozen=True)
class Heard:
    """The parts of an answer, before its usage is counted. `begins` is where the answer stands in the whole text."""

    text: str
    reasoning: str
    finish: Finish | None
    calls: tuple[ToolCall, ...] = ()
    logprobs: Sequence[Mapping[str, Any]] | None = None
    begins: int = 0


def read_reply(api: str, payload: Any, request: Request) -> Reply:
    """The provider's JSON as a Reply. Raises ErrorInReply where it is an error, ShapeError where it is neither."""
    stated = usage_in(api, payload)
    refuse_error(payload, None if stated is None else counted(stated, request, "", ""))
    try:
        heard = anthropic_message(payload) if api == "anthropic" else openai_completion(payload)
        packed = pack(since(heard.logprobs, heard.begins)) if heard.logprobs else None
    except (
        KeyError, TypeError, IndexError, AttributeError, ValueError, struct.error, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        body = json.dumps(payload, ensure_ascii=True)[:200]
        empty = isinstance(payload, dict) and not (payload.get("choices") or payload.get("content"))
        raise ShapeError(
            f"the answer has not the documented shape ({error!r}): {body}",
            None if stated is None else counted(stated, request, "", ""),
            again=empty,  # an aggregator whose upstream failed: the next call may be answered
        ) from None
    text, reasoning = whole_characters(heard.text), whole_characters(heard.reasoning)
    usage = counted(stated or {}, request, text, reasoning, heard.calls)
    finish = heard.finish or ("length" if usage.out >= request.most_out else "stop")
    model = payload.get("model")
    name = whole_characters(model)[:NAME_LENGTH] if isinstance(model, str) else ""
    return Reply(text, finish, name, usage, packed, reasoning=reasoning, tool_calls=heard.calls)


def whole_characters(text: str) -> str:
    """The text as UTF-8 can hold it: half a surrogate pair becomes the sign for what is no character."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if has_half(text) else text


def has_half(text: str) -> bool:
    """Whether the text holds half of a surrogate pair."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def refuse_error(payload: object, usage: Usage | None) -> None:
    """ErrorInReply where an aggregator has put an error into a reply of status 200, whole or in its choice."""
    if not isinstance(payload, dict):
        return
    choices = payload.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    failed = payload.get("error") if not choice.get("message") and not payload.get("content") else None
    failed = failed or choice.get("error") or (payload if payload.get("type") == "error" else None)
    if not failed:
        return
    inner = failed if isinstance(failed, dict) else {"message": failed}
    codes = [inner.get(name) for name in ("code", "status", "type")]
    status = next((number for code in codes if (number := status_of(code)) is not None), 502)
    message = " ".join(masked(str(inner.get("message") or inner)).split())[:300]
    raise ErrorInReply(status, message, " ".join(str(code) for code in codes if code)[:200], usage)


# What an error without a number says of itself, in the providers' words.
WORDS = {
    "rate": 429, "busy": 429, "quota": 429, "overloaded": 503, "unavailable": 503, "timeout": 504, "server": 500,
    "auth": 401, "api_key": 401, "permission": 403, "billing": 402, "credit": 402, "not_found": 404, "invalid": 400,
}  # fmt: skip


def status_of(code: object) -> int | None:
    """The HTTP status that an error's code stands for."""
    if isinstance(code, int | str) and not isinstance(code, bool):
        text = str(code).lower()
        if text.isdecimal():
            return int(text) if 400 <= int(text[:6]) <= 599 else None
        return next((status for word, status in WORDS.items() if word in text), None)
    return None


def openai_completion(payload: Any) -> Heard:
    """A chat completion."""
    choice = payload["choices"][0]
    message = choice["message"]
    ends: dict[str, Finish] = {"length": "length", "content_filter": "filter"}
    ended = choice.get("finish_reason")
    if ended is not None and not isinstance(ended, str):
        raise TypeError(f"finish_reason is {type(ended).__name__}")
    finish = None if ended is None else ends.get(ended, "stop")
    said_whole, thought = text_of(message.get("content"))
    whole = parted(said_whole)
    text, within = whole.answer.strip() if whole.thoughts else whole.answer, whole.thoughts
    field = next((v for n in ("reasoning_content", "reasoning") if isinstance(v := message.get(n), str) and v), "")
    if message.get("refusal"):
        finish, text = "refusal", str(message["refusal"])
    calls = tuple(openai_call(call) for call in message.get("tool_calls") or ())
    scored = (choice.get("logprobs") or {}).get("content")
    begins = len(said_whole.encode("utf-8", "replace")) - len(text.encode("utf-8", "replace")) if within else 0
    reasoning = "\n\n".join(part.strip() for part in (field, thought, within) if part.strip())
    return Heard(text, reasoning, finish, calls, scored, begins)


def text_of(content: object) -> tuple[str, str]:
    """(text, thoughts) of a message's content: a text, nothing, or a list of parts. TypeError for anything else."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError(f"content is {type(content).__name__}")
    texts, thoughts = [], []
    for part in content:
        match part:
            case str():
                texts.append(part)
            case {"type": "text" | "output_text", "text": str() as text}:
                texts.append(text)
            case {"type": "thinking" | "reasoning"}:
                inner = part.get("thinking") or part.get("text") or part.get("reasoning") or ""
                thoughts.append(inner if isinstance(inner, str) else "".join(text_of(inner)))
            case _:
                raise TypeError(f"a part of content is {json.dumps(part)[:60]}")
    return "".join(texts), "\n\n".join(thoughts)


def openai_call(call: Mapping[str, Any]) -> ToolCall:
    """One of a message's `tool_calls`: its arguments are the JSON text of an object."""
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(given, dict):
        raise TypeError("the arguments of a call are no object")
    return ToolCall(str(function["name"]), json.dumps(given, ensure_ascii=False), str(call.get("id") or ""))


def anthropic_message(payload: Any) -> Heard:
    """A message: its text blocks joined, its thinking blocks beside them."""
    ends: dict[str, Finish] = {
        "max_tokens": "length", "refusal": "refusal", "model_context_window_exceeded": "length"
    }  # fmt: skip
    ended = payload["stop_reason"]
    if ended is not None and not isinstance(ended, str):
        raise TypeError(f"stop_reason is {type(ended).__name__}")
    blocks = payload["content"]
    whole = parted("".join(block["text"] for block in blocks if block["type"] == "text"))
    text, within = whole.answer, whole.thoughts
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    calls = tuple(
        ToolCall(str(block["name"]), json.dumps(dict(block["input"]), ensure_ascii=False), str(block.get("id") or ""))
        for block in blocks
        if block["type"] == "tool_use"
    )
    reasoning = "\n\n".join(part.strip() for part in (*thoughts, within) if part.strip())
    return Heard(text, reasoning, None if ended is None else ends.get(ended, "stop"), calls)


def since(tokens: Sequence[Mapping[str, Any]], begins: int) -> Sequence[Mapping[str, Any]]:
    """The tokens of the answer alone, where `begins` bytes of thoughts stand before it."""
    place = 0
    for number, token in enumerate(tokens):
        if place >= begins:
            return tokens[number:]
        place += len(token["bytes"] if token.get("bytes") is not None else str(token["token"]).encode())
    return [] if begins else tokens


# Tokens, as they are stated and as they are believed.


def usage_in(api: str, payload: object) -> dict[str, int | None] | None:
    """{"in", "cached", "out", "reasoning"} as the reply states them; None where it states no usage at all.

    A figure that is no count (negative, no whole number, a text, past what any call takes) is None.
    """
    usage = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(usage, dict):
        return None

    def detail(name: str, key: str) -> int | None:
        inner = usage.get(name)
        return count_of(inner.get(key)) if isinstance(inner, dict) else None

    if api == "anthropic":
        # Anthropic counts cached tokens beside the input, not within it.
        parts = [usage.get(f"{name}_input_tokens") or 0 for name in ("cache_read", "cache_creation")]
        fresh, cached, made = (count_of(value) for value in (usage.get("input_tokens"), *parts))
        whole = None if fresh is None else fresh + (cached or 0) + (made or 0)
        return {"in": whole, "cached": cached, "out": count_of(usage.get("output_tokens")), "reasoning": None}
    return {
        "in": count_of(usage.get("prompt_tokens")),
        "cached": detail("prompt_tokens_details", "cached_tokens"),
        "out": count_of(usage.get("completion_tokens")),
        "reasoning": detail("completion_tokens_details", "reasoning_tokens"),
    }


def count_of(value: object) -> int | None:
    """A number of tokens; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value <= MOST_TOKENS and value == int(value) else None


def counted(
    stated: Mapping[str, int | None], request: Request, text: str, reasoning: str, calls: Sequence[ToolCall] = ()
) -> Usage:
    """The tokens to book: as stated where that can be, by our own count where it cannot, never less than nothing."""
    words = [text, reasoning, *(call.name + call.arguments for call in calls)]
    tokens_in, own_in = believed(stated.get("in"), request.text_bytes)
    out, own_out = believed(stated.get("out"), sum(len(part.encode("utf-8", "replace")) for part in words))
    cached = 0 if own_in else min(stated.get("cached") or 0, tokens_in)
    return Usage(tokens_in, cached, out, min(stated.get("reasoning") or 0, out), own_in, own_out)


def believed(stated: int | None, size: int) -> tuple[int, bool]:
    """(tokens, whether it is our own count) of a text of so many bytes."""
    if stated is not None and stated >= max(size // MOST_BYTES_A_TOKEN, min(size, 1)):
        return stated, False
    return math.ceil(size / OWN_BYTES_A_TOKEN), True


def impossible_bill(usage: Usage, request: Request) -> str:
    """What cannot be about the bill of a call, in words; '' where it can be.

    A provider may count a few tokens more than our limits say. Twice as many and 256 are no such thing: then its
    limit is not ours, and no reservation holds.
    """
    if not usage.own_out and usage.out > TWICE * request.most_out + BESIDE:
        return f"one answer is billed at {usage.out:,} tokens, and may have {request.most_out:,}"
    # A gateway's own words may stand before the prompt.
    if not usage.own_in and usage.tokens_in > TWICE * max(request.most_in, GATEWAY_WORDS):
        return f"one prompt is billed at {usage.tokens_in:,} tokens, and has at most {request.most_in:,}"
    return ""
