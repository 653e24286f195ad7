"""How requests, replies and their log-probabilities look on the wire: OpenAI's chat completions, Anthropic's messages.

OpenAI: platform.openai.com/docs/api-reference/chat. Anthropic: docs.anthropic.com/en/api/messages.
"""

from __future__ import annotations

import collections
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.recipe import Teacher
from workbench.records import Message, ToolCall, canonical, digest

Finish = Literal["stop", "length", "refusal", "filter"]
# A chat template's marks around a message, and what a provider may add on its own.
TOKENS_A_MESSAGE, TOKENS_A_REQUEST = 16, 64


@dataclass(frozen=True)
class Usage:
    """Tokens of one call. `tokens_in` includes the cached ones, `out` the reasoning ones.

    `own_in` and `own_out` mark our own count, where the provider states none that can be.
    """

    tokens_in: int = 0
    cached: int = 0
    out: int = 0
    reasoning: int = 0
    own_in: bool = False
    own_out: bool = False


@dataclass(frozen=True)
class Reply:
    """One answer as the provider gave it, with what it thought before it spoke and what it calls.

    `attempt` and `cost` (nano-dollars) are set when it comes from the ledger.
    """

    text: str
    finish: Finish
    model: str
    usage: Usage
    logprobs: bytes | None = None
    attempt: int = 0
    cost: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Request:
    """One thing to ask: the body that would be sent, its identity, the most tokens it can cost, its texts' bytes."""

    row: str
    body: Mapping[str, Any]
    hash: str
    most_in: int
    most_out: int
    text_bytes: int = 0


