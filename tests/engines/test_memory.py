"""Memory on a CPU: what tensors free is kept for the next ones, and given back when asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from workbench.engines.device import keep_at_most, keep_freed_memory, release_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
kept = []
for size in range(1, 60):  # holes of many sizes between tensors that stay
    hole = torch.ones(size, 2**18)
    kept.append(torch.ones(1000))
    del hole
print(before, resident(), end=" ")
keep_at_most(10 * 2**30)
print(resident(), end=" ")
{release}
print(resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
@pytest.mark.parametrize("release", ["release_freed_memory()", "keep_at_most(2**20)"])
def test_freed_memory_is_kept_until_it_is_released_or_more_than_may_be_kept(release: str) -> None:
    program = PROGRAM.replace("{release}", release)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, kept, still, released = map(float, done.stdout.split())
    assert kept - before > 50, "no page went back by itself"
    assert still - before > 50, "less than may be kept stays"
    assert released - before < 0.2 * (kept - before), "all of it went back when asked, holes too"
