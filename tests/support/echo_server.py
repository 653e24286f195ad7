"""A chat endpoint on loopback that says again what it was sent: the key, in every form, in answers, errors and headers.

with echo_server(status=429) as server:
    ...
server.calls
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote


@dataclass
class Echo:
    """A server on loopback and what reached it."""

    url: str = ""
    calls: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    status: int = 200
    location: str = ""


@contextmanager
def echo_server(status: int = 200, location: str = "") -> Iterator[Echo]:
    """Chat completions whose answer, model, errors and headers repeat the key in every form."""
    state = Echo(status=status, location=location)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.calls.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            said = " ".join([key, quote(key, safe=""), key.encode().hex(), *(
                base64.b64encode(b"x" * n + key.encode()).decode() for n in range(3))])  # fmt: skip
            choice = {"index": 0, "message": {"role": "assistant", "content": f"yes {said}"}, "finish_reason": "stop"}
            told: dict[str, Any] = {"id": said, "object": "chat.completion", "created": 0, "model": f"m {said}",
                    "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}  # fmt: skip
            if state.status != 200:
                # The key stands where a cut at 300 characters would leave a part of it.
                told = {"error": {"message": f"{'x' * 290}{key} {said}", "type": said, "code": said}}
            text = json.dumps(told).encode()
            self.send_response(state.status)
            if state.location:
                self.send_header("Location", state.location + self.path)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
