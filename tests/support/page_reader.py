"""A reader of the report's page: every quoted figure, and whether it says what report.json holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "line", "circle", "rect", "input", "br", "img", "link", "path", "polyline"}

# Where digits stand that are no figure of the report: axes, names, what models said, and how the run was made.
FREE = re.compile(r"\b(tick|dotname|label|answers|made|curvebox|held|ids|only-print|node-name|what)\b")


class Page(HTMLParser):
    """What a reader sees: every quoted figure, and the words around them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.quoted: list[tuple[str, str, str | None, str]] = []  # pointer, kind, exact value, text
        self.now: list[Any] | None = None
        self.around: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append((tag, f"{found.get('class', '')} {found.get('id', '')}"))
        if "data-path" in found:
            self.now = [found["data-path"], found["data-kind"], found.get("value"), ""]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag
        if self.now is not None:
            self.quoted.append(tuple(self.now))  # type: ignore[arg-type]
            self.now = None

    def handle_data(self, data: str) -> None:
        if self.now is not None:
            self.now[3] += data
        elif not any(tag in ("style", "script", "title", "th", "option") or FREE.search(css) for tag, css in self.open):
            self.around.append(data)


def at(report: Any, pointer: str) -> Any:
    """What stands at a JSON pointer."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        report = report[int(name)] if isinstance(report, list) else report[name]
    return report


def read_back(text: str) -> float:
    """The number that a reader would read, without its unit."""
    number = re.search(r"[−+]?[\d,]*\.?\d+", text)
    assert number, text
    return float(number[0].replace("−", "-").replace(",", ""))


UNITS = {"share": 100, "points": 100, "bound": 100, "size": 100, "level": 100}

SCALES = {"GB": 1e-9, "MB": 1e-6, "kB": 1e-3}


def says(text: str, kind: str, value: Any) -> bool:
    """Whether a figure's text is its value, to the digits it is written with. Written here anew, not by metrics.py."""
    words = text.replace("\u00a0", " ")
    if value is None:
        return words == "–"
    if kind == "text":
        return words == str(value)
    if kind == "p" and words == "< 0.001":
        return 0 <= value < 0.001
    scale = next((s for unit, s in SCALES.items() if words.endswith(unit)), UNITS.get(kind, 1))
    digits = len(words.split(".")[1].split(" ")[0].rstrip("%")) if "." in words else 0
    wanted = abs(value) if kind == "size" else value
    return abs(read_back(words) - scale * wanted) <= 0.5000001 * 10**-digits
