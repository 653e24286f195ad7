"""Reach the MLflow store: its URI, a quick health check, one writer at a time, errors to act on; and its UI."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from workbench import files
from workbench.errors import RequestError, WorkbenchError
from workbench.files import close_to_others, temporary_folder
from workbench.isolation import isolated
from workbench.privacy.secrets import ALLOWED_KEYS, is_allowed
from workbench.recipe import Tracking
from workbench.records import digest
from workbench.tracking.bounds import CALL_S, GIVEN_UP, AwayError, Bounded, within
from workbench.urls import is_loopback, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient

PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PROBE_TIMEOUT_S = 3.0
LOCK_TIMEOUT_S, SERVER_LOCK_TIMEOUT_S = 120.0, 15.0
# What MLflow is told while we talk to it. With its own retries a server that dies in the middle stalls each call for
# minutes: who has time tries again, later. The rest keeps it from phoning home and from talking over the screen.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_ASYNC_TRACE_LOGGING_RETRY_TIMEOUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
CHATTER = ("alembic", "mlflow.store.db.utils", "mlflow.tracking._model_registry.client", "mlflow.utils.environment")
EVENTS_KEEP = "events.jsonl keeps everything; `python -m workbench ui` catches the store up when it is back"


@dataclass(frozen=True)
class Store:
    """An open store: the client, the experiment this recipe is recorded in, and where that keeps its artefacts."""

    client: MlflowClient
    uri: str
    experiment_id: str
    artefacts: str = ""


def store_uri(tracking: Tracking, experiments: Path) -> str:
    """The recipe's tracking URI, or the sqlite store in the experiments folder (always by its absolute path)."""
    return tracking.uri or f"sqlite:///{(experiments.absolute() / 'mlflow.db').as_posix()}"


def is_server(uri: str) -> bool:
    """Whether the URI names a tracking server, which has artefacts and a UI of its own."""
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """The URI, or a text with some in it, without users and passwords: for screens, files and errors."""
    return without_passwords(uri)


def folder_of(uri: str) -> Path:
    """The folder of an embedded store; the current one for a database that is elsewhere."""
    return Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else Path.cwd()


def plain_name(name: str) -> str:
    """A name the registry takes: LoggedModels refuse `/ : . %` and quotes, registered models `/` and `:`."""
    return re.sub(r"[/:.%'\"\s]+", "-", name).strip("-") or "model"


def refuse_stray_password(uri: str) -> None:
    """RequestError where MLflow's client would send the environment's password or token to a server it is not for.

    It is for the server that MLFLOW_TRACKING_URI names over https, for one on loopback, and where the user allows it.
    """
    if not is_server(uri) or is_loopback(uri):
        return
    host = urlsplit(uri).hostname or ""
    own = uri.startswith("https://") and urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).hostname == host
    for name in PASSWORDS:
        if os.environ.get(name) and not own and not is_allowed(name, host):
            raise RequestError(
                f"{name} would be sent to {host}, and nobody has said that it is that server's",
                where=f"tracking.uri={shown(uri)}",
                remedy=f"export MLFLOW_TRACKING_URI=https://{host}, or {ALLOWED_KEYS}={name}@{host}",
            )


def probe(uri: str) -> None:
    """Ask a server whether it lives; any HTTP answer will do. Raises WorkbenchError within seconds when it does not.

    MLflow's own client would retry a dead server for 247 s before it gives up.
    """
    if not is_server(uri):
        return

    def ask() -> None:
        urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).close()

    try:
        within(PROBE_TIMEOUT_S, "a first question", ask)  # the timeout above is for each read, and not for all of them
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException, AwayError) as error:
        GIVEN_UP.add(uri)
        why = shown(str(error))
        raise AwayError(
            f"the MLflow server does not answer: {why}", where=f"tracking.uri={shown(uri)}", remedy=EVENTS_KEEP
        ) from None


def probe_store(uri: str) -> str:
    """The store's state in words, within seconds and without making it, for `doctor`."""
    if is_server(uri):
        try:
            probe(uri)
        except WorkbenchError as error:
            return error.what
        return "answers"
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        return "a database; not asked"
    return f"there, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "not there yet; the first run makes it"


