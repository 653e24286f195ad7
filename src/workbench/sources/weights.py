"""A model's source as a folder of plain safetensors with its tokenizer: no code, no pickles, GGUF unpacked once.

Of a model that reads images or sound too it is the text part (`text_part`), taken out once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from workbench.errors import RequestError, WorkbenchError
from workbench.files import whole_folder, write_whole
from workbench.privacy.secrets import masked
from workbench.sources.bases import read_object
from workbench.sources.digests import (
    cache_folder,
    content_sha256,
    digests_of,
    model_sha256,
    refuse_hollow,
    unchanged,
)
from workbench.sources.gguf_header import read_gguf, read_once, refuse_broken
from workbench.sources.resolve import is_here, resolve
from workbench.sources.text_part import TAKING, take_text, text_class

# Weights that can carry code when loaded, and code itself: never fetched, never loaded.
CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
LOADS_CODE = ("auto_map", "custom_pipelines")  # keys by which transformers takes a class from a file or a repository
KERNEL = "_implementation"  # of attention or experts: transformers takes one with a `/` in its name from the hub
# What JSON with such a key has in it; a plain character written as its number may hide the word.
MAY_LOAD = re.compile(rf'"(?:{"|".join(LOADS_CODE)})"|{KERNEL}"|\\u00[2-7]')
# What transformers' Trainer leaves beside the weights it saves, to go on from: no loader of a model reads it.
TRAINER = re.compile(r"(?:optimizer|scheduler|scaler|training_args|rng_state(?:_\d+)?)\.(?:pt|pth|bin)")
SMALL_JSON = 2_000_000  # characters: a vocabulary is larger, and is tried by itself
SHARD = re.compile(r"[^./\\][^/\\]*\.safetensors")
ADAPTER = "adapter_config.json"
# llama.cpp's pre-tokenizers that split every number character off and then use GPT-2's rule.
NUMBERS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Goes up when unpacking changes, so that a folder made by the older way is made again.
UNPACKING = 1


@dataclass(frozen=True)
class Weights:
    """A model's folder of plain weights, and the digest of the source that they are, or were unpacked from."""

    folder: Path
    sha256: str


def model_folder(source: str, sha256: str | None = None, *, key: str = "") -> Path:
    """The folder of a model's plain weights; a `.gguf` file is unpacked to 16 bits, once for each content.

    Raises RequestError when the source is not a model, or could run code; `key` is the recipe's that names it.
    """
    return plain_folder(resolve(source, sha256=sha256, key=key), f"{key}={source}" if key else source)


def model_weights(source: str, sha256: str | None = None, *, key: str = "") -> Weights:
    """`model_folder` with the digest of what the source holds. It raises as that does."""
    path = resolve(source, sha256=sha256, key=key)
    return Weights(plain_folder(path, f"{key}={source}" if key else source), model_sha256(path))


def plain_folder(path: Path, source: str) -> Path:
    """The folder of plain weights that a path is, or holds packed."""
    if path.suffix == ".gguf":
        return unpacked(path)
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        what, remedy = other_contents_of(path)
        raise RequestError(what, where=source, remedy=remedy)
    refuse_code(path)
    return text_model(path) if text_class(read_object(path / "config.json")) else path


def text_model(path: Path) -> Path:
    """The folder of the text model that is a part of the model at `path`; taken out once for each content."""
    return made_once(text_folder(path), partial(take_text, path))


def text_folder(path: Path) -> Path:
    """Where the text part of a model lies once it is taken out."""
    return cache_folder() / "text" / f"{path.name}-{model_sha256(path)[:32]}-{TAKING}"


