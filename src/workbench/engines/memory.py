"""Freed memory is kept: on a CPU, giving every large tensor back to the system costs more than computing on it."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt(3): no block by mmap, nothing trimmed, the heap grown by 256 MiB at a time.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have glibc reuse the memory that tensors free; other systems and libraries are left as they are."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)
    mallopt(TOP_PAD, 256 * 1024 * 1024)
