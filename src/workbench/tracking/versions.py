"""Registered versions: their files brought back and proven, the champion among them, and what a re-check wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from workbench.errors import RequestError, WorkbenchError
from workbench.files import artefact, require_room
from workbench.privacy.secrets import masked
from workbench.recipe import Tracking
from workbench.signing_keys import PUBLIC, SHORT, TRUSTED, fingerprint, keys_folder, trusted_keys
from workbench.sources import hub_download
from workbench.tracking.bounds import CALL_S, GIVEN_UP, AwayError, no_larger_file, while_growing, within
from workbench.tracking.store import connect, is_here, manners, plain_name, shown, store_uri
from workbench.tracking.vouching import set_back, vouched

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo
    from mlflow.entities.model_registry import ModelVersion

HERE = Path("experiments")  # where a command without a recipe looks for runs and their store
SOURCE = re.compile(r"^(?:mlflow:)?models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")
# A server writes an upload under such a name first; one that was killed leaves it behind.
UNFINISHED = ".artifact.uploading."
BESIDES = 1_000_000  # bytes by which a file may be larger than its store says, and what else is written meanwhile


def download(uri: str, location: str, into: Path) -> Path:
    """Copy everything below an artefact location of the store at `uri` into the folder `into`; returns `into`."""
    with manners(uri):
        from mlflow.artifacts import download_artifacts, list_artifacts

        into.mkdir(parents=True, exist_ok=True)
        refuse_odd_files(location)

        def listed() -> list[FileInfo]:
            return list_artifacts(artifact_uri=location, tracking_uri=uri)

        def fetched() -> str:
            return download_artifacts(artifact_uri=location, dst_path=str(into), tracking_uri=uri)

        away = not is_here(uri) or not location.startswith(("file:", "/"))
        entries = within(CALL_S, "list_artifacts", listed) if away else listed()
        if not entries:
            raise WorkbenchError(
                "the store no longer has these files",
                where=shown(location),
                remedy="run `register` again to store them anew",
            )
        got = Path(as_listed(entries, fetched, into, location) if away else fetched())
    if got.resolve() != into.resolve():  # some artefact stores add the folder's own name
        for part in got.iterdir():
            shutil.move(part, into / part.name)
        got.rmdir()
    for left in into.rglob(f"{UNFINISHED}*"):
        left.unlink()
    return into


def as_listed(entries: Sequence[FileInfo], fetch: Callable[[], str], into: Path, location: str) -> str:
    """What `fetch` gives, which fills `into`; DiskError where what the store lists has no room there.

    WorkbenchError once a file grows past the largest that it lists: what a server sends may have no end.
    """
    sizes = [entry.file_size for entry in entries]
    most = hub_download.most_bytes()
    if None not in sizes:  # folders have none
        require_room(into, sum(sizes), "the registered model")
        most = min(most, max(sizes) + BESIDES)
    try:
        with no_larger_file(most):
            return while_growing(into, "download_artifacts", fetch)
    except Exception as error:
        if "File too large" not in str(error):
            raise
        raise WorkbenchError(
            f"the store sends a file of more than {most:,} bytes, which it has not listed, or which has no end",
            where=shown(location),
            remedy="look at the store: the model's files are not as it says",
        ) from None


def refuse_odd_files(location: str) -> None:
    """WorkbenchError for a place on this machine that is no folder of plain files (a device would be read for ever)."""
    if not location.startswith(("file:", "/")):
        return
    folder = Path(url2pathname(urlsplit(location).path))
    parts = [folder, *folder.rglob("*")] if folder.is_dir() else [folder] if folder.exists() else []
    odd = [part for part in parts if part.is_symlink() or not (part.is_dir() or part.is_file())]
    if odd or (parts and not folder.is_dir()):
        raise WorkbenchError(
            f"{(odd or parts)[0]} is no plain file of a model's folder",
            where=shown(location),
            remedy="the store was changed; run `register` again to store the model anew",
        )


def folder_digest(folder: Path) -> str:
    """SHA-256 of a folder as `run.json` has it: over its files' names and digests."""
    return artefact(folder, folder).sha256


