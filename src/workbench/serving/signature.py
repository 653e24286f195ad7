"""Who made a bundle: signed with model-signing in EC key mode, checked offline against a key that is trusted here.

`python -m model_signing verify key BUNDLE --signature BUNDLE/signature.json --public_key signing.pub.pem` says the
same without the workbench.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from workbench.errors import RequestError, WorkbenchError
from workbench.serving.manifest import MANIFEST, SIGNATURE, FileFacts, hash_files

PRIVATE, PUBLIC = "signing.pem", "signing.pub.pem"
SHORT = 16  # hex digits of a fingerprint that people are shown
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those model-signing takes


def keys_folder() -> Path:
    """Where keys are kept: `WORKBENCH_KEYS`, or the user's configuration folder."""
    return Path(os.environ.get("WORKBENCH_KEYS") or platformdirs.user_config_dir("workbench"))


def signing_key(folder: Path | None = None) -> Path:
    """The private key that signs here: the one `WORKBENCH_SIGNING_KEY` names, else one made once in the keys folder.

    The public half lies beside it as `NAME.pub.pem`. RequestError when the named key is missing, encrypted, or no
    EC key on P-256, P-384 or P-521.
    """
    named = os.environ.get("WORKBENCH_SIGNING_KEY")
    if named and folder is None:
        path = Path(named).expanduser()
        load_private(path)
        return path
    folder = folder or keys_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / PRIVATE
    with FileLock(folder / f".{PRIVATE}.lock"):
        if not path.is_file():
            make_key(path)
    return path


def make_key(path: Path) -> None:
    """A fresh P-256 key, readable by its owner only; the public half is written first."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())
    path.with_suffix(".pub.pem").write_bytes(public_pem(key.public_key()))
    os.replace(partial, path)


def public_key_of(private: Path) -> Path:
    """The public half of a private key, beside it; written when it is not there, or is another key's.

    A key in a folder that cannot be written (a mounted secret) has it in the keys folder, named by its fingerprint.
    """
    pem = public_pem(load_private(private).public_key())
    name = hashlib.sha256(pem).hexdigest()
    beside, own = private.with_suffix(".pub.pem"), keys_folder() / f"{name[:SHORT]}.pub.pem"
    for path in (beside, own):
        if path.is_file() and path.read_bytes() == pem:
            return path
    try:
        beside.write_bytes(pem)
        return beside
    except OSError:
        own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        own.write_bytes(pem)
        return own


def load_private(path: Path) -> Any:
    """The private key in a file; RequestError when model-signing could not sign with it."""
    from cryptography.hazmat.primitives import serialization

    remedy = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem makes one"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:
        raise RequestError(f"the signing key cannot be read: {error}", where=str(path), remedy=remedy) from None
    if getattr(getattr(key, "curve", None), "name", None) not in CURVES:
        raise RequestError("the signing key is no EC key on P-256, P-384 or P-521", where=str(path), remedy=remedy)
    return key


def public_pem(key: Any) -> bytes:
    """A public key as PEM."""
    from cryptography.hazmat.primitives import serialization

    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def fingerprint(public_key: Path) -> str:
    """SHA-256 of a public key's PEM, as hex: what a signature names its key by. RequestError when it is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"the public key cannot be read: {error}",
            where=str(public_key),
            remedy=f"copy {PUBLIC} from the machine that signed",
        ) from None
    return hashlib.sha256(public_pem(key)).hexdigest()


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
