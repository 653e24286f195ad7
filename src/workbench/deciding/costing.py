"""The whole answer to what each way costs, as one mapping: `decide/cost.json`, from which page and table are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np

from workbench.deciding.chances import DRAWS, probabilities, tornado
from workbench.deciding.inputs import Input, stale, values_of
from workbench.deciding.rules import WHY_RULES_DISAGREE, Rule, factor, finding
from workbench.deciding.staircase import FROM, TO, intervals, stretches
from workbench.deciding.ways import API, HOURS, HYBRID, SELF, WAYS, kwh_of, machine_usd, parts_of, serving_of, ways_of
from workbench.recipe.costs import Cost

POINTS = 121  # of the curve, evenly over the logarithm of the volume


def costed(cost: Cost, inputs: Mapping[str, Input], seed: int, today: date) -> dict[str, Any]:
    """Ways, serving, intervals of volume, chances, tornado, curve and inputs; `seed` draws the 10,000."""
    values = values_of(inputs)
    ways, volume = ways_of(values, cost.hybrid), values["requests_a_month"]
    parts = parts_of(values, cost.hybrid, volume)
    pieces = intervals(ways)
    probability, self_beats_api = probabilities(inputs, cost.hybrid, seed)
    first, second, swings = tornado(inputs, cost.hybrid)
    old = {each.name for each in stale(inputs.values(), today)}
    at = np.geomspace(FROM, pieces[-1].high if pieces else TO, POINTS)
    hour = float(machine_usd(values)) / HOURS
    result: dict[str, Any] = {
        "requests_a_month": volume,
        "hybrid": cost.hybrid,
        "device": cost.device,
        "machine": cost.machine,
        "slo_seconds": cost.slo_seconds,
        "cheapest": first,
        "next": second,
        "ways": {
            name: {
                "usd_a_month": float(ways[name].usd(volume)),
                "usd_per_1000": 1000 * float(ways[name].usd(volume)) / volume,
                "parts": parts[name],
            }
            for name in WAYS
        },
        "serving": {
            name: asdict(
                serving_of(
                    hour, values["answers_per_second"],
                    volume * (1.0 if name == SELF or cost.hybrid == "cascade" else 1.0 - values["escalated"]),
                    float(ways[name].machines(volume)),
                )
            )
            for name in (SELF, HYBRID)
        },
        "energy": energy(values, cost.hybrid),
        "intervals": [asdict(piece) for piece in pieces],
        "stretches": [
            {"low": low, "high": high, "ways": list(names), "turns": turns}
            for low, high, names, turns in stretches(pieces)
        ],
        "probability": probability,
        "self_beats_api": self_beats_api,
        "draws": DRAWS,
        "seed": seed,
        "tornado": [asdict(swing) for swing in swings],
        "curve": [
            {"requests": float(v)} | {name: float(ways[name].usd(float(v))) for name in (API, SELF, HYBRID)} for v in at
        ],
        "inputs": [asdict(each) | {"stale": each.name in old} for each in inputs.values()],
        "notes": notes(inputs, old),
    }  # fmt: skip
    if cost.finds:
        rule = Rule(inputs, cost.claimed, cost.hybrid)
        result["rule"] = asdict(finding(cost.finds, cost.claim, rule))
        result["notes"].append(WHY_RULES_DISAGREE.format(factor=factor()))
    return result


def energy(values: Mapping[str, float], hybrid: str) -> dict[str, dict[str, float]]:
    """Way → `kwh_a_month`, and `kg_co2_a_month` where it is said what a kilowatt-hour emits."""
    grams = values.get("grams_per_kwh")
    month = kwh_of(values, hybrid, values["requests_a_month"])
    return {
        way: {"kwh_a_month": kwh} | ({} if grams is None else {"kg_co2_a_month": kwh * grams / 1000})
        for way, kwh in month.items()
    }


def notes(inputs: Mapping[str, Input], old: set[str]) -> list[str]:
    """What a reader must know beside the figures."""
    lines = []
    guesses = [each.name for each in inputs.values() if each.kind == "assumed"]
    if guesses:
        lines.append(f"{len(guesses)} of {len(inputs)} inputs are assumed (starred): {', '.join(guesses)}")
    if old:
        lines.append(f"read more than 90 days ago: {', '.join(sorted(old))}; look again before you decide")
    if inputs["usd_per_error"].value == 0:
        lines.append("errors are priced at nothing: cost.usd_per_error=… says what a wrong answer costs you")
    if inputs["answers_per_second"].kind != "measured":
        lines.append(f"capacity was not measured here: {inputs['answers_per_second'].source}")
    return lines
