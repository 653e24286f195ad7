"""The house keeps its shape: how many files there are, how long one is, and the words that name nothing."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "workbench"

# No more than these. A change that leaves fewer lowers the number; only a capability that moves in raises the files.
MOST = {"files": 297, "lines of a file": 520, "twin file names": 0, "names without meaning": 0, "Any": 100}
WITHOUT_MEANING = {
    "told",
    "found",
    "said",
    "asked",
}  # participles: they tell what was done to a value, never what it is


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def names_given(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that is assigned or is an argument, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def annotated_any(tree: ast.Module) -> Iterator[int]:
    """The line of every argument, field, variable and result that is of type Any and no more."""
    for node in ast.walk(tree):
        types = [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        types += [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        for wanted in types:
            if isinstance(wanted, ast.BinOp):  # `Any | None` says no more than `Any`
                wanted = wanted.left
            if isinstance(wanted, ast.Name) and wanted.id == "Any":
                yield wanted.lineno


def test_the_house_has_no_more_files_than_it_needs(trees: dict[Path, ast.Module]) -> None:
    assert len(trees) <= MOST["files"]


def test_no_two_files_of_different_rooms_share_a_name(trees: dict[Path, ast.Module]) -> None:
    # A scorer is called what it scores by; `__init__` and `__main__` are Python's own names.
    places = defaultdict(list)
    for path in trees:
        if "scorers" not in path.parts and not path.stem.startswith("__"):
            places[path.name].append(path.parent.relative_to(SOURCE).as_posix())
    twins = {name: rooms for name, rooms in places.items() if len(rooms) > 1}
    assert len(twins) <= MOST["twin file names"], twins


def test_no_two_test_files_share_a_name() -> None:
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_test_file_leans_on_a_test_file_of_another_folder() -> None:
    # It would be found or not by the order in which folders are collected; what rooms share lies in support/.
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        borrowed = [name for name in modules if name.startswith("test_")]
        assert [name for name in borrowed if not (path.parent / f"{name}.py").is_file()] == [], path


def test_every_room_s_tests_are_in_a_folder_of_its_name() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    # The door is the files above the rooms, the ground those below them.
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - {"door", "ground"}
    assert folders <= rooms
    assert list((ROOT / "tests").glob("test_*.py")) == []


def test_a_file_is_read_at_one_sitting() -> None:
    files = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCE.rglob("*.py")}
    assert {str(path.relative_to(SOURCE)): n for path, n in files.items() if n > MOST["lines of a file"]} == {}


def test_a_name_says_what_the_value_is(trees: dict[Path, ast.Module]) -> None:
    given = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path, tree in trees.items()
        for name, line in names_given(tree)
        if name in WITHOUT_MEANING
    ]
    assert len(given) <= MOST["names without meaning"], given


def test_a_type_that_has_a_name_is_named(trees: dict[Path, ast.Module]) -> None:
    anys = [f"{path.relative_to(SOURCE)}:{line}" for path, tree in trees.items() for line in annotated_any(tree)]
    assert len(anys) <= MOST["Any"], anys
