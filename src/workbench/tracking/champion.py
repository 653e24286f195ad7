"""The version that the registry calls champion: which one it is, and its files, proven."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.recipe import Tracking
from workbench.tracking import fetch
from workbench.tracking.recheck import is_missing
from workbench.tracking.store import connect, plain_name, store_uri
from workbench.tracking.trust import check_trusted


@dataclass(frozen=True)
class Champion:
    """A registered version: its name and number, the run it came from (8 hex), and the digest of its files."""

    name: str
    number: str
    run: str
    sha256: str


def find_champion(tracking: Tracking, experiments: Path, recipe_name: str) -> Champion | None:
    """What `models:/<registered name>@champion` is now; None when there is none, or no store yet.

    Raises WorkbenchError when the store cannot be reached.
    """
    uri = store_uri(tracking, experiments)
    if is_missing(uri):
        return None
    name = plain_name(tracking.registered_model or recipe_name)
    with connect(uri) as client:
        models = client.search_registered_models(f"name = '{name}'")
        number = next(
            (str(v) for model in models for alias, v in (model.aliases or {}).items() if alias == "champion"), ""
        )
        if not number:
            return None
        tags = client.get_model_version(name, number).tags
    return Champion(name, number, str(tags.get("digest", "")), str(tags.get("sha256", "")))


def fetch_champion(tracking: Tracking, experiments: Path, champion: Champion, into: Path) -> Path:
    """Its files in the folder `into`, fetched unless they lie there whole.

    WorkbenchError when they are other bytes than were registered, or when only the store vouches for them.
    """
    where = f"models:/{champion.name}/{champion.number}"
    if not champion.sha256:
        raise WorkbenchError("this version has no sha256 tag, so its bytes cannot be proven", where=where)
    if not (into.is_dir() and fetch.folder_digest(into) == champion.sha256):
        shutil.rmtree(into, ignore_errors=True)
        uri = store_uri(tracking, experiments)
        with connect(uri) as client:
            fetch.download(uri, client.get_model_version_download_uri(champion.name, champion.number), into)
        fetch.check(into, champion.sha256, where)
    check_trusted(into, champion.name, where, experiments)
    return into
