"""Prompts and answers over several columns: a plain template, in which {column} stands for the row's text there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workbench.data.raw import UnreadableError
from workbench.data.turns import Fields, Leftovers, is_empty, written
from workbench.errors import RequestError, nearest

SLOT = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]*)\}")


def check_template(template: str | None, column: str | None, present: Sequence[str], role: str, listing: str) -> None:
    """RequestError where a template names no column, one that is not there, or stands beside a mapped column."""
    if template is None:
        return
    where = f"data.{role}"
    if column is not None:
        raise RequestError(
            f"data.columns.{role} names the column {column!r} beside it", where=where, remedy="keep one of the two"
        )
    slots = list(SLOT.finditer(template))
    for slot in slots:
        if slot[1] in present:
            raise RequestError(
                f"a column is written {{{slot[1]}}}, not {slot[0]}", where=where, remedy="one pair of braces"
            )
        if slot[2] is not None and present and slot[2] not in present and looks_like_a_name(slot[2]):
            raise RequestError(
                f"no column {slot[2]!r}; {listing}",
                where=where,
                remedy=f"{nearest(slot[2], present)}; braces that stand for themselves are written {{{slot[0]}}}",
            )
    if present and not any(slot[2] in present for slot in slots):
        raise RequestError(
            f"it names no column: every row would have the same text; {listing}",
            where=where,
            remedy=f"put a column's name in braces: {{{present[0]}}}",
        )


def looks_like_a_name(text: str) -> bool:
    """Whether what stands between braces is meant as a column: not JSON, and not empty."""
    return bool(re.fullmatch(r"[\w .\-]+", text)) and not text.isspace()


def filled(template: str, row: Fields, what: str, left: Leftovers) -> str:
    """The template with the row's texts; a column that is empty leaves its place empty, but not all of them may be."""
    columns = [slot[2] for slot in SLOT.finditer(template) if slot[2] in row.values]
    missing = [slot[2] for slot in SLOT.finditer(template) if slot[2] and slot[2] not in columns
               and looks_like_a_name(slot[2])]  # fmt: skip
    if missing:
        raise UnreadableError(f"{what}: no {' and no '.join(missing)}; it has: {', '.join(map(str, row.values))}")
    if all(is_empty(row.values[column]) for column in columns):
        raise UnreadableError(f"{what}: {' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} empty")

    def text(slot: re.Match[str]) -> str:
        if slot[2] is None:
            return f"{{{slot[1]}}}"
        if slot[2] not in columns:
            return slot[0]
        row.used.add(slot[2])
        value = row.values[slot[2]]
        return "" if is_empty(value) else written(value, f"{what} ({slot[2]})", left)

    return SLOT.sub(text, template)
