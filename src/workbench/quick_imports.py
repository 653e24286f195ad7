"""How every process of ours starts sooner: garbage is looked for less often, and no library is read that nobody calls.

transformers imports scikit-learn, and by that pandas and much of SciPy, for a way of decoding that is not used here,
and peft imports bitsandbytes, and by that torch's compiler, to look at condition numbers, which nobody asks for. The
two are two fifths of the CPU seconds that a training's imports take.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

UNUSED = {"transformers.generation.candidate_generator": "sklearn", "peft.helpers": "bitsandbytes"}


class LoaderWithout(SourceFileLoader):
    """Loads a module as ever, but that what is `UNUSED` is not there for it; who imports that afterwards gets it."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code. A name that `sys.modules` has as None is Python's own word for "not to be found".

        A module that cannot do without is run again with it.
        """
        unused = UNUSED[module.__name__]
        if unused in sys.modules:
            super().exec_module(module)
            return
        sys.modules[unused] = None  # type: ignore[assignment]
        try:
            super().exec_module(module)
            return
        except ImportError:
            pass
        finally:
            sys.modules.pop(unused, None)
        super().exec_module(module)


class Finder:
    """Finds the readers of what is `UNUSED`, for `LoaderWithout`; every other module is found as ever."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's spec, or None: ask the next."""
        if name not in UNUSED:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = LoaderWithout(spec.loader.name, spec.loader.path)
        return spec


def import_quickly() -> None:
    """Set both up, once, for whatever this process imports."""
    # What an import makes stays: to look through it every 700 objects is a seventh of the time of a start.
    gc.set_threshold(50_000, 20, 10)
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
