"""A loopback server that behaves as the documents of OpenAI and Anthropic say, for tests of a teacher client.

    with teacher_server(faults={"429": 0.1}, price={"input": 1.0, "output": 4.0}) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key=server.config.key, max_retries=0)
        ...
        assert server.totals()["cost_usd"] == ledger_says

The settings and the names of the faults are in `providers/model.py`, a call's facts in `providers/shop.py`. The server
is a process of its own: `python tests/support/teacher_server.py [CONFIG.json]` prints its port, obeys JSON lines on its
standard input and stops when that closes. For a test it is a fork of one that has aiohttp imported already, and
obeys on a pipe. Work is charged before it is delivered, as providers do.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from providers import anthropic_batches, anthropic_wire, openai_batches, openai_wire
from providers.model import ANSWERS, BREAKS, DELIVERY, REFUSALS, Config, RefusedError, answer_text, dump
from providers.shop import PROMPT_CHARS, Call, Shop

ASKING = {openai_wire.CHAT: openai_wire, anthropic_wire.MESSAGES: anthropic_wire}
EVERYWHERE = REFUSALS + BREAKS + DELIVERY  # faults that any request can meet
PIECES = 10  # of a slow body
# Importing takes longer than most tests ask their server: it is done once, and every server is a fork of that process.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["aiohttp.web", "pytest"])


@dataclass
class TeacherServer:
    """A running server, seen from the test: `url` without /v1, and what `config` says now."""

    url: str
    config: Config
    process: ForkServerProcess
    orders: BinaryIO
    replies: BinaryIO
    lock: Any = field(default_factory=threading.Lock)

    def calls(self, start: int = 0) -> list[dict[str, Any]]:
        """Every request and every batch line so far, in order of arrival, from number `start` on."""
        return list(json.loads(self._ask("calls", start)))

    def totals(self) -> dict[str, Any]:
        """The sums over all calls, in USD and tokens: see `Shop.totals`."""
        return dict(json.loads(self._ask("totals")))

    def bytes_received(self) -> bytes:
        """All that arrived (`keep_bodies=True`): request lines, headers and bodies, connection by connection."""
        return self._ask("bytes")

    def expected(self, prompt: str, schema: dict[str, Any] | None = None, sample: int = 0) -> str:
        """The answer that this prompt gets where no fault, stop or limit spoils it."""
        return answer_text(self.config, prompt, schema, sample)

    def set(self, **changes: Any) -> None:
        """Change settings while it runs."""
        self.config = replace(self.config, **json.loads(json.dumps(changes)))
        self._ask("set", changes)

    def stop(self) -> None:
        """End the process; harmless when it has ended."""
        for stream in (self.orders, self.replies):  # both are one pipe, which closes with the second
            stream.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ask(self, *order: Any) -> bytes:
        with self.lock:
            self.orders.write(json.dumps(order).encode() + b"\n")
            self.orders.flush()
            return self.replies.read(int(self.replies.readline()))


@contextmanager
def teacher_server(**config: Any) -> Iterator[TeacherServer]:
    """Start a server with these settings (`Config`) and stop it at the end."""
    settings = Config(**json.loads(json.dumps(config)))
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=serve_a_test, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    orders, replies = ends_of(ours)
    server = TeacherServer(f"http://127.0.0.1:{int(replies.readline())}", settings, process, orders, replies)
    try:
        server.set(**config)
        yield server
    finally:
        server.stop()


def ends_of(pipe: Connection) -> tuple[BinaryIO, BinaryIO]:
    """A pipe's two directions as streams of their own: what is written, what is read."""
    with pipe:
        return open(os.dup(pipe.fileno()), "wb"), open(os.dup(pipe.fileno()), "rb")


def serve_a_test(pipe: Connection) -> None:
    """What a fork does: start without settings, and obey until the test closes its end."""
    said, heard = ends_of(pipe)
    asyncio.run(serve(Shop(Config()), heard, said))


def obey(shop: Shop, order: list[Any]) -> bytes:
    """What the test wants to know, or nothing after a change of settings."""
    match order:
        case ["set", dict() as changes]:
            shop.config = replace(shop.config, **changes)
            return b""
        case ["calls", int() as start]:
            return dump([call.shown() for call in shop.calls[start:]]).encode()
        case ["totals"]:
            return dump(shop.totals()).encode()
        case ["bytes"]:
            return b"\n".join(bytes(kept) for kept in shop.kept)
    raise ValueError(f"no such order: {order}")


