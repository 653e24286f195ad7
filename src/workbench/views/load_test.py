"""What a run's bundle answers under load, in the engine that serves it: `decide/load.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from workbench.bundles.manifest import read_manifest
from workbench.bundles.parity import Reference, read_parity
from workbench.bundles.prove import HERE, choose_engine, limits_of, verified_in
from workbench.command import next_command
from workbench.deciding.capacity import capacity
from workbench.engines.arrivals import alone, marked, under_load
from workbench.engines.served import Served, chat, engine_for, serve_bundle
from workbench.errors import RequestError
from workbench.files import write_whole
from workbench.recipe import Recipe
from workbench.runs import Run
from workbench.screen import SafeConsole
from workbench.views.known_costs import LOAD

SCREEN = SafeConsole(stderr=True, highlight=False)
AT_ONCE = 8  # slots of the engine
ALONE = 20  # rows asked one after the other
FIRST_RATE = 0.5  # of what one asker after the other would get
ASKERS = 60  # at each rate, at least: with fewer, who is the 95th of 100 is left to chance


def run(recipe: Recipe, own: Run | None) -> None:
    """Serve the run's bundle, ask it alone and under load, and write `decide/load.json`."""
    name, folder, rows = bundle_of(recipe, own)
    manifest = read_manifest(folder)
    engine = choose_engine(folder, manifest["format"])
    if engine == HERE:
        engine = choose_engine(folder, manifest["format"], engine_for(folder))  # says why that one is not here
    known = verified_in(engine)
    device = "cuda" if "GPU" in known.hardware else "cpu"
    if device != recipe.cost.device:
        raise RequestError(
            f"{engine} serves on {device} here, and its capacity would say nothing of {recipe.cost.device}",
            where="cost.device", remedy=f"run this on that machine, or cost.device={device}",
        )  # fmt: skip
    SCREEN.print(f"loading {name} in {engine} …", markup=False)
    limits = limits_of(manifest)
    with serve_bundle(
        folder, engine, context=limits.context, parallel=AT_ONCE, threads=recipe.launch.threads
    ) as server:
        figures = measured(server, rows, limits.max_new_tokens, recipe)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"bundle": name, "engine": engine, "version": known.version, "hardware": known.hardware, "device": device,
             "weights": own.output_digest(f"bundle/{name}") if own else "", "made": made}  # fmt: skip
    assert own is not None
    (own.folder / LOAD).parent.mkdir(exist_ok=True)
    write_whole(own.folder / LOAD, json.dumps(about | figures, indent=1))


def bundle_of(recipe: Recipe, own: Run | None) -> tuple[str, Path, Sequence[Reference]]:
    """The bundle that is served (a format before the student), its folder, and the test rows that prove it."""
    stages = own.manifest()["stages"] if own else {}
    names = [name.partition("/")[2] for name in stages if name.startswith("bundle/")]
    names = sorted((name for name in names if name != "adapter"), key=lambda name: name == "student")
    if own is None or not names:
        raise RequestError(
            "there is no bundle to put under load", where="cost.load",
            remedy=next_command("train", recipe.name, without=("cost.load",)),
        )  # fmt: skip
    folder = own.folder / "bundle" / names[0]
    rows = read_parity(folder) or read_parity(folder.parent, f"{names[0]}.parity.json")
    if not rows:
        raise RequestError(
            "it carries no rows to ask", where=str(folder), remedy="bundle.parity_rows=24, then `bundle`"
        )
    return names[0], folder, rows


def measured(server: Served, rows: Sequence[Reference], longest: int, recipe: Recipe) -> dict[str, Any]:
    """One request alone, then the highest rate at which 95 of 100 wait at most `cost.slo_seconds`.

    Before each row's text stands a number of its own: no engine answers it from what it remembers of the row. Each rate
    is met by the same pattern of arrivals and rows, so that rates are told apart by what the engine does, not by luck.
    """
    cost, number = recipe.cost, iter(range(10**9))
    levels: list[dict[str, Any]] = []

    def ask(row: int, most: int = longest) -> float | None:
        reference = rows[row % len(rows)]
        return chat(server, marked(reference.messages, next(number)), most, tools=reference.tools).first_token

    single = alone(ask, min(ALONE, max(5, len(rows))), one_token=partial(ask, most=1))
    SCREEN.print(f"one request alone: {single.p50:.2f} s, 95 of 100 within {single.p95:.2f} s", markup=False)

    def p95_at(rate: float) -> float:
        askers = max(ASKERS, round(rate * cost.load_seconds))
        seen = under_load(ask, rate, askers, recipe.seed, patience=2 * cost.slo_seconds)
        level = {name: value if value != float("inf") else None for name, value in asdict(seen).items()}
        levels.append({"rate": rate} | {name: value for name, value in level.items() if name != "each"})
        wait = f"{seen.p95:.2f} s" if seen.p95 != float("inf") else "longer than anybody would"
        SCREEN.print(f"  {rate:.2f} a second: 95 of 100 wait {wait}", markup=False)
        return seen.p95

    most = capacity(p95_at, cost.slo_seconds, FIRST_RATE / single.p50)
    return {
        "slo_seconds": cost.slo_seconds,
        "answers_per_second": most.kept,
        "low": most.kept,
        "high": most.passed if most.passed != float("inf") else most.kept,
        "alone": asdict(single),
        "levels": levels,
    }
