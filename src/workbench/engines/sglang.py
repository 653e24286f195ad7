"""Serve a model folder through SGLang, which lives in a Python environment of its own.

Written after SGLang's documentation and not tried: it wants a GPU, and no machine of ours had both. Only its chat
answers are compared: what it makes of a chat's tokens is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.engines.child import free_port, program, tail, wait_until
from workbench.engines.vllm import START_TIMEOUT_S, saved_dtype, serves

VARIABLE = "SGLANG_PYTHON"  # names the interpreter of that environment


@contextmanager
def serve(
    folder: Path, *, python: Path, context: int = 2048, parallel: int = 8, port: int = 0
) -> Iterator[tuple[str, Callable[[], str]]]:
    """A healthy SGLang server with the model under its folder's name: its base URL, and its log's end."""
    folder = folder.resolve()
    number = port or free_port()
    command = [str(python), "-m", "sglang.launch_server", "--model-path", str(folder)]
    command += ["--served-model-name", folder.name, "--dtype", saved_dtype(folder)]
    command += ["--host", "127.0.0.1", "--port", str(number)]
    command += ["--context-length", str(context), "--max-running-requests", str(parallel)]
    url = f"http://127.0.0.1:{number}"
    with program(command, {"DO_NOT_TRACK": "1"}) as (process, log):
        wait_until(
            lambda: serves(url, folder.name), process, log,
            what="SGLang's server", where=str(folder), timeout_s=START_TIMEOUT_S,
            remedy="the last lines above are the server's own",
        )  # fmt: skip
        yield url, lambda: tail(log)


def available() -> str | None:
    """None when SGLang can be started here, else why not."""
    named = os.environ.get(VARIABLE, "")
    if os.access(named, os.X_OK):
        return None
    return f"{VARIABLE} is not set to the interpreter of an environment with SGLang"
