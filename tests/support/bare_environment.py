"""The door as it is where the bare package alone is installed: `python tests/support/bare_environment.py VERB …`.

Every module that belongs to none of the bare package's distributions is hidden from import. No test lives here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def run_bare(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The door's answer to these words in an environment that holds the bare package alone."""
    return subprocess.run(
        [sys.executable, __file__, *words], cwd=folder, capture_output=True, text=True, timeout=120
    )  # fmt: skip


def bare_distributions() -> set[str]:
    """The canonical names of what pip installs with the bare package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names: set[str] = set()
    wanted = [Requirement(line) for line in project["dependencies"]]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in names:
            continue
        names.add(name)
        extras = ["", *requirement.extras]
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
    return names


def hidden_modules() -> set[str]:
    """Top-level modules of installed distributions, none of which comes with the bare package."""
    bare = {*bare_distributions(), "llm-workbench", "packaging", "setuptools"}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & bare and re.fullmatch(r"\w+", module)
    }


class Hiding:
    """An import finder that does not find the hidden modules."""

    def __init__(self, finder: Any, hidden: set[str]):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


if __name__ == "__main__":
    hidden = hidden_modules()
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
    for module in [module for module in sys.modules if module.partition(".")[0] in hidden]:
        del sys.modules[module]
    from workbench.__main__ import main

    sys.exit(main())
