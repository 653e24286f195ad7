"""The promise: what it allows, that it holds over many draws, and that a naive threshold does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from workbench.deciding.curve import curve, even_ratio, share_at, usd_of
from workbench.deciding.promise import choose, harm_allowed, rows_for, shared, upper_bound
from workbench.deciding.scores import auroc

ALLOWED = {
    300: {0.01: (0, 2), 0.02: (1, 5), 0.03: (3, 8), 0.05: (8, 14)},
    600: {0.01: (1, 5), 0.02: (6, 11), 0.03: (10, 17), 0.05: (20, 29)},
    1000: {0.01: (4, 9), 0.02: (12, 19), 0.03: (20, 29), 0.05: (38, 49)},
}


@pytest.mark.parametrize("n", ALLOWED)
def test_so_many_harmful_rows_are_allowed_for_certain_and_on_average(n: int) -> None:
    found = {
        harm: tuple(harm_allowed(n, harm, promise, 0.95) for promise in ("sure", "on_average")) for harm in ALLOWED[n]
    }
    assert found == ALLOWED[n]


@given(st.integers(1, 400), st.integers(0, 20), st.floats(0.6, 0.99))
def test_the_bound_is_the_share_at_which_so_few_would_be_seen_once_in_so_many_draws(
    n: int, harmful: int, certainty: float
) -> None:
    harmful = min(harmful, n)
    bound = upper_bound(harmful, n, certainty)
    assert bound == 1.0 if harmful == n else binom.cdf(harmful, n, bound) == pytest.approx(1 - certainty, abs=1e-6)


rows = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), max_size=60)


@given(rows, st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from(["sure", "on_average"]))
def test_the_longest_prefix_within_the_bound_is_kept_and_rows_of_one_score_are_not_parted(
    made: list[tuple[int, bool]], most_harm: float, promise: str
) -> None:
    scores, harmful = [float(score) for score, _ in made], [harm for _, harm in made]
    found = choose(scores, harmful, most_harm, promise, 0.95)
    allowed = harm_allowed(len(made), most_harm, promise, 0.95)
    fits = [t for t in set(scores) if sum(h for s, h in zip(scores, harmful) if s >= t) <= allowed]
    assert found.threshold == min(fits, default=None)
    kept = [h for s, h in zip(scores, harmful) if found.threshold is not None and s >= found.threshold]
    assert (found.kept, found.harmful) == (len(kept), sum(kept))


def test_an_answer_that_is_never_kept_counts_among_the_requests_and_is_not_kept() -> None:
    scores = [3.0, 2.0, 1.0, -math.inf]
    found = choose(scores, [False] * 4, 0.6, "sure", 0.95)
    assert (found.threshold, found.kept, found.n) == (1.0, 3, 4)
    with pytest.raises(ValueError, match="no number"):
        choose([math.nan], [False], 0.6, "sure", 0.95)


def test_the_rows_that_a_promise_would_take_are_the_fewest_that_allow_it() -> None:
    assert rows_for(0.0, 0.01, "sure", 0.95) == 299
    assert rows_for(0.0, 0.05, "sure", 0.95) == 59
    assert rows_for(0.0, 0.05, "on_average", 0.95) == 19
    needed = rows_for(0.008, 0.01, "sure", 0.95)
    assert needed is not None
    assert (
        upper_bound(math.ceil(0.008 * needed), needed, 0.95)
        <= 0.01
        < upper_bound(math.ceil(0.008 * needed * 0.8), round(needed * 0.8), 0.95)
    )
    assert rows_for(0.01, 0.01, "sure", 0.95) is None
    assert shared(0.95, 5) == pytest.approx(0.99)


# A population whose harm is known: scores are even on 0 to 1, and P(harm | score) = 0.5·(1 − score)².


def true_harm(threshold: float | None) -> float:
    return 0.0 if threshold is None else 0.5 * (1 - threshold) ** 3 / 3


def drawn(n: int, rng: Any) -> tuple[Any, Any]:
    scores = rng.random(n)
    return scores, rng.random(n) < 0.5 * (1 - scores) ** 2


def naive(scores: Any, harmful: Any, most_harm: float) -> float | None:
    """The threshold that many take: the lowest one whose harm on the rows at hand is no more than was allowed."""
    order = np.argsort(-scores)
    fits = np.flatnonzero(np.cumsum(harmful[order]) <= most_harm * len(scores))
    return float(scores[order][fits[-1]]) if len(fits) else None


def held(n: int, sets: int, most_harm: float = 0.05) -> dict[str, tuple[float, float]]:
    """Over so many draws of n rows: how often each way's true harm is more than promised, and that harm's mean."""
    rng = np.random.default_rng(n)
    harms: dict[str, list[float]] = {"sure": [], "on_average": [], "naive": []}
    for _ in range(sets):
        scores, harmful = drawn(n, rng)
        for promise in ("sure", "on_average"):
            harms[promise].append(true_harm(choose(scores, harmful, most_harm, promise, 0.95).threshold))
        harms["naive"].append(true_harm(naive(scores, harmful, most_harm)))
    return {way: (float(np.mean(np.array(h) > most_harm)), float(np.mean(h))) for way, h in harms.items()}


def keeps_its_word(n: int, sets: int) -> None:
    found = held(n, sets)
    assert found["sure"][0] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sets), found
    assert found["on_average"][1] <= 0.05, found
    assert found["naive"][0] > 0.3, "the naive threshold breaks its word"
    assert found["on_average"][0] > 0.2, "and the promise on average is none for the one router at hand"


def test_sure_is_seldom_broken_and_on_average_holds_on_average_and_the_naive_threshold_does_neither() -> None:
    keeps_its_word(300, 250)


@pytest.mark.proof
@pytest.mark.parametrize("n", [100, 300, 1000])
def test_over_two_thousand_draws_the_promises_hold(n: int) -> None:
    keeps_its_word(n, 2000)


# The curve beside a random mix, and which kind is cheaper.


def test_the_curve_tells_of_every_share_what_the_cascade_and_a_random_mix_would_get_right() -> None:
    scores, home, away = [4.0, 3.0, 3.0, 1.0, -math.inf], [1, 1, 0, 0, 1], [1, 0, 1, 0, 1]
    points = curve(scores, home, away)
    assert [p["share"] for p in points] == pytest.approx([0.2, 0.6, 0.8])
    assert [p["harm"] for p in points] == pytest.approx([0.0, 0.2, 0.2])
    assert [p["cascade"] for p in points] == pytest.approx([0.6, 0.6, 0.6])
    assert points[1]["mix"] == pytest.approx(0.6 * 0.6 + 0.4 * 0.6)
    assert share_at(points, 0.1) == pytest.approx(0.2)
    assert len(curve(list(np.arange(500.0)), [1] * 500, [1] * 500)) == 60


def test_how_well_a_score_parts_right_from_wrong_counts_ties_by_halves() -> None:
    assert auroc([3, 2, 1, 0], [True, True, False, False]) == 1.0
    assert auroc([1, 1, 1, 1], [True, True, False, False]) == 0.5
    assert auroc([1, 2], [True, True]) is None


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 2))
def test_the_cascade_is_cheaper_just_below_the_ratio_at_which_both_cost_the_same(
    cascade: float, before: float, ratio: float
) -> None:
    even = even_ratio(cascade, before)
    assert even is not None
    difference = usd_of("cascade", ratio, 1.0, cascade) - usd_of("before", ratio, 1.0, before)
    assert difference == pytest.approx((ratio - even) * before, abs=1e-9)
