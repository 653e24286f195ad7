"""Files on disk: written whole or not at all, flushed, hashed, removed with care, and for the user's eyes alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.records import Artefact, digest

PRIVATE = 0o077  # what others may not do: anything
USERS_OWN: list[int] = []  # the umasks that `keep_private` has set aside, the first being the user's


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return json.loads(path.read_text(encoding="utf-8"))


# Writing: whoever reads sees the old file or folder or the new one, whenever the writer is killed.


def write_whole(path: Path, content: str | bytes, *, errors: str = "strict", mode: int = 0o666) -> None:
    """Write a file so that it is the old content or the new, never half: a file beside it, fsync, rename.

    Text is UTF-8; `errors` says what becomes of characters that cannot be. The umask takes its bits off `mode`.
    """
    partial = path.with_name(f".{path.name}.partial")
    data = content.encode("utf-8", errors) if isinstance(content, str) else content
    partial.unlink(missing_ok=True)  # a killed writer's; and O_EXCL then follows no link that was laid there
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add text at the end of a file and force it to the disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that takes its place when the block ends well; otherwise it goes.

    Only one process at a time may write a folder: the caller holds its lock.
    """
    partial = final.with_name(f".{final.name}.partial")
    remove(partial)  # what a killed writer left
    partial.mkdir(parents=True)
    try:
        yield partial
        flush_tree(partial)
        replace_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(folder: Path, final: Path) -> None:
    """Rename a folder to `final`; what was there is set aside first and removed after, so nothing is ever half gone."""
    old = final.with_name(f".{final.name}.old")
    remove(old)
    if os.path.lexists(final):
        os.replace(final, old)
    os.replace(folder, final)
    sync_folder(final.parent)
    with contextlib.suppress(OSError):  # the new one is in its place
        remove(old)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


# Removing.


def remove(path: Path, inside: Path | None = None) -> None:
    """Remove a file, a link or a folder that may be gone already; a link's target stays.

    WorkbenchError for anything but what lies below the folder `inside`, once all links on the way are followed.
    """
    if inside is not None:
        check_inside(path, inside)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_inside(path: Path, inside: Path) -> None:
    """Raise WorkbenchError unless `path`, itself not followed where it is a link, lies below a run's folder."""
    home = inside.resolve()
    place = path.parent.resolve() / path.name
    if ".." in path.parts or home not in place.parents:
        raise WorkbenchError(
            "this is not inside the run's folder, so it is neither removed nor replaced",
            where=str(path),
            remedy=f"only what lies in {home} belongs to this run; look for a link, or a stage of another's run.json",
        )


# Hashes and heads.


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def artefact(path: Path, root: Path, leave_out: Collection[str] = ()) -> Artefact:
    """Hash and size a file, or a folder file by file in sorted order; its path is relative to `root`.

    What lies below one of the folder's own entries named in `leave_out` does not count.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if p == path or p.relative_to(path).parts[0] not in leave_out]
    parts = {str(p.relative_to(path)) if p != path else p.name: file_sha256(p) for p in files}
    sha256 = next(iter(parts.values())) if path.is_file() else digest(parts)
    return Artefact(str(path.relative_to(root)), sha256, sum(p.stat().st_size for p in files))


# JSON with a digest of itself, and folders by the hashes of their files: what is damaged shows it.


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object whole, with a digest of itself."""
    write_whole(path, json.dumps({**values, "sha256": digest(values)}))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where that is not there or not as it was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if values.pop("sha256") == digest(values) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path from there."""
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def changed_since(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The first file that is not as `hashes_of` saw it, in words; None when all are."""
    for name, sha256 in hashes.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if file_sha256(path) != sha256:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


# Heads of safetensors files.


@dataclass(frozen=True)
class TensorHead:
    """What a safetensors file's head says of one tensor; `dtype` as it is named there: BF16, F8_E4M3, I32."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path

    @property
    def size(self) -> int:
        """Bytes; a type's name says its bits first."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8

    def read(self) -> bytes:
        """Its bytes."""
        from safetensors import safe_open

        with safe_open(self.path, framework="np") as stored:
            return stored.get_tensor(self.name).tobytes()


def tensor_heads(path: Path) -> list[TensorHead]:
    """Every tensor of a safetensors file, by its head alone. Raises SafetensorError when it has none."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118  (it is no mapping)
        return [TensorHead(name, s.get_dtype(), tuple(s.get_shape()), path) for name, s in slices.items()]


# Who may read what is written: the user alone. Rows, answers and ledgers lie in runs, and machines are shared.


@contextlib.contextmanager
def keep_private() -> Iterator[None]:
    """Every file and folder made meanwhile, by this process or its children, is for the user alone."""
    before = os.umask(PRIVATE)
    USERS_OWN.append(before)
    try:
        yield
    finally:
        USERS_OWN.pop()
        os.umask(before)


def users_umask() -> int:
    """The umask that the user has set."""
    if USERS_OWN:
        return USERS_OWN[0]
    umask = os.umask(PRIVATE)
    os.umask(umask)
    return umask


def close_to_others(*paths: Path) -> None:
    """Take away from group and others what an earlier version gave them; what is not there, or another's, is left."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            mode = path.stat().st_mode
            if mode & PRIVATE:
                path.chmod(mode & 0o7700)


def hand_out(folder: Path) -> None:
    """Give a folder and all in it the rights that the user's own umask gives new files: it is meant for others.

    What its owner may execute, all may whom the umask lets.
    """
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            wanted = 0o777 if path.is_dir() or path.stat().st_mode & 0o100 else 0o666
            path.chmod(wanted & ~users_umask())
