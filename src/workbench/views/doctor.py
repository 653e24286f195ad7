"""Is this machine ready? Versions, devices, disk, the MLflow store, and which keys are set (never their values)."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

from workbench import __version__
from workbench.bundles.prove import version_of
from workbench.engines.served import ENGINES, available
from workbench.extras import extra_of, install_line
from workbench.pages.terminal import megabytes, show
from workbench.privacy.secrets import masked
from workbench.recipe import Tracking
from workbench.runs import LIBRARIES
from workbench.signing_keys import PRIVATE, keys_folder
from workbench.sources import cache_folder

KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def run(experiments: str, uri: str, output: str) -> int:
    """Print what there is; exit code 0 also when something optional is missing."""
    sections = {
        "workbench": {"version": __version__, "python": platform.python_version(), "system": platform.platform()},
        "libraries": {name: version(name) for name in LIBRARIES},
        "devices": devices(),
        "disk": disk(Path(experiments)),
        "engines": {name: available(name) or f"ready {version_of(name)}".strip() for name in ENGINES},
        "signing": {"key": signing()},
        "store": store(Path(experiments), uri),
        "proxies": proxies(),
        "keys": {name: "set" if os.environ.get(name) else "not set" for name in KEYS},
    }
    show("doctor", sections, output)
    return 0


def version(name: str) -> str:
    """An installed library's version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        extra = extra_of(name)
        return f"not here: {install_line(extra)}" if extra else "MISSING: install the project again"


def devices() -> dict[str, Any]:
    """CPU, memory and every CUDA device."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {"cpu": f"{os.cpu_count()} cores, {megabytes(memory)} memory"}
    try:
        import torch
    except ModuleNotFoundError:
        return facts | {"cuda": f"not looked for: torch is not here: {install_line('train')}"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{card.name}, {megabytes(card.total_memory)}"
    if len(facts) == 1:
        facts["cuda"] = "none: a model of up to about 0.5 billion parameters is sensible here"
    return facts


def disk(experiments: Path) -> dict[str, str]:
    """Free space where runs and fetched models go."""
    places = {"experiments": experiments.resolve(), "cache": cache_folder()}
    free = {}
    for name, path in places.items():
        there = next(p for p in [path, *path.parents] if p.exists())
        free[name] = f"{megabytes(shutil.disk_usage(there).free)} free at {path}"
    return free


def signing() -> str:
    """Where the key that signs bundles is; it is made when the first one is signed."""
    path = Path(os.environ.get("WORKBENCH_SIGNING_KEY") or keys_folder() / PRIVATE)
    return f"{path}" if path.is_file() else f"none yet: it will be made at {path}"


def store(experiments: Path, uri: str) -> dict[str, str]:
    """Whether the MLflow store answers."""
    from workbench.tracking import probe_store, store_uri

    where = store_uri(Tracking(uri=uri or None), experiments.resolve())
    return {"uri": masked(where), "state": masked(probe_store(where))}


def proxies() -> dict[str, str]:
    """The proxies that the environment names, without what opens them."""
    return {name: masked(value) for name, value in getproxies_environment().items()} or {"proxies": "none"}
