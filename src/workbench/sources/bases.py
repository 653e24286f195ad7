"""Whether a folder holds a model that can be tuned here: known before any work, and before torch is imported.

What is read is small: config.json, the heads of the safetensors (names, types, shapes) and the tokenizer's files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import RequestError
from workbench.records import Example, TokenRow

PLAIN = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that a gradient can be taken in
PACKED = re.compile(
    r"(?:\.weight|qweight|weight_packed|_blocks)$"
)  # a layer's weights, by name; buffers may be integers
SHARD_OF = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings?)\.weight$")
# Other tools' notes of what they did to the weights, beside config.json or in place of its `quantization_config`.
NOTES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
IN_THE_NAME = re.compile(
    r"(?:^|[-_.])(?:bnb[-_]?)?(?:fp8|nvfp4|mxfp4|awq|gptq|[348][-_]?bit|int[48]|w\da\d+|gguf|mlx)", re.I
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # how classes that write text end
ALWAYS_USED = ("bos_token", "eos_token", "pad_token", "unk_token")
SIXTEEN = "name the 16-bit repository that it was made from; method=qlora makes four bits of that as it loads"


def refuse_untrainable(folder: Path, where: str) -> None:
    """Refuse a base that training, or merging after it, would fail on. RequestError with the way out."""
    config = read_config(folder, where)
    heads = heads_of(folder, where)
    refuse_quantized(folder, config, heads, where)
    refuse_other_kinds(config, where)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise RequestError(
            "no tokenizer lies beside the weights",
            where=where,
            remedy="copy tokenizer.json and tokenizer_config.json from the model that it was made from",
        )
    vocabulary = vocabulary_of(folder, embedding_rows(heads, config))
    refuse_beyond(vocabulary, vocabulary.always_used, where)


def refuse_rows_beyond(folder: Path, examples: Iterable[Example], rows: Iterable[TokenRow], where: str) -> None:
    """Refuse texts that hold a token without a row in the embedding, and rendered rows that have its number.

    A model may have such tokens and be sound, as a text model of a family whose siblings read images.
    """
    config = read_config(folder, where)
    vocabulary = vocabulary_of(folder, embedding_rows(heads_of(folder, where), config))
    if not vocabulary.beyond:
        return
    for example in examples:
        text = "\n".join(message.content for message in example.messages)
        refuse_beyond(vocabulary, [token for token in vocabulary.beyond if token in text], example.where or where)
    for row in rows:
        if max(row.input_ids) >= vocabulary.rows:
            refuse_beyond(vocabulary, ["one that the chat template writes"], row.where or where)


def unused_tokens(folder: Path) -> str:
    """Which tokens have no row in the embedding, though none of the rows needs one: a line for `plan`, or ""."""
    heads = heads_of(folder, str(folder))
    vocabulary = vocabulary_of(folder, embedding_rows(heads, read_config(folder, str(folder))))
    named = ", ".join(list(vocabulary.beyond)[:5])
    return f"no row of the embedding for {named}: no text may hold it" if named else ""


def quantized_by_name(source: str) -> str:
    """A line of doubt where a repository that is not here yet bears the name of a quantized copy, or ""."""
    match = IN_THE_NAME.search(source.rpartition("/")[2].partition("@")[0])
    return f"{match[0].strip('-_.')} in its name: a quantized copy cannot be tuned; {SIXTEEN}" if match else ""


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """The model's config.json as an object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"config.json cannot be read: {error}", where=where, remedy="fetch it anew") from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise RequestError(
            "config.json has no model_type, so that no class is known for its weights",
            where=where,
            remedy="name a folder that transformers' save_pretrained wrote, or fetch config.json anew",
        )
    return config


# Whole: every shard that the index names is there, with every byte that its head promises.


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors head."""

    dtype: str
    shape: tuple[int, ...]


def heads_of(folder: Path, where: str) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors by name. RequestError where a shard is missing or cut short."""
    files = sorted(folder.glob("*.safetensors"))
    refuse_missing_shards(folder, {path.name for path in files}, where)
    state = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return dict(read_heads(state, where))


@lru_cache(maxsize=8)
def read_heads(files: tuple[tuple[str, int, int], ...], where: str) -> Mapping[str, Tensor]:
    """The heads of files that are as they were when last read: (path, bytes, time of writing)."""
    tensors: dict[str, Tensor] = {}
    for path, size, _ in files:
        tensors |= read_head(Path(path), size, where)
    return tensors


