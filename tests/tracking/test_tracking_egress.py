"""What leaves for a tracking server on another machine goes by the rows' class, and every upload of it is logged.

A real MLflow server stands behind a proxy that keeps every request. It is reached by an address that is not
loopback, so that it counts as another machine.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tracking_runs import RECIPE, REPORT, HandMade, new_experiments, whole_run
from workbench.bundles.manifest import sign
from workbench.errors import RequestError, WorkbenchError
from workbench.privacy.redact import redact
from workbench.recipe import Tracking
from workbench.signing_keys import signing_key
from workbench.teacher.egress import verify, write_line
from workbench.tracking import Egress, catch_up, register, store_uri
from workbench.tracking.outbound import is_remote
from workbench.tracking.store import connect, manners
from workbench.tracking.versions import download

PLACES = ("train", "validation", "prompt", "expected", "answer", "teacher", "judge", "said", "why", "label", "slice",
          "html", "fact", "factkey", "system", "check", "override", "curve")  # fmt: skip
WORD = {place: f"CANARY{place}qx7" for place in PLACES}
MAIL = {place: f"{place}.canary@acme-qx7.org" for place in PLACES}


class Recorder(BaseHTTPRequestHandler):
    """Hands every request on to the server behind it, and keeps all of it."""

    seen: ClassVar[list[bytes]] = []
    behind: ClassVar[tuple[str, int]] = ("", 0)
    endless: ClassVar[str] = "a file that nobody has"

    def pass_on(self) -> None:
        body = self.body()
        if self.path.endswith(self.endless):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1_000_000))
            return
        self.seen.append(f"{self.command} {self.path}\n{self.headers}\n".encode() + body)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "host")}
        connection = http.client.HTTPConnection(*self.behind, timeout=60)
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        reply = connection.getresponse()
        content = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        pass


for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Recorder, f"do_{verb}", Recorder.pass_on)


def own_address() -> str | None:
    """An address of this machine that is not loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(the address of another machine, the same server on loopback)."""
    folder = new_experiments(tmp_path_factory.mktemp("server"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", store_uri(Tracking(), folder), "--artifacts-destination", str(folder / "files"),
               "--allowed-hosts", "*"]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                              start_new_session=True)  # fmt: skip
    Recorder.behind = ("127.0.0.1", port)
    proxy = ThreadingHTTPServer(("0.0.0.0", 0), Recorder)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        # Without a network of any kind the name below still is no loopback address for who reads it.
        host = own_address() or socket.gethostname()
        yield f"http://{host}:{proxy.server_port}", f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def text(place: str) -> str:
    return f"{WORD[place]} wrote to {MAIL[place]}"


def canary_run(folder: Path, privacy: str) -> HandMade:
    """A whole run with a canary wherever a row's text has ever been."""
    recipe: dict[str, Any] = {**RECIPE, "data": {"privacy": privacy, "system": text("system"), "licence": "MIT",
                                                 "train": "file:rows.jsonl"},
                              "evaluate": {"labels": [text("label")], "limit": 5},
                              "gate": {"override": text("override")}}  # fmt: skip
    run = whole_run(folder, digest={"public": "1badcafe", "internal": "2badcafe", "restricted": "3badcafe"}[privacy])
    run.write("recipe.yaml", json.dumps(recipe))
    run.event("sample", "train", step=5, prompt=text("prompt"), expected=text("expected"), answer=text("answer"))
    run.event("said", "train", text=f"row 7: {text('said')}")
    run.event("dataset", "train", name="rows", source=f"file:{text('train')}", digest="b" * 64, rows=3, role="training")
    run.event("stage_started", "label")
    run.event("stage_failed", "label", why=f"WorkbenchError: the teacher said {text('why')}")
    run.event("stage_started", "train")
    run.done("train", "train/adapter", steps=5, first=text("fact"), by_label={WORD["factkey"]: 3})
    report = json.loads(json.dumps(REPORT))
    report["gate"] |= {"overridden": True, "override": text("override")}
    report["gate"]["checks"] = [{"name": "slices", "passed": False, "why": text("check")}]
    cell = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    report["slices"] = [{"field": "who", "value": text("slice"), "n": 5, "arms": {"student": cell}, "comparisons": []}]
    report["confusion"] = {"macro_f1": {"labels": [text("label")], "arms": {"student": [[3]]}}}
    report["judge"] = {"reason": text("judge"), "teacher": text("teacher")}
    report["memorised"] = {"student": cell | {"rows": [{"id": "1", "words": text("validation"), "train": "2"}]}}
    run.write("evaluate/report.json", json.dumps(report))
    # A page marks differences word by word, through the middle of an address.
    run.write("evaluate/report.html", f"<p>{WORD['html']} html.can<ins>ary</ins>@acme-qx7.org</p>")
    run.write("train/curve.json", json.dumps([text("curve")]))
    for name in ("forest", "confusion"):
        run.write(f"evaluate/figures/{name}.svg", f"{name}: {text('label') if name == 'confusion' else ''}")
    for name in ("evaluate/report.json", "train/curve.json"):
        run.event("file", "evaluate", path=name, title="file")
    run.done("evaluate", "evaluate")
    return run


