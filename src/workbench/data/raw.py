"""A row as its container gave it, or the reason why there is none; and which split a name speaks of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.packing import not_utf8

PARTS = {  # as folders, files, lists and rows call a split
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "holdout", "held_out", "held-out", "heldout"),
}
# Lone surrogates are how undecodable bytes arrive ("surrogateescape"), and how a broken JSON escape reads.
SPOILED = re.compile("[\x00\ud800-\udfff]")


# A row wider or deeper than this is no row of a data set: it is made to exhaust what reads it.
MOST_COLUMNS, DEEPEST = 10_000, 100


class Raw(NamedTuple):
    """One row as its container gave it: a dictionary, or the reason why there is none."""

    where: str
    row: dict[str, Any] | None
    reason: str
    text: str


class UnreadableError(ValueError):
    """Why one row cannot become an Example; caught here and written into its BadRow."""


def part_of(file: Path) -> str:
    """The split that a file, by a path within its folder, is named or foldered after; else ''."""
    for part in ("train", "validation", "test"):
        called = re.compile(rf"({'|'.join(PARTS[part])})(?![a-z])", re.I)
        if any(called.match(piece) for piece in file.parts):
            return part
    return ""


def split_named(value: object) -> str:
    """The split that a cell names with one of the usual words, in any capitals; else ''."""
    word = value.strip().lower() if isinstance(value, str) else None
    return next((part for part, words in PARTS.items() if word in words), "")


def checked(where: str, row: object, text: str) -> Raw:
    """A parsed row as Raw: an object whose texts hold no NUL and no undecodable byte."""
    if not isinstance(row, dict):
        return Raw(where, None, f"a row is an object with named values, not {kind(row)}", text)
    broken = spoiled(row) if len(row) <= MOST_COLUMNS else f"{len(row):,} values, and {MOST_COLUMNS:,} are read"
    return Raw(where, None if broken else row, broken, text)


def spoiled(value: object, depth: int = 0) -> str:
    """Why a text, or any text inside a value, cannot be used: a NUL, bytes that are not UTF-8, too deep; else ''."""
    if isinstance(value, str):
        match = SPOILED.search(value)
        return "" if match is None else "a NUL character" if match[0] == "\x00" else not_utf8(value)
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if inner and depth == DEEPEST:
        return f"nested more than {DEEPEST} levels deep"
    return next((why for pair in inner for item in pair if (why := spoiled(item, depth + 1))), "")


def kind(value: object) -> str:
    """What a value is, in a reader's words."""
    words = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else words.get(type(value), type(value).__name__)


def first_line(error: BaseException) -> str:
    """An error's first line, or its type when it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
