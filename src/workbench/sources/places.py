"""Where a source's path may lie: from the working folder, then beside the shipped files; and what fits a pattern."""

from __future__ import annotations

import glob
from pathlib import Path


def shipped_folder() -> Path:
    """The folder that holds `configs/`, `recipes/` and `data/`: in the wheel, or the checkout's root."""
    inside = Path(__file__).parents[1] / "shipped"
    return inside if inside.is_dir() else Path(__file__).parents[3]


def split_scheme(source: str) -> tuple[str, str]:
    """`pypi:x` → (`pypi`, `x`); a plain path has the scheme `file`."""
    scheme, colon, rest = source.partition(":")
    # One letter before a colon is a Windows drive, not a scheme.
    return (scheme, rest) if colon and len(scheme) > 1 else ("file", source)


def is_pattern(source: str) -> bool:
    """Whether a local source stands for every file that fits it."""
    scheme, rest = split_scheme(source)
    wild = scheme in ("file", "dir") and any(sign in rest for sign in "*?[")
    return wild and not any(place.exists() for place in places(rest))


def matches(source: str) -> list[Path]:
    """The files that fit a pattern, from the working folder, else from the shipped ones."""
    for place in places(split_scheme(source)[1]):
        files = [Path(name).resolve() for name in glob.glob(str(place), recursive=True)]
        if files := sorted(path for path in files if path.is_file()):
            return files
    return []


def places(path: str) -> tuple[Path, Path]:
    """Where a path may lie: from the working folder, and beside the shipped files."""
    return Path(path).expanduser(), shipped_folder() / path
