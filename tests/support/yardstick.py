"""What work costs on this machine, so that a test can hold a limit which a slower machine does not break."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import cache

IMPORTS = "import hydra, omegaconf, numpy, rich.console"


def cpu_seconds(*command: str, **more: object) -> tuple[float, subprocess.CompletedProcess[str]]:
    """The CPU seconds, of user and system, that a command and its children took, and what came of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **more)  # type: ignore[call-overload]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@cache
def start() -> float:
    """CPU seconds of a Python that only imports what every command of ours needs; the better of three."""
    environment = {"env": os.environ | {"PYTHONSAFEPATH": "1"}}
    return min(cpu_seconds(sys.executable, "-c", IMPORTS, **environment)[0] for _ in range(3))
