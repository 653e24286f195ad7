"""Serve: the right engine on a bundle, on loopback, until Ctrl-C, with a line for curl that was tried before."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from workbench import errors
from workbench.bundles.checks import static_checks
from workbench.bundles.manifest import read_manifest
from workbench.bundles.parity import read_parity
from workbench.bundles.prove import HERE, choose_engine, refuse_failed, trusted_key
from workbench.compress.format_check import really_quantized
from workbench.engines.served import Served, chat, engine_for, serve_bundle
from workbench.errors import WorkbenchError
from workbench.records import Message, message_dicts
from workbench.screen import SafeConsole, json_line

SCREEN = SafeConsole(stderr=True, highlight=False)
HELLO = (Message("user", "Say hello."),)
LONGEST_SHOWN = 400  # characters of a held-out prompt that still fit a line to be copied


def run(bundle: str, engine: str, key: str, port: int, context: int) -> int:
    """Start the engine on a bundle that stands its static checks, ask it once, print the line, and wait."""
    folder = Path(bundle).expanduser()
    manifest = read_manifest(folder)
    refuse_failed(static_checks(folder, public_key=trusted_key(key), really_quantized=really_quantized), bundle)
    chosen = choose_engine(folder, manifest["format"], engine)
    if chosen == HERE:
        chosen = choose_engine(folder, manifest["format"], engine_for(folder))  # says why that one is not here
    SCREEN.print(f"starting {chosen} on {bundle} …", markup=False)
    question = prompt_of(folder)
    longest = context or int(manifest.get("context") or 2048)
    with serve_bundle(folder, chosen, context=longest, parallel=4, threads=None, port=port) as server:
        answer = chat(server, question, 64)
        SCREEN.print(f"it answers: {answer.text!r} ({answer.tokens_out} tokens, {answer.seconds:.1f} s)", markup=False)
        SCREEN.print("ask it (Ctrl-C ends it):", markup=False)
        print(curl_line(server, question), flush=True)
        return wait(server)


def prompt_of(folder: Path) -> Sequence[Message]:
    """A held-out prompt that the bundle carries, when it is short enough to be shown; else a greeting."""
    for row in read_parity(folder):
        if sum(len(m.content) for m in row.messages) <= LONGEST_SHOWN:
            return row.messages
    return HELLO


def curl_line(server: Served, messages: Sequence[Message]) -> str:
    """One chat request as a line for a shell."""
    body = {"model": server.model, "messages": message_dicts(messages), "max_tokens": 64, "temperature": 0}
    text = shlex.quote(json_line(body))
    return f"curl -s {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d {text}"


def wait(server: Served) -> int:
    """Until Ctrl-C; a server that dies by itself is a failure with its last words."""
    try:
        while server.alive():
            time.sleep(0.5)
    except KeyboardInterrupt:
        SCREEN.print("the server has ended")
        return errors.OK
    raise WorkbenchError(f"the server ended by itself\n{server.log()}", where=server.url)
