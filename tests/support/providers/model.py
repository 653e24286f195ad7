"""The pretend model of `teacher_server`: its settings, what it answers, and which call goes wrong.

Everything here is a pure function of the settings and the request, so a test can say beforehand what it will get.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

REFUSALS = ("408", "409", "429", "429_retry_after", "500", "502", "503", "504", "529", "blocked")  # nothing is done
BREAKS = ("reset", "timeout")  # nothing is done, and nothing is said
DELIVERY = ("reset_after_work", "timeout_after_work", "slow_body", "broken_http")  # done and charged, badly delivered
ANSWERS = ("cut_json", "wrong_schema", "refusal", "filtered", "empty")  # done, charged, delivered, and of no use
LINES = ("batch_error", "batch_expired")  # befall single lines of a batch
FAULTS = (*REFUSALS, *BREAKS, *DELIVERY, *ANSWERS, *LINES)

TOKEN_BYTES = 4
REFUSAL = "I'm sorry, but I can't assist with that request."
dump = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Config:
    """Every setting of the server; all may be changed while it runs."""

    key: str = "sk-teacher-test-key"  # the only key that is let in
    models: Sequence[str] = ("gpt-test", "claude-test")
    retired_models: Sequence[str] = ()
    unsupported: Sequence[str] = ()  # request fields that these models refuse, such as "logprobs" or "seed"
    extra_fields: Sequence[str] = ()  # request fields beyond the documented ones that are let through
    max_top_logprobs: int = 20
    max_in_flight: int | None = None  # more requests at once than this are answered 429
    quota_usd: float | None = None  # once so much is charged, there is no more credit
    quota_code: str = "insufficient_quota"  # or credit_balance_exhausted, …; Anthropic: enforced_spend_limit_reached

    answer: Any = "echo"  # echo, json, label, or [[part of a prompt, answer], …]; a list as answer: one a sample
    labels: Sequence[str] = ("yes", "no")  # for `label`
    schema: dict[str, Any] = field(  # for `json`, where the request brings no schema
        default_factory=lambda: {"type": "object", "properties": {"answer": {"type": "string"}}}
    )
    variety: float = 0.0  # share of samples that get another answer than the prompt's usual one

    price: dict[str, float] = field(default_factory=lambda: {"input": 1.0, "output": 4.0, "cached": 0.1})  # USD/Mtok
    batch_discount: float = 0.5  # share of the price that a batch saves
    cached_share: float = 0.0  # share of the input tokens read from the cache
    reasoning_tokens: int = 0  # hidden output tokens of each answer
    thoughts_shown: bool = False  # in think marks before the answer

    faults: dict[str, float] = field(default_factory=dict)  # share of the calls, by name in FAULTS
    fault_depth: int = 2  # a fault befalls one conversation at most so often; 0: for ever
    fault_paths: Sequence[str] = ("/v1/chat/completions", "/v1/messages")  # also as patterns: /v1/batches*
    seed: int = 17  # of the faults, the variety and the order of batch results
    instant: bool = False  # no faults and no sleeping, whatever else is set
    latency_s: float = 0.0  # before each answer
    retry_after: float | str = 1  # the header of 429_retry_after, as it is sent
    timeout_s: float = 30.0  # silence of `timeout` before the connection closes
    slow_s: float = 0.5  # how long `slow_body` takes to trickle

    batch_polls: int = 2  # looks at a batch until it is done
    batch_failure: str | None = None  # a code such as token_limit_exceeded: every batch fails with it
    shuffle: bool = True  # batch results come in another order than the requests
    keep_bodies: bool = False  # keep every byte that arrives, of connections made from now on

    def __post_init__(self) -> None:
        if self.faults.keys() - {*FAULTS} or sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError(f"faults are shares, together at most 1, of {', '.join(FAULTS)}; got {self.faults}")


class RefusedError(Exception):
    """An error answer: its status, its body (a string where a gateway answers in HTML) and extra headers."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None):
        super().__init__(status, body)
        self.status, self.body, self.headers = status, body, headers or {}


@dataclass(frozen=True)
class Asked:
    """What a checked request wants, whichever provider's it is."""

    messages: Sequence[Any]  # the conversation as it was sent
    prompt: str  # the last user text
    input_tokens: int
    limit: int | None = None  # most output tokens
    seed: int | None = None
    choices: int = 1
    schema: dict[str, Any] | None = None
    stops: tuple[str, ...] = ()
    tool: str | None = None  # the tool that must be called
    logprobs: int | None = None  # alternatives to each token; None: no log probabilities


