"""A smaller student cut from a model's own layers: the same embedding, norm and head; and how large a model is."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.files import tensor_heads
from workbench.recipe import Model, Shrink
from workbench.records import digest
from workbench.sources import (
    at_commit,
    cache_folder,
    content_sha256,
    left_unread,
    made_once,
    model_weights,
    refuse_code,
)

LAYER = re.compile(r"^(?P<before>.*?\blayers\.)(?P<number>\d+)(?P<after>\..*)$")
A_LAYER_EACH = ("layer_types", "no_rope_layers", "sliding_window_pattern")  # config lists with an entry a layer
TIED_HEAD = "lm_head.weight"  # stored again by some savers, though it is the embedding
CUTTING = 1  # goes up when cutting changes, so that a folder made by the older way is made again


def kept_layers(layers: int, wanted: int, keep: str) -> list[int]:
    """Which layers stay, in order: `first` so many, or `spread`, the first, the last, and evenly between."""
    if keep == "first" or wanted == 1:
        return list(range(wanted))
    return [round(i * (layers - 1) / (wanted - 1)) for i in range(wanted)]


def shrunk(base: Path, shrink: Shrink) -> Path:
    """The folder of the model cut as `shrink` says, made once; the model's own folder when nothing is cut.

    Raises RequestError when the model has fewer layers than are to stay.
    """
    if shrink.layers is None:
        return base
    config = json.loads((base / "config.json").read_text())
    section = config.get("text_config", config)
    layers = section.get("num_hidden_layers", 0)
    if shrink.layers > layers:
        raise RequestError(
            f"the model has {layers} layers", where="model.shrink.layers", remedy="keep fewer, or null for the whole"
        )
    if shrink.layers == layers:
        return base
    refuse_code(base)
    kept = kept_layers(layers, shrink.layers, shrink.keep)
    made_of = digest([content_sha256(base), kept, CUTTING], 16)
    folder = cache_folder() / "shrunk" / f"{base.name}-{shrink.layers}-{made_of}"
    return made_once(folder, partial(cut, base, kept=kept))


def model_under(base: Mapping[str, Any]) -> Path:
    """The folder of the model that a bundle's adapter belongs to, from its manifest's `base`: whole, or cut."""
    kept = base.get("shrink") or {}
    shrink = Shrink(int(kept["layers"]), str(kept["keep"])) if kept else Shrink()
    source, promised = at_commit(base["source"], base.get("commit")), base.get("weights_sha256")
    weights = model_weights(source, base.get("sha256"))
    if promised not in (None, weights.sha256):
        raise WorkbenchError(
            f"these are other weights than the adapter was trained on: sha256 is {weights.sha256}, the manifest says "
            f"{promised}",
            where=source,
            remedy="put the model there that it was trained on",
        )
    return shrunk(weights.folder, shrink)


def cut(base: Path, folder: Path, kept: list[int]) -> None:
    """Write the model with the layers `kept` of `base`; every other file and tensor goes along as it is."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    place = {old: new for new, old in enumerate(kept)}
    tensors, seen = {}, set()
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in list(stored.keys()):
                layer = LAYER.match(name)
                if layer is None:
                    tensors[name] = stored.get_tensor(name)
                elif int(layer["number"]) in place:
                    seen.add(int(layer["number"]))
                    tensors[f"{layer['before']}{place[int(layer['number'])]}{layer['after']}"] = stored.get_tensor(name)
    if seen != set(kept):
        raise WorkbenchError(
            "its tensors are not named by layer", where=str(base), remedy="model.shrink.layers=null for this model"
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    section = config.get("text_config", config)
    section["num_hidden_layers"] = len(kept)
    for name in A_LAYER_EACH:
        if isinstance(section.get(name), list):
            section[name] = [section[name][layer] for layer in kept]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for path in base.iterdir():
        if path.is_file() and path.name not in ("config.json", *left_unread(base)) and "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)


def counted(folder: Path, shrink: Shrink | None = None) -> tuple[int, int]:
    """(parameters, decoder layers) of a model folder with 16-bit or wider weights; with `shrink`, once it is cut so."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    section = config.get("text_config", config)
    layers = int(section.get("num_hidden_layers") or 0)
    wanted = layers if shrink is None or shrink.layers is None else min(shrink.layers, layers)
    stays = set(kept_layers(layers, wanted, shrink.keep if shrink else "first")) if wanted else set()
    tied = bool(config.get("tie_word_embeddings", section.get("tie_word_embeddings")))
    parameters = 0
    for name, shape in tensors_in(folder):
        layer = LAYER.match(name)
        if (layer and int(layer["number"]) not in stays) or (tied and name == TIED_HEAD):
            continue
        parameters += math.prod(shape)
    return parameters, wanted


def tensors_in(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor, by the files' heads."""
    for path in sorted(folder.glob("*.safetensors")):
        for tensor in tensor_heads(path):
            yield tensor.name, tensor.shape


def student_size(model: Model, base: Path | None) -> tuple[int, int]:
    """(parameters, layers) of the student before it is trained: counted where the model is here, else from its keys.

    By the keys all but one embedding is spread over the layers, which takes a little too much off where the head is no
    copy of it.
    """
    if base is not None:
        return counted(base, model.shrink)
    if model.shrink.layers is None or not model.layers:
        return model.parameters, model.layers
    layers = min(model.shrink.layers, model.layers)
    a_layer = max(0, model.parameters - model.vocabulary * model.hidden_size) / model.layers
    return round(model.parameters - (model.layers - layers) * a_layer), layers