def read_head(path: Path, size: int, where: str) -> dict[str, Tensor]:
    """The names, types and shapes in one safetensors file, whose every byte is there."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        text = file.read(length) if len(start) == 8 and 2 <= length <= min(size, 100_000_000) else b""
    if start == b"version ":
        what, remedy = f"{path.name} is a pointer of Git LFS, not the weights", "fetch them: git lfs pull"
        raise RequestError(what, where=where, remedy=remedy)
    try:
        head = json.loads(text)
        entries = {name: entry for name, entry in head.items() if name != "__metadata__"}
        tensors = {name: Tensor(str(e["dtype"]), tuple(map(int, e["shape"]))) for name, e in entries.items()}
        places = sorted((int(e["data_offsets"][0]), int(e["data_offsets"][1]), name) for name, e in entries.items())
        refuse_lies(places, tensors)
        end = 8 + length + max((place[1] for place in places), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise RequestError(f"{path.name} is no safetensors file", where=where, remedy="fetch it anew") from None
    if size < end:
        raise RequestError(
            f"{path.name} is cut short: {size:,} of {end:,} bytes are there", where=where, remedy="fetch it anew"
        )
    return tensors


def refuse_lies(places: Sequence[tuple[int, int, str]], tensors: Mapping[str, Tensor]) -> None:
    """ValueError where tensors, sorted by (begin, end, name), overlap or take other bytes than their shape."""
    taken = 0
    for begin, end, name in places:
        tensor = tensors[name]
        bits = re.search(r"\d+", tensor.dtype)
        wanted = math.prod(tensor.shape) * (int(bits[0]) if bits else 8) // 8
        if not taken <= begin <= end or end - begin != wanted:
            raise ValueError(name)
        taken = end


def refuse_missing_shards(folder: Path, files: set[str], where: str) -> None:
    """By the index, and by the numbers in the names where there is none."""
    index = folder / "model.safetensors.index.json"
    wanted: set[str] = set()
    if index.is_file() and "model.safetensors" not in files:
        try:
            wanted = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RequestError(f"{index.name} cannot be read", where=where, remedy="fetch it anew") from None
    for match in filter(None, map(SHARD_OF.fullmatch, files)):
        wanted |= {f"{match[1]}-{number:05}-of-{match[3]}.safetensors" for number in range(1, int(match[3]) + 1)}
    missing = sorted(wanted - files)
    if missing:
        named = missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"
        what = f"{len(missing)} of {len(wanted)} shards missing: {named}"
        raise RequestError(what, where=where, remedy="fetch what is missing: the download was cut short")
    if not index.is_file() and any(map(SHARD_OF.fullmatch, files)):
        raise RequestError(
            f"the shards' index, {index.name}, is missing", where=where, remedy="fetch it, it lies beside the shards"
        )


# Plain: weights of 16 bits or more, of a model that writes text, one token after the other.


def refuse_quantized(folder: Path, config: Mapping[str, Any], heads: Mapping[str, Tensor], where: str) -> None:
    """By the config, by other tools' notes, and by the types that the weights are stored in."""
    section = config.get("text_config") or {}
    for key in ("quantization_config", "compression_config", "quantization"):
        note = config.get(key) or (section.get(key) if isinstance(section, dict) else None)
        if note:
            named = note.get("quant_method") or note.get("format") if isinstance(note, dict) else None
            bits = next((note[k] for k in ("bits", "w_bit") if k in note), None) if isinstance(note, dict) else None
            by = " ".join(filter(None, [str(named or key), f"in {bits} bits" if bits else ""]))
            raise RequestError(
                f"config.json has a {key} ({by}): a quantized copy cannot be tuned and merged", where=where,
                remedy=SIXTEEN,
            )  # fmt: skip
    notes = [name for name in NOTES if (folder / name).is_file()]
    packed = {t.dtype for name, t in heads.items() if PACKED.search(name) and t.dtype not in PLAIN}
    if packed:
        beside = f", and {notes[0]} lies beside them" if notes else ""
        raise RequestError(
            f"its weights are stored as {', '.join(sorted(packed))}{beside}: a quantized copy cannot be tuned and "
            "merged",
            where=where,
            remedy=SIXTEEN,
        )


def refuse_other_kinds(config: Mapping[str, Any], where: str) -> None:
    """Encoders, encoders with decoders, classifiers, embedders, and models whose images would be trained blind."""
    kind = str(config["model_type"])
    classes = config.get("architectures") or []
    named = str(classes[0]) if isinstance(classes, list) and classes else ""
    remedy = "name a model that writes text, a decoder (…ForCausalLM); configs/model/ lists some"
    if config.get("is_encoder_decoder"):
        raise RequestError(f"{named or kind} is an encoder with a decoder", where=where, remedy=remedy)
    writers = causal_classes()
    causal = writers.get(kind, "") if writers else named
    if named and not named.endswith(WRITES) and named not in writers.values():
        raise RequestError(f"{named} writes no text ({kind})", where=where, remedy=remedy)
    if kind in ENCODERS and not config.get("is_decoder"):
        raise RequestError(f"{named or kind} is an encoder: it sees the whole text at once", where=where, remedy=remedy)
    reads = next((key.removesuffix("_config") for key in ("vision_config", "audio_config") if config.get(key)), None)
    if reads and not causal.endswith(("ForCausalLM", "LMHeadModel")):
        raise RequestError(
            f"{named or kind} has a part for {reads}, which text alone would leave untrained",
            where=where,
            remedy="name the family's text model: its config.json has no vision_config",
        )
    if writers and not causal and not reads:
        raise RequestError(f"the transformers here has no language model of type {kind!r}", where=where, remedy=remedy)


