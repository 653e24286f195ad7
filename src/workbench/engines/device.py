"""Which device `auto` means here, and how many of a CPU's cores are ours."""

from __future__ import annotations

import os


def device_of(wanted: str = "auto") -> str:
    """`wanted`, or for `auto` cuda where torch sees one, else cpu."""
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def threads_of(wanted: int | None = None) -> int:
    """`wanted` threads, else what OMP_NUM_THREADS says, else as many as there are cores that this process may use.

    Two programs that each take all cores wait for each other by spinning, and both become many times slower.
    """
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted or said.isdecimal():
        return wanted or max(1, int(said))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
