"""Intervals that hold what they promise, tests that agree with known packages, and inputs that have no spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.evaluation import statistics as stats

SIMULATIONS, RESAMPLES = 2000, 2000


def alone(n: int) -> stats.Ints:
    """Every item its own cluster."""
    return np.arange(n, dtype=np.int64)


@pytest.mark.parametrize(("n", "gained", "lost"), [(600, 0.30, 0.10), (300, 0.08, 0.10), (120, 0.2, 0.2)])
def test_the_paired_bootstrap_covers_the_truth_as_often_as_it_says(n: int, gained: float, lost: float) -> None:
    rng = np.random.default_rng(n)
    deltas = rng.choice([1.0, -1.0, 0.0], size=(n, SIMULATIONS), p=[gained, lost, 1 - gained - lost])
    draws = stats.resampled_totals(deltas, alone(n), RESAMPLES, seed=1) / n
    found = [stats.difference(deltas[:, i], alone(n), draws[:, i], 0.95) for i in range(SIMULATIONS)]
    covered = np.mean([e.low <= gained - lost + 1e-12 and gained - lost - 1e-12 <= e.high for e in found])
    assert 0.93 <= covered <= 0.97


def test_an_interval_over_near_copies_covers_only_because_clusters_are_resampled() -> None:
    clusters, copies, truth = 150, 3, 0.6
    rng = np.random.default_rng(5)
    numbers = np.repeat(alone(clusters), copies)
    right = np.repeat(rng.random((clusters, SIMULATIONS)) < truth, copies, axis=0).astype(float)

    def coverage(of: stats.Ints) -> float:
        draws = stats.resampled_totals(right, of, 1000, seed=2) / len(right)
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        return float(np.mean((low <= truth) & (truth <= high)))

    assert 0.93 <= coverage(numbers) <= 0.97
    assert coverage(alone(clusters * copies)) < 0.85
    wilson = [stats.share_interval(right[:, i], numbers, 0.95) for i in range(300)]
    assert np.mean([e.low <= truth <= e.high for e in wilson]) > 0.91


@pytest.mark.parametrize(("n", "truth"), [(600, 0.68), (100, 0.9), (400, 0.03)])
def test_wilsons_interval_covers_a_share_as_often_as_it_says(n: int, truth: float) -> None:
    counts = np.random.default_rng(n).binomial(n, truth, SIMULATIONS)
    by_count = {}
    for k in set(counts.tolist()):
        by_count[k] = stats.share_interval(np.repeat([1.0, 0.0], [k, n - k]), alone(n), 0.95)
    covered = np.mean([by_count[k].low <= truth <= by_count[k].high for k in counts.tolist()])
    assert 0.93 <= covered <= 0.97


def test_all_right_is_not_certainly_all_right() -> None:
    found = stats.share_interval(np.ones(600), alone(600), 0.95)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(600 / (600 + 1.959964**2), abs=1e-6)  # Wilson's lower end for k = n


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_mcnemar_agrees_with_statsmodels(rows: list[tuple[bool, bool]]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.array(rows, dtype=float).T
    table = [[np.sum((a == x) & (b == y)) for y in (1, 0)] for x in (1, 0)]
    expected = 1.0 if table[0][1] + table[1][0] == 0 else float(mcnemar(table, exact=True).pvalue)
    assert stats.mcnemar(a, b) == pytest.approx(expected, abs=1e-12)


def test_resampling_is_the_same_for_one_seed_and_for_any_number_of_columns() -> None:
    columns = np.random.default_rng(0).random((50, 4))
    together = stats.resampled_totals(columns, alone(50), 300, seed=7)
    apart = [stats.resampled_totals(columns[:, [i]], alone(50), 300, seed=7)[:, 0] for i in range(4)]
    np.testing.assert_allclose(together, np.stack(apart, axis=1))
    assert not np.allclose(together, stats.resampled_totals(columns, alone(50), 300, seed=8))


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((40, 2))
    whole = stats.resampled_totals(columns, alone(40), 500, seed=3)
    monkeypatch.setattr(stats, "CELLS_AT_ONCE", 40 * 7)
    np.testing.assert_allclose(stats.resampled_totals(columns, alone(40), 500, seed=3), whole)


def test_equal_arms_differ_by_no_more_than_could_have_gone_unseen() -> None:
    zero = np.zeros(600)
    found = stats.difference(zero, alone(600), zero[:100], 0.95)
    unseen = 1 - 0.025 ** (1 / 600)
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-unseen), pytest.approx(unseen))
    assert 0.006 < unseen < 0.0062


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_single_item_gives_an_interval_that_says_almost_nothing(value: float) -> None:
    delta = np.array([value])
    found = stats.difference(delta, alone(1), stats.resampled_totals(delta[:, None], alone(1), 100, 0)[:, 0], 0.95)
    assert found.low <= value <= found.high
    assert found.high - found.low > 0.9
    share = stats.share_interval(np.array([abs(value)]), alone(1), 0.95)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert stats.design_effect(delta, alone(1)) == 1.0


def test_the_design_effect_of_whole_copies_is_their_number() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat((rng.random(2000) < 0.5).astype(float), 3)
    assert stats.design_effect(values, np.repeat(alone(2000), 3)) == pytest.approx(3.0, rel=0.01)
    assert stats.design_effect(np.ones(6), np.repeat(alone(2), 3)) == 3.0


@pytest.mark.parametrize(("n", "discordance"), [(600, 0.2), (200, 0.1), (400, 0.5), (1000, 0.05)])
def test_the_detectable_difference_is_shown_four_times_out_of_five(n: int, discordance: float) -> None:
    from scipy.stats import norm

    delta = stats.detectable(n, discordance)
    # Connor's formula, put back in.
    root = norm.ppf(0.975) * math.sqrt(discordance) + norm.ppf(0.8) * math.sqrt(discordance - delta**2)
    assert n == pytest.approx((root / delta) ** 2, rel=1e-9)
    rng = np.random.default_rng(0)
    gained, lost = (discordance + delta) / 2, (discordance - delta) / 2
    counts = rng.multinomial(n, [gained, lost, 1 - discordance], size=4000)
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert 0.77 <= np.mean(np.abs(z) > norm.ppf(0.975)) <= 0.83


@given(st.integers(1, 5000), st.floats(0, 1))
@settings(deadline=None)
def test_the_detectable_difference_is_a_share_whatever_the_input(n: int, discordance: float) -> None:
    assert 0 < stats.detectable(n, discordance) <= 1


def test_arms_that_never_differ_could_still_have_differed_on_a_few_items() -> None:
    assert 5 / 600 < stats.detectable(600, 0.0) < 10 / 600
    assert stats.detectable(600, 0.0) == stats.detectable(600, 0.5 / 600)


def test_macro_f1_from_counts_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(4)
    names = ["a", "b", "c", "d"]
    wanted = rng.choice(names, 200, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    answered = [w if rng.random() < 0.6 else str(rng.choice([*names, "\0invalid", "e"])) for w in wanted]
    columns = stats.label_columns(wanted, answered, names)
    expected = f1_score(wanted, answered, labels=names, average="macro", zero_division=0)
    assert stats.macro_f1(columns.sum(axis=0, keepdims=True))[0] == pytest.approx(expected)


def test_resampled_macro_f1_is_what_scoring_each_resample_would_give() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(6)
    wanted = rng.choice(["a", "b", "rare"], 60, p=[0.6, 0.37, 0.03])
    answered = np.where(rng.random(60) < 0.7, wanted, "a")
    columns = stats.label_columns(wanted.tolist(), answered.tolist(), sorted(set(wanted)))
    fast = stats.macro_f1(stats.resampled_totals(columns, alone(60), 40, seed=9))
    draws = np.random.default_rng(9).integers(60, size=(40, 60))
    slow = [
        f1_score(wanted[d], answered[d], labels=sorted(set(wanted[d])), average="macro", zero_division=0) for d in draws
    ]
    np.testing.assert_allclose(fast, slow)


def test_items_without_a_group_are_clusters_of_their_own() -> None:
    assert stats.cluster_numbers(["", "x", "", "x", "0"]).tolist() == [0, 1, 2, 1, 3]
