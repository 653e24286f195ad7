"""What is proven of a bundle without starting an engine: bytes, signature, no code, template, stop tokens, format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.bundles.launch import SCRIPTS
from workbench.bundles.manifest import (
    MANIFEST,
    SIGNATURE,
    FileFacts,
    bundle_files,
    check_files,
    check_signature,
    hash_files,
    listed_names,
    read_manifest,
    read_text,
    template_digest,
)
from workbench.engines.ask import stop_ids
from workbench.errors import WorkbenchError
from workbench.sources.gguf_header import gguf_header
from workbench.sources.weights import CODE, code_keys

TEMPLATE = "chat_template.jinja"
# Besides code that a model folder could load: native code, and what numpy, joblib and Keras may unpickle.
NATIVE = (".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".bat")
RISKY = (*CODE, *NATIVE, ".npy", ".npz", ".joblib", ".dill", ".h5", ".keras")
# First bytes of pickles (protocol 2 to 5), zip files (what torch.save writes) and programs, whatever the name says.
MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x7fELF", b"MZ")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it holds, and why in one short sentence."""

    name: str
    passed: bool
    why: str


def static_checks(
    folder: Path, *, public_key: Path, really_quantized: Callable[[Path, str], Mapping[str, Any]]
) -> list[Check]:
    """Every check that needs no engine, in the order in which one stands on another.

    `really_quantized` gives the facts of a folder of a format, or raises WorkbenchError when it is not that format.
    RequestError when the folder is no bundle; anything else that is wrong is a failed check, never a traceback.
    """
    manifest = read_manifest(folder)
    hashed: dict[str, FileFacts] = {}

    def files() -> str:
        hashed.update(hash_files(folder))
        return check_files(folder, manifest, hashed)

    steps: list[tuple[str, Callable[[], str]]] = [
        ("files", files),
        ("signature", lambda: check_signature(folder, public_key, hashed or None)),
        ("no_code", lambda: no_code(folder)),
        ("template", lambda: template(folder, manifest)),
        ("stop_tokens", lambda: stop_tokens(folder, manifest)),
        ("quantized", lambda: quantized(folder, manifest, really_quantized)),
    ]
    return [checked(name, step) for name, step in steps]


def checked(name: str, step: Callable[[], str]) -> Check:
    """A step's sentence as a passed check, its error as a failed one."""
    try:
        return Check(name, True, step())
    except WorkbenchError as error:
        return Check(name, False, one_line(error.what))
    except Exception as error:  # a file that is not what its name says can make a reader fail in any way
        return Check(name, False, one_line(f"could not be looked at: {type(error).__name__}: {error}"))


def one_line(text: str, most: int = 300) -> str:
    """A sentence for a table's cell."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " …"


def no_code(folder: Path) -> str:
    """That nothing in the folder is code, or makes a loader fetch some."""
    names = bundle_files(folder)
    for name in names:
        path = folder / name
        suffix = path.suffix.lower()
        if suffix in RISKY or (suffix == ".sh" and name not in SCRIPTS):
            raise WorkbenchError(f"{name} can carry code", where=str(folder))
        # A safetensors file starts with its header's length, which may look like anything; its format holds no code.
        if suffix != ".safetensors":
            with path.open("rb") as stream:
                start = stream.read(4)
            if start.startswith(MAGIC):
                raise WorkbenchError(f"{name} is a pickle, an archive or a program", where=str(folder))
        if suffix == ".json" and name != SIGNATURE:
            for key in code_keys(read_json(path)):
                raise WorkbenchError(f"{name} has an {key}, which loads code", where=str(folder))
    return f"none in {len(names)} files"


def template(folder: Path, manifest: Mapping[str, Any]) -> str:
    """That every chat template in the folder is the one that was trained with."""
    wanted = manifest["template_sha256"]
    templates = {TEMPLATE: read_text(folder / TEMPLATE)} if (folder / TEMPLATE).is_file() else {}
    if not templates:
        raise WorkbenchError(f"there is no {TEMPLATE}", where=str(folder))
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        if (folder / name).is_file():
            templates |= templates_in(name, read_json(folder / name).get("chat_template"))
    for path in sorted((folder / "additional_chat_templates").glob("*")):
        templates[f"additional_chat_templates/{path.name}"] = read_text(path)
    for path in sorted(folder.glob("*.gguf")):
        fields = gguf_header(path)
        if "tokenizer.chat_template" not in fields:
            raise WorkbenchError(f"{path.name} has no chat template", where=str(folder))
        for key in fields:
            if key.startswith("tokenizer.chat_template") and key != "tokenizer.chat_templates":
                templates[f"{path.name} ({key})"] = str(fields[key])
    strangers = [name for name, text in templates.items() if template_digest(text) != wanted]
    if strangers:
        raise WorkbenchError(f"not the template of training: {listed_names(strangers)}", where=str(folder))
    return f"the one of training ({wanted[:8]}) in {', '.join(sorted(templates))}"


def templates_in(name: str, value: Any) -> dict[str, str]:
    """The templates under a configuration's `chat_template`: none, one text, or several with names."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {name: value}
    named = value.items() if isinstance(value, dict) else [(row["name"], row["template"]) for row in value]
    return {f"{name} ({key})": str(text) for key, text in named}


