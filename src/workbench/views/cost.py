"""What the API, the student at home and both together cost, and from which volume on: a table, a page, a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from workbench.deciding.costing import costed
from workbench.deciding.inputs import inputs_of
from workbench.files import write_whole
from workbench.pages import cost_words as words
from workbench.pages.terminal import print_json, results
from workbench.recipe import Recipe
from workbench.runs import Run
from workbench.views.known_costs import known_costs, refuse_without_capacity, run_of

FOLDER = "decide"
SWINGS = 8  # told on the terminal; the page has all


def run(recipe: Recipe) -> int:
    """Print what each way costs; in a run's folder, also write `decide/cost.json` and `decide/cost.html`."""
    own = run_of(recipe)
    if recipe.cost.load:
        from workbench.views import load_test

        load_test.run(recipe, own)
    known = known_costs(recipe, own)
    refuse_without_capacity(recipe, own, known)
    inputs = inputs_of(recipe.cost, known)
    now = datetime.now(UTC)
    result = about(recipe, own) | {"made": now.isoformat(timespec="seconds")}
    result |= costed(recipe.cost, inputs, recipe.seed, now.date())
    if own is None:
        result["notes"].insert(0, f"{recipe.name} has no run yet: nothing here was measured by one")
    pages = write(result, own)
    if recipe.output == "json":
        print_json(result | pages)
        return 0
    show(results(), result)
    for name, path in pages.items():
        if name == "page":
            results().print(f"page: {path}", soft_wrap=True)
    return 0


def about(recipe: Recipe, own: Run | None) -> dict[str, Any]:
    """Whose costs they are: the recipe, its run, and the bundles that the run has, by their digests."""
    stages = own.manifest()["stages"] if own else {}
    bundles = (
        {name.partition("/")[2]: own.output_digest(name) for name in stages if name.startswith("bundle/")}
        if own
        else {}
    )
    return {"recipe": recipe.name, "run": f"{own.recipe_name}/{own.digest}" if own else None, "bundles": bundles}


def write(result: Mapping[str, Any], own: Run | None) -> dict[str, str]:
    """The files in the run's folder, and where they lie; nothing without a run."""
    if own is None:
        return {}
    from workbench.pages.cost_page import write_cost_page  # with Jinja, which no table needs

    folder = own.folder / FOLDER
    folder.mkdir(exist_ok=True)
    write_whole(folder / "cost.json", json.dumps(result, ensure_ascii=False, indent=1))
    write_cost_page(result, folder / "cost.html")
    return {"page": str(folder / "cost.html"), "json": str(folder / "cost.json")}


def show(screen: Console, result: Mapping[str, Any]) -> None:
    """Everything for a terminal: the ways, the volumes, the machines, the tornado, the inputs, what to know."""
    screen.print(f"{result['recipe']}: {words.volume(result['requests_a_month'])} requests a month", style="bold")
    if "rule" in result:
        rule = result["rule"]
        screen.print(f"claimed: {rule['claim']}")
        screen.print(f"found: {words.finding(rule)}; {rule['holds']}: {rule['why']}")
    screen.print(words.verdict(result), style="bold")
    screen.print(ways_table(result))
    for line in result["stretches"]:
        screen.print(f"  {words.volume(line['low'])} to {words.volume(line['high'])} a month: {words.stretch(line)}")
    for name in ("self", "hybrid"):
        screen.print(f"{name}: {words.serving(result, name)}")
    screen.print("energy: " + "; ".join(f"{words.NAMES[name]} {words.energy(result, name)}" for name in words.NAMES))
    screen.print(tornado_table(result))
    screen.print(inputs_table(result))
    for note in result["notes"]:
        screen.print(f"* {note}")


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def ways_table(result: Mapping[str, Any]) -> Table:
    """One row a way: dollars a month and a thousand, how often it is the cheapest, and what the dollars go to."""
    table = plain_table(
        "way", "a month", "per 1,000", "cheapest", "of that", right=("a month", "per 1,000", "cheapest")
    )
    for name, way in result["ways"].items():
        parts = sorted(((part, usd) for part, usd in way["parts"].items() if usd), key=lambda p: -p[1])
        spent = ", ".join(f"{part} {words.dollars(usd)}" for part, usd in parts)
        table.add_row(
            words.NAMES[name], words.dollars(way["usd_a_month"]), words.dollars(way["usd_per_1000"]),
            words.percent(result["probability"][name]), spent,
        )  # fmt: skip
    return table


def tornado_table(result: Mapping[str, Any]) -> Table:
    """The inputs that move the decision most, each alone."""
    first, second = words.NAMES[result["cheapest"]], words.NAMES[result["next"]]
    inputs = {each["name"]: each for each in result["inputs"]}
    table = plain_table("what moves it", "over its range", f"{first} cheaper than {second} by")
    for swing in result["tornado"][:SWINGS]:
        ends = f"{words.dollars(swing['margin_low'])} to {words.dollars(swing['margin_high'])}"
        turns = "  turns it" if min(swing["margin_low"], swing["margin_high"]) < 0 else ""
        table.add_row(swing["name"], words.between(inputs[swing["name"]]), ends + turns)
    return table


def inputs_table(result: Mapping[str, Any]) -> Table:
    """Every input with its range, unit, source and day; a star where it is assumed."""
    table = plain_table("input", "value", "range", "unit", "from", right=("value",))
    for each in result["inputs"]:
        table.add_row(
            words.starred(each), words.figure(each["value"], each["unit"]), words.spread(each), each["unit"],
            words.from_where(each),
        )  # fmt: skip
    return table
