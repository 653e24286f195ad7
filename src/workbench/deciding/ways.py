"""Three ways to have requests answered, and what each costs a month: the API, the student at home, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.deciding.inputs import Floats

HOURS = 730.0  # of a month
SECONDS = HOURS * 3600
MILLION = 1e6
API, SELF, HYBRID = "api", "self", "hybrid"
WAYS = (API, SELF, HYBRID)

Number = float | Floats


@dataclass(frozen=True)
class Way:
    """A cost by volume: fixed, by the request, and by the machine, one for every `volume` requests begun.

    Each part may be a number, or an array of draws. `parts` says what the dollars go to, at a volume.
    """

    fixed: Number
    per_request: Number
    per_machine: Number = 0.0
    volume: Number = np.inf  # requests a month that one machine takes, the peak within the objective
    spare: Number = 0.0

    def machines(self, requests: Number) -> Number:
        """Machines at a volume, the spare ones included; none where the way has none."""
        if np.all(np.isinf(self.volume)):
            return 0.0 * np.asarray(requests)
        return np.maximum(1.0, np.ceil(requests / self.volume)) + np.rint(self.spare)

    def usd(self, requests: Number) -> Number:
        """Dollars a month at a volume, in requests a month."""
        return self.fixed + self.per_request * requests + self.per_machine * self.machines(requests)


def ways_of(v: Mapping[str, Number], hybrid: str = "cascade") -> dict[str, Way]:
    """The three ways of these inputs, by name; `v` maps an input's name to its value or its draws.

    hybrid: `cascade`, where the student answers every request first; `before`, where it sees only what stays at home.
    The errors of both together are at most the API's and the harm: wrong at home where the API is right.
    """
    answer, error = answer_usd(v), v["usd_per_error"]
    home = 1.0 - v["escalated"]
    asked_share = 1.0 if hybrid == "cascade" else np.maximum(home, 1e-9)
    machine, volume, fixed = machine_usd(v), machine_volume(v), home_fixed(v)
    more = v["usd_per_1000_more"] / 1000
    return {
        API: Way(0.0 * answer, answer + v["error_api"] * error),
        SELF: Way(fixed, more + v["error_self"] * error, machine, volume, v["redundancy"]),
        HYBRID: Way(
            fixed + v["router_usd"],
            more * asked_share + v["escalated"] * answer + (v["error_api"] + v["harm"]) * error,
            machine,
            volume / asked_share,
            v["redundancy"],
        ),
    }


def answer_usd(v: Mapping[str, Number]) -> Number:
    """Dollars of one answer of the API: uncached, cached and output tokens, retries, and the share that is batched."""
    tokens = (
        (v["tokens_in"] - v["tokens_cached"]) * v["input_mtok"]
        + v["tokens_cached"] * v["cached_mtok"]
        + (v["tokens_out"] + v["tokens_thought"]) * v["output_mtok"]
    )
    return tokens / MILLION * (1.0 - v["batch_share"] * v["batch_discount"]) * v["retry_factor"]


def machine_usd(v: Mapping[str, Number]) -> Number:
    """Dollars a month of one machine: rented by the hour, or bought, written off and powered."""
    if "purchase_usd" in v:
        power = v["kilowatts"] * v["pue"] * v["usd_per_kwh"] * HOURS
        return v["purchase_usd"] / v["purchase_months"] + power
    return v["usd_per_hour"] * HOURS


def machine_volume(v: Mapping[str, Number]) -> Number:
    """Requests a month that one machine takes when its peak stays within the objective."""
    return v["answers_per_second"] * SECONDS / v["peak_factor"]


def home_fixed(v: Mapping[str, Number]) -> Number:
    """Dollars a month at home whatever the volume: storage, people, trainings, and the setup paid off."""
    return sum(home_parts(v).values())


def home_parts(v: Mapping[str, Number]) -> dict[str, Number]:
    """The parts of that, by what they are for."""
    year = v["engineer_usd_a_year"]
    training = v["labels_usd"] + v["training_usd"] + v["evaluation_usd"]
    return {
        "storage": v["storage_usd"],
        "people": v["engineers"] * year / 12,
        "training anew": training / v["months_between"],
        "setup": v["setup_weeks"] * year / 52 / v["horizon_months"],
    }


def kwh_of(v: Mapping[str, float], hybrid: str, requests: float) -> dict[str, float]:
    """Way → kilowatt-hours a month of the answers; without the ways of which an answer's energy is not known."""
    api, own = v["kwh_per_1000_api"], v.get("kwh_per_1000_self")
    kwh = {API: api * requests / 1000}
    if own is not None:
        share = 1.0 if hybrid == "cascade" else 1.0 - v["escalated"]
        kwh |= {SELF: own * requests / 1000, HYBRID: (share * own + v["escalated"] * api) * requests / 1000}
    return kwh


def parts_of(v: Mapping[str, float], hybrid: str, requests: float) -> dict[str, dict[str, float]]:
    """Way → what its dollars go to at a volume; the parts of each way add up to its cost."""
    ways, answer, error = ways_of(v, hybrid), answer_usd(v) * requests, v["usd_per_error"] * requests
    parts: dict[str, dict[str, Number]] = {API: {"tokens": answer, "errors": v["error_api"] * error}}
    for name in (SELF, HYBRID):
        way, both = ways[name], name == HYBRID
        share = 1.0 if not both or hybrid == "cascade" else 1.0 - v["escalated"]
        wrong = v["error_api"] + v["harm"] if both else v["error_self"]
        parts[name] = {
            **({"tokens": v["escalated"] * answer, "router": v["router_usd"]} if both else {}),
            "machines": way.per_machine * way.machines(requests),
            "beside machines": v["usd_per_1000_more"] / 1000 * share * requests,
            **home_parts(v),
            "errors": wrong * error,
        }
    return {name: {part: float(usd) for part, usd in own.items()} for name, own in parts.items()}


@dataclass(frozen=True)
class Serving:
    """The machines of one way, in the words that every page uses: at saturation, and at your volume."""

    machines: float
    utilisation: float  # of what the machines could answer, the spare ones included
    usd_per_1000_at_saturation: float
    usd_per_1000_at_your_volume: float


def serving_of(usd_per_hour: float, answers_per_second: float, requests: float, machines: float) -> Serving:
    """What 1,000 answers cost in machines alone: each fully loaded, and as many requests as there are.

    An hour's price over 3,600 seconds of answers, and that over the utilisation: at a tenth of the load, ten times.
    """
    most = machines * answers_per_second * SECONDS
    saturated = 1000 * usd_per_hour / 3600 / answers_per_second
    used = requests / most
    return Serving(machines, used, saturated, saturated / used)
