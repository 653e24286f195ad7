"""Rows a second through ledger and egress log against an instant server, and memory from 1,000 to 100,000 rows.

`python tests/benchmarks/label_speed.py [rows …]`. The server has a core of its own where there are two.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from teacher_desk import labelled, teacher_of
from teacher_project import KEY
from teacher_server import teacher_server
from workbench.records import Message
from workbench.teacher.labeller import Prompt


def prompts(count: int) -> Iterator[Prompt]:
    """Different prompts, made as they are asked for."""
    return (Prompt(f"row-{n}", (Message("user", f"Is item {n} in stock?"),)) for n in range(count))


def measure(count: int) -> None:
    """Label `count` rows and print rows a second and the peak of resident memory."""
    os.environ["TEACHER_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder, teacher_server(answer="json", instant=True) as server:
        started = time.perf_counter()
        kept, rejected, ended = labelled(Path(folder), server.url + "/v1", teacher_of(concurrency=32), prompts(count))
        seconds = time.perf_counter() - started
    assert (kept, rejected, ended) == (count, 0, None), (kept, rejected, ended)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} rows: {count / seconds:,.0f} rows/s, peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        measure(int(sys.argv[2]))
    else:
        for rows in map(int, sys.argv[1:] or ("1000", "10000", "100000")):
            subprocess.run([sys.executable, __file__, "one", str(rows)], check=True)
