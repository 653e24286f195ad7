"""Is this machine ready? Versions, devices, disk, the MLflow store, and which keys are set (never their values)."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

from packaging.requirements import Requirement

import workbench
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

LOCKS = [Path(workbench.__file__).parent / "locks" / f"{name}.txt" for name in ("all", "torch_cuda")]
KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def run(experiments: str, uri: str, output: str) -> int:
    """Print what there is; exit code 0 also when something optional is missing."""
    sections = {
        "workbench": {"version": __version__, "python": platform.python_version(), "system": platform.platform()},
        "libraries": {name: version(name) for name in LIBRARIES},
        "lock": locked(line for path in LOCKS for line in path.read_text(encoding="utf-8").splitlines()),
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


def locked(lines: Iterable[str]) -> dict[str, Any]:
    """How the installed packages differ from a lock file's: those of other versions, and how many are as locked.

    A build of the same version for another device (`2.13.0+cpu`) is as locked. Packages that are not here are left
    out: an extra that nobody installed is no difference.
    """
    wanted = {}
    for line in lines:
        requirement = Requirement(line.rstrip("\\ ")) if line[:1].isalnum() else None
        if requirement is not None and (requirement.marker is None or requirement.marker.evaluate()):
            wanted[requirement.name] = requirement.specifier
    here: dict[str, str] = {}
    for name in wanted:
        with suppress(metadata.PackageNotFoundError):
            here[name] = metadata.version(name)
    differing = [f"{name} {v}, locked {wanted[name]}" for name, v in here.items() if v not in wanted[name]]
    return {"as locked": f"{len(here) - len(differing)} of {len(here)} packages", "differing": differing}


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
