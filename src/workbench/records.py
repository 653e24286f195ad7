"""The values that travel between rooms: frozen, plain, written to JSON as they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Tools = Sequence[Mapping[str, Any]]  # functions that may be called, in OpenAI's layout


@dataclass(frozen=True)
class ToolCall:
    """One call that an assistant's turn makes: the function's name, and its arguments as the JSON text of an object."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    `reasoning` is what an assistant thought before it spoke, `tool_calls` what it calls. A tool's turn holds a
    result: `tool_call_id` and `name` say of which call. `weight` scales the turn's loss where the row sets it
    (0: context only); None leaves it to the recipe.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    weight: float | None = None


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with the assistant's answer, and where it came from.

    `group` ties near copies together: a split never parts them. `where` is `file:row`, for errors.
    `own_text` is the user's text without what every row shares, such as the recipe's instruction.
    `tools` are the functions that may be called, in OpenAI's layout. `weight` scales the row's loss. `rejected` are
    the turns that a preference pair ends with instead; `good` is a person's word on the answer, where there is one.
    A document of raw text is one assistant's message without a prompt.
    """

    id: str
    messages: tuple[Message, ...]
    group: str = ""
    where: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    own_text: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    weight: float = 1.0
    rejected: tuple[Message, ...] = ()
    good: bool | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every message before the final answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The final assistant message, its calls written out: what an arm is asked for and scored against."""
        return answer_text(self.messages[-1])

    @property
    def text(self) -> str:
        """The row's own text, else its user turns joined: what duplicates and leakage are judged by."""
        return self.own_text or "\n".join(m.content for m in self.prompt if m.role == "user")


DATA_SOURCE = "data_source"  # the column that says which of several sources a row is from


@dataclass(frozen=True)
class TokenRow:
    """One row as the model will see it: token ids, and for each whether it carries loss; `weight` scales that loss.

    `scales` are each token's own factor, beside it, where trained turns differ in weight; else there are none.
    """

    id: str
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    where: str = ""
    weight: float = 1.0
    scales: tuple[float, ...] = ()

    @property
    def answer_start(self) -> int:
        """Where the last answer begins."""
        return len(self.trained) - self.trained[::-1].index(False)


@dataclass(frozen=True)
class Answer:
    """What an engine said to one prompt.

    `seconds` is wall time, shared evenly among the answers made at once: what an answer costs. `latency` is the wall
    time until the last token of all that was made at once was there, `first_token` until its first ones were (seconds;
    None where the engine does not tell): with a batch or requests beside it, neither is what one asker waits.
    `logprob` is the natural log-probability of the tokens it said, thoughts included, `mean_logprob` and
    `least_logprob` the mean and the least of one token; `margin` is the least lead of one over the likeliest other
    token (nats). The token that ends an answer is left out of all four: a stream does not tell it. None where the
    engine tells none, or nothing was said. `text` is the answer, its calls written out; what was thought before it is
    `thoughts`, which took `tokens_thought` of the `tokens_out`.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    seconds: float
    latency: float | None = None
    first_token: float | None = None
    logprob: float | None = None
    usd: float = 0.0
    thoughts: str = ""
    tokens_thought: int = 0
    mean_logprob: float | None = None
    least_logprob: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Another:
    """A further answer of a teacher to a row that has a label: another one, with its own share of the samples."""

    answer: str
    rationale: str = ""
    agreement: float = 1.0
    logprobs: bytes | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Label:
    """What a teacher answered to one row, with what it cost and the hashes of the requests that bought it.

    `agreement` is the share of the samples that gave this answer; `logprobs` are packed, when they were asked for.
    `others` are the next commonest answers, where they were wanted; the n-th is called `other_id(id, n)`. `reasoning`
    is what the teacher thought before it spoke, `tool_calls` what it calls.
    """

    id: str
    answer: str
    model: str
    rationale: str = ""
    agreement: float = 1.0
    usd: float = 0.0
    requests: tuple[str, ...] = ()
    logprobs: bytes | None = None
    others: tuple[Another, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def other_id(row: str, number: int) -> str:
    """The id of the row that carries a prompt's `number`-th answer; the first (0) keeps the prompt's own."""
    return row if number == 0 else f"{row}~{number + 1}"


@dataclass(frozen=True)
class Artefact:
    """A file or folder with its SHA-256 (a folder's is taken over its files' names and digests)."""

    path: str
    sha256: str
    bytes: int


def canonical(value: object) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces. The text that digests cover."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(value: object, length: int = 64) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def digest_of(values: Iterable[object], length: int = 64) -> str:
    """`digest` of a list of these values, of which one is held at a time."""
    hashed, between = hashlib.sha256(b"["), b""
    for value in values:
        hashed.update(between + canonical(value).encode())
        between = b","
    hashed.update(b"]")
    return hashed.hexdigest()[:length]


def answer_text(message: Message) -> str:
    """What a turn says, as one text: its content, and the calls that it makes."""
    return "\n".join(filter(None, [message.content, calls_text(message.tool_calls)]))


def calls_text(calls: Sequence[ToolCall], acceptable: Sequence[Mapping[str, Any]] = ()) -> str:
    """Calls as Hermes and Qwen write them: a `<tool_call>` block each, with name and arguments as JSON.

    `acceptable` are, call by call, the further values that arguments may have; they are written beside.
    """
    blocks = []
    for at, call in enumerate(calls):
        try:
            arguments = json.loads(call.arguments)
        except ValueError:  # a server hands on what the model wrote, and that may be no JSON
            arguments = call.arguments
        block = {"name": call.name, "arguments": arguments}
        if at < len(acceptable) and acceptable[at]:
            block["acceptable"] = acceptable[at]
        blocks.append(f"<tool_call>\n{json.dumps(block, ensure_ascii=False)}\n</tool_call>")
    return "\n".join(blocks)


def message_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the dictionaries that chat templates take: role and content, and what else a turn has.

    Arguments of calls are objects here, as templates want them; OpenAI's servers take their JSON text.
    """
    return [message_dict(m) for m in messages]


def message_dict(message: Message) -> dict[str, Any]:
    """One message, in OpenAI's words; a plain one is its role and content, no more."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            ({"id": call.id} if call.id else {})
            | {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if getattr(message, key):
            turn[key] = getattr(message, key)
    return turn


def message_of_dict(turn: Mapping[str, Any]) -> Message:
    """The message that `message_dict` has written."""
    functions = [(call["function"], call.get("id", "")) for call in turn.get("tool_calls", ())]
    calls = tuple(ToolCall(f["name"], json.dumps(f["arguments"], ensure_ascii=False), id) for f, id in functions)
    return Message(
        turn["role"],
        turn["content"],
        reasoning=turn.get("reasoning_content", ""),
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id", ""),
        name=turn.get("name", ""),
    )