def resolve_source(source: str, into: Path, key: Path | None = None, experiments: Path = HERE, uri: str = "") -> Path:
    """Download `mlflow:models:/name@alias` or `mlflow:models:/name/3` into the folder `into` and prove its bytes.

    They must have the version's hash and be vouched for by what the store does not hold: the signature of a trusted
    key (`key`, when one is named) on a bundle, or beside a run in `experiments`. The store is `uri`, else
    `MLFLOW_TRACKING_URI`, else the sqlite store in `experiments`. Raises RequestError for a source that cannot be
    read or found, WorkbenchError when the bytes are not proven.
    """
    match = SOURCE.match(source)
    if not match:
        raise RequestError(
            "cannot read this model", where=source, remedy="write mlflow:models:/name@alias or mlflow:models:/name/3"
        )
    uri = here(experiments, uri)
    if is_missing(uri):
        raise RequestError(
            f"there is no MLflow store at {uri}",
            where=source,
            remedy="name where it is (experiments=FOLDER, uri=URI, MLFLOW_TRACKING_URI), or register a run first",
        )
    with connect(uri) as client:
        version = find_version(client, match, source)
        if match["alias"] == "champion" and (line := set_back(uri, version.name, str(version.version))):
            print(masked(line), file=sys.stderr)
        promised = version.tags.get("sha256")
        if not promised:
            raise WorkbenchError(
                f"version {version.version} has no sha256 tag, so its bytes cannot be proven",
                where=source,
                remedy="use a version that `register` made",
            )
        download(uri, client.get_model_version_download_uri(version.name, version.version), into)
    check(into, promised, source)
    check_trusted(into, version.name, source, experiments.absolute(), None if key is None else [key])
    return into


def find_version(client: MlflowClient, match: re.Match[str], source: str) -> ModelVersion:
    """The version that a source names, by number or by alias."""
    from mlflow.exceptions import MlflowException

    try:
        if match["alias"]:
            return client.get_model_version_by_alias(match["name"], match["alias"])
        return client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RequestError(
            "the registry has no such model, version or alias",
            where=f"{source} in {shown(client.tracking_uri)}",
            remedy="`python -m workbench ui` shows what is registered",
        ) from None


def check(folder: Path, promised: str, where: str) -> None:
    """Refuse files that are not the promised ones."""
    sha256 = folder_digest(folder)
    if sha256 != promised:
        raise WorkbenchError(
            f"the store gave back other bytes: sha256 is {sha256}, registered was {promised}",
            where=where,
            remedy="the store's copy is damaged or was changed; run `register` again to store it anew",
        )


# A registered version that is looked at again: which one it is, and what was found written beside it.


@dataclass(frozen=True)
class Version:
    """A version in the registry; its number stays when an alias moves on."""

    name: str
    number: str

    @property
    def source(self) -> str:
        """Where its files are, as a source."""
        return f"mlflow:models:/{self.name}/{self.number}"


