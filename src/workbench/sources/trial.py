"""A first look at a file in a child process with limits, where the library that reads it cannot be trusted with it.

A bomb, an endless loop or a crash then ends the child, and becomes a sentence here. The child runs one of our own
scripts, which prints what it has to say against the file; a script that prints nothing has found nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import RequestError
from workbench.isolation import isolated
from workbench.records import digest
from workbench.sources.digests import cache_folder, digests_of, refuse_hollow

# The limits are set in the child itself, before it reads anything.
LIMITED = """\
import runpy, sys
try:
    import resource
    for kind, most in ((resource.RLIMIT_AS, int(sys.argv[1])), (resource.RLIMIT_CPU, int(sys.argv[2]))):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
sys.argv[:] = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "malloc", "out of memory", "capacity overflow", "memory allocation")
TIMES = 3  # the wall clock's limit, in those of the processor: a busy machine is no reason to refuse


def objection(script: Path, arguments: Sequence[object], *, seconds: int, memory: int) -> str:
    """What speaks against a file, by a script that has tried it under limits; "" where nothing does.

    `seconds` of processor time, `memory` in bytes of address space.
    """
    command = [sys.executable, "-P", "-c", LIMITED, memory, seconds, script, *arguments]
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=TIMES * seconds + 30,
            env=os.environ | isolated() | {"OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return f"reading it takes more than {seconds} seconds"
    if done.returncode == 0:
        return " ".join(done.stdout.split())
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"reading it takes more than {seconds} seconds"
    if any(word in done.stderr for word in OUT_OF_MEMORY):
        return f"reading it takes more than {memory / 1e9:.0f} GB of memory"
    if done.returncode < 0:
        return f"the library that reads it crashed on it ({signal.Signals(-done.returncode).name})"
    last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    return f"it cannot be read: {json.dumps(last, ensure_ascii=False)[1:-1][:300]}"


# A model's tokenizer and its chat template are tried once for each content; that they passed is noted in the cache.

SECONDS, MEMORY = 10, 4_000_000_000
TRIALS = 1  # goes up when what is tried changes, so that all is tried again


@functools.lru_cache(maxsize=64)
def tried(script: Path, argument: str, content: str, size: int) -> str:
    """What speaks against a content (by its digest), tried once; that nothing does is noted in the cache."""
    note = cache_folder() / "tried" / f"{script.stem}-{digest([content, TRIALS], 32)}"
    if note.is_file():
        return ""
    against = objection(script, [argument], seconds=SECONDS, memory=MEMORY + 20 * size)
    if not against:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
    return against


def refuse_tokenizer(folder: Path) -> None:
    """RequestError for a tokenizer.json that cannot be read, or whose expressions take for ever on a short text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    refuse_hollow(path)
    against = tried(Path(__file__).with_name("tokenizer_trial.py"), str(path), digests_of([path])[path],
                    path.stat().st_size)  # fmt: skip
    if against:
        raise RequestError(f"the tokenizer: {against}", where=str(path), remedy="fetch it anew, or use another model")