@dataclass(frozen=True)
class Said:
    """One answer: its text, why it ended (stop, length, filter, refusal) and its tokens."""

    text: str
    finish: str
    tokens: int
    stopped_by: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one call; `cached` is a part of `input`, `reasoning` a part of `output`."""

    input: int
    cached: int
    output: int
    reasoning: int

    def cost(self, price: dict[str, float], discount: float = 0.0) -> float:
        """What the call costs in USD."""
        usd = (self.input - self.cached) * price["input"] + self.output * price["output"]
        return (usd + self.cached * price.get("cached", price["input"])) / 1e6 * (1 - discount)


def digest_of(*parts: Any) -> bytes:
    """Sixteen bytes that stand for these values."""
    return blake2b("\x1f".join(map(str, parts)).encode(errors="surrogatepass"), digest_size=16).digest()


def draw(*parts: Any) -> float:
    """A number in [0, 1) that these values always give."""
    return int.from_bytes(digest_of(*parts)[:7], "big") / 2**56


def pick(options: Sequence[Any], *parts: Any) -> Any:
    """The option that these values always give."""
    return options[int(draw(*parts) * len(options))]


def tokens_of(text: str) -> int:
    """Tokens of a text: one for every four bytes begun."""
    return math.ceil(len(text.encode()) / TOKEN_BYTES)


def fault_for(config: Config, names: Sequence[str], key: bytes, attempt: int, played: int) -> str | None:
    """Which of the named faults befalls this attempt of a conversation, if any; the order of arrival plays no part."""
    if not config.faults or config.instant or (config.fault_depth and played >= config.fault_depth):
        return None
    roll = draw(config.seed, "fault", key.hex(), attempt)
    for name, share in config.faults.items():
        if roll < share:
            return name if name in names else None
        roll -= share
    return None


def fitting(schema: dict[str, Any], root: dict[str, Any], *path: Any) -> Any:
    """A value that satisfies a JSON schema (types, enum, const, bounds, references), always the same for one path."""
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return fitting(target, root, *path)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return pick(schema["enum"], *path)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return fitting(schema[union][0], root, *path)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind if isinstance(kind, str) else next((k for k in kind if k != "null"), "null"):
        case "object":
            return {name: fitting(part, root, *path, name) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [fitting(schema.get("items", {}), root, *path, i) for i in range(schema.get("minItems", 1))]
        case "integer" | "number" as number:
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            high = schema.get("maximum", max(low + 1, schema.get("exclusiveMaximum", low + 101) - 1))
            value = low + draw(*path) * (high - low)
            return math.ceil(value) if number == "integer" else round(value, 6)
        case "boolean":
            return draw(*path) < 0.5
        case "null":
            return None
    text = f"{path[-1]} {digest_of(*path).hex()[:12]}"
    return text[: schema.get("maxLength")].ljust(schema.get("minLength", 0), ".")


def answer_text(config: Config, prompt: str, schema: dict[str, Any] | None = None, sample: int = 0) -> str:
    """The whole answer to a prompt, before any limit, stop or fault; `sample` tells repeated questions apart."""
    scripted = config.answer if isinstance(config.answer, list) else []
    for part, answer in scripted:
        if part in prompt:
            chosen = answer[sample % len(answer)] if isinstance(answer, list) else answer
            return chosen if isinstance(chosen, str) else json.dumps(chosen)
    other = config.variety > 0 and draw(config.seed, "variety", prompt, sample) < config.variety
    variant = (prompt, sample) if other else (prompt,)
    if schema or config.answer == "json":
        wanted = schema or config.schema
        return json.dumps(fitting(wanted, wanted, *variant, "answer"))
    if config.answer == "label":
        return str(pick(config.labels, *variant))
    return f"echo {digest_of(*variant).hex()}"


def say(config: Config, asked: Asked, sample: int, fault: str | None) -> Said:
    """The answer to one sample as it is sent: spoilt by the fault, then cut by stops and by the limit."""
    text, finish, stopped_by = answer_text(config, asked.prompt, asked.schema, sample), "stop", None
    if fault == "cut_json":
        text, finish = text[: len(text) // 2], "length"
    elif fault == "filtered":
        text, finish = text[: len(text) // 2], "filter"
    elif fault == "wrong_schema":
        text = json.dumps({"unexpected": text[:40]}) if asked.schema or text.startswith("{") else f"neither: {text}"
    elif fault == "refusal":
        text, finish = REFUSAL, "refusal"
    elif fault == "empty":
        text = ""
    for stop in asked.stops:
        if stop in text:
            text, finish, stopped_by = text[: text.index(stop)], "stop", stop
    raw, reasoning = text.encode(), config.reasoning_tokens
    room = None if asked.limit is None else TOKEN_BYTES * max(0, asked.limit - reasoning)
    if room is not None and len(raw) > room:
        text, finish, stopped_by = raw[:room].decode(errors="ignore"), "length", None
    tokens = tokens_of(text)
    if config.thoughts_shown and reasoning:
        most = reasoning if asked.limit is None else min(reasoning, asked.limit)
        thoughts = ("Let me think. " * reasoning)[: TOKEN_BYTES * most]
        text = f"<think>\n{thoughts}" + (f"\n</think>\n\n{text}" if text or finish != "length" else "")
    return Said(text, finish, tokens, stopped_by)


def usage_of(config: Config, asked: Asked, answers: Sequence[Said]) -> Usage:
    """The tokens that a request and its answers are charged for; even an empty answer has one, its end."""
    most = config.reasoning_tokens if asked.limit is None else min(config.reasoning_tokens, asked.limit)
    reasoning = most * len(answers)
    cached = int(asked.input_tokens * config.cached_share)
    return Usage(asked.input_tokens, cached, sum(max(1, said.tokens) for said in answers) + reasoning, reasoning)
