"""Rows of JSON, as teams keep it: lines, an array, an object around a list, objects over several lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from workbench.data.packing import decoded_lines, suffix_of
from workbench.data.raw import SPOILED, Raw, UnreadableError, checked, first_line, part_of, spoiled
from workbench.errors import RequestError


def json_rows(path: Path, encoding: str, part: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of JSON lines, of one JSON array, of one object with a list of rows in it, or of objects one after another.

    A comma after each line's object is left out.
    """
    lines = decoded_lines(path, encoding)
    first = through_text(lines)
    begin = first[-1].strip() if first else ""
    rest = chain(first, lines)
    if begin[:1] == "[" and (suffix_of(path) == ".json" or not whole_value(begin)):
        return array_rows("".join(rest), path)
    if begin[:1] == "{":
        second = through_text(lines)
        rest = chain(first, second, lines)
        if not whole_value(begin) and begin[-1:] in "{[,:":
            text = "".join(rest)
            return spread_rows(text, path, part, notes) if spreads(text) else line_rows(text.split("\n"), path, notes)
        if not any(line.strip() for line in second):
            if wrapped(begin):
                return spread_rows("".join(rest), path, part, notes)
            refuse_columns(begin, path)
    return line_rows(rest, path, notes)


def through_text(lines: Iterator[str]) -> list[str]:
    """The lines up to and with the first that is not blank."""
    taken = []
    for line in lines:
        taken.append(line)
        if line.strip():
            break
    return taken


def line_rows(lines: Iterable[str], path: Path, notes: list[str]) -> Iterator[Raw]:
    """Rows of one JSON object a line."""
    commas = 0
    for number, line in enumerate(lines, 1):  # split at "\n" alone: U+2028 inside a string is no new line
        line = line.removesuffix("\n")
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                if SPOILED.search(line):
                    raise UnreadableError(spoiled(line))
                value, comma = json_line(line)
                commas += comma
                yield checked(where, value, line)
            except UnreadableError as error:
                yield Raw(where, None, str(error), line)
            except (ValueError, RecursionError) as error:
                yield Raw(where, None, f"broken JSON: {first_line(error)}", line)
    if commas:
        notes.append(f"{commas:,} lines of {path.name} end in a comma: it was left out")


def json_line(line: str) -> tuple[object, bool]:
    """The value of a line, and whether a comma stood behind it."""
    try:
        return json.loads(line, object_pairs_hook=once_each), False
    except UnreadableError:
        raise
    except ValueError:
        bare = line.rstrip()
        if not bare.endswith(","):
            raise
        try:
            return json.loads(bare[:-1], object_pairs_hook=once_each), True
        except UnreadableError:
            raise
        except ValueError:
            pass
        raise


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these keys and values. UnreadableError for a key that comes twice: one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UnreadableError(f"the key {twice!r} comes twice in one object, and one of its values would be lost")
    return made


def whole_value(text: str) -> bool:
    """Whether a text is one JSON value, or one with a comma behind it."""
    try:
        json_line(text)
    except (ValueError, RecursionError):
        return False
    return True


def spreads(text: str) -> bool:
    """Whether a JSON value begins the text and ends on a later line."""
    start = len(text) - len(text.lstrip())
    try:
        end = json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return False
    return "\n" in text[start:end]


def wrapped(text: str) -> bool:
    """Whether one JSON object is no row itself, but has rows in a list."""
    try:
        return bool(row_lists(text, 0, ""))
    except (ValueError, RecursionError):
        return False


