"""What other installed packages add to the workbench: one kind of thing for each group of Python entry points.

`workbench.sources`, `workbench.teachers`, `workbench.scorers`, `workbench.formats` and `workbench.methods`. A package
is imported when a recipe names what it offers, and never otherwise: one that is broken is in nobody else's way.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions
from typing import TypeVar

from workbench.errors import RequestError
from workbench.isolation import site_folders

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
