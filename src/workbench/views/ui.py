"""The MLflow UI on this project's store, loopback only, after every run has been caught up."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from workbench import errors
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Tracking
from workbench.tracking import catch_up, free_port, is_server, serve_ui, shown, store_uri

SCREEN = Console(stderr=True, highlight=False)


def run(experiments: str, uri: str, port: int) -> int:
    """Catch all runs up, then serve the UI until Ctrl-C; returns the exit code."""
    folder = Path(experiments).resolve()
    if not folder.is_dir():
        raise RequestError("there is no such folder", where=f"experiments={experiments}", remedy="train a recipe first")
    if not 0 < port < 65_536:
        raise RequestError(f"{port} is not a port", where="port", remedy="port=5000")
    tracking = Tracking(uri=uri or None)
    catch_up_all(folder, tracking)
    address = store_uri(tracking, folder)
    if is_server(address):
        SCREEN.print(f"this store is a server with a UI of its own: {shown(address)}", markup=False, soft_wrap=True)
        return errors.OK
    chosen = free_port(port)
    if chosen != port:
        SCREEN.print(f"port {port} is busy, taking {chosen}")
    SCREEN.print("starting MLflow …")
    code = serve_ui(address, chosen, folder, lambda url: SCREEN.print(f"open {url}   (Ctrl-C ends it)", soft_wrap=True))
    SCREEN.print("the MLflow UI has ended")
    return errors.OK if code == 0 else errors.FAILED


def catch_up_all(folder: Path, tracking: Tracking) -> None:
    """Feed what is new in every run, saying how much; a run that cannot be read does not keep the others back."""
    for events in sorted(folder.glob("*/*/events.jsonl")):
        name = events.parent.relative_to(folder)
        try:
            fed = catch_up(events.parent, tracking, folder)
        except RequestError:
            raise
        except WorkbenchError as error:
            SCREEN.print(f"{name} could not be caught up: {error}", markup=False, soft_wrap=True)
            continue
        if fed["metrics"]:
            SCREEN.print(f"{name}: {fed['metrics']} new points", markup=False)
        for line in fed["said"]:
            SCREEN.print(f"  {line}", markup=False, soft_wrap=True)
