"""Serve a GGUF bundle through an installed Ollama, with a store and a port of its own.

Written after Ollama's documentation and not tried: no machine of ours had it. It offers neither the token ids of a
chat nor log-probabilities of given tokens, so only its answers are compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.engines.child import free_port, program, tail, wait_until
from workbench.engines.llamacpp import request
from workbench.errors import RequestError, WorkbenchError

START_TIMEOUT_S = 120.0


@contextmanager
def serve(
    folder: Path, *, context: int = 2048, parallel: int = 8, port: int = 0
) -> Iterator[tuple[str, Callable[[], str]]]:
    """A healthy Ollama with the model that the folder's Modelfile describes, under the folder's name in lower case.

    Its store is a temporary folder, into which `ollama create` copies the weights. The number of threads is its own.
    """
    folder = folder.resolve()
    binary = shutil.which("ollama")
    if binary is None:
        raise RequestError("there is no `ollama` command on PATH", where="ollama", remedy="install Ollama")
    if not (folder / "Modelfile").is_file():
        raise RequestError("no Modelfile: Ollama has nothing to make a model from", where=str(folder))
    host = f"127.0.0.1:{port or free_port()}"
    url = f"http://{host}"
    environment = {
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": "models",  # in the child's own folder, which goes when it does
        "OLLAMA_CONTEXT_LENGTH": str(context),
        "OLLAMA_NUM_PARALLEL": str(parallel),
        "OLLAMA_KEEP_ALIVE": "-1",
    }
    with program([binary, "serve"], environment) as (process, log):
        wait_until(
            lambda: answers(url), process, log,
            what="Ollama", where=str(folder), timeout_s=START_TIMEOUT_S,
            remedy="the last lines above are its own",
        )  # fmt: skip
        command = [binary, "create", model_name(folder), "-f", "Modelfile"]
        made = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
        if made.returncode != 0:
            raise WorkbenchError(f"`ollama create` failed: {made.stderr.strip()[-500:]}", where=str(folder))
        yield url, lambda: tail(log)


def model_name(folder: Path) -> str:
    """Ollama's names are lower case."""
    return folder.name.lower()


def answers(url: str) -> bool:
    """Whether Ollama answers there."""
    try:
        return "version" in request(f"{url}/api/version", timeout_s=5.0)
    except (OSError, ValueError, TypeError):
        return False
