"""Run MLflow's own UI on a store, on this machine only, and take all of it down again at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.isolation import isolated

HOST, STARTS_WITHIN_S, STOPS_WITHIN_S = "127.0.0.1", 120.0, 8.0


def free_port(wanted: int) -> int:
    """The wanted port, or the next one that nothing listens on. Raises WorkbenchError after a hundred."""
    for port in range(wanted, min(wanted + 100, 65_536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise WorkbenchError(f"no free port from {wanted} on", where="port", remedy="choose another: port=6000")


def serve_ui(uri: str, port: int, experiments: Path, ready: Callable[[str], None]) -> int:
    """Serve MLflow's UI until Ctrl-C or until it ends by itself; returns the exit code.

    `ready` is called with the address once it answers. The server's own words go to `<experiments>/mlflow-ui.log`.
    """
    log = experiments / "mlflow-ui.log"
    artefacts = (experiments / "mlartifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
               "--backend-store-uri", from_anywhere(uri), "--artifacts-destination", artefacts]  # fmt: skip
    environment = (
        os.environ
        | isolated()
        | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # The job runner would start more processes, for features this project does not use.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    )
    # uvicorn looks for code in its current folder first, so the server's is an empty one.
    with log.open("w", encoding="utf-8") as stream, tempfile.TemporaryDirectory(prefix="workbench-ui-") as empty:
        # A session of its own: Ctrl-C reaches only us, and we end the whole group, workers included.
        server = subprocess.Popen(
            command, cwd=empty, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_it_answers(server, port, log)
            ready(f"http://{HOST}:{port}")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            end_group(server)


def from_anywhere(uri: str) -> str:
    """The same store for a process in another folder: a relative sqlite file by its whole path."""
    scheme, named = "sqlite:///", uri.removeprefix("sqlite:///")
    return f"{scheme}{Path(named).absolute().as_posix()}" if uri.startswith(scheme) else uri


def wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server says it is well; raise WorkbenchError with its last words when it died or never came."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise WorkbenchError(f"the MLflow UI did not start: {last}", where=str(log), remedy="the log has the rest")


def end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and all it has started: asked first, then made to. A second Ctrl-C does not leave any behind."""
    for number, patience in ((signal.SIGTERM, STOPS_WITHIN_S), (signal.SIGKILL, STOPS_WITHIN_S)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