def refuse_columns(text: str, path: Path) -> None:
    """RequestError for one JSON object with a table's columns, or its rows by their names, as pandas writes them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict) or len(value) < 2:
        return
    inner = list(value.values())
    lists = lists_of(inner) and all(len(one) == len(inner[0]) > 1 for one in inner)
    plain = lists and not any(isinstance(cell, dict | list) for one in inner for cell in one)
    objects = all(isinstance(one, dict) and len(one) > 1 and one.keys() == inner[0].keys() for one in inner)
    split = {"columns", "data"} <= value.keys() and isinstance(value["data"], list) and lists_of(value["data"])
    if plain or objects or split:
        raise RequestError(
            "it holds one object with the columns of a table, or with its rows by their names: a row is an object",
            where=str(path),
            remedy="write an object for each row; pandas: to_json(…, orient='records', lines=True)",
        )


def lists_of(values: list[Any]) -> bool:
    """Whether all values are lists."""
    return all(isinstance(value, list) for value in values)


NO_ROWS = ("tools", "functions", "tool_calls", "system", "parts", "content")  # lists of objects that a row has
TURNS = ("role", "from", "speaker")  # what a turn of a conversation has, and a row has not


def row_lists(text: str, at: int, name: str) -> list[tuple[str, int]]:
    """The lists of rows within the JSON object at `at`: their key paths and where they begin."""
    lists: list[tuple[str, int]] = []
    for key, start, value in members(text, at):
        here = f"{name}.{key}" if name else key
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            if not any(word in value[0] for word in TURNS) and key not in NO_ROWS:
                lists.append((here, start))
        elif isinstance(value, dict):
            lists += row_lists(text, start, here)
    return lists


def members(text: str, at: int) -> Iterator[tuple[str, int, object]]:
    """Each key of the JSON object at `at`, with where its value begins and what it is."""
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,:]*")
    at = after(gap, text, at + 1)
    while text[at : at + 1] == '"':
        key, at = decoder.raw_decode(text, at)
        start = after(gap, text, at)
        value, at = decoder.raw_decode(text, start)
        yield key, start, value
        at = after(gap, text, at)


def after(gap: re.Pattern[str], text: str, position: int) -> int:
    """Where a gap that begins at `position` ends."""
    match = gap.match(text, position)
    return match.end() if match else position


def lists_in(path: Path, encoding: str) -> set[str]:
    """The splits that the lists of rows in one JSON object are named after; none where the file is no such object."""
    lines = decoded_lines(path, encoding)
    first = through_text(lines)
    second = through_text(lines)
    begin = first[-1].strip() if first else ""
    if begin[:1] != "{" or (whole_value(begin) and any(line.strip() for line in second)):
        return set()
    text = "".join(chain(first, second, lines))
    try:
        lists = row_lists(text, len(text) - len(text.lstrip()), "")
    except (ValueError, RecursionError):
        return set()
    splits = {part_of(Path(name.rpartition(".")[2])) for name, _ in lists} - {""}
    return splits if len(lists) > 1 else set()


def spread_rows(text: str, path: Path, part: str, notes: list[str]) -> Iterator[Raw]:
    """Rows of one object that has them in a list, or of objects one after another, over as many lines as they take."""
    start = len(text) - len(text.lstrip())
    try:
        end = json.JSONDecoder().raw_decode(text, start)[1]
        lists = row_lists(text, start, "") if not text[end:].strip(" \t\r\n,") else []
    except (ValueError, RecursionError):
        lists = []
    if not lists:
        refuse_columns(text, path)
        notes.append(f"{path.name} has its rows over several lines")
        yield from array_rows(text, path, bare=True)
        return
    named = [(name, at) for name, at in lists if part_of(Path(name.rpartition(".")[2])) == part]
    if len(lists) > 1 and len(named) != 1:
        raise RequestError(
            f"which list holds the {part} rows? {path.name} has: {', '.join(name for name, _ in lists)}",
            where=str(path),
            remedy="write the rows of one list into a file of their own",
        )
    name, at = (named or lists)[0]
    notes.append(f"{path.name} has its rows under {name!r}")
    left = [key for key, _, _ in members(text, start) if key != name.partition(".")[0]]
    left += [other for other, _ in lists if other != name and other.partition(".")[0] == name.partition(".")[0]]
    splits = [key for key in left if len(lists) > 1 and part_of(Path(key.rpartition(".")[2]))]
    if splits:
        notes.append(f"not among the {part} rows of {path.name}: {', '.join(splits)}")
    if left := [key for key in left if key not in splits]:
        notes.append(f"not used of {path.name}: {', '.join(left)}")
    yield from array_rows(text, path, start=at)


def array_rows(text: str, path: Path, *, start: int = 0, bare: bool = False) -> Iterator[Raw]:
    """Rows of one JSON array from `start`, each with the line it starts on; `bare` where brackets are missing.

    Bare values may stand without commas between them.
    """
    decoder, gap = json.JSONDecoder(object_pairs_hook=once_each), re.compile(r"[\s,]*" if bare else r"\s*")
    at = after(gap, text, start) if bare else after(gap, text, after(re.compile(r"\s*"), text, start) + 1)
    line, counted = 1, 0
    while text[at : at + 1] != ("" if bare else "]"):
        line, counted = line + text.count("\n", counted, at), at
        try:
            try:
                value, end = decoder.raw_decode(text, at)
                yield checked(f"{path.name}:{line}", value, text[at:end])
            except UnreadableError as error:
                _, end = json.JSONDecoder().raw_decode(text, at)
                yield Raw(f"{path.name}:{line}", None, str(error), text[at:end])
            at = after(gap, text, end)
            if not bare:
                if text[at : at + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
                at = after(gap, text, at + 1) if text[at] == "," else at
        except (ValueError, RecursionError) as error:
            # Past a break nothing says where the next row begins, so rows would be lost uncounted.
            raise RequestError(
                f"the JSON {'' if bare else 'array '}breaks in the row that starts on line {line}: {first_line(error)}",
                where=f"{path.name}:{line}",
                remedy="mend it, or write one object a line (JSONL), where a broken row is set aside",
            ) from None
    if not bare and not start and text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise RequestError("something stands after the JSON array's end", where=f"{path.name}:{line}")
