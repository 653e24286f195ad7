"""MANIFEST.json: every file with its SHA-256 and size, the facts that checks hold them against, the signature."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.files import file_sha256
from workbench.names import is_plain
from workbench.signing_keys import PUBLIC, SHORT, fingerprint, load_private
from workbench.sources.digests import refuse_hollow

MANIFEST, SIGNATURE = "MANIFEST.json", "signature.json"
SCHEMA = 1
KINDS = ("merged", "quantized", "adapter")
# Every fact a manifest must tell, and its type; others may be added.
FACTS: Mapping[str, type] = {
    "name": str,
    "kind": str,
    "format": str,
    "recipe": str,
    "run": str,
    "digest": str,
    "template_sha256": str,
    "stop_ids": list,
    "stop_tokens": list,
    "weights": list,
    "made": str,
}
SHOWN = 3  # names told of a long list
MOST_TEXT = 200_000_000  # bytes of a JSON file or a template that are read: the largest vocabularies have some 40 MB


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says of one file."""

    sha256: str
    bytes: int


def template_digest(text: str) -> str:
    """SHA-256 of a chat template; outer white space does not count, for some writers strip a last line break."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def write_manifest(
    folder: Path, facts: Mapping[str, Any], hashed: Mapping[str, FileFacts] | None = None
) -> dict[str, Any]:
    """Write MANIFEST.json over every file of the folder but itself and the signature; returns its content.

    `hashed` may give the digests of files that were hashed already, as `hash_files` does; they must not have changed.
    """
    known = dict(hashed or {})
    names = [name for name in bundle_files(folder) if name not in (MANIFEST, SIGNATURE)]
    known |= hash_files(folder, [name for name in names if name not in known])
    listed = {name: {"sha256": known[name].sha256, "bytes": known[name].bytes} for name in names}
    content = {"schema": SCHEMA, **facts, "files": listed}
    problem = wrong_content(content)
    if problem:
        raise WorkbenchError(f"the manifest to be written is wrong: {problem}", where=str(folder))
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's manifest; RequestError when the folder is no bundle, or its manifest cannot be understood."""
    remedy = "name a folder that `python -m workbench train recipe=NAME` has made under bundle/, or an exported one"
    if not (folder / MANIFEST).is_file():
        what = f"there is no {MANIFEST}: not a bundle" if folder.is_dir() else "there is no such folder"
        raise RequestError(what, where=str(folder), remedy=remedy)
    try:
        content = json.loads(read_text(folder / MANIFEST))
    except (OSError, ValueError, RecursionError, WorkbenchError) as error:
        raise RequestError(f"{MANIFEST} cannot be read: {error}", where=str(folder), remedy=remedy) from None
    problem = wrong_content(content)
    if problem:
        raise RequestError(f"{MANIFEST} is not as a bundle's: {problem}", where=str(folder), remedy=remedy)
    return dict(content)


def read_text(path: Path) -> str:
    """A text of a bundle, which may be a stranger's; WorkbenchError for one that no memory should hold."""
    refuse_hollow(path)
    size = path.stat().st_size
    if size > MOST_TEXT:
        raise WorkbenchError(f"{path.name} has {size / 1e9:.1f} GB, and none that is read has so many", where=str(path))
    return path.read_text(encoding="utf-8")


