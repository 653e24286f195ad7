"""Hub repositories: fetched from a real HTTP server on loopback that answers as a model hub does."""

from __future__ import annotations

import contextlib
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

from hole_server import hole_server
from workbench.errors import WorkbenchError
from workbench.sources import hub_download, hub_model
from workbench.sources.resolve import fetch_hf, read_hf

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
            info |= self.server.info  # type: ignore[attr-defined]
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if self.path.startswith("/org/tiny/resolve/") and name == getattr(self.server, "endless", None) and body:
            self.send_response(200)
            for key, value in {"ETag": '"e"', "X-Repo-Commit": commit, "Content-Length": str(10**12)}.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"a" * 1_000_000)
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
    server.commit, server.files, server.info = COMMIT, dict(FILES), {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def surroundings(hub: ThreadingHTTPServer, cache: Path) -> dict[str, str]:
    """An environment in which this hub is the hub."""
    return {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "WORKBENCH_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }


def resolve(source: str, hub: ThreadingHTTPServer, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = surroundings(hub, cache)
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


def test_a_file_without_an_end_is_refused_and_leaves_nothing(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HUB_GB", "0.05")
    hub.endless = "model.safetensors"  # type: ignore[attr-defined]
    done = resolve("hf:org/tiny", hub, tmp_path)
    assert done.stderr.splitlines()[-2].endswith("hf:org/tiny: it is larger than 0.05 GB, or has no end")
    assert "WORKBENCH_HUB_GB=0.1" in done.stderr
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 100_000


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


SIX = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 6, "hidden_size": 64,
       "intermediate_size": 128, "vocab_size": 500, "max_position_embeddings": 4096}  # fmt: skip
RECIPE = """
defaults: [workbench, {model: smollm2_135m}, {method: lora}, {evaluate: exact_match}, _self_]
data: {train: "file:rows.csv", columns: {prompt: text, answer: label}, licence: CC0-1.0}
"""


def test_a_plan_knows_the_sizes_of_a_model_that_has_no_noun_from_the_hubs_config(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    hub.files["config.json"] = json.dumps(SIX).encode()  # type: ignore[attr-defined]
    hub.info = {"safetensors": {"parameters": {"BF16": 123_456}, "total": 123_456},  # type: ignore[attr-defined]
                "cardData": {"license": "apache-2.0"}}  # fmt: skip
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 3}\n" for n in range(60)))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "workbench", "plan", "recipe=./mine.yaml", "model=hf:org/tiny"]
    done = subprocess.run(
        command, env=surroundings(hub, tmp_path / "cache"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "hf:org/tiny" in words
    assert "parameters 123456" in words or "parameters 123,456" in words
    assert f"as its config.json on the hub says, at {COMMIT}" in words
    assert "the card says apache-2.0" in words
    assert "unknown" not in words, "memory and disk are counted"
    assert "SmolLM2" not in words, "nothing is left of the recipe's own noun"
    assert not any("safetensors" in path for path in hub.seen), "no weights were asked for"  # type: ignore[attr-defined]


ASK = (
    "import sys\nfrom workbench.errors import WorkbenchError\nfrom workbench.sources import hub_model\n"
    "try:\n    print(hub_model(sys.argv[1]))\nexcept WorkbenchError as e:\n    print('refused', e)"
)


def test_what_a_hub_says_of_a_model_is_held_to_what_can_be_tuned_and_its_silence_ends_no_plan(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    def says(source: str, **config: object) -> str:
        hub.files["config.json"] = json.dumps(SIX | config).encode()  # type: ignore[attr-defined]
        command = [sys.executable, "-c", ASK, source]
        return subprocess.run(command, env=surroundings(hub, tmp_path), capture_output=True, text=True).stdout

    assert "a quantized copy cannot be tuned" in says("hf:org/tiny", quantization_config={"quant_method": "fp8"})
    hub.info = {"cardData": {"license": "\x1b[31mmit"}, "safetensors": {"parameters": {}, "total": -4}}  # type: ignore[attr-defined]
    words = says("hf:org/tiny", num_hidden_layers="six", hidden_size=True)
    assert "parameters=0, layers=0, hidden_size=0, intermediate_size=128" in words
    assert "licence='31mmit'" in words, "no sign that a terminal would act upon"
    assert "accept the licence on its page" in says("hf:org/gated")


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub has four seconds to answer, Python's start within them."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub_download, "ANSWER_S", 4.0)


@pytest.mark.parametrize("how", ["silent", "drip"])
def test_a_hub_that_never_gives_a_whole_answer_holds_up_neither_a_plan_nor_a_fetch(
    how: str, asked_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hole_server(how) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        if how == "drip":
            assert hub_model("hf:org/tiny") == "the hub could not be asked (TimeoutError)"
        else:
            with pytest.raises(WorkbenchError, match="no whole answer came in 4 s"):
                fetch_hf(read_hf("org/tiny"), tmp_path, {})


def test_a_config_without_an_end_is_given_up_by_a_plan_and_leaves_nothing(
    hub: ThreadingHTTPServer, asked_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")
    monkeypatch.setattr(hub_download, "ANSWER_S", 30.0)
    monkeypatch.setattr(hub_download, "CONFIG_BYTES", 1_000_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.endless = "config.json"  # type: ignore[attr-defined]
    assert hub_model("hf:org/tiny") == "the hub could not be asked (OSError)"
    assert list(tmp_path.iterdir()) == []


def test_what_a_hub_gives_for_a_commit_reaches_the_screen_only_as_text(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    hub.commit = "\x1b]0;owned\x07\x9b2J"  # type: ignore[attr-defined]
    done = resolve("hf:org/tiny", hub, tmp_path)
    assert "the hub names no commit" in done.stderr
    assert "pinned to" not in done.stderr
    assert not any(sign in done.stderr for sign in "\x1b\x07\x9b")
