"""Files on disk: written whole or not at all, hashed, removed with care, the user's alone; and what a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.errors import FAILED, WorkbenchError
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
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with named_when_full(path), os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add text at the end of a file and force it to the disk, all of it or none: a full disk may cut it short."""
    data = memoryview(text.encode())
    with named_when_full(path), path.open("ab", buffering=0) as stream:
        before = os.fstat(stream.fileno()).st_size
        try:
            while data:
                data = data[stream.write(data) :]
            os.fsync(stream.fileno())
        except OSError:
            os.ftruncate(stream.fileno(), before)
            raise


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that takes its place when the block ends well; otherwise it goes.

    Only one process at a time may write a folder: the caller holds its lock. A full disk is one error that names it.
    """
    partial = final.with_name(f".{final.name}.partial")
    remove(partial)  # what a killed writer left
    partial.mkdir(parents=True)
    try:
        with disk_errors(final.parent):
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


# Temporary folders that outlive a killed process only until the next command looks: a living owner holds a lock.

PREFIX, LOCK = ".workbench-", ".lock"
YOUNG_S = 10.0  # a folder that is younger may not have its lock yet


@contextmanager
def temporary_folder(inside: Path | None = None) -> Iterator[Path]:
    """A new folder in `inside` (made where it is missing; None: the system's), removed at the end.

    Those that killed processes left in the same place are removed first; so is, the next time, what could not be
    removed at the end, where another process may just be looking whether its owner lives.
    """
    place = inside or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    sweep(place)
    made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True)
    with made as name, FileLock(Path(name) / LOCK):
        yield Path(name)


@dataclass(frozen=True)
class Home:
    """A temporary folder that is there as long as anything holds this value; a killed owner's is swept like others."""

    folder: Path
    kept: tuple[object, ...]  # what removes the folder once nobody holds it any more, and its lock


def temporary_home() -> Home:
    """A new folder where the system keeps temporary ones, for what outlives a block; see `temporary_folder`."""
    place = Path(tempfile.gettempdir())
    sweep(place)
    made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True)
    lock = FileLock(Path(made.name) / LOCK)
    lock.acquire()
    return Home(Path(made.name), (made, lock))


def sweep(place: Path) -> None:
    """Remove this user's temporary folders in a place whose owners are dead."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            facts = folder.lstat()
            old = time.time() - facts.st_mtime > YOUNG_S
            if old and facts.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


# What a disk refuses (it is full, read-only, broken), as one error that names the folder and what is free.

FULL = "no space left on this disk"
ROOM = "make room there, and give the same command again: what is done is kept"
# What happened, and what to do, by the system's number.
KINDS = {
    errno.ENOSPC: (FULL, ROOM),
    errno.EDQUOT: ("no space left: your quota on this disk is used up", ROOM),
    errno.EFBIG: ("a file has reached the largest size allowed here", "raise `ulimit -f`, or use another disk"),
    errno.EROFS: ("this disk is read-only", "mount it writable, or name another folder: launch.experiments=FOLDER"),
    errno.EACCES: ("this may not be read or written by you", "give yourself the right, or name another folder"),
    errno.EPERM: ("this may not be changed by you", "give yourself the right, or name another folder"),
    errno.EIO: ("the disk failed to read or write", "look at the system's log; once the disk is well, go on from here"),
    errno.EMFILE: ("too many files are open in this process", "raise `ulimit -n`, and give the same command again"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs, and give the same command again"),
}
# Libraries that write by themselves leave the number out: what their errors say instead.
WORDS = {
    errno.ENOSPC: r"no space left on device|os error 28\b|(?:database or )?disk is full|not enough free disk space",
    errno.EDQUOT: r"disk quota exceeded|os error 122\b",
    errno.EFBIG: r"file too large|os error 27\b",
    errno.EROFS: r"read-only file system|os error 30\b|attempt to write a readonly database",
    errno.EIO: r"input/output error|os error 5\b|disk i/o error",
    errno.EMFILE: r"too many open files|os error 24\b",
}
# Torch's writer says only that it failed; and a child may have found no room to say anything.
UNSAID, NEARLY_FULL = r"PytorchStreamWriter failed|inline_container|iostream error|\(it printed nothing\)", 1 << 20


class DiskError(WorkbenchError):
    """A disk has refused: which folder, how much is free, what to do. The same command goes on once it takes more."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses meanwhile into a DiskError, which names `folder` where the system names no file."""
    try:
        yield
    except Exception as error:
        refused = disk_error(error, folder)
        if refused is None or refused is error:
            raise
        raise refused from error


def disk_error(error: BaseException, folder: Path) -> WorkbenchError | None:
    """The error for a person, where a disk is what failed; None for any other. `folder` is where the work lay.

    What a room has said for a person is kept where it names a place already and no disk stands behind it.
    """
    if isinstance(error, DiskError):
        return error
    if isinstance(error, WorkbenchError) and error.exit_code != FAILED:
        return None
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno in KINDS:
            return refusal(cause.errno, place_of(cause, folder))
    if isinstance(error, WorkbenchError) and error.where:
        return None
    for cause in chain(error):
        number = number_in(str(cause), folder)
        if number:
            return refusal(number, folder)
        if isinstance(cause, EOFError) and (torn := torn_bytecode(cause)):
            return DiskError(
                "Python's own copy of a module is torn: the disk was full when it was written", where=torn,
                remedy="delete this file, and give the same command again",
            )  # fmt: skip
    return None


def torn_bytecode(error: BaseException) -> str:
    """The file of bytecode that Python could not read to its end while it imported a module; '' for another error."""
    step = error.__traceback__
    while step is not None:
        if "importlib" in step.tb_frame.f_code.co_filename and step.tb_frame.f_locals.get("bytecode_path"):
            return str(step.tb_frame.f_locals["bytecode_path"])
        step = step.tb_next
    return ""


def refusal(number: int, place: Path) -> DiskError:
    """What the system's number means at this place, with the bytes that are free there."""
    what, remedy = KINDS[number]
    free = free_bytes(place)
    return DiskError(f"{what} ({free / 1e6:,.1f} MB free)", where=str(place), remedy=remedy)


def number_in(text: str, folder: Path) -> int | None:
    """The system's number that a library's words stand for."""
    for number, words in WORDS.items():
        if re.search(words, text, re.IGNORECASE):
            return number
    return errno.ENOSPC if re.search(UNSAID, text) and free_bytes(folder) < NEARLY_FULL else None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, each once."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Have an error of a disk that is full name the file: the system does when it is opened, not when it is written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


def place_of(error: OSError, folder: Path) -> Path:
    """The file that an error names, else the folder of the work: a full disk is one of folders, not of a file."""
    named = error.filename2 or error.filename
    if not isinstance(named, (str, os.PathLike)):
        return folder
    path = Path(named)
    return path.parent if error.errno in (errno.ENOSPC, errno.EDQUOT) else path


def free_bytes(place: Path) -> int:
    """The bytes that a user may still write there; of the nearest folder that exists, where this does not yet."""
    place = place.absolute()
    for folder in (place, *place.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return 0


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise DiskError when `what` would not fit: it needs so many bytes in `folder`, and fewer are free."""
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"no space left for {what}: it needs about {size(needed)} ({needed:,} bytes), and {size(free)} "
            f"({free:,} bytes) are free",
            where=str(folder),
            remedy=ROOM,
        )


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
