"""The key that signs bundles here, and the keys that are trusted: this user's own, and those of named colleagues.

A store that bundles are fetched from holds none of them, so whoever can change the store cannot sign what it gives.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock

from workbench.errors import RequestError
from workbench.files import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

PRIVATE, PUBLIC = "signing.pem", "signing.pub.pem"
TRUSTED = "trusted"  # a folder beside the keys: NAME.pub.pem of each maker whose bundles are trusted as sources
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
    write_whole(path.with_suffix(".pub.pem"), public_pem(key.public_key()))
    write_whole(path, pem, mode=0o600)


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
        write_whole(beside, pem)
        return beside
    except OSError:
        own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(own, pem)
        return own


def load_private(path: Path) -> EllipticCurvePrivateKey:
    """The private key in a file; RequestError when model-signing could not sign with it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    remedy = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem makes one"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:
        raise RequestError(f"the signing key cannot be read: {error}", where=str(path), remedy=remedy) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise RequestError("the signing key is no EC key on P-256, P-384 or P-521", where=str(path), remedy=remedy)
    return key


def public_pem(key: PublicKeyTypes) -> bytes:
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


def trusted_keys() -> list[Path]:
    """The public keys whose signatures are trusted here: this user's own, then every one in `trusted/` beside it."""
    return [public_key_of(signing_key()), *sorted((keys_folder() / TRUSTED).glob("*.pem"))]