@contextlib.contextmanager
def manners(uri: str = "") -> Iterator[None]:
    """Set MLflow's environment for as long as we talk to it; what the user has set stays, and all is put back.

    A server on loopback is never asked through a proxy: what is meant for this machine would leave it.
    """
    mine = {name: value for name, value in MANNERS.items() if name not in os.environ}
    if is_loopback(uri):
        host = urlsplit(uri).hostname or ""
        mine |= {name: ",".join(filter(None, (os.environ.get(name), host))) for name in ("no_proxy", "NO_PROXY")}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """A client for one store, its failures turned into WorkbenchError; no global MLflow setting is touched.

    A server that does not answer, or not in time, or fails itself, is an AwayError.
    """
    refuse_stray_password(uri)
    with manners(uri), own_temporary_files():
        probe(uri)
        import requests.exceptions
        import sqlalchemy.exc
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        known = (MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.exceptions.RequestException)
        try:
            if is_here(uri):
                make_whole(uri)
                yield MlflowClient(tracking_uri=uri, registry_uri=uri)
            else:
                client = within(CALL_S, "a first call", lambda: MlflowClient(tracking_uri=uri, registry_uri=uri))
                yield Bounded(client, uri)
                GIVEN_UP.discard(uri)
        except AwayError as error:
            GIVEN_UP.add(uri)
            raise AwayError(f"MLflow: {error.what}", where=shown(uri), remedy=error.remedy or EVENTS_KEEP) from error
        except known as error:
            refused = None if is_server(uri) else files.disk_error(error, folder_of(uri))
            if refused is not None:
                raise refused from error
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            kind = AwayError if not is_here(uri) and is_away(error) else WorkbenchError
            if kind is AwayError:
                GIVEN_UP.add(uri)
            raise kind(f"MLflow: {shown(why)}", where=shown(uri), remedy=EVENTS_KEEP) from error
        except ModuleNotFoundError as error:
            raise WorkbenchError(
                f"MLflow needs {error.name} for the place where this store keeps its artefacts",
                where=shown(uri),
                remedy=f"install what brings {error.name}, or use another store (tracking.uri=null is one here)",
            ) from error


def make_whole(uri: str) -> None:
    """Make the tables of an embedded store that has none yet: beside its place, and then at once.

    MLflow makes them one by one, and a store that a kill or a full disk has left half made is refused by it for good.
    Such a one holds nothing of anybody's, not even the first experiment, and is replaced.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.name in ("", ":memory:") or "?" in path.name or is_made(path):
        return
    from mlflow import MlflowClient

    partial = path.with_name(f".{path.name}.{time.time_ns()}.partial")  # MLflow keeps connections, by their path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if is_made(path):
            return
        for left in path.parent.glob(f".{path.name}.*.partial*"):
            left.unlink()
        try:
            MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
            remove_database(path)
            os.replace(partial, path)
        finally:
            remove_database(partial)


def is_made(path: Path) -> bool:
    """Whether a store's file has its tables and the first experiment, which MLflow adds last.

    One that cannot be read counts too: what is wrong with it is for MLflow to say.
    """
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as database:
            return database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
    except sqlite3.Error as error:
        return "no such table" not in str(error)


def remove_database(path: Path) -> None:
    """Remove a database with its journals, which would else be taken for those of the next one of its name."""
    for ending in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


@contextlib.contextmanager
def own_temporary_files() -> Iterator[None]:
    """Keep the temporary files in which MLflow writes what it sends, rows' texts among it, from outliving a kill."""
    before = tempfile.tempdir
    with temporary_folder() as own:
        tempfile.tempdir = str(own)
        try:
            yield
        finally:
            tempfile.tempdir = before


def is_here(uri: str) -> bool:
    """Whether the store is a file of this machine, which nobody waits for."""
    return uri.startswith("sqlite:")


def is_away(error: Exception) -> bool:
    """Whether an error is the server's or the way's, and not what the server says to a question of ours."""
    status = getattr(error, "get_http_status_code", None)
    return status is None or int(status()) >= 500


@contextlib.contextmanager
def open_store(tracking: Tracking, experiments: Path, recipe_name: str) -> Iterator[Store]:
    """The store with this recipe's experiment in it, created when new; one process at a time writes to it.

    Artefacts of an embedded store (sqlite or another database) lie in `<experiments>/mlartifacts`;
    a server keeps its own. Raises WorkbenchError when the store cannot be reached.
    """
    uri = store_uri(tracking, experiments)
    experiments.mkdir(parents=True, exist_ok=True)
    close_to_others(experiments / "mlflow.db", experiments / "mlartifacts")
    # Two processes that create the tables at once would trip over each other. A store that hangs holds up no other.
    name, patience_s = ".mlflow.lock", LOCK_TIMEOUT_S
    if not is_here(uri):
        name, patience_s = f".mlflow-{digest(uri, 8)}.lock", SERVER_LOCK_TIMEOUT_S
    lock = FileLock(experiments / name, timeout=patience_s)
    try:
        lock.acquire()
    except Timeout:
        raise (WorkbenchError if is_here(uri) else AwayError)(
            f"another process has been writing to the MLflow store for {patience_s:.0f} s",
            where=shown(uri),
            remedy=EVENTS_KEEP,
        ) from None
    try:
        with connect(uri) as client:
            place = None if is_server(uri) else (experiments.absolute() / "mlartifacts")
            experiment = experiment_id(client, tracking.experiment or recipe_name, place)
            yield Store(client, uri, experiment, str(client.get_experiment(experiment).artifact_location))
    finally:
        lock.release()


def experiment_id(client: MlflowClient, name: str, place: Path | None) -> str:
    """The experiment's id; it is created when new, and restored when someone deleted it."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(
            name,
            artifact_location=(place / plain_name(name)).as_uri() if place else None,
            # Without it the UI takes the experiment for traces of an agent and hides runs and models.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


# Run MLflow's own UI on a store, on this machine only, and take all of it down again at the end.

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
    with log.open("w", encoding="utf-8") as stream, temporary_folder() as empty:
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