def wrong_content(content: object) -> str | None:
    """What is wrong with a manifest's content, or None."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return f"schema {SCHEMA} was wanted"
    for name, wanted in FACTS.items():
        if not isinstance(content.get(name), wanted):
            return f"{name} is missing, or no {wanted.__name__}"
    for name in ("name", "digest"):
        if not is_plain(content[name]):
            return f"{name} {content[name]!r} cannot be a name"
    if content["kind"] not in KINDS:
        return f"kind {content['kind']!r} is none of {', '.join(KINDS)}"
    if not content["stop_ids"] or not all(type(i) is int for i in content["stop_ids"]):
        return "stop_ids names no token"
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        return "files is missing, or empty"
    for name, facts in files.items():
        if not is_inside(name) or name in (MANIFEST, SIGNATURE):
            return f"{name!r} is no file's path below the folder"
        listed = (facts.get("sha256"), facts.get("bytes")) if isinstance(facts, dict) else (None, None)
        if not isinstance(listed[0], str) or type(listed[1]) is not int:
            return f"{name} has no sha256 and bytes"
    stray = [str(name) for name in content["weights"] if not isinstance(name, str) or name not in files]
    if stray:
        return f"the weights {listed_names(stray)} are not among its files"
    for name in ("base", "scoring", "limits"):
        if not isinstance(content.get(name) or {}, dict):
            return f"{name} is no object"
    odd = [name for name, limit in (content.get("limits") or {}).items() if type(limit) not in (int, float)]
    return f"the limits {listed_names(odd)} are no numbers" if odd else None


def is_inside(name: str) -> bool:
    """Whether a manifest's path is a plain one that stays below the bundle's folder, on any system."""
    parts = PurePosixPath(name).parts
    plain = bool(name) and "\\" not in name and ":" not in name and "\0" not in name and not name.startswith("/")
    return plain and str(PurePosixPath(name)) == name and not {"..", "."} & set(parts)


def bundle_files(folder: Path) -> list[str]:
    """Every file below the folder as a relative POSIX path, sorted; WorkbenchError for a link or a special file."""
    names = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise WorkbenchError(f"{relative} is a symbolic link to {os.readlink(path)}", where=str(folder))
            if name in files:
                if not path.is_file():
                    raise WorkbenchError(f"{relative} is not a plain file", where=str(folder))
                names.append(relative)
    return sorted(names)


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileFacts]:
    """SHA-256 and size of the named files, or of all but the signature; several at once, each read in pieces."""
    wanted = [n for n in bundle_files(folder) if n != SIGNATURE] if names is None else list(names)

    def facts_of(name: str) -> tuple[str, FileFacts]:
        path = folder / name
        refuse_hollow(path)
        return name, FileFacts(file_sha256(path), path.stat().st_size)

    # hashlib gives up the interpreter's lock while it hashes; the largest first, so that none is left for the end.
    wanted.sort(key=lambda name: -(folder / name).stat().st_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(pool.map(facts_of, wanted))


def check_files(folder: Path, manifest: Mapping[str, Any], hashed: Mapping[str, FileFacts] | None = None) -> str:
    """That the folder holds the manifest's files and no others; `hashed` is what `hash_files` found, if it was asked.

    Returns a sentence; WorkbenchError naming files that have changed, are missing, or are not listed.
    """
    present = dict(hash_files(folder) if hashed is None else hashed)
    present.pop(MANIFEST, None)
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    faults = {
        "changed": [n for n in listed if n in present and differs(present[n], listed[n])],
        "missing": [n for n in listed if n not in present],
        "not in the manifest": [n for n in present if n not in listed],
    }
    problems = [f"{what}: {listed_names(names)}" for what, names in faults.items() if names]
    if problems:
        raise WorkbenchError(
            "; ".join(problems), where=str(folder), remedy="fetch the bundle again from where it was made"
        )
    return f"{len(listed)} files, {sum(facts['bytes'] for facts in listed.values()) / 1e6:.1f} MB, as listed"


def differs(present: FileFacts, listed: Mapping[str, Any]) -> bool:
    """Whether a file is another one than the manifest lists."""
    return present.bytes != listed["bytes"] or present.sha256 != listed["sha256"]


def listed_names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# Who made a bundle: signed with model-signing in EC key mode, checked offline against a key that is trusted here.
#
# `python -m model_signing verify key BUNDLE --signature BUNDLE/signature.json --public_key signing.pub.pem` says the
# same without the workbench.


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
        problem = f"other files were signed: {mismatch_in_short(what)}" if "Signature mismatch" in what else what
        raise WorkbenchError(problem, where=where) from None
    return f"signed by {wanted[:SHORT]}"


def signed_by(path: Path) -> str:
    """The fingerprint of the key that a signature says it was made with; WorkbenchError when it says none."""
    try:
        hint = json.loads(read_text(path))["verificationMaterial"]["publicKey"]["hint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkbenchError(f"{SIGNATURE} cannot be read: {error!r}", where=str(path)) from None
    if not isinstance(hint, str) or not hint:
        raise WorkbenchError(f"{SIGNATURE} does not name its key", where=str(path))
    return hint


def mismatch_in_short(mismatch: str, most: int = 200) -> str:
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
