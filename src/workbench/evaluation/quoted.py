"""A figure on the page, with the place in report.json that it was read from, so that anyone can hold it against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from workbench.evaluation import figures

Place = tuple[str | int, ...]
NBSP = "\u00a0"

FORMS: dict[str, Callable[[Any], str]] = {  # beside the kinds of figures.amount
    "points": lambda value: figures.points(value, sign=True),
    "size": lambda value: figures.points(abs(value)),
    "bound": figures.points,  # an interval's end, without its unit
    "p": figures.p_text,
    "length": str,  # of a list or a mapping
    "count": lambda value: f"{value:,.0f}",
    "level": lambda value: f"{100 * value:.3g}{NBSP}%",
    "small": lambda value: f"{value:.2g}",
    "ratio": lambda value: f"{value:.2f}",
    "text": str,
}


def quote(report: Mapping[str, Any], start: Place | str, *more: str | int, kind: str = "share") -> Markup:
    """The figure at a place in the report, written as its `kind`; the element names the place and the exact value.

    The place is `start` followed by `more`. `data-path` is it as a JSON pointer (RFC 6901) into report.json.
    Raises KeyError or IndexError where the report has no such place.
    """
    place = joined(start, more)
    value = look_up(report, place)
    value = len(value) if kind == "length" else value
    plain = figures.DASH if value is None else written(value, kind)
    css = "words" if kind == "text" else "num"
    # Of words the element's text says it all.
    exact = Markup("") if kind == "text" else Markup(' value="{}"').format(json.dumps(value))
    head = Markup('<data class="{}" data-path="{}" data-kind="{}"{}>').format(css, pointer(place), kind, exact)
    return head + plain + Markup("</data>")


def written(value: Any, kind: str) -> str:
    """A value as its kind is written, its unit kept on the line."""
    if kind == "text":
        return str(value)
    form = FORMS.get(kind)
    return (form(value) if form else figures.amount(kind, value)).replace(" ", NBSP)


def ends(report: Mapping[str, Any], start: Place | str, *more: str | int, kind: str = "bound") -> Markup:
    """Both ends of the interval of the figure at a place, or nothing where it has none."""
    place = joined(start, more)
    cell = look_up(report, place)
    if cell.get("ci_low") is None or cell.get("ci_high") is None:
        return Markup("")
    word = " to " if kind == "points" else f" {figures.DASH} "  # a dash between signed numbers reads as a minus
    low, high = (quote(report, place, end, kind=kind) for end in ("ci_low", "ci_high"))
    return Markup('<span class="num ends">{}{}{}</span>').format(low, word.replace(" ", NBSP), high)


def joined(start: Place | str, more: Place) -> Place:
    """The whole place."""
    return ((start,) if isinstance(start, str) else tuple(start)) + more


def look_up(report: Mapping[str, Any], place: Place) -> Any:
    """The value at a place: names in mappings, positions in lists."""
    value: Any = report
    for step in place:
        value = value[step]
    return value


def pointer(place: Place) -> str:
    """A place as a JSON pointer: `/arms/student/category_accuracy/value`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)