def make_request(
    teacher: Teacher,
    identity: str,
    row: str,
    turns: Sequence[Message],
    sample: int,
    *,
    schema: Mapping[str, Any] | None = None,
    logprobs: int = 0,
    seed: int | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Request:
    """The request for one sample of one row.

    `identity` names the endpoint without its key: the hash covers it, the dated model, the whole body with the
    schema, and the sample's number, so that equal requests are equal in every run and no others are.
    """
    if teacher.api == "anthropic":
        body = anthropic_body(teacher, turns, schema, tools)
    else:
        body = openai_body(teacher, turns, schema, logprobs, None if seed is None else seed + sample, tools)
    text = sum(len(said_in(turn).encode("utf-8", "replace")) for turn in turns)
    # No tokenizer makes more tokens than there are bytes, so this bound holds for models whose tokenizer is secret.
    most_in = (
        text
        + TOKENS_A_MESSAGE * len(turns)
        + TOKENS_A_REQUEST
        + sum(len(canonical(beside).encode("utf-8", "replace")) for beside in (schema, tools) if beside)
    )
    identity = digest({"at": identity, "body": body, "sample": sample}, 40)
    return Request(row, body, identity, most_in, teacher.max_new_tokens, text)


def said_in(turn: Message) -> str:
    """All words of a turn that are sent: its text and its calls."""
    return turn.content + "".join(call.name + call.arguments for call in turn.tool_calls)


def openai_body(
    teacher: Teacher,
    turns: Sequence[Message],
    schema: Mapping[str, Any] | None,
    logprobs: int,
    seed: int | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The body of POST /chat/completions."""
    body: dict[str, Any] = {"model": teacher.model, "messages": openai_messages(turns)}
    if tools:
        body["tools"] = list(tools)
    body[teacher.limit_key] = teacher.max_new_tokens
    if teacher.temperature is not None:
        body["temperature"] = teacher.temperature
    if seed is not None:
        body["seed"] = seed
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": logprobs}
    if schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    return body


def call_ids(turns: Sequence[Message]) -> tuple[list[list[str]], list[str]]:
    """(the ids of each turn's calls, of each turn the id of the call whose result it is): those given, else numbers.

    Results without an id answer the calls before them in order.
    """
    calls: list[list[str]] = []
    results: list[str] = []
    number, open_calls = 0, collections.deque[str]()
    for turn in turns:
        ids = []
        for call in turn.tool_calls:
            ids.append(call.id or f"call_{number}")
            number += 1
        open_calls.extend(ids)
        calls.append(ids)
        result = turn.tool_call_id or (open_calls[0] if turn.role == "tool" and open_calls else "")
        if result in open_calls:
            open_calls.remove(result)
        results.append(result)
    return calls, results


def openai_messages(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI's servers take them: arguments as JSON text, every call with its id, no thoughts."""
    calls, results = call_ids(turns)
    messages = []
    for turn, ids, result in zip(turns, calls, results, strict=True):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for id, call in zip(ids, turn.tool_calls, strict=True)
            ]
        if turn.role == "tool":
            message["tool_call_id"] = result
        elif turn.name:
            message["name"] = turn.name
        messages.append(message)
    return messages


def anthropic_messages(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as Anthropic takes them: calls and results are blocks, results stand in the user's turn."""
    calls, results = call_ids(turns)
    messages: list[dict[str, Any]] = []
    for turn, ids, result in zip(turns, calls, results, strict=True):
        if turn.role == "tool":
            block = {"type": "tool_result", "tool_use_id": result, "content": turn.content}
            if messages and messages[-1]["role"] == "user" and isinstance(messages[-1]["content"], list):
                messages[-1]["content"].append(block)
            else:
                messages.append({"role": "user", "content": [block]})
        elif turn.tool_calls:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": turn.content}] if turn.content else []
            blocks += [
                {"type": "tool_use", "id": id, "name": call.name, "input": json.loads(call.arguments)}
                for id, call in zip(ids, turn.tool_calls, strict=True)
            ]
            messages.append({"role": turn.role, "content": blocks})
        elif turn.role != "system":
            messages.append({"role": turn.role, "content": turn.content})
    return messages


def anthropic_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function in OpenAI's layout as a tool in Anthropic's."""
    function = tool.get("function", tool)
    described = {"description": function["description"]} if function.get("description") else {}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], **described, "input_schema": schema}


def anthropic_body(
    teacher: Teacher,
    turns: Sequence[Message],
    schema: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The body of POST /v1/messages; the system prompt stands beside the messages."""
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    body: dict[str, Any] = {
        "model": teacher.model,
        "max_tokens": teacher.max_new_tokens,
        "messages": anthropic_messages(turns),
    }
    if tools:
        body["tools"] = [anthropic_tool(tool) for tool in tools]
    if system:
        body["system"] = system
    if teacher.temperature is not None:
        body["temperature"] = teacher.temperature
    if schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return body


# Top-k log-probabilities with token bytes: packed small for the ledger, laid out in columns for training.
#
# Packed: zlib over, for each answer token, the token and its alternatives, each as length, bytes and a float32.

LINES_A_GROUP = 20_000


@dataclass(frozen=True)
class TokenLogprobs:
    """One answer token: its bytes, its log-probability (natural logarithm), and the likeliest (bytes, logprob)."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


def pack(content: Sequence[Mapping[str, Any]]) -> bytes:
    """OpenAI's `logprobs.content` as bytes. A token without `bytes` is taken by its text, as the API allows."""
    parts = [struct.pack("<I", len(content))]
    for entry in content:
        alternatives = entry.get("top_logprobs") or []
        parts.append(struct.pack("<B", len(alternatives)))
        for scored in (entry, *alternatives):
            token = bytes(scored["bytes"]) if scored.get("bytes") is not None else str(scored["token"]).encode()
            parts.append(struct.pack("<Hf", len(token), max(float(scored["logprob"]), -9999.0)) + token)
    return zlib.compress(b"".join(parts), 6)


def unpack(packed: bytes) -> list[TokenLogprobs]:
    """What `pack` has packed."""
    data, at = zlib.decompress(packed), 4
    tokens = []
    for _ in range(struct.unpack_from("<I", data)[0]):
        alternatives, at = data[at], at + 1
        pairs = []
        for _ in range(alternatives + 1):
            length, logprob = struct.unpack_from("<Hf", data, at)
            at += 6
            pairs.append((data[at : at + length], logprob))
            at += length
        tokens.append(TokenLogprobs(pairs[0][0], pairs[0][1], tuple(pairs[1:])))
    return tokens


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A Parquet file that takes `(row id, packed)` pairs as they come; a line an answer token.

    Columns: `id`, `position`, `token` (bytes), `logprob`, `top_tokens` (list of bytes), `top_logprobs` (list of float).
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([
        ("id", pyarrow.string()), ("position", pyarrow.int32()), ("token", pyarrow.binary()),
        ("logprob", pyarrow.float32()), ("top_tokens", pyarrow.list_(pyarrow.binary())),
        ("top_logprobs", pyarrow.list_(pyarrow.float32())),
    ])  # fmt: skip
    lines: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(lines, schema))
            lines.clear()

        def add(identity: str, packed: bytes) -> None:
            for position, scored in enumerate(unpack(packed)):
                top_tokens, top_logprobs = zip(*scored.top) if scored.top else ((), ())
                line = {"id": identity, "position": position, "token": scored.token, "logprob": scored.logprob}
                lines.append(line | {"top_tokens": top_tokens, "top_logprobs": top_logprobs})
            if len(lines) >= LINES_A_GROUP:
                flush()

        yield add
        flush()


def read_parquet(path: Path) -> dict[str, list[TokenLogprobs]]:
    """Each row's answer tokens, in order, from such a file."""
    import pyarrow.parquet

    rows: dict[str, list[TokenLogprobs]] = {}
    with pyarrow.parquet.ParquetFile(path) as stored:
        for batch in stored.iter_batches(LINES_A_GROUP):
            for line in batch.to_pylist():
                top = tuple(zip(line["top_tokens"], line["top_logprobs"], strict=True))
                rows.setdefault(line["id"], []).append(TokenLogprobs(line["token"], line["logprob"], top))
    return rows


def size_of(path: Path) -> dict[str, float]:
    """Tokens in such a file, its bytes, and bytes a token."""
    import pyarrow.parquet

    tokens, size = pyarrow.parquet.read_metadata(path).num_rows, path.stat().st_size
    return {"tokens": tokens, "bytes": size, "bytes_a_token": round(size / max(tokens, 1), 1)}
