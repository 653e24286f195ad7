"""Copy a bundle to a folder, an object store or a hub: manifest and signature last, and who sees them sees it whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.bundles.hub import SCHEME, copy_to_hub
from workbench.bundles.manifest import MANIFEST, SIGNATURE, bundle_files, check_files, listed_names, read_manifest
from workbench.errors import RequestError, WorkbenchError
from workbench.files import flush_tree, hand_out, replace_folder
from workbench.privacy.secrets import masked
from workbench.progress_bar import progress
from workbench.screen import SafeConsole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.callbacks import Callback

SCREEN = SafeConsole(stderr=True, highlight=False)
DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "webdav": "webdav4",
    "oci": "ocifs",
}
PIECE = 8 << 20  # bytes read back at once


def copy_bundle(folder: Path, to: str) -> None:
    """Copy the bundle's files to a folder, `hf://org/name` or any URL fsspec reaches; once more goes on where it ended.

    Every file is read back and hashed. A local folder is written beside its place and renamed into it. RequestError
    when the target holds anything else, or the driver for its scheme is missing; WorkbenchError when sending failed.
    """
    manifest = read_manifest(folder)
    names = in_order(folder, manifest["files"])
    local = local_path(to)
    try:
        if to.startswith(SCHEME):
            sent = copy_to_hub(folder, to, names)
        else:
            sent = copy_locally(folder, local, names) if local else copy_remotely(folder, to, names)
    except WorkbenchError:
        raise
    except Exception as error:  # each driver has its own errors
        raise WorkbenchError(
            f"copying failed: {type(error).__name__}: {error}",
            where=shown(to),
            remedy="the same command goes on where this one ended",
        ) from error
    if not sent:
        SCREEN.print(f"{shown(to)} already holds this very bundle", markup=False, soft_wrap=True)


def in_order(folder: Path, listed: Iterable[str]) -> list[str]:
    """The files to send, manifest and signature last; WorkbenchError when the folder holds others than it lists."""
    here = bundle_files(folder)
    last = [name for name in (MANIFEST, SIGNATURE) if name in here]
    names = sorted(name for name in here if name not in last)
    stray = set(names) ^ set(listed)
    if stray:
        raise WorkbenchError(f"the folder is not as its manifest says: {listed_names(stray)}", where=str(folder))
    return names + last


def local_path(to: str) -> Path | None:
    """The folder a target names, or None when it is a URL of somewhere else."""
    scheme, colon, rest = to.partition("://")
    if colon and scheme not in ("file", "local"):
        return None
    path = Path(rest if colon else to).expanduser()
    return Path(os.path.abspath(path))


def shown(to: str) -> str:
    """A URL without what opens it."""
    return masked(to)


def remote(to: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; RequestError when there is no driver for it."""
    import fsspec

    scheme = to.partition("://")[0]
    try:
        fs, root = fsspec.core.url_to_fs(to)
    except ImportError as error:
        package = DRIVERS.get(scheme, "")
        remedy = f"pip install {package}" if package else "install the fsspec driver it names"
        raise RequestError(f"no driver for {scheme}:// is installed ({error})", where="to", remedy=remedy) from None
    except ValueError as error:
        raise RequestError(f"no such place: {error}", where="to", remedy="a folder, s3://, gs:// or az://") from None
    except Exception as error:  # a driver that wants credentials when it is made
        raise RequestError(f"{scheme}:// cannot be opened: {error}", where="to") from error
    return fs, str(root).rstrip("/")


def copy_remotely(folder: Path, to: str, names: Sequence[str]) -> int:
    """To where a URL points; returns how many files were sent."""
    fs, root = remote(to)
    refuse_another(fs, root, folder, names, shown(to))
    return send(folder, names, fs, root)


def copy_locally(folder: Path, target: Path, names: Sequence[str]) -> int:
    """Into a hidden folder beside the target, flushed, then renamed; returns how many files were sent."""
    if target == folder.resolve() or folder.resolve() in target.parents:
        raise RequestError("a bundle cannot be copied into itself", where=f"to={target}")
    from fsspec.implementations.local import LocalFileSystem

    fs = LocalFileSystem()
    if target.is_dir() and any(target.iterdir()):
        refuse_another(fs, str(target), folder, names, str(target))
        check_files(target, read_manifest(target))
        return 0
    if target.exists() and not target.is_dir():
        raise RequestError("there is a file of that name", where=f"to={target}")
    unfinished = target.with_name(f".{target.name}.partial")
    if unfinished.is_symlink():  # what is cleared here would be another folder's
        raise RequestError("this is a link, and no half-sent bundle", where=str(unfinished), remedy="remove the link")
    unfinished.mkdir(parents=True, exist_ok=True)
    for name in set(bundle_files(unfinished)) - set(names):
        (unfinished / name).unlink()
    send(folder, names, fs, str(unfinished))  # 0 when all had been sent before: it is named now all the same
    for name in names:
        shutil.copymode(folder / name, unfinished / name)
    hand_out(unfinished)
    flush_tree(unfinished)
    replace_folder(unfinished, target)
    return len(names)


def refuse_another(fs: AbstractFileSystem, root: str, folder: Path, names: Sequence[str], where: str) -> None:
    """RequestError when the target holds another bundle, or files that are not this one's."""
    remedy = "name another place, or empty this one first"
    for name in (MANIFEST, SIGNATURE):
        there = fs.cat_file(f"{root}/{name}") if fs.exists(f"{root}/{name}") else None
        if there is not None and (name not in names or there != (folder / name).read_bytes()):
            raise RequestError(f"another bundle is there: its {name} differs", where=where, remedy=remedy)
    prefix = fs._strip_protocol(root).rstrip("/") + "/"
    present = {str(path).removeprefix(prefix) for path in fs.find(root)} if fs.exists(root) else set()
    stray = {name for name in present if name not in names}
    if stray:
        raise RequestError(f"other files are there: {listed_names(stray)}", where=where, remedy=remedy)


def send(folder: Path, names: Sequence[str], fs: AbstractFileSystem, root: str) -> int:
    """Send what is not there yet, read everything back, and return how many files were sent.

    WorkbenchError when what is read back is not what was sent.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    sent = 0
    with progress_bar(sum(sizes.values())) as step:
        for name in names:
            path, source = f"{root}/{name}", folder / name
            wanted = digest_of(source.open)
            there = fs.exists(path) and fs.size(path) == sizes[name]
            if not there or digest_of(partial(fs.open, path)) != wanted:
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                fs.put_file(str(source), path, callback=step(name, sizes[name]))
                fs.invalidate_cache()
                sent += 1
                if digest_of(partial(fs.open, path)) != wanted:
                    raise WorkbenchError(f"{name} was read back with other bytes than were sent", where=root)
            step(name, sizes[name]).absolute_update(sizes[name])
    return sent


def digest_of(open_as: Callable[[str], Any]) -> str:
    """SHA-256 of what a file's opener gives."""
    hashed = hashlib.sha256()
    with open_as("rb") as stream:
        while piece := stream.read(PIECE):
            hashed.update(piece)
    return hashed.hexdigest()


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], Callback]]:
    """A bar over all bytes; gives the function that makes a file's fsspec callback."""
    from fsspec.callbacks import Callback

    done: dict[str, int] = {}
    with progress("sending", total, facts=lambda: next(reversed(done), ""), size=True) as move:

        def step(name: str, size: int) -> Callback:
            def moved(_size: int | None, value: int, **_: object) -> None:
                done[name] = min(value, size)
                move(sum(done.values()))

            return Callback(size=size, hooks={"bar": moved})

        yield step
