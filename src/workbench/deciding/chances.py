"""How sure the cheapest way is: draws over the inputs' ranges, and the swing that each input makes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.deciding.inputs import Floats, Input, values_of
from workbench.deciding.ways import API, SELF, WAYS, Number, ways_of

DRAWS = 10_000


@dataclass(frozen=True)
class Swing:
    """What one input does alone: how much cheaper the cheapest way is than the next, at both ends of its range."""

    name: str
    low: float
    high: float
    margin_low: float  # dollars a month; below zero the next way is cheaper
    margin_high: float

    @property
    def width(self) -> float:
        """Dollars a month between both ends."""
        return abs(self.margin_high - self.margin_low)


def drawn(inputs: Mapping[str, Input], seed: int, draws: int = DRAWS) -> dict[str, Number]:
    """Each input's draws: triangular over its range with the value as its peak, alone where it has no range."""
    random = np.random.default_rng(seed)
    values: dict[str, Number] = {}
    for name, each in inputs.items():
        values[name] = (
            random.triangular(each.low, each.value, each.high, draws) if each.is_range else np.full(draws, each.value)
        )
    values["tokens_cached"] = np.minimum(values["tokens_cached"], values["tokens_in"])
    return values


def costs_at(values: Mapping[str, Number], hybrid: str) -> dict[str, Floats]:
    """Way → dollars a month at each draw's own volume."""
    ways = ways_of(values, hybrid)
    return {name: np.asarray(ways[name].usd(values["requests_a_month"]), dtype=float) for name in WAYS}


def probabilities(inputs: Mapping[str, Input], hybrid: str, seed: int) -> tuple[dict[str, float], float]:
    """(way → share of the draws in which it is the cheapest, share in which serving oneself beats the API)."""
    costs = costs_at(drawn(inputs, seed), hybrid)
    first = np.stack([costs[name] for name in WAYS]).argmin(0)
    return {name: float((first == i).mean()) for i, name in enumerate(WAYS)}, float((costs[SELF] < costs[API]).mean())


def tornado(inputs: Mapping[str, Input], hybrid: str) -> tuple[str, str, list[Swing]]:
    """(the cheapest way, the next one, every input with a range, the widest swing first), all else at its value."""
    values = values_of(inputs)
    costs = {name: float(usd) for name, usd in costs_at(values, hybrid).items()}
    first, second, *_ = sorted(WAYS, key=costs.__getitem__)

    def margin(name: str, value: float) -> float:
        changed = costs_at({**values, name: value}, hybrid)
        return float(changed[second] - changed[first])

    swings = [
        Swing(name, each.low, each.high, margin(name, each.low), margin(name, each.high))
        for name, each in inputs.items()
        if each.is_range
    ]
    return first, second, sorted((s for s in swings if s.width > 0), key=lambda s: -s.width)
