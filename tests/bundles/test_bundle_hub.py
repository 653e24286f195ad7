"""A bundle into a hub: by the public door, to a real HTTP server on loopback that takes what a model hub takes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from test_bundle_files import bundle, gguf_bundle, keys, plain  # noqa: F401

from hole_server import hole_server

LARGE = (".safetensors", ".gguf", "tokenizer.json")  # what a hub keeps outside of git
LICENCES = {"apache-2.0", "mit", "other"}


class Hub(BaseHTTPRequestHandler):
    """One model repository: made, told what is coming, given large files by themselves, and then one commit."""

    def do_GET(self) -> None:
        files = self.server.files  # type: ignore[attr-defined]
        if "/tree/" in self.path:
            return self.send([entry(name, content) for name, content in files.items()])
        return self.send({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content  # type: ignore[attr-defined]
        self.send({})

    def do_POST(self) -> None:
        body, hub = self.body(), self.server
        hub.seen.append(self.path)  # type: ignore[attr-defined]
        if hub.refuses:  # type: ignore[attr-defined]
            return self.send({"error": "you have no right to write"}, 403)
        if self.path == "/api/repos/create":
            hub.made = json.loads(body)  # type: ignore[attr-defined]
            return self.send({"url": f"{self.at()}/org/legal", "name": "org/legal"})
        if self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            wrong = [] if front["license"] in LICENCES else [{"message": f"license {front['license']!r}"}]
            return self.send({"errors": wrong, "warnings": []}, 400 if wrong else 200)
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [("lfs" if f["path"].endswith(LARGE) else "regular", f["path"]) for f in asked]
            return self.send({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return self.send(
                {"objects": [o | {"actions": {"upload": {"href": f"{self.at()}/{o['oid']}"}}} for o in objects]}
            )
        if "/commit/" in self.path:
            hub.commits += 1  # type: ignore[attr-defined]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])  # type: ignore[attr-defined]
                if line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]  # type: ignore[attr-defined]
            return self.send({"commitUrl": f"{self.at()}/org/legal/commit/{'c' * 40}", "commitOid": "c" * 40})
        return self.send({"error": "not found"}, 404)

    def at(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as a hub's tree lists it."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": name, "size": len(content), "oid": oid} | (
        {"lfs": large} if name.endswith(LARGE) else {}
    )


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.files, server.large, server.commits, server.refuses = [], {".gitattributes": b"*"}, {}, 0, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def export(hub: Any, folder: Path, to: str = "hf://org/legal") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_of_a_test",
    }
    command = [sys.executable, "-m", "workbench", "export", f"from={folder}", f"to={to}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_bundle_is_one_commit_of_a_private_repository_with_a_card_that_the_hub_reads(
    hub: Any,
    bundle: Path,  # noqa: F811
) -> None:
    done = export(hub, bundle)
    assert done.returncode == 0, done.stderr
    sent = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    assert hub.files == {".gitattributes": b"*"} | sent, "the very same bytes"
    assert hub.commits == 1
    assert hub.made.get("visibility") == "private" or hub.made.get("private") is True
    assert "/api/validate-yaml" in hub.seen
    assert {hashlib.sha256(sent[name]).hexdigest() for name in sent if name.endswith(LARGE)} == set(hub.large)

    card = ModelCard(hub.files["README.md"].decode())  # it raises where the hub could not read the front matter
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model_relation == "finetune"
    assert [r.metric_name for r in card.data.eval_results]

    again = export(hub, bundle)
    assert again.returncode == 0, again.stderr
    assert "already holds this very bundle" in again.stderr
    assert hub.commits == 1


@pytest.mark.slow
def test_a_hub_that_holds_something_else_or_refuses_is_told(hub: Any, bundle: Path) -> None:  # noqa: F811
    hub.files["MANIFEST.json"] = b"{}"
    done = export(hub, bundle)
    assert (done.returncode, hub.commits) == (2, 0)
    assert "another bundle is there" in done.stderr
    hub.refuses = True
    done = export(hub, bundle)
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr
    done = export(hub, bundle, "hf://legal")
    assert done.returncode == 2
    assert "to=hf://ORG/NAME" in done.stderr


def test_a_hub_that_is_silent_is_not_waited_for_without_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workbench.bundles import hub\n"
        "hub.PATIENCE_S = 0.5\nhub.copy_to_hub(Path(sys.argv[1]), 'hf://org/legal', [])"
    )
    with hole_server("silent") as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_of_a_test", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
        )
    assert "the hub could not be reached" in done.stderr
    assert "goes on where this one ended" in done.stderr
