"""Other packages: what the bare one leaves out, by what people do, how to install it; and what plugins offer.

The bare package plans, compares, verifies, exports and looks at a machine. `pyproject.toml` lists the same extras.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, distributions
from importlib.util import find_spec
from typing import TypeVar

from workbench.errors import RequestError
from workbench.isolation import site_folders

PACKAGE = "llm-workbench"
# By extra: the modules that its work cannot do without. Flask stands for all of MLflow, whose skinny part is bare.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "llguidance",
        "pyarrow", "sklearn", "sentencepiece", "flask",
    ),
    "quantize": ("llmcompressor", "auto_round", "compressed_tensors"),
    "teacher": ("pyarrow", "phonenumbers", "stdnum", "tldextract"),
    "documents": ("pypdf",),
    "llamacpp": ("xllamacpp",),
    "energy": ("codecarbon",),
    "sweep": ("optuna",),
    "slurm": ("submitit",),
}  # fmt: skip


def install_line(*extras: str) -> str:
    """The command that installs these extras."""
    return f"pip install '{PACKAGE}[{','.join(extras)}]'"


def extra_of(package: str) -> str | None:
    """The extra that brings a module or a package, by its name; None for one of the bare package or of nobody."""
    module = package.replace("-", "_")
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed; looks for them without importing any."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require(work: str, extras: Iterable[str]) -> None:
    """RequestError naming what `work` needs and the command that installs it, unless all of these extras are here."""
    absent = {extra: modules for extra in extras if (modules := missing_modules(extra))}
    if absent:
        raise RequestError(f"{work} needs {listed(absent.values())}, not installed here", remedy=install_line(*absent))


def listed(groups: Iterable[Sequence[str]]) -> str:
    """Modules that are missing, three of each extra's at most."""
    shown = [module for modules in groups for module in [*modules[:3], *["…"] * (len(modules) > 3)]]
    return ", ".join(module for i, module in enumerate(shown) if module not in shown[:i] or module == "…")


def explained(error: ModuleNotFoundError) -> RequestError | None:
    """A failed import as the extra that was wanted, or None where the module is no extra's."""
    module = (error.name or "").partition(".")[0]
    extra = extra_of(module)
    if extra is None:
        return None
    return RequestError(f"this needs {module}, not installed here", remedy=install_line(extra))


# What other installed packages add to the workbench: one kind of thing for each group of Python entry points.
#
# `workbench.sources`, `workbench.teachers`, `workbench.scorers`, `workbench.formats` and `workbench.methods`. A package
# is imported when a recipe names what it offers, and never otherwise: one that is broken is in nobody else's way.

T = TypeVar("T")


def entry_points(group: str) -> Iterator[EntryPoint]:
    """What installed packages offer under `group`; a package's metadata that lies anywhere else offers nothing."""
    for package in distributions(path=site_folders()):
        try:
            offered = package.entry_points
        except (ValueError, TypeError):  # its list cannot be read, so it offers nothing
            continue
        yield from offered.select(group=group)


def loaded(point: EntryPoint, wanted: type[T], where: str) -> T:
    """What a package offers under a name. RequestError naming the package when it cannot be had, or is no `wanted`."""
    package = package_of(point)
    try:
        value = point.load()
    except (Exception, SystemExit) as error:  # a stranger's import can fail in any way
        raise RequestError(
            f"{package} offers {point.name!r} and cannot be loaded: {type(error).__name__}: {error}",
            where=where,
            remedy=f"mend or uninstall {package}, or take another name",
        ) from error
    if not isinstance(value, wanted):
        raise RequestError(
            f"{package} offers {point.name!r}, but {point.value} is a {type(value).__name__} where a "
            f"{wanted.__module__}.{wanted.__qualname__} was expected",
            where=where,
            remedy=f"mend or uninstall {package}, or take another name",
        )
    return value


def package_of(point: EntryPoint) -> str:
    """The package that offers it, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else f"the package of {point.value}"
