"""A smaller student cut from a model's own layers: the same embedding, norm and head, fewer decoder layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Shrink
from workbench.records import digest
from workbench.sources import at_commit, cache_folder, content_sha256, made_once, model_weights, refuse_code

LAYER = re.compile(r"^(?P<before>.*?\blayers\.)(?P<number>\d+)(?P<after>\..*)$")
A_LAYER_EACH = ("layer_types", "no_rope_layers", "sliding_window_pattern")  # config lists with an entry a layer
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
    told = base.get("shrink") or {}
    shrink = Shrink(int(told["layers"]), str(told["keep"])) if told else Shrink()
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

    folder.mkdir(parents=True)
    place = {old: new for new, old in enumerate(kept)}
    tensors, found = {}, set()
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in list(stored.keys()):
                layer = LAYER.match(name)
                if layer is None:
                    tensors[name] = stored.get_tensor(name)
                elif int(layer["number"]) in place:
                    found.add(int(layer["number"]))
                    tensors[f"{layer['before']}{place[int(layer['number'])]}{layer['after']}"] = stored.get_tensor(name)
    if found != set(kept):
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
        if path.is_file() and path.name != "config.json" and "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
