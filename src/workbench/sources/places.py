"""Where a source's path may lie: from the working folder, then beside the shipped files; and what fits a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import RequestError

WILD = "*?["
SYSTEMS_OWN = (Path("/proc"), Path("/sys"))  # what lies there tells of a process and of the machine, and is no row


def shipped_folder() -> Path:
    """The folder that holds `configs/`, `recipes/` and `data/`: in the wheel, or the checkout's root."""
    inside = Path(__file__).parents[1] / "shipped"
    return inside if inside.is_dir() else Path(__file__).parents[3]


def is_systems_own(path: Path) -> bool:
    """Whether a path, its links followed, leads to what a system tells of itself."""
    return any(path.resolve().is_relative_to(folder) for folder in SYSTEMS_OWN)


def split_scheme(source: str) -> tuple[str, str]:
    """`pypi:x` → (`pypi`, `x`); a plain path has the scheme `file`."""
    scheme, colon, rest = source.partition(":")
    # One letter before a colon is a Windows drive, not a scheme.
    return (scheme, rest) if colon and len(scheme) > 1 else ("file", source)


def is_pattern(source: str) -> bool:
    """Whether a local source stands for every file that fits it."""
    scheme, rest = split_scheme(source)
    wild = scheme in ("file", "dir") and any(sign in rest for sign in WILD)
    return wild and not any(place.exists() for place in places(rest))


def matches(source: str) -> list[Path]:
    """The files that fit a pattern, each once, from the working folder, else from the shipped ones.

    RequestError for a link that leads out of the folder which the pattern names.
    """
    for place in places(split_scheme(source)[1]):
        files = [Path(name) for name in glob.glob(str(place), recursive=True)]
        if files := [path for path in files if path.is_file()]:
            refuse_links_out(files, fixed_part(place))
            return sorted({path.resolve() for path in files})
    return []


def fixed_part(pattern: Path) -> Path:
    """The folder that a pattern names before its first sign."""
    first = next(i for i, part in enumerate(pattern.parts) if any(sign in part for sign in WILD))
    return Path(*pattern.parts[:first])


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder that is not hidden, sorted.

    RequestError for a link that leads out of it, or nowhere: a folder from elsewhere must not bring in what lies
    beside it here, and what is not read is not left out without a word.
    """
    entries = [p for p in sorted(folder.rglob("*")) if not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    refuse_links_out([path for path in entries if path.is_symlink()], folder)
    return [path for path in entries if path.is_file()]


def refuse_links_out(paths: Iterable[Path], folder: Path) -> None:
    """RequestError for the first path that lies outside the folder, or nowhere, once its links are followed."""
    home = Path(os.path.realpath(folder))
    cache = [place for place in (home, *home.parents) if place.name.startswith(("datasets--", "models--"))]
    for path in paths:
        end = Path(os.path.realpath(path))
        if not path.exists() or not any(end.is_relative_to(place) for place in (home, *cache)):
            raise RequestError(
                f"this is a link out of its folder, to {end}" if path.exists() else "this is a link to nothing",
                where=str(path),
                remedy="copy the file there, or name it itself as a source",
            )


def places(path: str) -> tuple[Path, Path]:
    """Where a path may lie: from the working folder, and beside the shipped files."""
    return Path(path).expanduser(), shipped_folder() / path
