"""The text part of a model that reads images or sound too, taken out once: the family's own text model, exactly.

Gemma 4, Gemma 3 from 4B on and Mistral Small 3.1 are stored so: a text model beside towers for other inputs. Rows of
text would leave the towers untrained, and an adapter on every linear layer would reach into them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.privacy.secrets import masked
from workbench.sources.bases import causal_classes, heads_of

# How the text model's tensors are called within the whole, and where they stand in the text model alone.
WITHIN = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
HEAD = "lm_head.weight"
PACKED = "quantization_config"
TOWERS = ("vision_config", "audio_config")
OF_THE_WHOLE = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")  # keys the text part may lack
GOES_ALONG = re.compile(
    r"(?:tokenizer|special_tokens|added_tokens|generation_config|chat_template|vocab|merges).*|.*\.jinja"
)
A_PIECE = 1 << 24  # bytes that are held in memory while a tensor is copied
TAKING = 1  # goes up when taking changes, so that a folder made by the older way is made again


def text_class(config: Mapping[str, Any]) -> str:
    """The class of the text model within a model with towers; "" where transformers has none, or needs no help.

    Where the whole's own type is among the causal models, transformers takes the text part itself.
    """
    section = config.get("text_config")
    if not isinstance(section, dict) or not any(config.get(key) for key in TOWERS) or config.get(PACKED):
        return ""
    writers = causal_classes()
    if writers.get(str(config.get("model_type")), "").endswith("ForCausalLM"):
        return ""
    named = writers.get(str(section.get("model_type")), "")
    return named if named.endswith("ForCausalLM") else ""


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's config.json, with what only the whole's says."""
    section = dict(config["text_config"])
    whole = {key: config[key] for key in OF_THE_WHOLE if config.get(key) is not None}
    return whole | section | {"architectures": [text_class(config)]}


def take_text(base: Path, folder: Path) -> None:
    """Write the text model of `base` into `folder`: its tensors byte by byte, its tokenizer, its configuration.

    Raises WorkbenchError when no tensor is named as a text model's, RequestError when a shard is missing or cut short.
    """
    heads_of(base, str(base))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    print(masked(f"taking the text model ({text_class(config)}) out of {base.name} …"), file=sys.stderr)
    where: dict[str, str] = {}
    left = 0
    for number, path in enumerate(sorted(base.glob("*.safetensors")), 1):
        name = f"text-{number:05}.safetensors"
        taken, others = copy_tensors(path, folder / name)
        where |= dict.fromkeys(taken, name)
        left += others
    if not where:
        raise WorkbenchError("no tensor is named as a text model's", where=str(base), remedy="name a text model")
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    tied = {"tie_word_embeddings": HEAD not in where}
    (folder / "config.json").write_text(json.dumps(text_config(config) | tied, indent=2), encoding="utf-8")
    for path in sorted(base.iterdir()):
        if path.is_file() and GOES_ALONG.fullmatch(path.name):
            shutil.copyfile(path, folder / path.name)
    print(f"{len(where):,} tensors taken, {left:,} of the other parts left out", file=sys.stderr)


def copy_tensors(source: Path, target: Path) -> tuple[list[str], int]:
    """(names of the text model's tensors in `source`, how many others it has); no file where there is none of them."""
    with source.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = json.loads(stream.read(length))
        taken = {name: new for name in head if (new := text_name(name))}
        others = len(head) - len(taken) - ("__metadata__" in head)
        if not taken:
            return [], others
        entries, end = {}, 0
        for name, new in taken.items():
            first, last = head[name]["data_offsets"]
            entries[new] = head[name] | {"data_offsets": [end, end + last - first]}
            end += last - first
        text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in taken:
                first, last = head[name]["data_offsets"]
                stream.seek(8 + length + first)
                for start in range(first, last, A_PIECE):
                    out.write(stream.read(min(A_PIECE, last - start)))
    return list(taken.values()), others


def text_name(name: str) -> str:
    """What a tensor of the whole is called in the text model alone; "" when it is of another part."""
    if name == HEAD:
        return name
    return next((new + name[len(old) :] for old, new in WITHIN if name.startswith(old)), "")