def listen(
    shop: Shop, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, orders: BinaryIO, replies: BinaryIO
) -> None:
    """Obey the lines of a stream, each between two requests, and stop when it closes."""

    def reply(line: bytes) -> None:
        said = obey(shop, json.loads(line))
        replies.write(b"%d\n%b" % (len(said), said))
        replies.flush()

    for line in orders:
        loop.call_soon_threadsafe(reply, line)
    loop.call_soon_threadsafe(stop.set)


class Recorder(RequestHandler):
    """A connection that keeps every byte that arrives."""

    def __init__(self, kept: bytearray, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.kept = kept

    def data_received(self, data: bytes) -> None:
        self.kept += data
        super().data_received(data)


async def serve(shop: Shop, orders: BinaryIO, replies: BinaryIO) -> None:
    """Listen on a free port of the loopback, which is the first line said, until the orders end."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    server = web.Server(partial(handle, shop), handler_cancellation=True)

    def connection() -> RequestHandler:
        shop.connections += 1
        if not shop.config.keep_bodies:
            return RequestHandler(server, loop=loop, access_log=None)  # type: ignore[arg-type]
        shop.kept.append(bytearray())
        return Recorder(shop.kept[-1], server, loop=loop, access_log=None)

    listening = await loop.create_server(connection, "127.0.0.1", 0, backlog=1024)
    replies.write(b"%d\n" % listening.sockets[0].getsockname()[1])
    replies.flush()
    threading.Thread(target=listen, args=(shop, loop, stop, orders, replies), daemon=True).start()
    await stop.wait()


async def handle(shop: Shop, request: web.BaseRequest) -> web.StreamResponse:
    """One request from its arrival in the books to its answer."""
    body = await request.content.read()
    path, headers = request.path, request.headers
    wire = ASKING.get(path) or (anthropic_wire if is_anthropic(path, headers) else openai_wire)
    key = headers.get("x-api-key") or headers.get("Authorization", "").removeprefix("Bearer ")
    call = shop.log(request.method, path, body, key=sha256(key.encode()).hexdigest()[:8])
    shop.in_flight += 1
    shop.peak_in_flight = max(shop.peak_in_flight, shop.in_flight)
    try:
        wire.check_key(headers, shop.config)
        reply = await (ask if path in ASKING else manage)(shop, request, body, call, wire)
    except RefusedError as refusal:
        call.status = refusal.status
        return response(wire, call, refusal.body, refusal.headers)
    finally:
        shop.in_flight -= 1
    if reply is None:
        return hang_up(request)
    call.status = 200
    answer = response(wire, call, reply)
    if call.fault in ("slow_body", "broken_http"):
        return await trickle(shop.config, request, answer, broken=call.fault == "broken_http")
    return answer


def is_anthropic(path: str, headers: Any) -> bool:
    """Whose API an address belongs to; both have /v1/models."""
    return path.startswith("/v1/messages") or (path.startswith("/v1/models") and "anthropic-version" in headers)


async def ask(shop: Shop, request: web.BaseRequest, body: bytes, call: Call, wire: ModuleType) -> Any:
    """The model's answer, or what a fault makes of it."""
    config = shop.config
    if request.method != "POST":
        raise wire.no_route(request.method, request.path, True)
    if config.max_in_flight is not None and shop.in_flight > config.max_in_flight:
        raise wire.fault("429", config)
    if config.quota_usd is not None and shop.cost_usd >= config.quota_usd:
        raise wire.no_credit(shop.config)
    try:
        wanted = json.loads(body)
    except ValueError:
        wanted = None
    asked = wire.read(wanted, config, request.headers.get("anthropic-version"))
    call.prompt = asked.prompt[:PROMPT_CHARS]
    if meets_faults(config, call.path):
        shop.draw_fault(call, EVERYWHERE + ANSWERS, shop.conversation_of(wire, asked))
    return await with_fault(shop, call, wire, lambda: shop.answer(wire, call, wanted, asked, call.fault))


def meets_faults(config: Config, path: str) -> bool:
    """Whether faults befall requests to this path."""
    return bool(config.faults) and any(fnmatchcase(path, pattern) for pattern in config.fault_paths)


async def with_fault(shop: Shop, call: Call, wire: ModuleType, work: Callable[[], Any]) -> Any:
    """Do the work as the call's fault allows; None: hang up without an answer."""
    config, fault = shop.config, call.fault
    if config.latency_s and not config.instant:
        await asyncio.sleep(config.latency_s)
    if fault in REFUSALS:
        raise wire.fault(fault, config)
    if fault == "timeout":
        await asyncio.sleep(config.timeout_s)
    if fault in BREAKS:
        return None
    reply = work()
    if fault == "timeout_after_work":
        await asyncio.sleep(config.timeout_s)
    return None if fault in ("reset_after_work", "timeout_after_work") else reply


async def manage(shop: Shop, request: web.BaseRequest, body: bytes, call: Call, wire: ModuleType) -> Any:
    """Everything that is not a question: models, files and batches."""
    known = False
    for pattern, methods in ROUTES:
        if not (match := pattern.fullmatch(request.path)):
            continue
        known = True
        if work := methods.get(request.method):
            if shop.config.quota_usd is not None and shop.cost_usd >= shop.config.quota_usd and work in CREATE:
                raise wire.no_credit(shop.config)
            if meets_faults(shop.config, call.path):
                shop.draw_fault(call, EVERYWHERE, bytes.fromhex(call.body_sha256) + call.path.encode())
            return await with_fault(shop, call, wire, lambda: work(shop, request, body, *match.groups()))
    raise wire.no_route(request.method, request.path, known)


def models(shop: Shop, request: web.BaseRequest, body: bytes) -> dict[str, Any]:
    """GET /v1/models"""
    wire = anthropic_wire if is_anthropic(request.path, request.headers) else openai_wire
    data = [wire.model_json(name) for name in shop.config.models if name not in shop.config.retired_models]
    if wire is openai_wire:
        return {"object": "list", "data": data}
    ids = [item["id"] for item in data] or [None]
    return {"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def model(shop: Shop, request: web.BaseRequest, body: bytes, name: str) -> dict[str, Any]:
    """GET /v1/models/{id}"""
    wire = anthropic_wire if is_anthropic(request.path, request.headers) else openai_wire
    wire.check_model(name, shop.config)
    return wire.model_json(name)


def response(wire: ModuleType, call: Call, reply: Any, headers: dict[str, str] | None = None) -> web.Response:
    """The HTTP answer: JSON for an object, HTML for a gateway's page, bytes as they are."""
    request_id = f"req_{call.number:012x}"
    if isinstance(reply, dict):
        if "request_id" in reply and reply["request_id"] is None:
            reply = {**reply, "request_id": request_id}
        raw, kind = dump(reply).encode(), "application/json"
    elif isinstance(reply, str):
        raw, kind = reply.encode(), "text/html"
    else:
        raw, kind = reply, "application/octet-stream"
    named = {"Content-Type": kind, wire.REQUEST_ID: request_id, **(headers or {})}
    return web.Response(body=raw, status=call.status or 200, headers=named)


async def trickle(config: Config, request: web.BaseRequest, answer: web.Response, broken: bool) -> web.StreamResponse:
    """Send the body slowly, or only half of what Content-Length promises and then close."""
    raw = bytes(answer.body)  # type: ignore[arg-type]
    stream = web.StreamResponse(status=answer.status, headers=answer.headers)
    stream.content_length = len(raw)
    await stream.prepare(request)
    if broken:
        await stream.write(raw[: len(raw) // 2])
        request.transport.close()  # type: ignore[union-attr]
        return stream
    step = max(1, len(raw) // PIECES)
    for start in range(0, len(raw), step):
        await stream.write(raw[start : start + step])
        await asyncio.sleep(config.slow_s / PIECES)
    return stream


def hang_up(request: web.BaseRequest) -> web.Response:
    """Reset the connection: no byte is sent."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


CREATE = (openai_batches.create, anthropic_batches.create)
ROUTES = [
    (re.compile(pattern), methods)
    for pattern, methods in (
        ("/v1/models", {"GET": models}),
        ("/v1/models/([^/]+)", {"GET": model}),
        ("/v1/files", {"POST": openai_batches.upload, "GET": openai_batches.file_list}),
        ("/v1/files/([^/]+)", {"GET": openai_batches.file_facts, "DELETE": openai_batches.file_delete}),
        ("/v1/files/([^/]+)/content", {"GET": openai_batches.file_content}),
        ("/v1/batches", {"POST": openai_batches.create, "GET": openai_batches.listed}),
        ("/v1/batches/([^/]+)", {"GET": openai_batches.get}),
        ("/v1/batches/([^/]+)/cancel", {"POST": openai_batches.cancel}),
        ("/v1/messages/batches", {"POST": anthropic_batches.create, "GET": anthropic_batches.listed}),
        ("/v1/messages/batches/([^/]+)", {"GET": anthropic_batches.get, "DELETE": anthropic_batches.delete}),
        ("/v1/messages/batches/([^/]+)/cancel", {"POST": anthropic_batches.cancel}),
        ("/v1/messages/batches/([^/]+)/results", {"GET": anthropic_batches.results}),
    )
]

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else {}
    asyncio.run(serve(Shop(Config(**given)), sys.stdin.buffer, sys.stdout.buffer))
