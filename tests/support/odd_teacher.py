"""A loopback endpoint whose every reply is a plain function's: for what no provider documents, and some send.

    with odd_teacher(lambda body: completion("yes")) as server:
        …
        server.bodies  # what was asked, in order

`completion` is a chat completion to start from; a reply is its JSON, or (content type, bytes), or (status, JSON); in
the place of bytes an iterator of them is a body that may have no end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 20, "completion_tokens": 5}


@dataclass
class Odd:
    """A running server: its address with /v1, and the bodies of all questions to it."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The questions about rows, the probe's left out."""
        return [body for body in self.bodies if "Reply with the word" not in json.dumps(body)]


def completion(content: Any, finish: Any = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    """A chat completion; `message` are further fields of its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "odd-1", "choices": [choice],
            "usage": usage}  # fmt: skip


def is_probe(body: dict[str, Any]) -> bool:
    """Whether a question is the probe's, and no row's."""
    return "Reply with the word" in body["messages"][-1]["content"]


@contextmanager
def odd_teacher(reply: Callable[[dict[str, Any]], Any]) -> Iterator[Odd]:
    """Serve on a free port of the loopback; what is no chat completion is not there."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer: Any = (404, {"error": {"message": "no such path"}})
            if self.path.endswith(("/chat/completions", "/v1/messages")):
                server.bodies.append(body)
                answer = reply(body)
            status, kind, raw = 200, "application/json", answer
            if isinstance(answer, tuple) and isinstance(answer[0], int):
                status, raw = answer
            elif isinstance(answer, tuple):
                kind, raw = answer
            if isinstance(raw, Iterator):  # a body that goes on until nobody reads it any more
                self.close_connection = True
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                with suppress(OSError):
                    for piece in raw:
                        self.wfile.write(piece)
                return
            raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server = Odd(f"http://127.0.0.1:{listening.server_address[1]}/v1")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
