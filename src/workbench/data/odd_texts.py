"""Rows that look as if something had gone wrong before they came here: each kind is counted aloud, none is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from workbench.data.chat_text import EOS
from workbench.data.turns import Leftovers
from workbench.records import Message

# How programs write a cell that has nothing in it.
NOTHING = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "#N/A", "undefined"})
MEDIA_SIGNS = re.compile(r"<(?:image|video|audio)>|<\|(?:image|video|audio)(?:_pad)?\|>")
ENDS = (*EOS, "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<｜end▁of▁sentence｜>")
# UTF-8 that was read as Windows-1252: ü as Ã and ¼, a dash as â, € and a quote, Cyrillic as Ð and Ñ with signs between.
HIGH = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2020-\u2022\u2026"
    "\u2030\u2039\u203a\u20ac\u2122"
)
SPOILED_TWICE = re.compile(rf"[\u00c2\u00c3][{HIGH}]|\u00e2\u20ac[{HIGH}\u2018-\u201e]|(?:[\u00d0\u00d1][{HIGH}]){{3}}")


def count_odd(turns: Sequence[Message], rejected: Sequence[Message], tools: Sequence[Mapping[str, Any]],
              left: Leftovers) -> None:  # fmt: skip
    """Count what is odd in a row's texts and calls, with the first of each kind."""
    for turn in (*turns, *rejected):
        noun = "answers" if turn.role == "assistant" else f"texts of the {turn.role}"
        for rest, sign in odd_in(turn.content, turn.role == "assistant"):
            left.odd(noun, rest, sign)
    calls = [call for turn in turns for call in turn.tool_calls]
    names = {tool.get("function", tool).get("name") for tool in tools}
    if strange := next((call.name for call in calls if call.name not in names), None):
        which = "that are none of their `tools`" if names else "and have no `tools` that say which there are"
        left.odd("rows", f"call functions {which}: learned as they stand", strange)
    ids = {call.id for call in calls} - {""}
    stray = next(
        (turn.tool_call_id for turn in turns if ids and turn.tool_call_id and turn.tool_call_id not in ids), None
    )
    if stray:
        left.odd("rows", "have a result with an id that is no call's: it stays where it stands", stray)


def odd_in(text: str, learned: bool) -> Iterator[tuple[str, str]]:
    """(what is odd, the sign of it) for each oddity of a text."""
    whole = text.strip()
    if whole in NOTHING:
        yield "are what a program writes for nothing: read as text; leave such rows out if nothing was meant", whole
    if learned and (end := next((mark for mark in ENDS if whole.endswith(mark)), "")):
        yield "end with a mark that ends another model's texts: learned as it stands; take it out of the rows", end
    if learned and "\r" in text:
        yield (
            "hold the line ends of Windows or of an old Mac: learned as they stand",
            "\r\n" if "\r\n" in text else "\r",
        )
    if learned and "<tool_call>" in text:
        yield "hold a call within their text, which a template would move: learned as text", "<tool_call>"
    if text[:1] == "\ufeff":
        yield "begin with a byte order mark: read as it stands", text[:1]
    if sign := MEDIA_SIGNS.search(text):
        yield "hold a sign that stands for a picture or a sound, which is not there: read as text", sign[0]
    if not text.isascii():
        for match in SPOILED_TWICE.finditer(text):
            with suppress(UnicodeError):
                match[0].encode("windows-1252").decode("utf-8")
                yield (
                    "hold UTF-8 that was read as Windows-1252 and written anew: mend them where they come from",
                    match[0],
                )
                return
