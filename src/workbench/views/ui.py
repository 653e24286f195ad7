"""The MLflow UI on this project's store, loopback only, after every run has been caught up."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import yaml

from workbench import errors
from workbench.errors import RequestError, WorkbenchError
from workbench.privacy.redact import redact
from workbench.recipe import Tracking
from workbench.screen import SafeConsole
from workbench.teacher.egress import write_line
from workbench.tracking import Egress, catch_up, free_port, is_server, serve_ui, shown, store_uri

SCREEN = SafeConsole(stderr=True, highlight=False)


def run(experiments: str, uri: str, port: int) -> int:
    """Catch all runs up, then serve the UI until Ctrl-C; returns the exit code."""
    folder = Path(experiments).resolve()
    if not folder.is_dir():
        raise RequestError("there is no such folder", where=f"experiments={experiments}", remedy="train a recipe first")
    if not 0 < port < 65_536:
        raise RequestError(f"{port} is not a port", where="port", remedy="port=5000")
    page = catch_up_all(folder, uri)
    address = store_uri(Tracking(uri=uri or None), folder)
    if is_server(address):
        say(f"this store is a server with a UI of its own: {shown(address)}{page}")
        return errors.OK
    chosen = free_port(port)
    if chosen != port:
        say(f"port {port} is busy, taking {chosen}")
    say("starting MLflow …")
    code = serve_ui(
        address,
        chosen,
        folder,
        lambda url: say(f"open {url}{page}   (the newest run's experiment; Ctrl-C ends it)"),
    )
    say("the MLflow UI has ended")
    return errors.OK if code == 0 else errors.FAILED


def catch_up_all(folder: Path, uri: str) -> str:
    """Feed what is new in every run to the store its recipe names, or to `uri`, saying how much.

    Gives the page of the newest run's experiment in the store that is shown, empty where none was fed. A run that
    cannot be fed does not keep the others back; a store that is away is asked once.
    """
    away: set[str] = set()
    shown_store, page, newest = store_uri(Tracking(uri=uri or None), folder), "", 0.0
    egress = egress_of(folder)
    for events in sorted(folder.glob("*/*/events.jsonl")):
        name, tracking = events.parent.relative_to(folder), tracking_of(events.parent, uri)
        address = store_uri(tracking, folder)
        if address in away:
            continue
        try:
            fed = catch_up(events.parent, tracking, folder, egress)
        except WorkbenchError as error:
            say(f"{name} could not be caught up: {error}")
            away |= {address} if is_server(address) else set()
            continue
        at = events.stat().st_mtime
        if address == shown_store and at > newest:
            page, newest = f"/#/experiments/{fed['experiment_id']}/runs", at
        if fed["metrics"]:
            say(f"{name}: {fed['metrics']} new points")
        for line in fed["said"]:
            say(f"  {line}")
    return page


def egress_of(folder: Path) -> Egress:
    """What a store on another machine is fed and read through."""
    return Egress(redact, partial(write_line, folder / "egress.jsonl"))


def tracking_of(folder: Path, uri: str) -> Tracking:
    """The run's own tracking section; a `uri` from the command line goes before the recipe's."""
    recipe = folder / "recipe.yaml"
    own = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("tracking") if recipe.is_file() else None
    own = own or {}
    return Tracking(uri=uri or own.get("uri"), experiment=own.get("experiment"))


def say(text: str) -> None:
    """One line for the user."""
    SCREEN.print(text, markup=False, soft_wrap=True)
