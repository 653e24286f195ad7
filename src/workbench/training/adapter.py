"""The adapter that a recipe goes on from: found, and held against what the recipe trains. Nothing here loads torch."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import RequestError
from workbench.recipe import Method, Model
from workbench.sources import read_object, refuse_code, resolve

ADAPTER = "adapter_config.json"


def start_adapter(model: Model, method: Method) -> Path | None:
    """The folder of the adapter that the recipe goes on from: named itself, a run's own, or a registered model.

    RequestError where the source holds no adapter, or one of another make than the recipe trains: what it is made of
    cannot be changed on the way, and its keys are named.
    """
    source = model.adapter
    if source is None:
        return None
    path = resolve(f"mlflow:{source}" if source.startswith("models:/") else source, key="model.adapter")
    folder = path / "train" / "adapter" if (path / "run.json").is_file() else path
    if not (folder / ADAPTER).is_file() or not list(folder.glob("*.safetensors")):
        raise RequestError(
            f"no {ADAPTER} with safetensors here", where=f"model.adapter={source}",
            remedy="name an adapter's folder, a run's folder, or a registered adapter (bundle.adapter=true ships one)",
        )  # fmt: skip
    refuse_code(folder)
    config = read_object(folder / ADAPTER)
    if config.get("peft_type") != "LORA":
        raise RequestError(f"it is a {config.get('peft_type')} adapter, not a LoRA", where=f"model.adapter={source}")
    made = {
        "rank": config.get("r"), "alpha": config.get("lora_alpha"), "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
    }  # fmt: skip
    other = {name: value for name, value in made.items() if value != getattr(method, name)}
    if other:
        asks = ", ".join(
            f"method.{name} is {getattr(method, name)} and it has {value}" for name, value in other.items()
        )
        raise RequestError(
            f"the adapter is of another make: {asks}",
            where=f"model.adapter={source}",
            remedy=" ".join(f"method.{name}={str(value).lower()}" for name, value in other.items()),
        )
    return folder
