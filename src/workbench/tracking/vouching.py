"""What this user's key says of registered models: which bytes a run gave, and which version was last made champion.

A run's manifest and a registry can both be written to by others; neither holds the signing key. So a version without a
signed bundle (a student that the gate refused) is vouched for by a signed statement beside its run, and that an alias
was set back to an older version, whose signature is as good as ever, is known from a note beside the key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from workbench.files import write_whole
from workbench.records import canonical, digest
from workbench.signing_keys import fingerprint, keys_folder, load_private, public_key_of, signing_key, trusted_keys

STATEMENTS = "vouched.json"  # beside a run's run.json
CHAMPIONS = "champions.json"  # beside the keys


def vouch(run: Path, name: str, sha256: str) -> None:
    """Sign that this run gave these bytes to be registered as `name`; what was signed before stays."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    statements = [
        entry for entry in entries(run / STATEMENTS) if (entry.get("name"), entry.get("sha256")) != (name, sha256)
    ]
    private = signing_key()
    signature = load_private(private).sign(said_of(name, sha256), ec.ECDSA(hashes.SHA256()))
    made = {"name": name, "sha256": sha256, "key": fingerprint(public_key_of(private)),
            "signature": base64.b64encode(signature).decode()}  # fmt: skip
    write_whole(run / STATEMENTS, json.dumps([*statements, made], indent=1) + "\n")


def vouched(experiments: Path, name: str) -> Iterator[str]:
    """The digests that a trusted key says were given to be registered as `name` by a run in this folder."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    known = {fingerprint(key): key for key in trusted_keys()}
    for path in sorted(experiments.glob(f"*/*/{STATEMENTS}")):
        for entry in entries(path):
            key, sha256 = known.get(str(entry.get("key"))), str(entry.get("sha256"))
            if key is None or entry.get("name") != name:
                continue
            public = serialization.load_pem_public_key(key.read_bytes())
            try:
                signature = base64.b64decode(str(entry.get("signature")), validate=True)
                assert isinstance(public, ec.EllipticCurvePublicKey)
                public.verify(signature, said_of(name, sha256), ec.ECDSA(hashes.SHA256()))
            except (InvalidSignature, ValueError, AssertionError):
                continue
            yield sha256


def said_of(name: str, sha256: str) -> bytes:
    """What is signed."""
    return f"workbench: registered as {canonical([name, sha256])}".encode()


def entries(path: Path) -> list[dict[str, object]]:
    """The statements in a file; none where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


# The last champion that this user's commands have set, by store and name: a registry alone cannot tell of a rollback.


def note_champion(uri: str, name: str, number: str | None) -> None:
    """Remember which version is champion now; None: none is."""
    path = keys_folder() / CHAMPIONS
    notes = champions(path)
    notes[digest([uri, name], 16)] = number or ""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, json.dumps(notes, indent=1) + "\n", mode=0o600)


def set_back(uri: str, name: str, number: str) -> str:
    """A line where the registry calls an older version champion than the one that was made it here last, or ""."""
    last = champions(keys_folder() / CHAMPIONS).get(digest([uri, name], 16), "")
    if not last.isdecimal() or not number.isdecimal() or int(number) >= int(last):
        return ""
    return (
        f"{name}@champion is version {number}, and version {last} was made champion here last: it was set back; "
        f"models:/{name}/{last} names the other"
    )


def champions(path: Path) -> dict[str, str]:
    """The notes; none where they cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}
