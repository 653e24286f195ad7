"""A package index on loopback, and the wheels that it offers. No test lives here."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "tiny_model-1.0-py3-none-any.whl"
SOURCE = "pypi:tiny-model==1.0"


def wheel_bytes(members: Mapping[str, bytes]) -> bytes:
    """A wheel of the package tiny-model 1.0 with these members."""
    info = "tiny_model-1.0.dist-info"
    whole = dict(members) | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in whole.items():
            wheel.writestr(name, content)
    return packed.getvalue()


@dataclass
class Index:
    """What the index answers: the link on its page, what lies there, and where it redirects to instead."""

    url: str = ""
    link: str = f"../../files/{NAME}"
    wheel: bytes = b""
    redirect: str = ""
    endless: bool = False
    json: bool = False
    seen: list[str] = field(default_factory=list)


@contextmanager
def package_index() -> Iterator[Index]:
    """An index that serves `index.wheel`."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            index.seen.append(self.path)
            if self.path.startswith("/simple/tiny-model") and index.json:
                files = [{"filename": NAME, "url": index.link, "hashes": {}}]
                listing = {"meta": {"api-version": "1.0"}, "name": "tiny-model", "files": files}
                return self.send(json.dumps(listing).encode(), {"Content-Type": "application/vnd.pypi.simple.v1+json"})
            if self.path.startswith("/simple/tiny-model"):
                page = f'<!DOCTYPE html><html><body><a href="{index.link}">{NAME}</a></body></html>'
                return self.send(page.encode(), {"Content-Type": "text/html"})
            if self.path.startswith("/files/") and index.redirect:
                return self.send(b"", {"Location": index.redirect}, 302)
            if self.path.startswith("/files/") and index.endless:
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(bytes(1 << 16))
                except OSError:
                    return None
            if self.path.startswith("/files/"):
                return self.send(index.wheel, {"Content-Type": "application/octet-stream"})
            return self.send(b"", {}, 404)

        def send(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


def folder_index(folder: Path, wheel: bytes) -> str:
    """The same as a folder of pages, as a user's own pip configuration may name one; its address."""
    (folder / "files").mkdir(parents=True)
    (folder / "files" / NAME).write_bytes(wheel)
    page = folder / "simple" / "tiny-model" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><html><body><a href="../../files/{NAME}">{NAME}</a></body></html>')
    return (folder / "simple").as_uri()
