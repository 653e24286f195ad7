"""Freed memory is kept: on a CPU, giving every large tensor back to the system costs more than computing on it.

Rows of many lengths leave holes that none of the next tensors fits in, so that what is kept grows and grows (15 GB in
400 steps of training a model of 135 million parameters): now and then all of it is given back.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# glibc's mallopt(3): no block by mmap, nothing trimmed, the heap grown by 256 MiB at a time.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have glibc reuse the memory that tensors free; other systems and libraries are left as they are."""
    mallopt = of_glibc("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 256 * 1024 * 1024)


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
