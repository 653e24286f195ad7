"""Which commit the current folder is at, and whether its files differ from it, without running anything of its own.

A repository's configuration names programs that git starts for questions that look harmless: a file system monitor
and hooks when the index is refreshed, filters when a file's content is compared, a transport when an object is
missing. So git is only asked for what lies in its own folder, with those off, and the files are compared here.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

PLAIN = (
    "--no-pager", "--no-replace-objects", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}",
    "-c", "safe.bareRepository=explicit", "-c", "protocol.allow=never",
)  # fmt: skip
# One file of `git ls-files --stage --debug -z`: what git has noted of it when it was last known to be unchanged.
ENTRY = re.compile(
    rb"(\d{6}) ([0-9a-f]+) (\d)\t([^\0]+)\0  ctime: \d+:\d+\n  mtime: (\d+):(\d+)\n"
    rb"  dev: [^\n]*\n  uid: [^\n]*\n  size: (\d+)\t[^\n]*\n"
)
SUBMODULE, LINK = b"160000", b"120000"


def revision() -> str | None:
    """The commit's first 12 hex digits, with `-dirty` when a tracked file is changed or gone; None without a commit."""
    commit = git("rev-parse", "--short=12", "--verify", "HEAD")
    if not commit:
        return None
    return commit.decode().strip() + ("-dirty" if is_dirty() else "")


def is_dirty() -> bool:
    """Whether the index differs from the commit, or a file from the index."""
    root = git("rev-parse", "--show-toplevel")
    staged = git("diff-index", "--cached", "--raw", "--no-ext-diff", "--no-textconv", "HEAD", "--")
    if not root or staged is None:
        return False
    top = Path(os.fsdecode(root.removesuffix(b"\n")))
    return bool(staged) or any(changed_files(top))


def changed_files(top: Path) -> Iterator[Path]:
    """Tracked files below `top` that are not as the index has them. Nothing git would convert is converted here."""
    for mode, sha, stage, name, seconds, nanoseconds, size in ENTRY.findall(ls_files(top)):
        path = top / os.fsdecode(name)
        if mode == SUBMODULE:
            continue
        try:
            now = path.lstat()
        except OSError:
            yield path
            continue
        noted = (int(size), int(seconds) * 10**9 + int(nanoseconds))
        # git notes a size of 0 where a file was written in the same tick as the index.
        touched = (now.st_size, now.st_mtime_ns) != noted
        if stage != b"0" or (touched and blob_digest(path, mode, len(sha)) != sha.decode()):
            yield path


def ls_files(top: Path) -> bytes:
    """Every tracked file, with what git has noted of it."""
    return git("-C", str(top), "ls-files", "--stage", "--debug", "-z") or b""


def blob_digest(path: Path, mode: bytes, digits: int) -> str:
    """What git would call the file's bytes; "" for what cannot be read."""
    try:
        content = os.fsencode(os.readlink(path)) if mode == LINK else path.read_bytes()
    except OSError:
        return ""
    whole = b"blob %d\0%s" % (len(content), content)
    return (hashlib.sha256 if digits == 64 else hashlib.sha1)(whole, usedforsecurity=False).hexdigest()


def git(*arguments: str) -> bytes | None:
    """What git prints; None when it is not there or says no. No variable of the environment steers it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    still = {
        "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0", "GIT_ATTR_NOSYSTEM": "1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            ["git", *PLAIN, *arguments], env=kept | still, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
