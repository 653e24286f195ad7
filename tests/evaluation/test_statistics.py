"""Intervals that hold what they promise, tests that agree with known packages, and inputs that have no spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.evaluation import statistics
from workbench.evaluation import statistics as stats
from workbench.evaluation.metrics import macro_f1_of

SIMULATIONS, RESAMPLES = 2000, 2000


def alone(n: int) -> stats.Ints:
    """Every item its own cluster."""
    return np.arange(n, dtype=np.int64)


def sizes(n: int, clustered: bool, rng: np.random.Generator) -> list[int]:
    """Cluster sizes that sum to n: all 1, or mixed from 1 to 8."""
    if not clustered:
        return [1] * n
    drawn: list[int] = []
    while sum(drawn) < n:
        drawn.append(int(rng.choice([1, 1, 1, 2, 3, 5, 8])))
    drawn[-1] -= sum(drawn) - n
    return drawn


def answers(
    n: int, clustered: bool, right: tuple[float, float], seed: int, simulations: int = SIMULATIONS, tie: float = 0.5
) -> tuple[stats.Ints, stats.Floats, stats.Floats]:
    """Clusters (N,) and the latent skills (N, S) of two arms, so that each is below its quantile `right` of the time.

    Half of what decides an item is shared by both arms; items of a cluster have a latent correlation of 0.4.
    """
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(len(size := sizes(n, clustered, rng))), size)
    within = 0.4 if clustered else 0.0

    def latent() -> stats.Floats:
        ours = rng.standard_normal((len(size), simulations))[numbers]
        return np.sqrt(within) * ours + np.sqrt(1 - within) * rng.standard_normal((n, simulations))

    shared = latent()
    one, other = (np.sqrt(tie) * shared + np.sqrt(1 - tie) * latent() for _ in range(2))
    return numbers, one, other


def below(latent: stats.Floats, share: float) -> stats.Floats:
    from scipy.special import ndtri

    return (latent < ndtri(share)).astype(float)


def covered(found: list[stats.Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth + 1e-12 and truth - 1e-12 <= e.high for e in found]))


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("n", [50, 200, 1000])
def test_95_of_100_intervals_hold_the_truth(n: int, clustered: bool) -> None:
    # 2,000 evaluations each. Shares and their differences need no resampling; graded scores take 500 resamples here.
    numbers, one, other = answers(n, clustered, (0.6, 0.5), seed=n)
    a, b = below(one, 0.6), below(other, 0.5)
    none = np.zeros(1)
    paired = [stats.difference(a[:, i] - b[:, i], numbers, none, 0.95) for i in range(SIMULATIONS)]
    shares = [stats.share_interval(a[:, i], numbers, 0.95) for i in range(SIMULATIONS)]
    graded = (a + below(one, 0.4) - b - below(other, 0.35)) / 2  # 0, 0.5 or 1 for each arm
    totals = stats.resampled_totals(np.column_stack([np.ones(n), graded]), numbers, 500, seed=1)
    draws = totals[:, 1:] / totals[:, :1]
    means = [stats.difference(graded[:, i], numbers, draws[:, i], 0.95) for i in range(SIMULATIONS)]
    for found, truth in ((paired, 0.1), (shares, 0.6), (means, 0.075)):
        assert 0.93 <= covered(found, truth) <= 0.97


@pytest.mark.proof
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("n", [50, 200, 1000])
def test_graded_scores_and_rare_errors_are_held_as_often_with_all_resamples(n: int, clustered: bool) -> None:
    numbers, one, other = answers(n, clustered, (0.9, 0.85), seed=n + 1, tie=0.6)
    none = np.zeros(1)
    a, b = below(one, 0.9), below(other, 0.85)
    paired = [stats.difference(a[:, i] - b[:, i], numbers, none, 0.95) for i in range(SIMULATIONS)]
    assert 0.93 <= covered(paired, 0.05) <= 0.98  # few clusters and few errors: cautious rather than bold
    graded = (below(one, 0.3) + below(one, 0.7) - below(other, 0.4) - below(other, 0.6)) / 2
    totals = stats.resampled_totals(np.column_stack([np.ones(n), graded]), numbers, 10_000, seed=1)
    draws = totals[:, 1:] / totals[:, :1]
    means = [stats.difference(graded[:, i], numbers, draws[:, i], 0.95) for i in range(SIMULATIONS)]
    assert 0.93 <= covered(means, 0.0) <= 0.97


def test_plain_percentiles_over_few_near_copies_would_promise_too_much() -> None:
    numbers, one, other = answers(50, True, (0.6, 0.5), seed=50)
    delta = below(one, 0.6) - below(other, 0.5)
    totals = stats.resampled_totals(np.column_stack([np.ones(50), delta]), numbers, 500, seed=1)
    draws, alone_n = totals[:, 1:] / totals[:, :1], alone(50)
    plain = [stats.percentile(0.0, draws[:, i], 0.95) for i in range(SIMULATIONS)]
    untied = [stats.difference(delta[:, i], alone_n, draws[:, i], 0.95) for i in range(SIMULATIONS)]
    assert covered(plain, 0.1) < 0.93
    assert covered(untied, 0.1) < 0.91


@pytest.mark.parametrize(("n", "truth"), [(600, 0.68), (100, 0.9), (400, 0.03)])
def test_wilsons_interval_covers_a_share_as_often_as_it_says(n: int, truth: float) -> None:
    counts = np.random.default_rng(n).binomial(n, truth, SIMULATIONS)
    by_count = {}
    for k in set(counts.tolist()):
        by_count[k] = stats.share_interval(np.repeat([1.0, 0.0], [k, n - k]), alone(n), 0.95)
    held = np.mean([by_count[k].low <= truth <= by_count[k].high for k in counts.tolist()])
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize(("n", "margin", "differing"), [
    (50, 0.05, 0.15), (200, 0.03, 0.03), (200, 0.02, 0.2), (1000, 0.03, 0.05), (1000, 0.02, 0.2),
])  # fmt: skip
def test_a_loss_of_just_the_margin_passes_at_most_5_times_of_100(n: int, margin: float, differing: float) -> None:
    gained, lost = (differing - margin) / 2, (differing + margin) / 2
    counts = np.random.default_rng(n).multinomial(n, [gained, lost, 1 - differing], size=SIMULATIONS)
    passes = {
        (up, down): statistics.not_inferior(
            stats.difference(np.repeat([1.0, -1.0, 0.0], [up, down, same]), alone(n), np.zeros(1), 0.95), margin
        )
        for up, down, same in {tuple(row) for row in counts.tolist()}
    }
    assert np.mean([passes[up, down] for up, down, _ in counts.tolist()]) <= 0.035


def test_a_loss_of_just_the_margin_passes_as_seldom_among_near_copies() -> None:
    numbers, one, other = answers(200, True, (0.57, 0.6), seed=4)
    delta = below(one, 0.57) - below(other, 0.6)
    found = [stats.difference(delta[:, i], numbers, np.zeros(1), 0.95) for i in range(SIMULATIONS)]
    assert np.mean([statistics.not_inferior(e, 0.03) for e in found]) <= 0.05
    assert not statistics.not_inferior(stats.Estimate(0.5, None, None), 0.03)


def test_tangos_interval_is_the_set_of_differences_that_his_score_test_does_not_reject() -> None:
    from scipy.optimize import minimize_scalar

    gained, lost, n, z = 7.0, 15.0, 120.0, 1.96
    for end in stats.tango(gained, lost, n, z):
        # q by maximum likelihood instead of its closed form: the share of lost pairs, with gained = q + end.
        def unlikely(q: float, end: float = end) -> float:
            return -(gained * np.log(q + end) + lost * np.log(q) + (n - gained - lost) * np.log(1 - 2 * q - end))

        q = minimize_scalar(unlikely, bounds=(max(1e-9, -end + 1e-9), (1 - end) / 2 - 1e-9), method="bounded").x
        assert abs(gained - lost - n * end) == pytest.approx(z * np.sqrt(n * (2 * q + end * (1 - end))), rel=1e-3)


def test_newcombes_difference_is_his_published_example() -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

    (low_a, high_a), (low_b, high_b) = (proportion_confint(k, n, method="wilson") for k, n in ((56, 70), (48, 80)))
    found = stats.independent_difference(0.8, low_a, high_a, 0.6, low_b, high_b)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)  # 1998, table II (a)
    theirs = confint_proportions_2indep(56, 70, 48, 80, compare="diff", method="newcomb")
    assert (found.low, found.high) == pytest.approx(theirs, abs=1e-9)
    assert stats.independent_difference(0.8, None, 0.9, 0.6, low_b, high_b) == stats.Estimate(
        pytest.approx(0.2), None, None
    )


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm_agrees_with_statsmodels_and_counts_no_metric_without_a_p(count: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = (np.random.default_rng(count).random(count) ** 3).tolist()
    expected = multipletests(p_values, method="holm")[1]
    found = statistics.holm([None, *p_values, None])
    assert (found[0], found[-1]) == (None, None)
    assert found[1:-1] == pytest.approx(expected.tolist())
    # By hand: the smallest counts as often as there are.
    assert min(found[1:-1]) == pytest.approx(min(1.0, len(p_values) * min(p_values)))
    assert statistics.holm([None]) == [None]


@pytest.mark.parametrize("at", [-0.02, 0.0, 0.05, 0.2])
def test_a_p_read_back_from_an_interval_is_small_just_where_the_interval_leaves_the_value_out(at: float) -> None:
    found = stats.Estimate(0.06, 0.0, 0.15)
    p = statistics.p_against(found, at, 0.95)
    assert (p < 0.05 - 1e-9) == (at < found.low or at > found.high)
    assert statistics.p_against(found, 0.0, 0.95) == pytest.approx(0.05)


def test_four_times_the_rows_halve_an_interval() -> None:
    assert statistics.rows_needed(100, 0.05, -0.05, 0.0) == 400
    assert statistics.rows_needed(100, -0.01, -0.05, -0.03) == 400
    assert statistics.rows_needed(100, -0.04, -0.09, -0.03) is None  # the figure itself is not good enough
    assert statistics.rows_needed(100, 0.05, -0.05, 0.05) is None


def test_a_micro_f1_is_resampled_as_the_ratio_of_its_sums() -> None:
    totals = np.array([[3.0, 4.0, 6.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert stats.micro_f1(totals).tolist() == [0.6, 1.0, 0.0]


def test_all_right_is_not_certainly_all_right() -> None:
    found = stats.share_interval(np.ones(600), alone(600), 0.95)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(600 / (600 + 1.959964**2), abs=1e-6)  # Wilson's lower end for k = n


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(1, 5_000), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_statsmodels_for_counts_that_are_no_whole_numbers(
    share: float, n: float, confidence: float
) -> None:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * n, n, alpha=1 - confidence, method="wilson")
    assert stats.wilson(share, n, stats.quantile(confidence)) == pytest.approx((max(0, low), min(1, high)), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_mcnemar_agrees_with_statsmodels(rows: list[tuple[bool, bool]]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.array(rows, dtype=float).T
    table = [[np.sum((a == x) & (b == y)) for y in (1, 0)] for x in (1, 0)]
    expected = 1.0 if table[0][1] + table[1][0] == 0 else float(mcnemar(table, exact=True).pvalue)
    assert statistics.mcnemar(a, b) == pytest.approx(expected, abs=1e-12)


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
    unseen = 1.959964**2 / (600 + 1.959964**2)  # what is left of Tango's interval where no pair differs
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-unseen), pytest.approx(unseen))
    copies = stats.difference(zero, np.repeat(alone(200), 3), zero[:100], 0.95)
    assert copies.high > 2.9 * unseen  # 200 texts, three times each


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

    delta = statistics.detectable(n, discordance)
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
    assert 0 < statistics.detectable(n, discordance) <= 1


def test_arms_that_never_differ_could_still_have_differed_on_a_few_items() -> None:
    assert 5 / 600 < statistics.detectable(600, 0.0) < 10 / 600
    assert statistics.detectable(600, 0.0) == statistics.detectable(600, 0.5 / 600)


def test_macro_f1_from_counts_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(4)
    names = ["a", "b", "c", "d"]
    wanted = rng.choice(names, 200, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    answered = [w if rng.random() < 0.6 else str(rng.choice([*names, "\0invalid", "e"])) for w in wanted]
    columns = stats.label_columns(wanted, answered, names)
    expected = f1_score(wanted, answered, labels=names, average="macro", zero_division=0)
    assert stats.macro_f1(columns.sum(axis=0, keepdims=True))[0] == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "d", ""])), min_size=2))
def test_the_macro_f1_of_all_rows_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score

    wanted, answered = [list(column) for column in zip(*pairs)]
    classes = sorted(set(wanted))
    expected = f1_score(wanted, answered, labels=classes, average="macro", zero_division=0)
    assert macro_f1_of(wanted, answered, classes) == pytest.approx(expected, abs=1e-12)


def test_an_answer_that_a_nul_follows_is_another_answer() -> None:
    assert stats.label_columns(["a", "b"], ["a\0", "b"], ["a", "b"]).sum(axis=0).tolist() == [0, 1, 1, 1, 0, 1]


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
