"""The forms that a stretch of text is recognised by: no pattern is compiled here, so the door can read it at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# An identifier is not part of a longer word, number, decimal or hyphenated code; `_` and `,` do part them.
START, END = r"(?<![A-Za-z0-9+])(?<![0-9][.\-])", r"(?![A-Za-z0-9])(?![.\-][0-9])"

WORD = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"  # where a word begins, also in userPhone; its end is (?![a-z])


@dataclass(frozen=True)
class Find:
    """A stretch of a text that is personal data or a secret of this kind: characters `start` to `end`."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Pattern:
    """One form of identifier: what it looks like, the check it must pass, the label that must stand near it.

    A group named `value` is the identifier where the pattern holds more than that.
    """

    kind: str
    regex: re.Pattern[str]
    check: Callable[[str], object] = bool
    label: re.Pattern[str] | None = None