def stop_tokens(folder: Path, manifest: Mapping[str, Any]) -> str:
    """That each place where an engine may learn when to stop names tokens that end an answer, the trained ones too.

    generation_config.json must name all of them. A tokenizer and a GGUF file have room for one, in some families
    another than the trained one; whether an engine then stops is asked of the engine.
    """
    wanted, where = set(manifest["stop_ids"]), str(folder)
    if not (folder / "generation_config.json").is_file():
        raise WorkbenchError("there is no generation_config.json: an engine may never stop", where=where)
    read_json(folder / "generation_config.json")  # says which file is broken
    known = stop_ids(folder)
    missing = sorted(wanted - known)
    if missing:
        raise WorkbenchError(f"generation_config.json does not stop at {missing}", where=where)
    places = ["generation_config.json"]
    for path in sorted(folder.glob("*.gguf")):
        eos = gguf_header(path).get("tokenizer.ggml.eos_token_id")
        if eos not in known:
            raise WorkbenchError(f"{path.name} stops at {eos}, which is none of {sorted(known)}", where=where)
        places.append(path.name)
    if (folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
        text = token_text(read_json(folder / "tokenizer_config.json").get("eos_token"))
        number = token_id(read_json(folder / "tokenizer.json"), text)
        if number not in known:
            raise WorkbenchError(f"the tokenizer's eos {text!r} is {number}, none of {sorted(known)}", where=where)
        places.append("tokenizer")
    return f"{', '.join(map(str, sorted(wanted)))} in {', '.join(places)}"


def token_text(token: dict[str, str] | str | None) -> str | None:
    """A special token's text: plain, or inside the object that older tokenizers write."""
    return token.get("content") if isinstance(token, dict) else token


def token_id(tokenizer: Mapping[str, Any], text: str | None) -> int | None:
    """The id of a token in tokenizer.json; special ones are among the added tokens, or in the vocabulary."""
    for added in tokenizer.get("added_tokens", []):
        if added["content"] == text:
            return int(added["id"])
    vocabulary = tokenizer["model"].get("vocab", {})
    if isinstance(vocabulary, dict):
        return vocabulary.get(text)
    return next((i for i, (piece, _) in enumerate(vocabulary) if piece == text), None)  # a unigram model's list


def quantized(
    folder: Path, manifest: Mapping[str, Any], really_quantized: Callable[[Path, str], Mapping[str, Any]]
) -> str:
    """That the weights are stored as the manifest's format says."""
    missing = [name for name in manifest["weights"] if not (folder / name).is_file()]
    if missing or not manifest["weights"]:
        raise WorkbenchError(f"no weights: {listed_names(missing) or 'the manifest names none'}", where=str(folder))
    if manifest["kind"] == "adapter":
        return "an adapter: its base's weights are not in the folder"
    facts = really_quantized(folder, manifest["format"])
    if not facts:
        return f"{manifest['format']} by its manifest alone: the package that offers the format has no check of it"
    return f"{manifest['format']}, {facts['bits_per_weight']} bits a weight"


def read_json(path: Path) -> Any:
    """A JSON file's content; WorkbenchError when it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"{path.name} cannot be read: {error}", where=str(path)) from None


__all__ = ["MANIFEST", "SIGNATURE", "TEMPLATE", "Check", "static_checks"]
