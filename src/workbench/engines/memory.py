"""Freed memory is kept: on a CPU, giving every large tensor back to the system costs more than computing on it.

Rows of many lengths leave holes that none of the next tensors fits in, so that what is kept grows and grows (15 GB in
400 steps of training a model of 135 million parameters): once it is too much, all of it is given back.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# glibc's mallopt(3): no block by mmap, nothing trimmed, the heap grown by 256 MiB at a time.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
MOST_KEPT = 4 * 2**30  # bytes


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) tells, in bytes; of it we read `fordblks`, what is free in its heaps."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def keep_freed_memory() -> None:
    """Have glibc reuse the memory that tensors free; other systems and libraries are left as they are."""
    mallopt = of_glibc("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 256 * 1024 * 1024)


def keep_at_most(most: int = MOST_KEPT) -> None:
    """Give what is free back once it is more than so many bytes: looked at after each step or batch."""
    told = of_glibc("mallinfo2")
    if told:
        told.restype = Mallinfo2
        if told().fordblks > most:
            release_freed_memory()


def release_freed_memory() -> None:
    """Give what is free back to the system now."""
    trim = of_glibc("malloc_trim")
    if trim:
        trim(0)


def of_glibc(name: str) -> Any:
    """One of its functions; None on another system or with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
