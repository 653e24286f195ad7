"""Hub repositories: fetched from a real HTTP server on loopback that answers as a model hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 100,
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"print('code')",
}


class Hub(BaseHTTPRequestHandler):
    """`org/tiny` is there, `org/gated` asks for consent, all else is unknown."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        if "org/gated" in self.path:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, body)
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in FILES.items()]
            return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        if self.path.startswith("/api/models/org/tiny"):
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if self.path.startswith("/org/tiny/resolve/") and name in FILES:
            etag = hashlib.sha256(FILES[name]).hexdigest()
            return self.send(200, FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def resolve(source: str, hub: ThreadingHTTPServer, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "WORKBENCH_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    code = (
        "import sys\nfrom workbench.errors import WorkbenchError\nfrom workbench.sources import resolve\n"
        "try:\n    print(resolve(sys.argv[1]))\nexcept WorkbenchError as e:\n    sys.exit(f'{e.exit_code} {e}')"
    )
    return subprocess.run([sys.executable, "-c", code, source], env=environment, capture_output=True, text=True)


def test_a_hub_repository_is_fetched_once_without_pickles_or_code(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    first = resolve("hf:org/tiny@main", hub, tmp_path)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip().splitlines()[-1])
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "source.json"]
    asked = len(hub.seen)  # type: ignore[attr-defined]
    assert resolve("hf:org/tiny@main", hub, tmp_path).stdout == first.stdout
    assert len(hub.seen) == asked, "the second time nothing is asked"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("source", "named"), [("hf:org/gated", "HF_TOKEN"), ("hf:org/nothing", "no such repository")])
def test_what_the_hub_refuses_is_one_clear_line(
    source: str, named: str, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    done = resolve(source, hub, tmp_path)
    assert done.stderr.startswith("2 "), done.stderr
    assert named in done.stderr
