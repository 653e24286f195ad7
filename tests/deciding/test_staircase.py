"""The cheapest way at every volume, against a brute force that knows nothing of intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest

from workbench.deciding.chances import drawn, probabilities, tornado
from workbench.deciding.inputs import ASSUMED, Input
from workbench.deciding.staircase import Interval, cheapest_at, intervals, stretches
from workbench.deciding.ways import Way, parts_of, serving_of, ways_of

BOUNDS = {  # input → the ends between which it is drawn, evenly over its logarithm
    "tokens_in": (50, 4000), "tokens_out": (1, 1000), "tokens_thought": (0.1, 2000), "input_mtok": (0.05, 30),
    "cached_mtok": (0.01, 5), "output_mtok": (0.1, 120), "batch_share": (0.01, 1), "batch_discount": (0.1, 1),
    "retry_factor": (1, 2), "answers_per_second": (0.5, 300), "usd_per_hour": (0.03, 12), "redundancy": (0.6, 3),
    "peak_factor": (1, 10), "storage_usd": (1, 500), "usd_per_1000_more": (1e-4, 5), "engineers": (0.01, 6),
    "engineer_usd_a_year": (3e4, 3e5), "labels_usd": (1, 1e4), "training_usd": (1, 1e3), "evaluation_usd": (1, 100),
    "months_between": (1, 24), "setup_weeks": (0.1, 20), "horizon_months": (6, 60), "escalated": (0.01, 1),
    "harm": (1e-3, 0.2), "router_usd": (1, 500), "usd_per_error": (1e-6, 1e-2), "error_api": (0.01, 0.4),
    "error_self": (0.01, 0.4),
}  # fmt: skip


def some_inputs(random: np.random.Generator) -> dict[str, float]:
    """One draw of every input; a third of the machines are bought."""
    values = {
        name: float(np.exp(random.uniform(math.log(low), math.log(high)))) for name, (low, high) in BOUNDS.items()
    }
    values["tokens_cached"] = values["tokens_in"] * random.uniform()
    values["redundancy"] = float(round(values["redundancy"]))
    if random.uniform() < 1 / 3:
        del values["usd_per_hour"]
        values |= {"purchase_usd": 8e3, "purchase_months": 36, "kilowatts": 0.7, "pue": 1.4, "usd_per_kwh": 0.2}
    return values


def by_hand(v: Mapping[str, float], hybrid: str, volumes: np.ndarray) -> dict[str, np.ndarray]:
    """Dollars a month of each way, written down once more, volume by volume."""
    token_usd = (v["tokens_in"] - v["tokens_cached"]) * v["input_mtok"] + v["tokens_cached"] * v["cached_mtok"]
    token_usd += (v["tokens_out"] + v["tokens_thought"]) * v["output_mtok"]
    answer = token_usd / 1e6 * (1 - v["batch_share"] * v["batch_discount"]) * v["retry_factor"]
    month = (
        v["usd_per_hour"] * 730
        if "usd_per_hour" in v
        else v["purchase_usd"] / v["purchase_months"] + v["kilowatts"] * v["pue"] * v["usd_per_kwh"] * 730
    )
    people = v["engineers"] * v["engineer_usd_a_year"] / 12
    setup = v["setup_weeks"] * v["engineer_usd_a_year"] / 52 / v["horizon_months"]
    anew = (v["labels_usd"] + v["training_usd"] + v["evaluation_usd"]) / v["months_between"]
    fixed = v["storage_usd"] + people + setup + anew

    def home(seen: float) -> np.ndarray:
        peak_a_second = volumes * seen * v["peak_factor"] / (730 * 3600)
        machines = np.ceil(peak_a_second / v["answers_per_second"]) + v["redundancy"]
        return fixed + machines * month + v["usd_per_1000_more"] / 1000 * seen * volumes

    wrong = v["usd_per_error"] * volumes
    seen = 1.0 if hybrid == "cascade" else 1 - v["escalated"]
    return {
        "api": answer * volumes + v["error_api"] * wrong,
        "self": home(1.0) + v["error_self"] * wrong,
        "hybrid": home(seen)
        + v["router_usd"]
        + v["escalated"] * answer * volumes
        + (v["error_api"] + v["harm"]) * wrong,
    }


def check_against_brute_force(draws: int, seed: int) -> int:
    """Hold the intervals of so many random inputs against the brute force; gives how many turns there were."""
    random, turns = np.random.default_rng(seed), 0
    for _ in range(draws):
        values = some_inputs(random)
        hybrid = "cascade" if random.uniform() < 0.5 else "before"
        if hybrid == "before":
            values["escalated"] = min(values["escalated"], 0.98)
        pieces = intervals(ways_of(values, hybrid))
        assert pieces[0].low == 1e4
        assert all(a.high == b.low and a.cheapest != b.cheapest for a, b in pairwise(pieces))
        turns += len(pieces) - 1
        ends = np.array([piece.low for piece in pieces[1:201]])
        volumes = np.concatenate([np.geomspace(1e4, pieces[-1].high, 150), ends * (1 - 1e-7), ends * (1 + 1e-7)])
        volumes = volumes[(volumes >= 1e4) & (volumes <= pieces[-1].high)]
        costs = by_hand(values, hybrid, volumes)
        least = np.min(list(costs.values()), axis=0)
        starts = np.array([piece.low for piece in pieces])
        for volume, best, i in zip(volumes, least, range(len(volumes))):
            way = pieces[max(0, int(np.searchsorted(starts, volume)) - 1)].cheapest
            assert costs[way][i] <= best * (1 + 1e-6), (values, hybrid, volume, way)
    return turns


def test_the_cheapest_way_is_that_of_a_brute_force_at_every_volume() -> None:
    assert check_against_brute_force(120, seed=1) > 120


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_the_cheapest_way_is_that_of_a_brute_force_on_ten_thousand_random_inputs() -> None:
    assert check_against_brute_force(10_000, seed=2) > 10_000


def test_a_staircase_may_be_crossed_many_times_and_each_turn_is_an_interval() -> None:
    # A machine for every million requests at 900 dollars, against an API at 1 dollar a thousand: the stairs win
    # above 900,000 requests of every million until the next machine is needed.
    ways = {"api": Way(0.0, 0.001), "self": Way(0.0, 0.0, 900.0, 1e6)}
    pieces = intervals(ways, 1e4, 3.05e6)
    assert [(p.low, p.high, p.cheapest) for p in pieces] == [
        (1e4, 9e5, "api"), (9e5, 1e6, "self"), (1e6, 1.8e6, "api"), (1.8e6, 2e6, "self"), (2e6, 2.7e6, "api"),
        (2.7e6, 3e6, "self"), (3e6, 3.05e6, "api"),
    ]  # fmt: skip
    assert cheapest_at(pieces, 1.9e6) == "self"
    told = stretches(pieces, most=3)
    assert len(told) == 3
    assert told[0][0] == 1e4
    assert told[-1][1] == 3.05e6
    assert sum(turns for *_, turns in told) + len(told) == len(pieces)
    close = [(1e4, 4.23e7, "api"), (4.23e7, 4.233e7, "self"), (4.233e7, 4.27e7, "api"), (4.27e7, 1e10, "self")]
    assert stretches([Interval(low, high, cheapest=way) for low, high, way in close]) == [
        (1e4, 4.23e7, ("api",), 0), (4.23e7, 4.27e7, ("self", "api"), 1), (4.27e7, 1e10, ("self",), 0),
    ], "ends that would be written alike are no line"  # fmt: skip


def test_a_third_way_is_found_where_it_wins_only_between_the_other_two() -> None:
    ways = {"api": Way(0.0, 0.010), "self": Way(1000.0, 0.0), "hybrid": Way(300.0, 0.004)}
    assert [(p.cheapest, p.low) for p in intervals(ways, 1e3, 1e6)] == [
        ("api", 1e3), ("hybrid", pytest.approx(50_000)), ("self", pytest.approx(175_000)),
    ]  # fmt: skip


def test_the_parts_of_each_way_add_up_to_its_cost() -> None:
    random = np.random.default_rng(3)
    for hybrid in ("cascade", "before"):
        values = some_inputs(random)
        ways, volume = ways_of(values, hybrid), 3.7e6
        for name, parts in parts_of(values, hybrid, volume).items():
            assert sum(parts.values()) == pytest.approx(float(ways[name].usd(volume)))


def test_a_thousand_answers_at_a_tenth_of_the_load_cost_ten_times_those_at_saturation() -> None:
    month = 730 * 3600
    full = serving_of(2.5, 4.0, 4.0 * month, 1)
    tenth = serving_of(2.5, 4.0, 0.4 * month, 1)
    assert full.usd_per_1000_at_your_volume == pytest.approx(full.usd_per_1000_at_saturation)
    assert tenth.usd_per_1000_at_saturation == pytest.approx(full.usd_per_1000_at_saturation)
    assert tenth.usd_per_1000_at_your_volume == pytest.approx(10 * full.usd_per_1000_at_saturation)
    # What a month of the machine costs, over the answers that it gave.
    assert tenth.usd_per_1000_at_your_volume == pytest.approx(1000 * 2.5 * 730 / (0.4 * month))


def inputs_with(**known: tuple[float, float, float]) -> dict[str, Input]:
    """Every input at its assumed value without a range, but for those named: (value, low, high)."""
    prices = {"input_mtok": 1.0, "cached_mtok": 1.0, "output_mtok": 4.0, "answers_per_second": 5.0, "usd_per_hour": 1.0}
    values = {name: each.value for name, each in ASSUMED.items()} | prices
    return {name: Input(name, *known.get(name, (v, v, v)), "here", "", "yours") for name, v in values.items()}


def test_draws_stay_within_their_ranges_and_are_the_same_for_one_seed() -> None:
    inputs = inputs_with(engineers=(0.2, 0.1, 0.5))
    one, other = drawn(inputs, 7, 500), drawn(inputs, 7, 500)
    assert np.array_equal(one["engineers"], other["engineers"])
    assert 0.1 <= one["engineers"].min() < 0.2 < one["engineers"].max() <= 0.5
    assert set(one["storage_usd"]) == {20.0}


def test_the_chance_of_a_way_is_that_of_its_one_unsure_input() -> None:
    # Serving oneself costs the same as the API at one engineer more; a symmetric range about that is a coin.
    inputs = inputs_with(requests_a_month=(1e7, 1e7, 1e7))
    values = {name: each.value for name, each in inputs.items()}
    ways = ways_of(values)
    room = float(ways["api"].usd(1e7) - ways["self"].usd(1e7)) / 15_000
    level = values["engineers"] + room
    assert level > 0
    unsure = inputs_with(requests_a_month=(1e7, 1e7, 1e7), engineers=(level, level * 0.5, level * 1.5))
    probability, self_beats_api = probabilities(unsure, "cascade", 5)
    assert self_beats_api == pytest.approx(0.5, abs=0.02)
    assert sum(probability.values()) == pytest.approx(1.0)
    _, _, swings = tornado(unsure, "cascade")
    assert [swing.name for swing in swings] == ["engineers"]
