"""Public rules of thumb, recomputed: what each claims, what the model finds from its own figures, whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from workbench.deciding.inputs import Input, values_of
from workbench.deciding.staircase import intervals
from workbench.deciding.ways import API, HYBRID, MILLION, SELF, answer_usd, machine_usd, ways_of

DAYS = 30.0  # of the month in rules that speak of a day
# From which volume serving oneself is said to pay, in tokens a month: what three published rules say.
SAID_TO_PAY = (5e6, 50e6 * DAYS)
WHY_RULES_DISAGREE = (
    "Published rules disagree by a factor of {factor:.0f}: one says that serving oneself pays from 5 million tokens a "
    "month, another from 50 million a day. They take different prices for the API (0.4 to 30 USD a million tokens) and "
    "for the machine (2 to 7 USD an hour for the same H100), and count no engineer, or six. None of them is yours"
)


@dataclass(frozen=True)
class Finding:
    """What a rule of thumb claims, what the model finds from `low` to `high` in `unit`, and whether the rule holds."""

    claim: str
    low: float
    high: float
    unit: str
    holds: str
    why: str


@dataclass(frozen=True)
class Rule:
    """A preset as the model sees it: its inputs, its figures, and the order in which a hybrid asks."""

    inputs: Mapping[str, Input]
    claimed: Sequence[float]
    hybrid: str

    def ends(self, *names: str) -> list[dict[str, float]]:
        """The values at every corner of these inputs' ranges, all else at its value."""
        values = values_of(self.inputs)
        corners = product(*(sorted({self.inputs[n].low, self.inputs[n].high}) for n in names))
        return [values | dict(zip(names, corner)) for corner in corners]


def factor() -> float:
    """By how much published rules disagree on the volume from which serving oneself pays."""
    return SAID_TO_PAY[1] / SAID_TO_PAY[0]


def finding(finds: str, claim: str, rule: Rule) -> Finding:
    """The model's answer to a rule, by the name of what it finds."""
    return FINDERS[finds](claim, rule)


def parity_price(claim: str, rule: Rule) -> Finding:
    """At the claimed volumes, in tokens a month: what the API would have to charge for both to cost the same."""
    values = values_of(rule.inputs)
    way, size = ways_of(values, rule.hybrid)[SELF], tokens(values)
    prices = sorted(float(way.usd(volume / size)) / volume * MILLION for volume in rule.claimed)
    dear = rule.inputs["input_mtok"].high
    holds = "holds" if dear >= prices[0] else "does not hold"
    why = (
        f"the machine alone is ${machine_usd(values):,.0f} a month, so an API would have to charge "
        f"${prices[0]:,.1f} to ${prices[-1]:,.0f} a million tokens; the dearest here charges ${dear:g}"
    )
    return Finding(claim, prices[0], prices[-1], "USD a million tokens", holds, why)


def parity_volume(claim: str, rule: Rule) -> Finding:
    """From which volume, in tokens a day, serving oneself is cheaper, at the dear and at the cheap end of the API."""
    volumes = []
    for values in rule.ends("input_mtok"):
        both = {name: way for name, way in ways_of(values, rule.hybrid).items() if name != HYBRID}
        own = [piece.low for piece in intervals(both, 1.0) if piece.cheapest == SELF]
        volumes.append(own[0] * tokens(values) / DAYS if own else float("inf"))
    low, high = min(volumes), max(volumes)
    first, last = rule.claimed[0], rule.claimed[-1]
    inside = [first <= volume <= last for volume in (low, high)]
    holds = "holds" if all(inside) else "holds at the dear end" if inside[0] else "does not hold"
    millions = f"{low / MILLION:,.0f} to {high / MILLION:,.0f} million tokens a day"
    return Finding(claim, low, high, "tokens a day", holds, f"it pays from {millions}, the dearer the API the sooner")


def parity_engineers(claim: str, rule: Rule) -> Finding:
    """At the claimed bill of the API, in dollars a month: how many engineers may serve oneself for the same money."""
    bill = rule.claimed[0]
    counts = []
    for values in rule.ends("peak_factor"):
        nobody = values | {"engineers": 0.0}
        volume = bill / float(answer_usd(values))
        rest = bill - float(ways_of(nobody, rule.hybrid)[SELF].usd(volume))
        counts.append(rest / (values["engineer_usd_a_year"] / 12))
    low, high = min(counts), max(counts)
    team = rule.inputs["engineers"]
    month = rule.inputs["engineer_usd_a_year"].value / 12
    holds = "holds" if team.high <= high else f"holds with {low:.1f} to {high:.1f} engineers"
    why = (
        f"${bill:,.0f} a month pay the machines and {low:.1f} to {high:.1f} engineers; 4 to 6 of them are "
        f"${4 * month:,.0f} to ${6 * month:,.0f} before any machine"
    )
    return Finding(claim, low, high, "engineers", holds, why)


def saving(claim: str, rule: Rule) -> Finding:
    """What both together save against the API, over the shares at home and the prices of an answer at home."""
    shares = []
    for values in rule.ends("escalated", "usd_per_1000_more"):
        ways = ways_of(values, rule.hybrid)
        volume = values["requests_a_month"]
        shares.append(1.0 - float(ways[HYBRID].usd(volume)) / float(ways[API].usd(volume)))
    corners = rule.ends("escalated", "usd_per_1000_more")
    # The least at home at the dearest price, and the most at the cheapest, are what a rule with two ends means.
    low = min(s for s, c in zip(shares, corners))
    high = max(s for s, c in zip(shares, corners))
    first, last = rule.claimed[0], rule.claimed[-1]
    holds = "holds" if low >= first else "holds in part" if high >= first else "does not hold"
    why = (
        f"a saving is the share at home times one less the price ratio: {100 * low:.0f} to {100 * high:.0f} %, where "
        f"{100 * first:.0f} to {100 * last:.0f} % are claimed"
    )
    return Finding(claim, low, high, "of the API's cost", holds, why)


def share_at_home(claim: str, rule: Rule) -> Finding:
    """The share of requests that must stay at home for the claimed saving: by bisection on the model itself."""
    values = values_of(rule.inputs)

    def saved(share: float) -> float:
        ways = ways_of(values | {"escalated": 1.0 - share}, rule.hybrid)
        volume = values["requests_a_month"]
        return 1.0 - float(ways[HYBRID].usd(volume)) / float(ways[API].usd(volume))

    low, high = 0.0, 1.0
    if saved(1.0) < rule.claimed[0]:
        return Finding(claim, 1.0, 1.0, "of all requests", "does not hold", "not even with every request at home")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if saved(middle) >= rule.claimed[0] else (middle, high)
    kept = rule.inputs["escalated"]
    holds = "holds" if 1.0 - kept.low >= high else f"needs {100 * high:.1f} % at home"
    why = f"to save {100 * rule.claimed[0]:.0f} %, {100 * high:.1f} % of all requests must stay at home"
    return Finding(claim, high, high, "of all requests", holds, why)


def tokens(values: Mapping[str, float]) -> float:
    """Tokens of one request, in and out."""
    return values["tokens_in"] + values["tokens_out"] + values["tokens_thought"]


FINDERS: dict[str, Callable[[str, Rule], Finding]] = {
    "parity_usd_per_mtok": parity_price,
    "parity_tokens_a_day": parity_volume,
    "parity_engineers": parity_engineers,
    "saving": saving,
    "share_at_home": share_at_home,
}