def egress_to(experiments: Path) -> Egress:
    return Egress(redact, lambda entry: write_line(experiments / "egress.jsonl", entry))


def sent(server: str, run: HandMade, experiments: Path, name: str) -> tuple[bytes, dict[str, Any]]:
    """All that the server was sent while the run was fed and registered, and what was said of it."""
    Recorder.seen.clear()
    tracking = Tracking(uri=server, experiment=name, registered_model=name)
    for made in (run.folder / "bundle").iterdir():
        registered = name if made.name == "student" else f"{name}-{made.name}"
        (made / "MANIFEST.json").write_text(json.dumps({"name": registered}))
        (made / "signature.json").unlink()
        sign(made, signing_key())
        run.done(f"bundle/{made.name}", f"bundle/{made.name}")
    egress = egress_to(experiments)
    fed = catch_up(run.folder, tracking, experiments, egress)
    made = register(run.folder, tracking, experiments, passed=True, shipped=["student"], egress=egress)
    return b"\n".join(Recorder.seen), {"fed": fed["said"], "made": made}


def forms(word: str) -> list[bytes]:
    """A text as it may stand in a request: plain, escaped for URLs and JSON, and base64 at each of three places."""
    plain = word.encode()
    coded = [base64.b64encode(b"x" * shift + plain)[4 * (shift > 0) : -4] for shift in range(3)]
    return [plain, urllib.parse.quote(word, safe="").encode(), json.dumps(word).strip('"').encode(),
            plain.replace(b"@", rb"\u0040"), plain.hex().encode(), *coded]  # fmt: skip


def found(canaries: dict[str, str], body: bytes) -> set[str]:
    low = body.lower()
    return {place for place, word in canaries.items() for form in forms(word) if form in body or form.lower() in low}


def log_lines(experiments: Path) -> list[dict[str, Any]]:
    path = experiments / "egress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.slow
def test_of_restricted_rows_no_byte_reaches_another_machine(servers: tuple[str, str], tmp_path: Path) -> None:
    run = canary_run(tmp_path, "restricted")
    body, told = sent(servers[0], run, tmp_path, "restricted")
    assert not found(WORD, body)
    assert not found(MAIL, body)
    assert b"merged weights" not in body, "a model can repeat its rows"
    assert b"0.685" in body, "figures are no rows"
    assert told["made"]["versions"] == {}
    assert any("no model" in line and "tracking.uri=null" in line for line in told["made"]["said"])
    assert any("report.html" in line and "stay here" in line for line in told["fed"])
    assert not any("plain http" in line for line in told["fed"]), "nothing of a row goes there"
    assert log_lines(tmp_path) == []


