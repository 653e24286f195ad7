"""How large a model is, by its files' headers: of a folder, or of what cutting it would leave. Reads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from workbench.recipe import Model, Shrink
from workbench.training.shrink import LAYER, kept_layers

TIED_HEAD = "lm_head.weight"  # stored again by some savers, though it is the embedding


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


def tensors_in(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """(name, shape) of every tensor, by the files' heads."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118  (it is no mapping)
                yield name, stored.get_slice(name).get_shape()


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
