"""Run a quantization library in a process of its own: it talks, keeps global state, and holds memory until it ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def run_apart(module: str, request: dict[str, Any]) -> None:
    """Run `python -m module` with `request` as JSON on standard input, offline, in a temporary folder.

    Raises WorkbenchError with the end of what it said when it fails.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as stream:
            done = subprocess.run(
                [sys.executable, "-m", module],
                input=json.dumps(request),
                text=True,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                check=False,
            )
        if done.returncode:
            tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
            raise WorkbenchError(f"{module} failed with exit code {done.returncode}:\n{tail}", where="quantize")


def read_request() -> dict[str, Any]:
    """In the child: die with the parent, then take the request."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return json.load(sys.stdin)
