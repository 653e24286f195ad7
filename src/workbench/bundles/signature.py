"""Who made a bundle: signed with model-signing in EC key mode, checked offline against a key that is trusted here.

`python -m model_signing verify key BUNDLE --signature BUNDLE/signature.json --public_key signing.pub.pem` says the
same without the workbench.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.bundles.manifest import MANIFEST, SIGNATURE, FileFacts, hash_files
from workbench.errors import WorkbenchError
from workbench.signing_keys import PUBLIC, SHORT, fingerprint, load_private


def sign(folder: Path, key: Path, hashed: Mapping[str, FileFacts] | None = None) -> None:
    """Write signature.json over every file of the bundle, MANIFEST.json too.

    `hashed` may give the digests of files that were hashed already; MANIFEST.json is always hashed here.
    """
    from model_signing import signing

    load_private(key)
    digests = {name: facts for name, facts in (hashed or hash_files(folder)).items() if name != MANIFEST}
    digests |= hash_files(folder, [MANIFEST])
    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(known_digests(digests)).sign(folder, folder / SIGNATURE)


def check_signature(folder: Path, public_key: Path, hashed: Mapping[str, FileFacts] | None = None) -> str:
    """That the bundle's files are those that the owner of `public_key` signed; no network is needed.

    `hashed` is what `hash_files` found, so that no byte is read twice. Returns a sentence; WorkbenchError when the
    bundle is not signed, signed by another key, or other files were signed.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    where, path = str(folder), folder / SIGNATURE
    if not path.is_file():
        raise WorkbenchError(f"not signed: there is no {SIGNATURE}", where=where)
    wanted, named = fingerprint(public_key), signed_by(path)
    if named != wanted:
        raise WorkbenchError(
            f"signed by another key: {named[:SHORT]}, trusted here is {wanted[:SHORT]}",
            where=where,
            remedy=f"give the maker's {PUBLIC} if that key is to be trusted",
        )
    digests = hash_files(folder) if hashed is None else hashed
    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.set_hashing_config(known_digests(digests)).verify(folder, path)
    except InvalidSignature:
        raise WorkbenchError(f"the signature was not made by the key {wanted[:SHORT]} it names", where=where) from None
    except ValueError as error:
        what = str(error)
        problem = f"other files were signed: {told(what)}" if "Signature mismatch" in what else what
        raise WorkbenchError(problem, where=where) from None
    return f"signed by {wanted[:SHORT]}"


def signed_by(path: Path) -> str:
    """The fingerprint of the key that a signature says it was made with; WorkbenchError when it says none."""
    try:
        hint = json.loads(path.read_text(encoding="utf-8"))["verificationMaterial"]["publicKey"]["hint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{SIGNATURE} cannot be read: {error!r}", where=str(path)) from None
    if not isinstance(hint, str) or not hint:
        raise WorkbenchError(f"{SIGNATURE} does not name its key", where=str(path))
    return hint


def told(mismatch: str, most: int = 200) -> str:
    """model-signing's account of a mismatch, short enough for one line."""
    text = mismatch.partition("Signature mismatch:")[2].strip(" []'\"")
    return text if len(text) <= most else text[:most] + " …"


def known_digests(hashed: Mapping[str, FileFacts]) -> Any:
    """A model-signing hashing configuration that takes digests known already, so that each byte is read once.

    It describes itself as model-signing's own serialization by files, which any of its clients can repeat.
    """
    from model_signing import hashing, manifest

    how = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    )

    class Known(hashing.Config):  # the library's one way to be handed digests
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            digests = {n: manifest.hashing.Digest("sha256", bytes.fromhex(f.sha256)) for n, f in hashed.items()}
            items = [how.new_item(name, digest) for name, digest in digests.items() if name != SIGNATURE]
            return manifest.Manifest(Path(model_path).resolve().name, items, how)

    return Known()
