"""What other installed packages add to the workbench: sources, teachers and scorers, as Python entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions

from workbench.isolation import site_folders


def entry_points(group: str) -> Iterator[EntryPoint]:
    """What installed packages offer under `group`; a package's metadata that lies anywhere else offers nothing."""
    for distribution in distributions(path=site_folders()):
        yield from distribution.entry_points.select(group=group)
