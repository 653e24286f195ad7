"""Hub repositories: fetched from a real HTTP server on loopback that answers as a model hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
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
        files: dict[str, bytes] = self.server.files  # type: ignore[attr-defined]
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        asked = re.search(r"[0-9a-f]{40}", self.path)
        commit = asked[0] if asked else self.server.commit  # type: ignore[attr-defined]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in files.items()]
            return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        if self.path.startswith("/api/models/org/tiny"):
            info = {"id": "org/tiny", "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if self.path.startswith("/org/tiny/resolve/") and name in files:
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.send(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
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
    server.commit, server.files = COMMIT, dict(FILES)  # type: ignore[attr-defined]
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


def test_a_branch_is_pinned_aloud_to_the_commit_of_its_first_fetch(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    first = resolve("hf:org/tiny", hub, tmp_path)
    assert f"hf:org/tiny: pinned to {COMMIT}" in first.stderr
    folder = Path(first.stdout.strip().splitlines()[-1])
    assert json.loads((folder / "source.json").read_text())["commit"] == COMMIT
    shutil.rmtree(folder)
    hub.commit = "b" * 40  # type: ignore[attr-defined]
    hub.seen.clear()  # type: ignore[attr-defined]
    assert resolve("hf:org/tiny", hub, tmp_path).stdout == first.stdout
    files = [path for path in hub.seen if "/resolve/" in path]  # type: ignore[attr-defined]
    assert files
    assert all(COMMIT in path for path in files), "later fetches are held to it"
    (folder.with_name(f"{folder.name}.pin.json")).unlink()
    shutil.rmtree(folder)
    assert f"pinned to {'b' * 40}" in resolve("hf:org/tiny", hub, tmp_path).stderr


def test_other_bytes_under_the_same_commit_and_in_the_cached_copy_are_refused(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    source = f"hf:org/tiny@{COMMIT}"
    first = resolve(source, hub, tmp_path)
    assert "pinned to" not in first.stderr, "the recipe has done it"
    folder = Path(first.stdout.strip().splitlines()[-1])
    (folder / "config.json").write_bytes(b'{"model_type": "other"}')
    changed = resolve(source, hub, tmp_path)
    assert "1 " in changed.stderr
    assert "the cached copy has changed" in changed.stderr
    shutil.rmtree(folder)
    hub.files["model.safetensors"] = b"WEIGHTS" * 100  # type: ignore[attr-defined]
    offered = resolve(source, hub, tmp_path)
    assert "other bytes are offered" in offered.stderr
    assert not folder.exists()
