"""A hub's repository into a folder, in a process of its own: what a hub sends may have no end, or never come.

Run as `python -m workbench.sources.hub_download REPO COMMIT FOLDER MOST PATTERN…`; the parent watches the folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import RequestError, WorkbenchError
from workbench.isolation import isolated
from workbench.sources.pip_download import end_with_parent, limit

MOST_GB, LIMIT = 400.0, "WORKBENCH_HUB_GB"  # of one repository, and the variable that sets another limit
STALLED_S, STALLED_BYTES = 120.0, 100_000  # less than this in so many seconds is no download
LOOK_S = 0.5


def download(repo: str, commit: str, into: Path, patterns: Sequence[str], where: str) -> tuple[str, str]:
    """Fill a folder with a repository's files that fit: ("", "") when it is done, else the error's name and words.

    WorkbenchError when it is larger than is taken, or no longer comes.
    """
    most = most_bytes()
    command = [sys.executable, "-P", "-m", __name__, repo, commit, str(into), str(most), *patterns]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | isolated()) as child:
        try:
            watch(child, into, most, where)
        except BaseException:
            child.kill()
            raise
        words = child.communicate()[1]
    if child.returncode == 0:
        return "", ""
    last = (words.strip().splitlines() or ["nothing was said"])[-1]
    name, _, text = last.partition(": ")
    if "File too large" in words:
        raise too_large(most, where)
    return name, text or last


def watch(child: subprocess.Popen[str], into: Path, most: int, where: str) -> None:
    """Look at the folder until the child ends."""
    size, since = 0, time.monotonic()
    while True:
        try:
            child.wait(LOOK_S)
            return
        except subprocess.TimeoutExpired:
            pass
        there = size_of(into)
        if there > most:
            raise too_large(most, where)
        if there >= size + STALLED_BYTES:
            size, since = there, time.monotonic()
        elif time.monotonic() - since > STALLED_S:
            raise WorkbenchError(
                f"less than {STALLED_BYTES // 1000} kB came in {STALLED_S:.0f} seconds", where=where, remedy="try again"
            )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder that is being written."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def too_large(most: int, where: str) -> WorkbenchError:
    """The refusal of a repository without an end."""
    return WorkbenchError(
        f"it is larger than {most / 1e9:g} GB, or has no end",
        where=where,
        remedy=f"look at it on its hub; {LIMIT}={most / 5e8:g} would take one twice as large",
    )


def most_bytes() -> int:
    """The largest repository that is taken."""
    named = os.environ.get(LIMIT)
    try:
        return int(float(named or MOST_GB) * 1e9)
    except (ValueError, OverflowError):
        raise RequestError(f"{named!r} is no number of gigabytes", where=LIMIT, remedy=f"{LIMIT}=800") from None


def main(repo: str, commit: str, folder: str, patterns: list[str]) -> int:
    """Download; what the hub said where it failed is one line, the error's name first."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            repo, revision=commit, local_dir=folder, allow_patterns=patterns, ignore_patterns=["original/*"]
        )
    except Exception as error:  # the parent tells them apart by their names
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_with_parent()
    limit(int(sys.argv[4]), memory=None)
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[5:]))
