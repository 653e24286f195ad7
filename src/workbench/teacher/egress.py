"""The choke point: the one place where a connection to a teacher is opened, and the log of all that has left.

The log is append-only JSON lines, each holding the hash of the one before it; `verify` finds a changed, moved or
missing line. It names row, destination, class, what was swapped out, and the digest of the bytes, never the bytes.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import proxy_bypass

import httpx2 as httpx

from workbench.errors import RequestError, WorkbenchError
from workbench.files import close_to_others
from workbench.privacy.secrets import masked
from workbench.recipe import Teacher
from workbench.records import canonical, digest
from workbench.runs import now
from workbench.teacher.reach import checked_address, needs_look_up, refuse_outside
from workbench.urls import is_loopback

NO_ROW = "none"  # the class of what holds nothing of a row: a probe's question, a look at a batch
START = "0" * 64  # what the first line holds as the hash before it
TAIL_BYTES = 65_536


@dataclass
class Sending:
    """What is about to leave: for which row, of which class, with how much swapped out. `hash` is set by the log."""

    row: str
    privacy: str
    redacted: Mapping[str, int] = field(default_factory=dict)
    hash: str = ""


SENDING: ContextVar[Sending | None] = ContextVar("sending", default=None)


def rule_for(teacher: Teacher, privacy: str) -> str:
    """`raw` or `redacted`: in what form rows of a class may go to this teacher; RequestError when they may not."""
    rule = "raw" if teacher.inside else str(getattr(teacher.leaves, privacy))
    if rule == "never":
        raise RequestError(
            f"rows of class {privacy} never leave, and {teacher.model or teacher.name} is outside your walls",
            where="data.privacy",
            remedy="use a teacher inside (teacher=local_gguf, teacher=vllm), or have the rows classed anew by who may",
        )
    return rule


class BlockedError(Exception):
    """The choke point let nothing through; the message never repeats what it found."""


class EgressLog:
    """An open egress log. Several processes may write to one file: the lock is taken for each line."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.stream = path.open("a+b")
        close_to_others(path)
        self.end, self.seq, self.last = -1, 0, START

    def append(self, entry: Mapping[str, Any]) -> str:
        """Write one line and give its hash."""
        fcntl.flock(self.stream, fcntl.LOCK_EX)
        try:
            self.stream.seek(0, 2)
            if self.stream.tell() != self.end:
                self.seq, self.last = last_line(self.stream, self.path)
            line = {"seq": self.seq + 1, **entry, "prev": self.last}
            line["hash"] = digest(line)
            self.stream.write(canonical(line).encode() + b"\n")
            self.stream.flush()
            self.seq, self.last, self.end = self.seq + 1, line["hash"], self.stream.tell()
        finally:
            fcntl.flock(self.stream, fcntl.LOCK_UN)
        return str(line["hash"])

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


def write_line(path: Path, entry: Mapping[str, Any]) -> str:
    """Append one line to the log at `path`, for what leaves by another way than to a teacher; gives its hash."""
    log = EgressLog(path)
    try:
        return log.append(entry)
    finally:
        log.close()


def last_line(stream: BinaryIO, path: Path) -> tuple[int, str]:
    """(seq, hash) of the newest whole line; a half line that a killed process left is cut off."""
    size = stream.seek(0, 2)
    if not size:
        return 0, START
    stream.seek(max(0, size - TAIL_BYTES))
    tail = stream.read()
    if not tail.endswith(b"\n"):
        cut = tail.rfind(b"\n") + 1
        stream.truncate(size - (len(tail) - cut))
        stream.seek(0, 2)
        tail = tail[:cut]
        if not tail:
            return 0, START
    try:
        line = json.loads(tail.rstrip(b"\n").rsplit(b"\n", 1)[-1])
        return int(line["seq"]), str(line["hash"])
    except (ValueError, KeyError) as error:
        raise WorkbenchError(
            "the last line of the egress log cannot be read",
            where=str(path),
            remedy="python -m workbench verify egress",
        ) from error


