"""What a file or folder holds, as a SHA-256: each byte is read once, and again when the system says it was touched.

A side file in the cache keeps for each file its device, inode, size, and times of writing (`mtime`) and of any change
(`ctime`), with the digest that was found. A digest is taken from there only while all five are the same, and only when
the last change lay two seconds before the hashing, so that no later change can bear the same time. `mtime` can be set
back by anyone; `ctime` only by whoever may set the machine's clock. What is trusted is thus the file system's clock and
the side file itself; delete `digests-*.db` from the cache to have every byte read again.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from workbench.errors import RequestError, WorkbenchError
from workbench.files import file_sha256
from workbench.records import digest

State = tuple[int, int, int, int, int]  # device, inode, size in bytes, mtime and ctime in nanoseconds
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use ticks every two seconds
SAID_FROM = 2_000_000_000  # bytes: hashing more takes seconds, and is said
# Our own notes at the top of a fetched folder, which are no part of what was fetched.
NOTES = ("source.json", "source.whl")
# What a model is loaded from; a README or a .git beside it changes nothing.
MODEL_FILES = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt")


def cache_folder() -> Path:
    """Where fetched sources are kept: `WORKBENCH_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("WORKBENCH_CACHE") or platformdirs.user_cache_dir("workbench"))


def state_of(path: Path) -> State:
    """What the system knows of a file without reading it; of a link, what it points to."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def files_of(path: Path) -> list[Path]:
    """The file itself, or every file below a folder but our own notes, sorted."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not (p.parent == path and p.name in NOTES))


def content_sha256(path: Path) -> str:
    """The digest of a file's bytes, or of a folder's files by their names and digests."""
    return joined_sha256(path, files_of(path))


def files_sha256(paths: Sequence[Path]) -> str:
    """The digest of one file or folder, or of several files by their names below the folder that holds them all."""
    if len(paths) == 1:
        return content_sha256(paths[0])
    digests, home = digests_of(paths), os.path.commonpath([path.parent for path in paths])
    return digest({os.path.relpath(path, home): digests[path] for path in paths})


def model_sha256(path: Path) -> str:
    """The digest of a `.gguf` file, or of those files of a folder that a model is loaded from."""
    files = [p for p in files_of(path) if p.suffix in MODEL_FILES and not hidden(p.relative_to(path))]
    return joined_sha256(path, [path] if path.is_file() else files)


def hidden(path: Path) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def joined_sha256(path: Path, files: list[Path]) -> str:
    """One digest for the files at or below `path`."""
    digests = digests_of(files)
    return digests[path] if path.is_file() else digest({str(p.relative_to(path)): digests[p] for p in files})


def digests_of(files: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of each file's bytes; files that have not changed since they were last hashed are not read.

    Raises WorkbenchError when a file changes while it is hashed.
    """
    states = {path: state_of(path) for path in files}
    for path in states:
        refuse_hollow(path)
    with side_file() as known:
        digests = recall(known, states)
        unread = [path for path in states if path not in digests]
        size = sum(states[path][2] for path in unread)
        if size > SAID_FROM:
            print(f"hashing {size / 1e9:.1f} GB, once for each change …", file=sys.stderr)
        started = time.time_ns()
        # hashlib gives up the interpreter's lock while it hashes.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests |= dict(zip(unread, pool.map(file_sha256, unread), strict=True))
        for path in unread:
            if state_of(path) != states[path]:
                remedy = "run the command again when nothing writes to it any more"
                raise WorkbenchError("it changed while it was read", where=str(path), remedy=remedy)
        keep(known, {p: digests[p] for p in unread}, states, started)
    return digests


@contextmanager
def side_file() -> Iterator[sqlite3.Connection | None]:
    """The digests known to this user; None where none can be kept, and every file is then read."""
    connection = None
    if os.name == "posix":  # elsewhere `ctime` is when a file was made
        path = cache_folder() / f"digests-{os.getuid()}.db"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            if path.stat().st_uid == os.getuid():
                connection = opened(path)
        except (OSError, sqlite3.Error):
            connection = None
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def opened(path: Path) -> sqlite3.Connection:
    """The side file, made anew when it is damaged."""
    table = (
        "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, device TEXT, inode TEXT, size TEXT, mtime TEXT, "
        "ctime TEXT, sha256 TEXT)"
    )
    for attempt in (1, 2):
        connection = sqlite3.connect(path, timeout=10)
        try:
            with connection:
                connection.execute(table)
            return connection
        except sqlite3.DatabaseError as error:
            connection.close()
            if attempt == 2 or isinstance(error, sqlite3.OperationalError):
                raise
            path.unlink()
            path.touch(mode=0o600)
    raise AssertionError


def recall(known: sqlite3.Connection | None, states: Mapping[Path, State]) -> dict[Path, str]:
    """The digests of those files whose state is the one that they were hashed in."""
    digests: dict[Path, str] = {}
    if known is not None:
        with suppress(sqlite3.Error):
            query = "SELECT sha256 FROM files WHERE path=? AND device=? AND inode=? AND size=? AND mtime=? AND ctime=?"
            for path, state in states.items():
                row = known.execute(query, (os.path.abspath(path), *map(str, state))).fetchone()
                if row:
                    digests[path] = row[0]
    return digests


def keep(known: sqlite3.Connection | None, digests: Mapping[Path, str], states: Mapping[Path, State], at: int) -> None:
    """Note the digests of files that had settled before they were read (`at`, in nanoseconds since 1970)."""
    rows = [
        (os.path.abspath(path), *map(str, states[path]), sha256)
        for path, sha256 in digests.items()
        if max(states[path][3:]) + SETTLED_NS < at
    ]
    if known is not None and rows:
        with suppress(sqlite3.Error), known:
            known.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


# A file of which the disk holds less than this share is a hole: it would be read for hours and say nothing.
HOLLOW, HOLLOW_FROM = 0.01, 1_000_000_000  # share, and from how many bytes on that matters


def refuse_hollow(path: Path) -> None:
    """RequestError for a large file that is nearly all a hole in the disk; a file system that packs leaves far more."""
    facts = path.stat()
    held = getattr(facts, "st_blocks", None)
    seems = held is not None and facts.st_size > HOLLOW_FROM and held * 512 < HOLLOW * facts.st_size
    if seems and has_hole(path, facts.st_size):
        raise RequestError(
            f"it says that it has {facts.st_size / 1e9:,.1f} GB, and the disk holds {(held or 0) * 512 / 1e6:,.1f} MB: "
            "the rest is a hole",
            where=str(path),
            remedy="write or fetch it anew",
        )


def has_hole(path: Path, size: int) -> bool:
    """Whether the file system itself says so: one that counts no blocks, or knows no holes, says no."""
    try:
        with path.open("rb") as stream:
            return os.lseek(stream.fileno(), 0, os.SEEK_HOLE) < size
    except (OSError, AttributeError):
        return False


@contextmanager
def unchanged(paths: Sequence[Path], wanted: str | None, where: str) -> Iterator[None]:
    """Hold what is read of files or of a folder within this block against the digest that was `wanted`, if any.

    The state is taken before the digest and after the reading: what was parsed between is what was hashed. Raises
    WorkbenchError naming `where` otherwise.
    """
    before = {p: state_of(p) for path in paths for p in files_of(path)}
    for path in before:
        refuse_hollow(path)
    remedy = "run the command again when nothing writes to it any more"
    if wanted is not None and files_sha256(paths) != wanted:
        raise WorkbenchError("it has changed since this command began", where=where, remedy=remedy)
    yield
    try:
        same = {p: state_of(p) for path in paths for p in files_of(path)} == before
    except OSError:
        same = False
    if not same:
        raise WorkbenchError("it changed while it was read", where=where, remedy=remedy)
