"""Kinds of training, found by their names: every file here has KINDS, a list of `recipe.methods.Kind`.

To add one, write a file with its `Kind`: what it cannot do without, and the function that makes its job, which may
bring a loss of its own (`training/job.py`). An installed package adds one through the entry point `workbench.methods`.
Nothing at the head of these files imports torch: they are read with the recipe.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from workbench.recipe.methods import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind for module in iter_modules(__path__) for kind in import_module(f"{__name__}.{module.name}").KINDS
}
