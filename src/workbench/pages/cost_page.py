"""`decide/cost.html`: what each way costs over volume, what would turn it, and where every number is from."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workbench.files import write_whole
from workbench.pages import cost_words as words
from workbench.pages.charts import Axis, axis_of, drawing, grid, upright

TEMPLATES = Path(__file__).parent / "templates"
HUES = {"api": "base", "self": "student", "hybrid": "format"}
HIGH = 320  # CSS pixels of the picture


def write_cost_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of what `costing.costed` found; equal input gives equal bytes. It runs and fetches nothing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=words, hues=HUES, script_sha256=base64.b64encode(hashlib.sha256().digest()).decode()
    )
    html = environment.get_template("cost.html.j2").render(
        result=result,
        picture=picture(result),
        strip=strip(result),
        tornado=tornado(result),
        measured=sum(each["kind"] == "measured" for each in result["inputs"]),
    )
    write_whole(path, html)


def powers(low: float, high: float) -> list[float]:
    """The powers of ten from the last at or below `low` to the first at or above `high`."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, last + 1)]


def across(result: Mapping[str, Any]) -> Callable[[float], float]:
    """A volume's place from left to right, in per cent, on a logarithmic scale."""
    first, last = (math.log10(result["curve"][i]["requests"]) for i in (0, -1))
    return lambda requests: 100 * min(1.0, max(0.0, (math.log10(requests) - first) / (last - first)))


def picture(result: Mapping[str, Any]) -> Markup:
    """Dollars a month over requests a month, both logarithmic: a line a way, and a dashed upright at your volume."""
    curve = result["curve"]
    costs = [max(point[name], 1e-3) for point in curve for name in HUES]
    ticks = powers(min(costs), max(costs))
    x_of, low, high = across(result), math.log10(ticks[0]), math.log10(ticks[-1])

    def y_of(usd: float) -> float:
        return 100 * (1 - (math.log10(max(usd, ticks[0])) - low) / (high - low))

    parts = []
    for tick in ticks:
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>').format(y_of(tick)))
        label = Markup('<text class="tick" x="-8" y="{:.2f}%" dy="4" text-anchor="end">{}</text>')
        parts.append(label.format(y_of(tick), short(tick)))
    parts += volumes(result, x_of)
    inner = Markup("")
    for name, hue in HUES.items():
        way = " ".join(f"{x_of(point['requests']):.3f},{y_of(point[name]):.3f}" for point in curve)
        inner += Markup('<polyline class="{}" points="{}"/>').format(hue, way)
    parts.append(
        Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}</svg>').format(
            inner
        )
    )
    here = x_of(result["requests_a_month"])
    parts.append(Markup('<line class="here" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%"/>').format(here))
    for name, hue in HUES.items():
        usd = result["ways"][name]["usd_a_month"]
        parts.append(Markup('<circle class="{}" cx="{:.2f}%" cy="{:.2f}%" r="5"/>').format(hue, here, y_of(usd)))
    return drawing(parts, "costs", HIGH, "dollars a month by requests a month, for the three ways")


def short(usd: float) -> str:
    """A tick of dollars: `$1`, `$100k`, `$10M`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if usd >= size:
            return f"${usd / size:,.0f}{letter}"
    return f"${usd:g}"


def volumes(result: Mapping[str, Any], x_of: Callable[[float], float]) -> list[Markup]:
    """The ticks of the volume, below the picture."""
    ticks = [t for t in powers(result["curve"][0]["requests"], result["curve"][-1]["requests"])
             if t <= result["curve"][-1]["requests"] * 1.001]  # fmt: skip
    parts = []
    for i, tick in enumerate(ticks):
        anchor = "start" if i == 0 else "end" if i == len(ticks) - 1 else "middle"
        thin = " thin" if i % 2 else ""
        parts.append(upright(f"{x_of(tick):.2f}%", "grid"))
        label = Markup('<text class="tick{}" x="{:.2f}%" y="100%" dy="18" text-anchor="{}">{}</text>')
        parts.append(label.format(thin, x_of(tick), anchor, short(tick).removeprefix("$")))
    return parts


def strip(result: Mapping[str, Any]) -> Markup:
    """A bar under the picture, coloured by the way that is the cheapest at each volume."""
    x_of = across(result)
    parts = []
    for piece in result["intervals"]:
        start, end = x_of(piece["low"]), x_of(piece["high"])
        form = '<rect class="{}" x="{:.3f}%" width="{:.3f}%" height="100%"/>'
        parts.append(Markup(form).format(HUES[piece["cheapest"]], start, max(end - start, 0.05)))
    return drawing(parts, "strip", 14, "the cheapest way at each volume")


def tornado(result: Mapping[str, Any], most: int = 12) -> dict[str, Any]:
    """Bars of how much cheaper the cheapest way is at both ends of each input's range; left of the line it is not."""
    swings: Sequence[Mapping[str, Any]] = result["tornado"][:most]
    ways, inputs = result["ways"], {each["name"]: each for each in result["inputs"]}
    base = ways[result["next"]]["usd_a_month"] - ways[result["cheapest"]]["usd_a_month"]
    ends = [swing[end] for swing in swings for end in ("margin_low", "margin_high")]
    axis = axis_of([*ends, base], at_least=(0.0, 1.0))
    rows = []
    for swing in swings:
        low, high = sorted((swing["margin_low"], swing["margin_high"]))
        start, end = (float(axis.at(v).rstrip("%")) for v in (low, high))
        bar = Markup('<rect class="swing" x="{:.3f}%" y="25%" width="{:.3f}%" height="50%" rx="2"/>')
        parts = [*grid(axis), bar.format(start, max(end - start, 0.3)), upright(axis.at(0.0), "zero"),
                 upright(axis.at(base), "base")]  # fmt: skip
        label = f"{swing['name']}: {words.dollars(swing['margin_low'])} to {words.dollars(swing['margin_high'])}"
        rows.append(
            {
                "swing": swing,
                "input": inputs[swing["name"]],
                "svg": drawing(parts, "mark", "100%", label),
                "turns": low < 0,
            }
        )
    return {"rows": rows, "axis": axis_row(axis)}


def axis_row(axis: Axis) -> Markup:
    """The ticks of the tornado, in dollars; every second gives way on a narrow screen."""
    parts = []
    for i, tick in enumerate(axis.ticks):
        first, last = i == 0, i == len(axis.ticks) - 1
        anchor = "start" if first else "end" if last else "middle"
        thin = " thin" if i % 2 and not last else ""
        form = '<text class="tick{}" x="{}" y="15" text-anchor="{}">{}</text>'
        parts.append(Markup(form).format(thin, axis.at(tick), anchor, signed(tick)))
    return drawing(parts, "axis", 22, "")


def signed(usd: float) -> str:
    """A tick left or right of nothing."""
    return f"−{short(-usd)}" if usd < -1e-9 else short(abs(usd))