class ChokePoint(httpx.AsyncBaseTransport):
    """httpx's transport for a teacher: nothing passes but to its one host, as its policy allows, and logged.

    Of an endpoint that is called `inside` the address is looked up and checked at each sending, and the connection is
    made to that very address, past any proxy: a name that changes between the check and the sending gains nothing.
    """

    def __init__(
        self,
        base_url: str,
        log: EgressLog,
        policy: Callable[[str], str],
        scan: Callable[[str], Mapping[str, int]],
        connections: int,
        *,
        inside: bool = False,
    ):
        if inside:
            refuse_outside(base_url, look_up=False)
        self.host = host_of(httpx.URL(base_url))
        self.pinned = inside and needs_look_up(base_url)
        self.log, self.policy, self.scan = log, policy, scan
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30.0)
        self.inner = httpx.AsyncHTTPTransport(limits=limits, proxy=None if inside else proxy_for(base_url))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Log and forward one request; BlockedError when it may not leave."""
        sending = SENDING.get()
        body = await request.aread()
        if sending is None:
            raise BlockedError("a request without a row to answer for it")
        if host_of(request.url) != self.host:
            raise BlockedError(f"a request to {request.url.host}, which is not the teacher's address")
        rule = self.policy(sending.privacy)
        if rule == "never":
            raise BlockedError(f"rows of class {sending.privacy} never leave")
        if rule == "redacted" and body:
            counts = merged(self.scan(text) for text in texts_of(body))
            if counts:
                raise BlockedError(f"personal data is left in it: {', '.join(f'{n} {k}' for k, n in counts.items())}")
        going = await pinned(request) if self.pinned else request
        sending.hash = self.log.append({
            "at": now(), "to": masked(str(request.url.copy_with(query=None))), "method": request.method,
            "row": sending.row, "class": sending.privacy, "rule": rule, "redacted": dict(sending.redacted),
            "bytes": len(body), "sha256": sha256(body),
        })  # fmt: skip
        return await bounded(self.inner, going)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.inner.aclose()


# What comes back has an end: no reply to a question is longer than this, no file of a batch's results than that.
MOST_REPLY, MOST_FILE, PACKED = 64_000_000, 4_000_000_000, 100  # bytes; a packed body may have a hundredth
FILE_TIMES = 30  # a file may take so many times the time of one request


class EndlessReplyError(httpx.TransportError):
    """A reply goes on past anything that was asked for."""


class Bounded(httpx.AsyncByteStream):
    """A reply's bytes as they come: EndlessReplyError past `most`, ReadTimeout once `seconds` are over."""

    def __init__(self, stream: httpx.AsyncByteStream, most: int, seconds: float):
        self.stream, self.most, self.seconds = stream, most, seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        deadline, count = asyncio.get_running_loop().time() + self.seconds, 0
        pieces = aiter(self.stream)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise httpx.ReadTimeout(f"the reply was still coming after {self.seconds:g} s") from None
            count += len(piece)
            if count > self.most:
                raise EndlessReplyError(f"the reply is longer than {self.most:,} bytes")
            yield piece

    async def aclose(self) -> None:
        """Close the connection's own stream."""
        await self.stream.aclose()


async def bounded(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    """Send a request; its reply has to begin within the client's time for one request, and to end in as much again."""
    seconds = request.extensions.get("timeout", {}).get("read") or math.inf
    try:
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            response = await transport.handle_async_request(request)
    except TimeoutError:
        raise httpx.ReadTimeout(f"no reply had begun after {seconds:g} s", request=request) from None
    most, times = (MOST_REPLY, 1) if request.method == "POST" else (MOST_FILE, FILE_TIMES)
    if response.headers.get("content-encoding", "identity") != "identity":
        most //= PACKED
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    response.stream = Bounded(stream, most, seconds * times)
    return response


async def pinned(request: httpx.Request) -> httpx.Request:
    """The request to the address that its host has now, checked; its Host header and TLS name stay the host's."""
    host = request.url.host
    try:
        address = await checked_address(host, request.url.port)
    except OSError as error:
        raise httpx.ConnectError(f"{host} cannot be looked up: {error}", request=request) from error
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": host},
    )


def sha256(body: bytes) -> str:
    """Hex digest of what left."""
    return hashlib.sha256(body).hexdigest()


def host_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """What makes two addresses the same place."""
    return url.scheme, url.host, url.port


def proxy_for(base_url: str) -> str | None:
    """The proxy that the environment names for this address; loopback has none, nor has what NO_PROXY names."""
    url = httpx.URL(base_url)
    if is_loopback(base_url) or proxy_bypass(url.host):
        return None
    return os.environ.get(f"{url.scheme}_proxy") or os.environ.get(f"{url.scheme.upper()}_PROXY")


def texts_of(body: bytes) -> Iterator[str]:
    """Every text in a JSON body, or in the JSON lines of an uploaded file; anything else as it stands."""
    try:
        yield from strings(json.loads(body))
        return
    except ValueError:
        pass
    for line in body.split(b"\n"):
        if line.startswith(b"{"):
            try:
                yield from strings(json.loads(line))
                continue
            except ValueError:
                pass
        yield line.decode("utf-8", "replace")


def strings(node: object) -> Iterator[str]:
    """The strings of nested JSON, keys left out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def merged(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up."""
    total: dict[str, int] = {}
    for each in counts:
        for kind, n in each.items():
            total[kind] = total.get(kind, 0) + n
    return total


def verify(path: Path, attempts: list[tuple[int, str]]) -> int:
    """How many lines the log holds, each proven; WorkbenchError naming the first line that is not as it was written.

    `attempts` are (attempt, hash of its line) from the ledger: a line cut off the end is missed there.
    """
    if not path.is_file():
        if attempts:
            raise WorkbenchError(f"the log is gone, and the ledger knows of {len(attempts)} calls", where=str(path))
        raise RequestError("there is no egress log yet", where=str(path), remedy="nothing has been sent")
    before, seen, count = START, set(), 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = json.loads(raw)
                written = line.pop("hash")
            except (ValueError, KeyError, AttributeError):
                raise WorkbenchError("this line cannot be read", where=f"{path}:{number}") from None
            if line.get("prev") != before or line.get("seq") != number or digest(line) != written:
                raise WorkbenchError(
                    "this line, or the one before it, was changed after it was written", where=f"{path}:{number}"
                )
            before, count = written, number
            seen.add(written)
    missing = [attempt for attempt, hashed in attempts if hashed not in seen]
    if missing:
        raise WorkbenchError(
            f"{len(missing)} calls that the ledger knows are missing here; the first is attempt {missing[0]}",
            where=str(path),
        )
    return count
