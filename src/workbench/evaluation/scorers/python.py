"""python: a function of the user's own, `file.py:function` or `package.module:function`.

It is called as `function(expected, answer)` and gives a number, or a mapping of metric to number; then it names them,
the deciding one first, in an attribute: `function.metrics = ["close_enough", "polite"]`. Without that attribute the
one metric is `score`. The code is run as it stands: it is the user's, and named on purpose.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from workbench.errors import RequestError
from workbench.evaluation.scorers.scorer import Scorer
from workbench.recipe.schema import Evaluate
from workbench.records import digest

KEY = "evaluate.function"
EXAMPLE = "evaluate.function=scoring.py:close_enough"
Function = Callable[[str, str], Any]


def metrics(evaluate: Evaluate) -> list[str]:
    """What the function says it measures."""
    return names_of(load(evaluate.function))


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """What the function gives for one answer. RequestError when it raises, or gives anything but numbers."""
    function = load(evaluate.function)
    names = names_of(function)
    try:
        given = function(expected, answer)
    except Exception as error:
        refuse(
            f"the function raised {type(error).__name__}: {error} {raised_at(error)}, for {row(expected, answer)}",
            "mend it: a score must come of every answer, a bad one too",
        )
    if not isinstance(given, Mapping):
        if len(names) != 1:
            refuse(f"it measures {', '.join(names)} and gave {given!r}, for {row(expected, answer)}", "give a mapping")
        given = {names[0]: given}
    if set(given) != set(names):
        says = f"its `metrics` say {', '.join(names)}" if hasattr(function, "metrics") else "it has no `metrics`"
        refuse(
            f"it gave {', '.join(map(str, given)) or 'nothing'} and {says}, for {row(expected, answer)}",
            f"name what it gives, the deciding one first: {name_of(evaluate.function)}.metrics = {list(given)}",
        )
    return {name: number(name, given[name], expected, answer) for name in names}


def number(name: str, value: object, expected: str, answer: str) -> float:
    """A finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        refuse(f"{name} is {value!r}, which is no finite number, for {row(expected, answer)}", "give a float")
    return float(value)


def names_of(function: Function) -> list[str]:
    """The metrics of a function: its attribute `metrics`, or `score`."""
    names = getattr(function, "metrics", ["score"])
    good = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str) and n for n in names)
    if not good or not names or len(set(names)) != len(names):
        refuse(f"its `metrics` are {names!r}", 'give a list of different names, the deciding one first: ["score"]')
    return list(names)


def load(named: str | None) -> Function:
    """The function that `evaluate.function` names; a file is read anew when it has changed."""
    place, name = parted(named)
    if place.endswith(".py"):
        path = file_of(place)
        module = from_file(str(path), path.stat().st_mtime_ns)
    else:
        module = from_package(place)
    function = getattr(module, name, None)
    if not callable(function):
        what = f"{place} has no {name}" if function is None else f"{name} in {place} is no function"
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        refuse(what, f"it has {', '.join(known[:8])}" if known else "write it there: def score(expected, answer): …")
    return function


def written_metrics(named: str | None) -> list[str]:
    """What the function says it measures, as its file is written: nothing of it is run, and nothing imported.

    Empty when the file does not say: the function is of compiled code, or its `metrics` are computed.
    """
    place, name = parted(named)
    path = file_of(place) if place.endswith(".py") else module_file(place)
    if path is None:
        return []
    try:
        body = ast.parse(path.read_bytes(), str(path)).body
    except (OSError, ValueError, SyntaxError) as error:
        refuse(f"{path} cannot be read: {error}", "run it with python alone")
    bound = bound_names(body)
    metrics: ast.expr | None = None
    for line in body:
        if isinstance(line, ast.Assign) and f"{name}.metrics" in map(ast.unparse, line.targets):
            metrics = line.value
    if name not in bound and "*" not in bound:
        known = [n for n in bound if not n.startswith("_")]
        refuse(f"{place} has no {name}", f"it has {', '.join(known[:8])}" if known else "write it there")
    if metrics is None:
        return ["score"] if name in functions(body) else []
    try:
        return [str(metric) for metric in ast.literal_eval(metrics)]
    except (ValueError, TypeError):
        return []