# What transformers would load as a decoder only where the config says so.
ENCODERS = {
    "albert", "bert", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


@lru_cache(maxsize=1)
def causal_classes() -> Mapping[str, str]:
    """Model type → class of every causal language model that the installed transformers knows.

    Its table is read as text, for the import takes seconds. Empty where transformers is not installed, or has its
    table elsewhere.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    path = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    table = re.search(
        r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\(\n(.*?)^\)", path.read_text(encoding="utf-8"), re.M | re.S
    )
    return dict(re.findall(r'\("([^"]+)",\s*"([^"]+)"', table[1])) if table else {}


# The tokenizer against the embedding: a token's number is the row that it is looked up in.


@dataclass(frozen=True)
class Vocabulary:
    """How many tokens there are, how many rows the embedding has, and which tokens lie beyond it."""

    tokens: int
    rows: int
    beyond: tuple[str, ...]
    always_used: tuple[str, ...]


def embedding_rows(heads: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Rows of the input embedding, by its tensor's shape, else by the config; 0 where neither tells."""
    tables = [t.shape[0] for name, t in heads.items() if EMBEDDING.search(name) and len(t.shape) == 2]
    section = config.get("text_config") or config
    return max(tables, default=0) or int(section.get("vocab_size") or 0)


def vocabulary_of(folder: Path, rows: int) -> Vocabulary:
    """The tokens whose number is no row of the embedding, by the tokenizer's files."""
    files = (folder / name for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"))
    return vocabulary_as_of(folder, rows, tuple(stamp(path) for path in files))


def stamp(path: Path) -> tuple[int, ...]:
    """What of a file changes with its content; nothing where there is none."""
    try:
        now = path.stat()
    except OSError:
        return ()
    return now.st_ino, now.st_ctime_ns, now.st_size


@lru_cache(maxsize=4)
def vocabulary_as_of(folder: Path, rows: int, stamps: tuple[tuple[int, ...], ...]) -> Vocabulary:
    """The vocabulary while the files are as their stamps say: every stage asks, and reading it takes long."""
    spec, settings = read_object(folder / "tokenizer.json"), read_object(folder / "tokenizer_config.json")
    entries = {str(t["content"]): t for t in spec.get("added_tokens") or [] if isinstance(t, dict)}
    entries |= {
        str(t["content"]): {**t, "id": int(number)}
        for number, t in (settings.get("added_tokens_decoder") or {}).items()
        if isinstance(t, dict)
    }
    entries |= {
        token: {"id": number, "special": False}
        for token, number in read_object(folder / "added_tokens.json").items()
        if token not in entries and isinstance(number, int)
    }
    words = (spec.get("model") or {}).get("vocab") or {}
    numbers = dict(words) if isinstance(words, dict) else {str(entry[0]): n for n, entry in enumerate(words)}
    numbers |= {token: int(entry["id"]) for token, entry in entries.items()}
    beyond = tuple(sorted((t for t, n in numbers.items() if rows and n >= rows), key=numbers.__getitem__))
    named = {text_of(settings.get(key)) for key in ALWAYS_USED}
    # A word of the vocabulary may be in any text, and so may a token that was added as a word, not as a sign.
    used = tuple(t for t in beyond if t in named or not (entries.get(t) or {}).get("special"))
    return Vocabulary(max(numbers.values(), default=-1) + 1, rows, beyond, used)


def refuse_beyond(vocabulary: Vocabulary, tokens: Iterable[str], where: str) -> None:
    """Refuse the first of tokens that are used and have no row in the embedding."""
    for token in tokens:
        raise RequestError(
            f"the tokenizer has {vocabulary.tokens:,} tokens, the embedding {vocabulary.rows:,} rows; the first token "
            f"beyond that is used is {token}",
            where=where,
            remedy=f"load the model, resize_token_embeddings({vocabulary.tokens}), save it and name that folder; or "
            "take the model's own tokenizer",
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def text_of(token: object) -> str:
    """A special token's text, as tokenizer_config.json writes it: plain, or with its flags."""
    return str(token.get("content", "")) if isinstance(token, dict) else token if isinstance(token, str) else ""
