"""A registered version that is looked at again: which one it is, and what was found written beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RequestError
from workbench.recipe import Tracking
from workbench.tracking.fetch import SOURCE, find_version, folder_digest
from workbench.tracking.store import connect, store_uri


@dataclass(frozen=True)
class Version:
    """A version in the registry; its number stays when an alias moves on."""

    name: str
    number: str

    @property
    def source(self) -> str:
        """Where its files are, as a source."""
        return f"mlflow:models:/{self.name}/{self.number}"


def version_named(source: str) -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/3` names now. RequestError when there is none."""
    match = SOURCE.match(source)
    if not match:
        raise RequestError(
            "cannot read this model", where=source, remedy="write models:/NAME@champion, models:/NAME/3, or a folder"
        )
    uri = here()
    if is_missing(uri):
        raise RequestError(
            f"there is no MLflow store at {uri}",
            where=source,
            remedy="set MLFLOW_TRACKING_URI, or register a run first",
        )
    with connect(uri) as client:
        found = find_version(client, match, source)
        return Version(found.name, str(found.version))


def version_of(folder: Path, name: str) -> Version | None:
    """The version that a bundle's folder was registered as under this name, if it was; by its bytes."""
    uri = here()
    if is_missing(uri):
        return None
    with connect(uri) as client:
        known = client.search_model_versions(f"name = '{name}'")
        wanted = folder_digest(folder) if known else ""
        found = next((version for version in known if version.tags.get("sha256") == wanted), None)
        return Version(found.name, str(found.version)) if found else None


def tag(version: Version, tags: Mapping[str, str]) -> None:
    """Write tags on a version. WorkbenchError when the store cannot be reached."""
    with connect(here()) as client:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, value)


def here() -> str:
    """The store that a command without a recipe speaks to, as `export` does."""
    return store_uri(Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI") or None), Path("experiments"))


def is_missing(uri: str) -> bool:
    """Whether it is an sqlite store that nobody has made yet; asking it would make it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()