def other_contents_of(path: Path) -> tuple[str, str]:
    """(what a folder without a model's config and safetensors holds instead, the way out)."""
    if not path.is_dir():
        return "this is no model's folder", "name a folder with config.json and safetensors, or a .gguf file"
    adapter = path / ADAPTER
    if adapter.is_file():
        base = read_object(adapter).get("base_model_name_or_path") or "its base"
        return (
            f"this is an adapter of {base}, not a model",
            f"name the base, {base}, as model.source, and to go on from this adapter name it as model.adapter; or "
            "merge them first (peft: merge_and_unload, save_pretrained) and name the result",
        )
    whole = sorted(p.parent.name for p in path.glob("*/config.json") if list(p.parent.glob("*.safetensors")))
    if whole:
        return f"no model lies here itself, but in {', '.join(whole[:5])}", f"name one: {path.name}/{whole[-1]}"
    packed = sorted(p.name for p in path.glob("*.gguf"))
    if packed:
        return "a folder of .gguf files", f"name the file: {path.name}/{packed[0]}"
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        return (
            f"its weights are pickled ({pickled[0]}), which can carry code",
            "use a repository with safetensors; or load it where you trust it and save_pretrained it anew",
        )
    return "no config.json with safetensors here", "name a model's folder or .gguf"


def left_unread(folder: Path) -> list[str]:
    """What a Trainer has left in a model's folder to go on from; only safetensors are loaded, so none of it is read."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if TRAINER.fullmatch(p.name))


def model_is_here(source: str) -> bool:
    """Whether `model_folder` would fetch and unpack nothing."""
    if not is_here(source):
        return False
    path = resolve(source)
    if path.suffix == ".gguf":
        return unpacked_folder(path, digests_of([path])[path]).is_dir()
    return not text_class(read_object(path / "config.json")) or text_folder(path).is_dir()


def refuse_broken_source(source: str) -> None:
    """RequestError for a packed model, here already, whose head lies; it may be unpacked much later."""
    if is_here(source) and (path := resolve(source)).suffix == ".gguf":
        refuse_broken(path)


def unpacked_folder(gguf: Path, sha256: str) -> Path:
    """Where a GGUF file's plain weights lie: by its content, for equal names, sizes and times prove nothing."""
    return cache_folder() / "unpacked" / f"{gguf.stem}-{sha256[:32]}-{UNPACKING}"


def unpacked(gguf: Path) -> Path:
    """Unpack a GGUF file into bfloat16 safetensors and a tokenizer that gives llama.cpp's ids."""
    digest = digests_of([gguf])[gguf]
    refuse_broken(gguf)

    def write(folder: Path) -> None:
        print(masked(f"unpacking {gguf.name} …"), file=sys.stderr)
        with unchanged([gguf], digest, str(gguf)), read_once():
            write_plain(gguf, folder)

    return made_once(unpacked_folder(gguf, digest), write)


