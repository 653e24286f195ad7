"""A bundle into a model repository of the Hugging Face hub: one commit, after every byte of it has arrived."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.bundles.manifest import MANIFEST, SIGNATURE, listed_names
from workbench.errors import RequestError, WorkbenchError
from workbench.files import file_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

SCHEME = "hf://"
PLACE = re.compile(r"hf://([\w.-]+/[\w.-]+)/?")
OF_THE_HUB = {".gitattributes"}  # made with the repository, and no file of a bundle
AGAIN = "the same command goes on where this one ended"
PATIENCE_S = 60.0  # for each piece that is sent or awaited: the library's own client waits for ever


def copy_to_hub(folder: Path, to: str, names: Sequence[str]) -> int:
    """Send the files to `hf://org/name`, made private where it is not there yet; how many were new. HF_TOKEN is asked.

    One commit holds them all, so that nobody sees half a bundle; what the hub holds then is held against the files,
    each by its SHA-256, or by its name in git where it is small. RequestError when the repository holds another bundle
    or other files, WorkbenchError when the hub could not be reached or holds other bytes.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import get_session

    match = PLACE.fullmatch(to)
    if not match:
        raise RequestError(f"cannot read {to!r}", where="to", remedy="write to=hf://ORG/NAME: a model's repository")
    repo, hub = match[1], HfApi()
    get_session().timeout = PATIENCE_S
    with spoken(to):
        hub.create_repo(repo, private=True, exist_ok=True)
        before = there(hub, repo)
        refuse_others(folder, before, names, to)
        new = [name for name in names if not is_same(folder / name, before.get(name))]
        if new:
            additions = [CommitOperationAdd(name, folder / name) for name in new]
            hub.create_commit(repo, additions, commit_message=f"Add {len(new)} files of a proven bundle")
            after = there(hub, repo)
            differing = [name for name in names if not is_same(folder / name, after.get(name))]
            if differing:
                raise WorkbenchError(
                    f"the hub holds other bytes than were sent: {listed_names(differing)}", where=to, remedy=AGAIN
                )
    return len(new)


def there(hub: HfApi, repo: str) -> dict[str, RepoFile]:
    """What the repository's main branch holds."""
    from huggingface_hub.hf_api import RepoFile

    entries = hub.list_repo_tree(repo, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def is_same(path: Path, entry: RepoFile | None) -> bool:
    """Whether the hub's entry is of this very file: large ones have a SHA-256 there, small ones git's name of them."""
    if entry is None or entry.size != path.stat().st_size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == file_sha256(path))
    content = path.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())


def refuse_others(folder: Path, before: dict[str, RepoFile], names: Sequence[str], to: str) -> None:
    """RequestError when the repository holds another bundle, or files that are not this one's."""
    remedy = "name another repository, or empty this one first"
    for name in (MANIFEST, SIGNATURE):
        if name in before and (name not in names or not is_same(folder / name, before[name])):
            raise RequestError(f"another bundle is there: its {name} differs", where=to, remedy=remedy)
    stray = before.keys() - set(names) - OF_THE_HUB
    if stray:
        raise RequestError(f"other files are there: {listed_names(stray)}", where=to, remedy=remedy)


@contextmanager
def spoken(to: str) -> Iterator[None]:
    """The hub's refusals as errors with the way out."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    token = "set HF_TOKEN to a token with the right to write there"
    try:
        yield
    except LocalTokenNotFoundError:
        raise RequestError("the hub asks who sends this", where=to, remedy=token) from None
    except OfflineModeIsEnabled:
        raise RequestError("HF_HUB_OFFLINE keeps this machine from the hub", where=to, remedy="unset it") from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise RequestError(f"the hub refuses: {error.server_message or error}", where=to, remedy=token) from None
        raise WorkbenchError(f"the hub could not take it: {error}", where=to, remedy=AGAIN) from None
    except (HTTPError, OSError) as error:
        raise WorkbenchError(f"the hub could not be reached: {error}", where=to, remedy=AGAIN) from None
    except ValueError as error:  # the hub's word on the card
        raise WorkbenchError(f"the hub does not take this: {error}", where=to) from None