def version_named(source: str, experiments: Path = HERE, uri: str = "") -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/3` names now. RequestError when there is none."""
    match = SOURCE.match(source)
    if not match:
        raise RequestError(
            "cannot read this model", where=source, remedy="write models:/NAME@champion, models:/NAME/3, or a folder"
        )
    uri = here(experiments, uri)
    if is_missing(uri):
        raise RequestError(
            f"there is no MLflow store at {uri}",
            where=source,
            remedy="name where it is (experiments=FOLDER, uri=URI, MLFLOW_TRACKING_URI), or register a run first",
        )
    with connect(uri) as client:
        version = find_version(client, match, source)
        return Version(version.name, str(version.version))


def version_of(folder: Path, name: str, experiments: Path = HERE, uri: str = "") -> Version | None:
    """The version that a bundle's folder was registered as under this name, if it was; by its bytes."""
    uri = here(experiments, uri)
    if is_missing(uri):
        return None
    with connect(uri) as client:
        known = client.search_model_versions(f"name = '{name}'")
        wanted = folder_digest(folder) if known else ""
        match = next((version for version in known if version.tags.get("sha256") == wanted), None)
        return Version(match.name, str(match.version)) if match else None


def tag(version: Version, tags: Mapping[str, str], experiments: Path = HERE, uri: str = "") -> None:
    """Write tags on a version. WorkbenchError when the store cannot be reached."""
    with connect(here(experiments, uri)) as client:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, masked(value))


def here(experiments: Path = HERE, uri: str = "") -> str:
    """The store that a command without a recipe speaks to: `uri`, the environment's, or the folder's."""
    return store_uri(Tracking(uri=uri or os.environ.get("MLFLOW_TRACKING_URI") or None), experiments)


def is_missing(uri: str) -> bool:
    """Whether it is an sqlite store that nobody has made yet; asking it would make it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()


# The version that the registry calls champion: which one it is, and its files, proven.


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
    if uri in GIVEN_UP:
        raise AwayError("the MLflow server has not answered this command before", where=shown(uri))
    name = plain_name(tracking.registered_model or recipe_name)
    with connect(uri) as client:
        models = client.search_registered_models(f"name = '{name}'")
        number = next(
            (str(v) for model in models for alias, v in (model.aliases or {}).items() if alias == "champion"), ""
        )
        if not number:
            return None
        tags = client.get_model_version(name, number).tags
    if line := set_back(uri, name, number):
        print(masked(line), file=sys.stderr)
    return Champion(name, number, str(tags.get("digest", "")), str(tags.get("sha256", "")))


def fetch_champion(tracking: Tracking, experiments: Path, champion: Champion, into: Path) -> Path:
    """Its files in the folder `into`, fetched unless they lie there whole.

    WorkbenchError when they are other bytes than were registered, or when only the store vouches for them.
    """
    where = f"models:/{champion.name}/{champion.number}"
    if not champion.sha256:
        raise WorkbenchError("this version has no sha256 tag, so its bytes cannot be proven", where=where)
    if not (into.is_dir() and folder_digest(into) == champion.sha256):
        shutil.rmtree(into, ignore_errors=True)
        uri = store_uri(tracking, experiments)
        with connect(uri) as client:
            download(uri, client.get_model_version_download_uri(champion.name, champion.number), into)
        check(into, champion.sha256, where)
    check_trusted(into, champion.name, where, experiments)
    return into


# Whether bytes from the registry are ours: signed by a key that is trusted here, as a bundle or beside their run.
#
# A version's tags prove nothing: whoever changes its files can change its tags with them.

MANIFEST, SIGNATURE = "MANIFEST.json", "signature.json"


def check_trusted(folder: Path, name: str, where: str, experiments: Path, keys: Sequence[Path] | None = None) -> None:
    """Refuse files that nothing outside the registry vouches for as the model registered as `name`.

    `keys` are the public keys to trust instead of this user's own and those in the `trusted` folder beside it.
    """
    problem = why_not_signed(folder, name, trusted_keys() if keys is None else keys)
    if problem is None:
        return
    sha256 = artefact(folder, folder).sha256
    if sha256 in vouched(experiments, name):
        return
    raise WorkbenchError(
        f"nothing outside the registry vouches for these bytes: {problem}, and no run of {name} in {experiments} "
        f"has a trusted key's word for sha256 {sha256}",
        where=where,
        remedy="`register` the run again where it was made; to trust another maker, put their "
        f"{PUBLIC} into {keys_folder() / TRUSTED}",
    )


def check_signed(folder: Path, name: str) -> None:
    """Refuse a bundle that no trusted key has signed as the model registered as `name`."""
    problem = why_not_signed(folder, name, trusted_keys())
    if problem is not None:
        raise WorkbenchError(f"the bundle is not proven: {problem}", where=str(folder))


def why_not_signed(folder: Path, name: str, keys: Sequence[Path]) -> str | None:
    """Why the folder is no bundle of this name that one of the keys has signed; None when it is."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    if not (folder / SIGNATURE).is_file():
        return "they are not signed"
    try:
        hint = str(json.loads((folder / SIGNATURE).read_bytes())["verificationMaterial"]["publicKey"]["hint"])
        claimed = json.loads((folder / MANIFEST).read_bytes()).get("name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"their signature or manifest cannot be read ({type(error).__name__})"
    known = {fingerprint(key): key for key in keys}
    if hint not in known:
        return f"they are signed by {hint[:SHORT]}, which is not trusted here ({', '.join(f[:SHORT] for f in known)})"
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=known[hint]).verify(folder, folder / SIGNATURE)
    except (InvalidSignature, ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return f"the signature is another file's ({why})"
    # Signed is signed under a name: else any bundle of ours could stand in for any other.
    if not isinstance(claimed, str) or plain_name(claimed) != name:
        return f"they are the signed bundle of another model, {claimed!r}"
    return None
