"""The books of `teacher_server`: every call, what it was charged, and the faults that were played."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import count
from types import ModuleType
from typing import Any

from providers.model import (
    ANSWERS,
    LINES,
    Asked,
    Config,
    RefusedError,
    Usage,
    digest_of,
    dump,
    fault_for,
    say,
    usage_of,
)  # fmt: skip

PROMPT_CHARS = 2000  # kept of each prompt


@dataclass(slots=True)
class Call:
    """One request, or one line of a batch (then `batch` and `custom_id` are set); what `server.calls()` gives."""

    number: int
    method: str
    path: str
    key: str = ""  # first eight hex digits of the sha256 of the key that came
    body_sha256: str = ""
    prompt: str = ""
    custom_id: str | None = None
    batch: str | None = None
    fault: str | None = None
    status: int | None = None  # None: nothing was answered
    usage: Usage | None = None
    cost: float = 0.0
    time: float = field(default_factory=time.time)

    def shown(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["usage"] = asdict(self.usage) if self.usage else None
        return values


@dataclass
class Conversation:
    """What has happened to one conversation, repair turns included."""

    attempts: int = 0
    faults: int = 0
    not_before: float = 0.0  # when a Retry-After allows the next attempt


@dataclass
class Shop:
    """All that the server knows."""

    config: Config = field(default_factory=Config)
    calls: list[Call] = field(default_factory=list)
    conversations: dict[bytes, Conversation] = field(default_factory=dict)
    roots: dict[bytes, bytes] = field(default_factory=dict)
    files: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))  # of files and batches
    charged: int = 0
    cost_usd: float = 0.0
    in_flight: int = 0
    peak_in_flight: int = 0
    too_early: int = 0  # attempts before a Retry-After allowed them
    connections: int = 0
    kept: list[bytearray] = field(default_factory=list)  # what arrived, by connection

    def log(self, method: str, path: str, body: bytes = b"", **facts: Any) -> Call:
        """A new line in the books."""
        call = Call(len(self.calls), method, path, body_sha256=sha256(body).hexdigest(), **facts)
        self.calls.append(call)
        return call

    def draw_fault(self, call: Call, names: tuple[str, ...], key: bytes) -> str | None:
        """Which of the named faults this attempt meets, if any; notes it, and an attempt that came too early."""
        if not self.config.faults or self.config.instant:
            return None
        known = self.conversations.setdefault(key, Conversation())
        self.too_early += time.monotonic() < known.not_before
        call.fault = fault_for(self.config, names, key, known.attempts, known.faults)
        known.attempts += 1
        known.faults += call.fault is not None
        if call.fault == "429_retry_after" and isinstance(self.config.retry_after, int | float):
            known.not_before = time.monotonic() + self.config.retry_after
        return call.fault

    def conversation_of(self, wire: ModuleType, asked: Asked) -> bytes:
        """What retries and repair turns of one question have in common, and other samples of it have not."""
        if not self.config.faults or self.config.instant:
            return b""
        whole = digest_of(wire.NAME, dump(asked.messages), asked.seed)
        before = digest_of(wire.NAME, dump(asked.messages[:-2]), asked.seed) if len(asked.messages) > 2 else b""
        return self.roots.setdefault(whole, self.roots.get(before, whole))

    def sample_of(self, asked: Asked) -> int:
        """The sample's number: its seed, or how often the same was asked before."""
        if asked.seed is not None or (not self.config.variety and not isinstance(self.config.answer, list)):
            return asked.seed or 0
        known = self.conversations.setdefault(digest_of("sample", dump(asked.messages)), Conversation())
        known.attempts += 1
        return known.attempts - 1

    def answer(
        self, wire: ModuleType, call: Call, body: dict[str, Any], asked: Asked, fault: str | None, discount: float = 0.0
    ) -> dict[str, Any]:
        """Do the work, charge for it and give the answer; raises RefusedError where a provider blocks what it wrote."""
        if fault == "filtered" and wire.NAME == "anthropic":  # has no such end of an answer
            raise wire.fault("blocked", self.config)
        sample = self.sample_of(asked)
        answers = [say(self.config, asked, sample + i, fault) for i in range(asked.choices)]
        call.usage = usage_of(self.config, asked, answers)
        call.cost = call.usage.cost(self.config.price, discount)
        self.charged += 1
        self.cost_usd += call.cost
        reply: dict[str, Any] = wire.write(call.number, body, asked, answers, call.usage)
        return reply

    def line(self, wire: ModuleType, call: Call, body: dict[str, Any], version: str | None) -> tuple[str, Any]:
        """One line of a batch: (succeeded, the answer), (errored, RefusedError) or (expired, None)."""
        try:
            asked = wire.read(body, self.config, version)
            call.prompt = asked.prompt[:PROMPT_CHARS]
            fault = self.draw_fault(call, ANSWERS + LINES, self.conversation_of(wire, asked))
            if fault == "batch_expired":
                return "expired", None
            if fault == "batch_error":
                raise wire.fault("500", self.config)
            reply = self.answer(wire, call, body, asked, fault, self.config.batch_discount)
        except RefusedError as refusal:
            call.status = refusal.status
            return "errored", refusal
        call.status = 200
        return "succeeded", reply

    def totals(self) -> dict[str, Any]:
        """The sums: calls, lines of batches, faults, answers by status, tokens, and what is owed in USD."""
        used = [call.usage for call in self.calls if call.usage]
        return {
            "calls": sum(call.batch is None for call in self.calls),
            "lines": sum(call.batch is not None for call in self.calls),
            "by_fault": dict(Counter(call.fault for call in self.calls if call.fault)),
            "by_status": dict(Counter(str(call.status) for call in self.calls)),
            "charged": self.charged,
            "cost_usd": self.cost_usd,
            "input_tokens": sum(usage.input for usage in used),
            "cached_tokens": sum(usage.cached for usage in used),
            "output_tokens": sum(usage.output for usage in used),
            "reasoning_tokens": sum(usage.reasoning for usage in used),
            "too_early": self.too_early,
            "peak_in_flight": self.peak_in_flight,
            "connections": self.connections,
        }
