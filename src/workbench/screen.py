"""What a person reads at a terminal: text alone, whatever stands in a row, a file's name or a model's answer.

A terminal obeys signs: some move its cursor, write over what stands there, set its title or its clipboard, and some
turn the reading order round. None of them leaves this file as such; it is written as its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# All of C0 and C1 but tab and line feed; the marks that override the direction of what follows; separators of lines.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with every sign that a terminal would obey as its number: `\\x1b`, `\\u202e`."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def json_line(value: object, indent: int | None = None) -> str:
    """A value as JSON for a screen: the same value to a program, and no sign in it that a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False, default=str, indent=indent)
    return OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class SafeConsole(Console):
    """rich's console, which writes its own colours and no sign of the texts that it is given."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed, each text made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