def write_plain(gguf: Path, folder: Path) -> None:
    """The dequantized weights, tokenizer and template of one GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),  # without it the weights cannot be saved
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    repair_tokenizer(folder, gguf)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def repair_tokenizer(folder: Path, gguf: Path) -> None:
    """Give an unpacked tokenizer the GGUF's own pre-tokenizer and special tokens.

    transformers 5.17 rebuilds a byte-level BPE tokenizer with GPT-2's plain rule and drops
    `tokenizer.ggml.pre`, so that numbers merge with the space before them and the ids are not those
    the weights were trained on; it takes bos for eos, and leaves a SentencePiece decoder behind.
    """
    fields = read_gguf(gguf).fields

    def value(name: str) -> Any:
        field = fields.get(f"tokenizer.ggml.{name}")
        return None if field is None else field.contents()

    if value("model") != "gpt2" or value("pre") not in NUMBERS_THEN_GPT2:
        raise WorkbenchError(
            f"the pre-tokenizer {value('model')}/{value('pre')} cannot be rebuilt exactly",
            where=str(gguf),
            remedy="use the model's safetensors repository instead of its GGUF",
        )
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    spec |= {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,  # nothing is put around a text: the GGUF says add_bos_token is false
        "decoder": byte_level | {"add_prefix_space": True},
    }
    # A byte that has no token is left out, as llama.cpp does, not made <unk>.
    spec["model"] |= {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special_tokens(value, fields), indent=2, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def special_tokens(value: Callable[[str], Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json from the GGUF's own ids."""
    tokens, kinds = value("tokens"), value("token_type")
    ids = {name: value(f"{name}_token_id") for name in ("bos", "eos", "padding", "unknown")}
    names = {name: tokens[number] for name, number in ids.items() if number is not None}
    control = 3  # the GGUF's token type for special tokens
    others = [t for t, kind in zip(tokens, kinds, strict=True) if kind == control and t not in names.values()]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": next((f.contents() for n, f in fields.items() if n.endswith(".context_length")), None),
        "bos_token": names.get("bos"),
        "eos_token": names["eos"],
        "pad_token": names.get("padding", names["eos"]),
        "unk_token": names.get("unknown"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": others,
    }


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that could run code when it is loaded, or load what lies elsewhere.

    `trust_remote_code=False` alone has been bypassed by an `auto_map` in a nested config, so a folder that holds
    one, or a file with code or pickled weights, is not loaded at all; what a Trainer leaves is never read. An index of
    shards, and an adapter's config beside a whole model, can name weights outside of the folder, which no digest of it
    covers.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in CODE and not TRAINER.fullmatch(path.name):
            others = [p.name for p in folder.rglob("*") if p.suffix.lower() in CODE and not TRAINER.fullmatch(p.name)]
            raise RequestError(
                f"{path.name} can carry code",
                where=str(folder),
                remedy=f"use a safetensors copy; beside safetensors, delete or move {', '.join(sorted(others)[:8])}",
            )
        if path.is_file():
            refuse_hollow(path)
        if path.suffix.lower() == ".json" and path.is_file():
            refuse_json(path, folder)
    if (folder / ADAPTER).is_file() and (folder / "config.json").is_file():
        raise RequestError(
            f"{ADAPTER} beside a whole model makes its loader take another base",
            where=str(folder),
            remedy="take it out, or name the model that it was merged into",
        )


def refuse_json(path: Path, folder: Path) -> None:
    """Refuse a JSON file that makes a loader import code, or names shards that are not files beside it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    index = path.name.endswith(".index.json")
    if not index and not MAY_LOAD.search(text) and (len(text) > SMALL_JSON or text.count("[") + text.count("{") < 500):
        return
    try:
        content = json.loads(text)
        keys = list(code_keys(content))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path.name} cannot be read: {error}", where=str(folder)) from None
    for key in keys:
        raise RequestError(f"{path.name} has an {key}, which loads code", where=str(folder))
    shards = content.get("weight_map") if index and isinstance(content, dict) else None
    for shard in set(shards.values()) if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise RequestError(f"{path.name} names {shard!r}, which is no shard beside it", where=str(folder))


def code_keys(value: Any) -> Iterator[str]:
    """Keys anywhere in a JSON value that make a loader import code; a vocabulary's words have numbers as values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in LOADS_CODE and not isinstance(inner, int):
                yield key
            if key.endswith(KERNEL) and "/" in json.dumps(inner):
                yield key
            yield from code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from code_keys(inner)


# Folders in the cache that are made from others, once: unpacked weights, a model cut smaller. Hashed at each use.


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder as `make` has filled it, made when it is not there, or is not as it was made.

    Its digest lies beside it, in `NAME.json`. `folder`'s name must say what it is made from, by content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    note = folder.with_name(f"{folder.name}.json")
    with FileLock(f"{folder}.lock"):
        if folder.is_dir() and noted(note) == content_sha256(folder):
            return folder
        if folder.is_dir() and note.is_file():
            print(masked(f"{folder} has changed since it was made: made again …"), file=sys.stderr)
        with whole_folder(folder) as partial:
            make(partial)
            sha256 = content_sha256(partial)
            note.unlink(missing_ok=True)
        write_whole(note, json.dumps({"sha256": sha256}))
    return folder


def noted(note: Path) -> str | None:
    """The digest that a note holds."""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
