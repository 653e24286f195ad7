"""How the figures of a cost are written, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.metrics import DASH, amount

NAMES = {"api": "API", "self": "self", "hybrid": "hybrid"}
WINS = {
    "api": "The API is the cheapest",
    "self": "Your own student is the cheapest",
    "hybrid": "Student and API together are the cheapest",
}
MEANS = {
    "api": "every request goes to the API",
    "self": "the student answers every request",
    "hybrid": "the student answers, and some requests go to the API",
}
INPUTS = {  # as a manager would call them; the key stands beside it
    "requests_a_month": "your volume",
    "tokens_in": "tokens read for one request",
    "tokens_cached": "of these, tokens read from the provider's cache",
    "tokens_out": "tokens of one answer",
    "tokens_thought": "tokens that the API thinks before one answer, and bills",
    "input_mtok": "the API's price of what it reads",
    "cached_mtok": "the API's price of what it reads from its cache",
    "output_mtok": "the API's price of what it writes",
    "batch_share": "requests that can wait for a batch",
    "batch_discount": "what a batch saves of the API's price",
    "retry_factor": "requests paid for one answer",
    "answers_per_second": "answers of one machine, none later than promised",
    "usd_per_hour": "one rented machine",
    "purchase_usd": "one machine, bought",
    "purchase_months": "how long a bought machine serves",
    "kilowatts": "power that a bought machine draws",
    "pue": "power that its building draws for each of its kilowatts",
    "usd_per_kwh": "price of power",
    "kwh_per_1000_api": "energy of 1,000 answers of the API",
    "kwh_per_1000_self": "energy of 1,000 answers at home",
    "grams_per_kwh": "CO2 of the power",
    "redundancy": "spare machines",
    "peak_factor": "requests in the busiest hour, over the mean",
    "storage_usd": "storage and logs",
    "usd_per_1000_more": "1,000 answers at home, beside the machines",
    "engineers": "people who keep it running",
    "engineer_usd_a_year": "one engineer, all included",
    "labels_usd": "labels for one training",
    "training_usd": "one training",
    "evaluation_usd": "one evaluation",
    "months_between": "time between two trainings",
    "setup_weeks": "an engineer's work until it is in production",
    "horizon_months": "time over which that work is paid off",
    "escalated": "requests that the student passes on to the API",
    "harm": "requests wrong at home where the API is right",
    "router_usd": "what stands between student and API",
    "usd_per_error": "what one wrong answer costs you",
    "error_api": "wrong answers of the API",
    "error_self": "wrong answers of the student",
}
AT_SATURATION, AT_YOUR_VOLUME = "at saturation", "at your volume"
INPUT_DIGITS = 4


def dollars(value: float) -> str:
    """`$1,825`, `$43.20`, `$0.0042`; a loss with its sign before it."""
    if value < 0:
        return f"−{dollars(-value)}"
    return f"${value:,.0f}" if value >= 1000 else amount("usd", value)


def volume(value: float) -> str:
    """`10,000`, `1.25 million`, `3.4 billion`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{float(f'{value:.3g}'):,.0f}"


def percent(share: float) -> str:
    """A probability in whole per cent, never rounded to certainty."""
    if 0 < share < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 < share < 1 else f"{100 * share:.0f} %"


def plain(value: float) -> str:
    """An input's value: `0.75`, `180,000`, `2.25 million`."""
    if abs(value) >= 1e6:
        return volume(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{INPUT_DIGITS}g}"


def spread(each: Mapping[str, Any]) -> str:
    """An input's range, or a dash."""
    low, high = (figure(each[end], each["unit"]) for end in ("low", "high"))
    return f"{low} {DASH} {high}" if each["low"] < each["high"] else DASH


def figure(value: float, unit: str) -> str:
    """An input's value; a share in per cent."""
    return f"{float(f'{100 * value:.3g}'):g} %" if unit == "share" else plain(value)


def between(each: Mapping[str, Any]) -> str:
    """Both ends of an input's range with its unit: `10 % to 60 %`, `0.1 to 0.5 full-time people`."""
    low, high = (figure(each[end], each["unit"]) for end in ("low", "high"))
    return f"{low} to {high}" + ("" if each["unit"] == "share" else f" {each['unit']}")


def from_where(each: Mapping[str, Any]) -> str:
    """Its kind, source and day: `table: gpt-5.4-mini, genai-prices 0.2.3, 2026-11-10`."""
    words = f"{each['kind']}: {each['source']}" + (f", {each['as_of']}" if each["as_of"] else "")
    return words + (" (more than 90 days ago)" if each["stale"] else "")


def starred(each: Mapping[str, Any]) -> str:
    """An input's name, with a star where it is assumed."""
    return each["name"] + ("*" if each["kind"] == "assumed" else "")


def stretch(line: Mapping[str, Any]) -> str:
    """Which way is the cheapest in a stretch of volumes: `self`, or `API and self by turns (12 changes)`."""
    names = [NAMES[name] for name in line["ways"]]
    if len(names) == 1 and not line["turns"]:
        return names[0]
    return f"{listed(names)} by turns ({line['turns']} change{'s' * (line['turns'] > 1)}: each machine more is a step)"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: the cheapest way at your volume, how sure that is, and by how much."""
    first, second, ways = result["cheapest"], result["next"], result["ways"]
    more = ways[second]["usd_a_month"] - ways[first]["usd_a_month"]
    return (
        f"{NAMES[first]} is the cheapest {AT_YOUR_VOLUME} of {volume(result['requests_a_month'])} requests a month: "
        f"{dollars(ways[first]['usd_a_month'])} a month, {dollars(more)} less than {NAMES[second]}; "
        f"that holds in {percent(result['probability'][first])} of {result['draws']:,} draws from the inputs' ranges"
    )


def serving(result: Mapping[str, Any], name: str = "self") -> str:
    """The machines of a way: how many, how busy, and what 1,000 answers cost in machines alone."""
    own = result["serving"][name]
    return (
        f"{own['machines']:.0f} machine{'s' * (own['machines'] != 1)}, {percent(own['utilisation'])} used; 1,000 "
        f"answers cost {dollars(own['usd_per_1000_at_saturation'])} in machines {AT_SATURATION}, "
        f"{dollars(own['usd_per_1000_at_your_volume'])} {AT_YOUR_VOLUME}"
    )


def energy(result: Mapping[str, Any], name: str) -> str:
    """`240 kWh a month`, with its CO2 where that is known; that nobody measured an answer at home where it is so."""
    own = result["energy"].get(name)
    if own is None:
        return "not measured at home"
    co2 = f", {plain(own['kg_co2_a_month'])} kg of CO2" if "kg_co2_a_month" in own else ""
    return f"{plain(own['kwh_a_month'])} kWh a month{co2}"


def finding(rule: Mapping[str, Any]) -> str:
    """What the model finds of a rule's figure, in the rule's unit."""
    low, high, unit = rule["low"], rule["high"], rule["unit"]
    if unit.startswith("of "):
        ends = f"{100 * low:.1f} %" if low == high else f"{100 * low:.0f} to {100 * high:.0f} %"
    else:
        ends = plain(low) if low == high else f"{plain(low)} to {plain(high)}"
    return f"{ends} {unit}"