def functions(body: Sequence[ast.stmt]) -> list[str]:
    """The functions that a module's text defines."""
    return [line.name for line in body if isinstance(line, ast.FunctionDef)]


def bound_names(body: Sequence[ast.stmt]) -> list[str]:
    """Every name that a module's text binds at its top level, branches included; "*" for a star import."""
    names: list[str] = []
    for line in body:
        match line:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names += [alias.asname or alias.name.partition(".")[0] for alias in aliases]
            case ast.Assign() | ast.AnnAssign() | ast.If() | ast.Try() | ast.With():
                names += [n.id for n in ast.walk(line) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
                names += bound_names([n for n in ast.walk(line) if isinstance(n, ast.stmt) and n is not line])
    return list(dict.fromkeys(names))


def module_file(name: str) -> Path | None:
    """The file of an installed module, found without importing it or a package above it; None for compiled code."""
    folders: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for at in range(len(parts)):
        whole = ".".join(parts[: at + 1])
        try:
            spec = importlib.util.find_spec(whole) if at == 0 else PathFinder.find_spec(whole, folders)
        except (ImportError, ValueError):  # a module that was made without a file
            spec = None
        if spec is None:
            refuse(f"there is no module {whole}", "install it, or name a file: file.py:f")
        folders = list(spec.submodule_search_locations or [])
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def source_of(named: str | None) -> str:
    """The text of the file that the function stands in: when it changes, so may every score."""
    place, _ = parted(named)
    if place.endswith(".py"):
        return file_of(place).read_text(encoding="utf-8", errors="replace")
    try:
        return inspect.getsource(from_package(place))
    except (OSError, TypeError):  # compiled code shows no text
        return place


def parted(named: str | None) -> tuple[str, str]:
    """(file or module, name)."""
    place, colon, name = (named or "").rpartition(":")
    if not colon or not place or not name.isidentifier():
        what = f"{named!r} names no function" if named else "the python scorer needs a function"
        refuse(what, f"file.py:function or package.module:function, as in {EXAMPLE}")
    return place, name


def name_of(named: str | None) -> str:
    """The function's own name."""
    return parted(named)[1]


def file_of(place: str) -> Path:
    """The file, from the folder that the command was given in."""
    path = Path(place.removeprefix("file:")).expanduser().resolve()
    if not path.is_file():
        refuse(f"there is no file {path}", f"name one that is there, as in {EXAMPLE}")
    return path


@lru_cache(maxsize=8)
def from_file(path: str, changed: int) -> ModuleType:
    """The module in a file, under a name of its own, so that it hides no installed one."""
    name = f"workbench_scorer_{digest(path, 12)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    beside = str(Path(path).parent)
    sys.path.append(beside)  # for what the file imports from its own folder; last, so that it hides nothing installed
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        refuse(
            f"{path} cannot be loaded: {type(error).__name__}: {error} {raised_at(error)}", "run it with python alone"
        )
    finally:
        sys.path.remove(beside)
    return module


@lru_cache(maxsize=8)
def from_package(name: str) -> ModuleType:
    """An installed module."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        refuse(f"{name} cannot be imported: {type(error).__name__}: {error}", "install it, or name a file: file.py:f")


def raised_at(error: BaseException) -> str:
    """Where in the user's code an exception was raised."""
    last = None
    trace = error.__traceback__
    while trace is not None:
        last, trace = trace, trace.tb_next
    return f"(line {last.tb_lineno} of {Path(last.tb_frame.f_code.co_filename).name})" if last else ""


def row(expected: str, answer: str) -> str:
    """Which answer it was about."""
    return f"the answer {answer[:80]!r} where {expected[:80]!r} was wanted"


def refuse(what: str, remedy: str) -> NoReturn:
    """The user's function, or its name, is at fault."""
    raise RequestError(what, where=KEY, remedy=remedy)


def check(evaluate: Evaluate) -> None:
    """A function is named; whether it is there shows when it is called, so that a recipe is read without running it."""
    if not evaluate.function:
        refuse(
            "the python scorer needs a function",
            "file.py:function or package.module:function, called as function(expected, answer)",
        )


SCORER = Scorer(
    metrics,
    score,
    check=check,
    version=lambda evaluate: digest(source_of(evaluate.function), 16),
    stays_behind=lambda evaluate: f"the function {evaluate.function}",
    runs_function=True,
)
