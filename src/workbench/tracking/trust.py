"""Whether bytes from the registry are ours: signed by a key that is trusted here, or listed by a run's own manifest.

A version's tags prove nothing: whoever changes its files can change its tags with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from workbench.errors import WorkbenchError
from workbench.records import artefact
from workbench.runs import read_json
from workbench.signing_keys import PUBLIC, SHORT, TRUSTED, fingerprint, keys_folder, trusted_keys
from workbench.tracking.store import plain_name

MANIFEST, SIGNATURE = "MANIFEST.json", "signature.json"


def check_trusted(folder: Path, name: str, where: str, experiments: Path, keys: Sequence[Path] | None = None) -> None:
    """Refuse files that nothing outside the registry vouches for as the model registered as `name`.

    `keys` are the public keys to trust instead of this user's own and those in the `trusted` folder beside it.
    """
    problem = why_not_signed(folder, name, trusted_keys() if keys is None else keys)
    if problem is None:
        return
    found = artefact(folder, folder).sha256
    if found in listed_digests(experiments, name):
        return
    raise WorkbenchError(
        f"nothing outside the registry vouches for these bytes: {problem}, and no run of {name} in {experiments} "
        f"has made sha256 {found}",
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"their signature or manifest cannot be read ({type(error).__name__})"
    known = {fingerprint(key): key for key in keys}
    if hint not in known:
        return f"they are signed by {hint[:SHORT]}, which is not trusted here ({', '.join(f[:SHORT] for f in known)})"
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=known[hint]).verify(folder, folder / SIGNATURE)
    except (InvalidSignature, ValueError, OSError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return f"the signature is another file's ({why})"
    # Signed is signed under a name: else any bundle of ours could stand in for any other.
    if not isinstance(claimed, str) or plain_name(claimed) != name:
        return f"they are the signed bundle of another model, {claimed!r}"
    return None


def listed_digests(experiments: Path, name: str) -> set[str]:
    """The digests of the models that this machine's runs have made to be registered as `name`."""
    return {sha256 for path in sorted(experiments.glob("*/*/run.json")) for sha256 in offered(path, name)}


def offered(manifest: Path, name: str) -> Iterator[str]:
    """The digests that one run's manifest has for a registered name; a run that cannot be read offers none."""
    try:
        run = read_json(manifest)
        recipe = yaml.safe_load((manifest.parent / "recipe.yaml").read_text(encoding="utf-8")) or {}
        own = plain_name((recipe.get("tracking") or {}).get("registered_model") or str(run["recipe"]))
        made = {a["path"]: a["sha256"] for entry in run["stages"].values() for a in entry.get("artefacts", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return
    for path, sha256 in made.items():
        arm = path.removeprefix("bundle/") if path.startswith("bundle/") else ""
        if (name == own and (path == "merge/model" or arm == "student")) or (arm and name == f"{own}-{arm}"):
            yield sha256