@pytest.mark.slow
def test_of_internal_rows_placeholders_reach_another_machine_and_each_upload_is_logged(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    run = canary_run(tmp_path, "internal")
    body, told = sent(servers[0], run, tmp_path, "internal")
    assert not found(MAIL, body)
    assert b"acme-qx7" not in body
    assert found(WORD, body) >= {"prompt", "expected", "answer", "said", "why", "slice", "judge", "system", "curve"}
    assert "html" not in found(WORD, body), "in a page, addresses can be parted by marks"
    assert b"[EMAIL_1]" in body
    assert b"confusion: " not in body
    assert told["made"]["versions"] == {"internal": "1"}
    assert [line for line in told["fed"] if "plain http" in line and servers[0] in line]
    lines = log_lines(tmp_path)
    assert verify(tmp_path / "egress.jsonl", []) == len(lines)
    logged = " ".join(line["row"] for line in lines)
    for what in ("samples.json", "said.txt", "recipe", "evaluate/report.json", "tables of the report", "model merged"):
        assert what in logged
    assert {(line["class"], line["rule"], line["to"]) for line in lines} == {("internal", "redacted", servers[0])}
    assert sum(line["redacted"].get("EMAIL", 0) for line in lines) > len(PLACES)
    assert not found(WORD | MAIL, json.dumps(lines).encode())


@pytest.mark.slow
def test_public_rows_reach_another_machine_as_they_are_and_are_logged_and_a_model_without_an_end_is_not_fetched(
    servers: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    body, _ = sent(servers[0], canary_run(tmp_path, "public"), tmp_path, "public")
    assert found(WORD, body) >= set(PLACES) - {"train", "factkey"}
    assert b"confusion: " in body
    assert {line["rule"] for line in log_lines(tmp_path)} == {"raw"}

    # What comes back of such a store is held to what it lists.
    with connect(servers[0]) as client:
        location = client.get_model_version_download_uri("public", "1")
    assert (download(servers[0], location, tmp_path / "whole") / "model.safetensors").is_file()
    monkeypatch.setattr(Recorder, "endless", "/model.safetensors")
    with pytest.raises(WorkbenchError, match="or which has no end"):
        download(servers[0], location, tmp_path / "endless")
    assert sum(path.stat().st_size for path in (tmp_path / "endless").rglob("*") if path.is_file()) < 3_000_000
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits


@pytest.mark.slow
def test_a_server_on_this_machine_gets_all_of_restricted_rows_and_nothing_is_logged(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    body, told = sent(servers[1], canary_run(tmp_path, "restricted"), tmp_path, "local")
    assert found(WORD, body) >= {"prompt", "answer", "html", "judge", "system"}
    assert told["made"]["versions"] == {"local": "1"}
    assert log_lines(tmp_path) == []


@pytest.mark.parametrize("privacy", ["internal", "public"])
def test_without_a_log_no_text_leaves_for_another_machine(
    servers: tuple[str, str], tmp_path: Path, privacy: str
) -> None:
    Recorder.seen.clear()
    run = canary_run(tmp_path, privacy)
    catch_up(run.folder, Tracking(uri=servers[0], experiment=f"unlogged {privacy}"), tmp_path)
    body = b"\n".join(Recorder.seen)
    assert body
    assert not found(WORD | MAIL, body)


def test_a_bundle_whose_recipe_holds_personal_data_of_internal_rows_is_not_stored_on_another_machine(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    run = canary_run(tmp_path, "internal")
    run.write("bundle/student/recipe.yaml", json.dumps({"data": {"system": text("system")}}))
    with pytest.raises(WorkbenchError, match="personal data stands in it"):
        sent(servers[0], run, tmp_path, "personal")
    assert not found(MAIL, b"\n".join(Recorder.seen))


@pytest.mark.slow
def test_rows_that_become_restricted_are_not_sent_again_and_those_that_become_public_are(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    run = canary_run(tmp_path, "restricted")
    tracking = Tracking(uri=servers[0], experiment="classed anew")
    catch_up(run.folder, tracking, tmp_path, egress_to(tmp_path))
    recipe = json.loads((run.folder / "recipe.yaml").read_text())
    run.write("recipe.yaml", json.dumps(recipe | {"data": recipe["data"] | {"privacy": "public"}}))
    Recorder.seen.clear()
    catch_up(run.folder, tracking, tmp_path, egress_to(tmp_path))
    assert found(WORD, b"\n".join(Recorder.seen)) >= {"prompt", "said", "html"}


HERE = ["sqlite:////x/mlflow.db", "file:///x", "file:x", "/x/mlruns", "http://127.0.0.1:5000", "http://localhost:5000",
        "http://[::1]:5000"]  # fmt: skip
AWAY = ["http://10.0.0.2:5000", "https://mlflow.example.com", "postgresql://db/mlflow", "databricks", "file://server/x",
        "http://localhost.example.com", "uc:main", "http://127.0.0.1@mlflow.example.com", "",
        "http://example.com\\@localhost:5000", "http://example.com\\@127.0.0.1", "http://local\thost:5000"]  # fmt: skip


def test_what_is_another_machine_is_told_by_the_address_of_the_store_and_of_its_artefacts() -> None:
    assert [uri for uri in HERE if is_remote(uri)] == []
    assert [uri for uri in AWAY if not is_remote(uri)] == []
    for away in ("s3://bucket/x", "gs://bucket", "file://server/x", "mlflow-artifacts://mlflow.example.com/x",
                 "dbfs:/x"):  # fmt: skip
        assert is_remote(HERE[0], away), "a store here may keep its files elsewhere"
    for here in ("file:///x", "/x", "mlflow-artifacts:/0/x", "mlflow-artifacts://127.0.0.1:5000/x"):
        assert not is_remote("http://127.0.0.1:5000", here)


def test_a_store_here_with_artefacts_elsewhere_counts_as_another_machine(tmp_path: Path) -> None:
    experiments = new_experiments(tmp_path)
    run = canary_run(tmp_path, "restricted")
    with connect(store_uri(Tracking(), experiments)) as client:
        client.create_experiment("elsewhere", artifact_location="s3://bucket-that-is-not/x")
    # Without a network, whatever it would send there fails; with the figures it is done either way.
    with contextlib.suppress(WorkbenchError):
        catch_up(run.folder, Tracking(experiment="elsewhere"), experiments, egress_to(experiments))
    assert not found(WORD | MAIL, (experiments / "mlflow.db").read_bytes())


def test_a_server_on_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    from requests.utils import get_environ_proxies

    with manners("http://127.0.0.1:5000"):
        assert get_environ_proxies("http://127.0.0.1:5000/x", no_proxy=None) == {}
        assert get_environ_proxies("http://example.org/x", no_proxy=None) == {}
    with manners("http://10.0.0.2:5000"):
        assert get_environ_proxies("http://10.0.0.2:5000/x", no_proxy=None)
    assert os.environ["no_proxy"] == "example.org"


@pytest.mark.parametrize(
    "uri", ["http://ann:hunter2@mlflow:5000", "postgresql://ann:hunter2@db/mlflow", "https://mlflow/?token=hunter2"]
)
def test_a_password_in_the_tracking_uri_is_refused_at_the_door_and_never_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    from workbench.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    (tmp_path / "mine.yaml").write_text(
        "defaults: [workbench, _self_]\nmodel: {source: 'dir:x'}\ndata: {train: 'file:rows.csv'}\n"
        f"tracking: {{uri: '{uri}'}}\n"
    )
    for verb in ("train", "plan"):
        assert main([verb, "recipe=./mine.yaml"]) == 2
    said = capfd.readouterr()
    assert "tracking.uri" in said.err
    assert "hunter2" not in said.out + said.err
    assert all(b"hunter2" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "mine.yaml")


@pytest.mark.slow
def test_a_password_of_a_run_made_before_is_masked_wherever_it_is_shown_or_fed(tmp_path: Path) -> None:
    experiments = new_experiments(tmp_path)
    run = canary_run(tmp_path, "public")
    recipe = json.loads((run.folder / "recipe.yaml").read_text())
    address = "http://ann:hunter2@mlflow.example.com"
    run.write("recipe.yaml", json.dumps(recipe | {"tracking": {"uri": address}}))
    run.event("said", "train", text=f"cannot reach {address}")
    run.event("stage_failed", "train", why=f"WorkbenchError: {address} does not answer")
    catch_up(run.folder, Tracking(), experiments)
    assert b"hunter2" not in (experiments / "mlflow.db").read_bytes()
    kept = [p for p in (experiments / "mlartifacts").rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert kept == []
    with pytest.raises((WorkbenchError, RequestError)) as refusal:
        catch_up(run.folder, Tracking(uri="http://ann:hunter2@127.0.0.1:9"), experiments)
    assert "hunter2" not in str(refusal.value)


HELD = "Cn4ry.held.By-The-Environment"
NAMED = "Cn4ry.named.By-The-Recipe"
# Each form a secret may have, with what must never be seen of it.
SECRETS = {
    "sk-proj-Cn4ryZx81kkQw9PLm2vTt7Yb4Ra6S": "Cn4ryZx81",
    "hf_Cn4ryQqWwEeRrTtYyUuIiOoPpAaSsDdFf1": "Cn4ryQqWw",
    "ghp_Cn4ryA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5": "Cn4ryA1b2",
    "https://anna:Cn4ryPw1x@db.example.org/rows": "Cn4ryPw1x",
    "https://b.s3.amazonaws.com/r.csv?X-Amz-Signature=Cn4ry55aa66bb77": "Cn4ry55aa",
    HELD: "Cn4ry.held",
    base64.b64encode(HELD.encode()).decode(): "Cn4ry.held",
    NAMED: "Cn4ry.named",
}


def secret_run(folder: Path) -> HandMade:
    """A run, as an older version or another hand could have left it, with every secret in each of 28 places."""
    every = " ".join(SECRETS)
    recipe: dict[str, Any] = {
        **RECIPE, "data": {"privacy": "public", "system": every, "licence": every},
        "teacher": {"key_variable": "PLAIN_LOOKING"}, "evaluate": {"labels": list(SECRETS), "limit": 5},
        "model": {"source": every, "name": every},
    }  # fmt: skip
    run = whole_run(folder, digest="4badcafe")
    run.write("recipe.yaml", json.dumps(recipe))
    run.manifest["versions"] = {"torch": every}
    run.event("sample", "train", step=5, prompt=every, expected="x", answer=every)
    run.event("said", "train", text=every)
    run.event("next", commands=[every])
    run.event("dataset", "train", name=every, source=every, digest="b" * 64, rows=3, role="training")
    run.event("stage_started", "label")
    run.event("stage_failed", "label", why=f"WorkbenchError: {every}")
    report = json.loads(json.dumps(REPORT))
    report["gate"] |= {"overridden": True, "override": every}
    report["gate"]["checks"] = [{"name": "slices", "passed": False, "why": every}]
    cell = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    report["slices"] = [{"field": "who", "value": every, "n": 5, "arms": {"student": cell}, "comparisons": []}]
    report["confusion"] = {"macro_f1": {"labels": [every], "arms": {"student": [[3]]}}}
    run.write("evaluate/report.json", json.dumps(report))
    run.write("evaluate/report.html", f"<p>{every}</p>")
    run.write("evaluate/notes.yaml", every)
    run.write("evaluate/figures/forest.svg", f"<svg>{every}</svg>")
    line = {"id": every, "prompt": every, "answer": every, "expected": every, "scores": {every: 0.0}}
    run.write("evaluate/review.jsonl", json.dumps(line) + "\n")
    for number, secret in enumerate(SECRETS):
        run.event("metric", "train", name=secret, value=0.5, step=number)
        if "/" not in secret:
            run.write(f"evaluate/{secret}.json", "{}")
            run.event("file", "evaluate", path=f"evaluate/{secret}.json", title=secret)
    for name in ("report.json", "report.html", "notes.yaml"):
        run.event("file", "evaluate", path=f"evaluate/{name}", title="file")
    run.event("stage_started", "evaluate")
    run.done("evaluate", "evaluate", first=every, by={every: 3})
    return run


@pytest.mark.slow
def test_no_secret_reaches_mlflow_or_its_store_by_any_way(
    servers: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", HELD)
    monkeypatch.setenv("PLAIN_LOOKING", NAMED)
    run = secret_run(new_experiments(tmp_path))
    body, _ = sent(servers[0], run, tmp_path, "secrets")
    assert b"[EMAIL" not in body, "rows are public"
    assert found(SECRETS, body) == set()
    assert found({"held": HELD, "named": NAMED}, body) == set()
    for made in (run.folder / "bundle").iterdir():
        (made / "MANIFEST.json").write_text(json.dumps({"name": "here"}))
    catch_up(run.folder, Tracking(experiment="here"), tmp_path)
    stored = [tmp_path / "mlflow.db", *(p for p in (tmp_path / "mlartifacts").rglob("*") if p.is_file())]
    for path in stored:
        assert found(SECRETS | {"held": HELD, "named": NAMED}, path.read_bytes() + str(path).encode()) == set(), path
