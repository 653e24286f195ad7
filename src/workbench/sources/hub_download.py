"""A hub is asked, and its repository fetched, in a process of its own: what a hub sends may have no end, or never come.

Run as `python -m workbench.sources.hub_download REPO REVISION FOLDER MOST PATTERN…`: with patterns it fills the folder,
which the parent watches; without, it prints what the hub says of the repository, and fetches its config.json into a
folder that is named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.errors import RequestError, WorkbenchError
from workbench.isolation import isolated
from workbench.sources.pip_download import end_with_parent, limit

MOST_GB, LIMIT = 400.0, "WORKBENCH_HUB_GB"  # of one repository, and the variable that sets another limit
STALLED_S, STALLED_BYTES = 120.0, 100_000  # less than this in so many seconds is no download
LOOK_S = 0.5
CHILD = (sys.executable, "-P", "-m", "workbench.sources.hub_download")
ANSWER_S, CONFIG_BYTES = 30.0, 50_000_000  # that a hub has for what it says of a repository, config.json included


def download(repo: str, commit: str, into: Path, patterns: Sequence[str], where: str) -> tuple[str, str]:
    """Fill a folder with a repository's files that fit: ("", "") when it is done, else the error's name and words.

    WorkbenchError when it is larger than is taken, or no longer comes.
    """
    most = most_bytes()
    command = [*CHILD, repo, commit, str(into), str(most), *patterns]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | isolated()) as child:
        try:
            watch(child, into, most, where)
        except BaseException:
            child.kill()
            raise
        words = child.communicate()[1]
    if child.returncode == 0:
        return "", ""
    if "File too large" in words:
        raise too_large(most, where)
    return failure(words)


def ask(repo: str, revision: str | None, config_into: Path | None = None) -> tuple[Mapping[str, object], str, str]:
    """(what the hub says, "", "") of a repository, or ({}, the error's name, its words) within `ANSWER_S` seconds.

    `sha` is the commit, `parameters`, `licence` and `gated` are as the hub has them; none of it is to be believed.
    """
    command = [*CHILD, repo, revision or "", str(config_into or ""), str(CONFIG_BYTES)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, env=os.environ | isolated(), check=False
        )
    except subprocess.TimeoutExpired:
        return {}, "TimeoutError", f"no whole answer came in {ANSWER_S:.0f} s"
    if done.returncode != 0:
        return {}, *failure(done.stderr)
    return json.loads(done.stdout), "", ""


def failure(words: str) -> tuple[str, str]:
    """The name and the words of the error that a child ended with."""
    last = (words.strip().splitlines() or ["nothing was said"])[-1]
    name, _, text = last.partition(": ")
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


def fetch(repo: str, commit: str, folder: str, patterns: Sequence[str]) -> None:
    """Fill the folder."""
    from huggingface_hub import snapshot_download

    snapshot_download(
        repo, revision=commit, local_dir=folder, allow_patterns=list(patterns), ignore_patterns=["original/*"]
    )


def tell(repo: str, revision: str, folder: str) -> None:
    """Print what the hub says of a repository, and put its config.json into the folder, where one is named."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(repo, revision=revision or None, timeout=ANSWER_S)
    if folder:
        hf_hub_download(repo, "config.json", revision=info.sha, local_dir=folder, etag_timeout=ANSWER_S)
    card = info.card_data.to_dict() if info.card_data else {}
    facts = {"sha": info.sha, "parameters": getattr(info.safetensors, "total", 0), "gated": bool(info.gated)}
    print(json.dumps(facts | {"licence": card.get("license_name") or card.get("license")}))


def main(repo: str, revision: str, folder: str, patterns: Sequence[str]) -> int:
    """Fetch or ask; what went wrong is one line, the error's name first."""
    try:
        fetch(repo, revision, folder, patterns) if patterns else tell(repo, revision, folder)
    except Exception as error:  # the parent tells them apart by their names
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[5:]:  # many threads of a large download take much address space
        limit(int(sys.argv[4]), memory=None)
    else:
        limit(int(sys.argv[4]))
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[5:]))
