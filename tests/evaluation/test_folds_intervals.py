"""What an interval by folds is about: in simulated evaluations, of its siblings and of the student that ships."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation.statistics import difference

FOLDS, FEATURES, CLASSES = 5, 8, 4
FRESH = 4_000  # rows on which the truth is taken


def rows_drawn(draw: np.random.Generator, count: int, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features [count, FEATURES], labels [count])."""
    labels = draw.integers(CLASSES, size=count)
    return centres[labels] + draw.normal(size=(count, FEATURES)), labels


def nearest(learned: tuple[np.ndarray, np.ndarray], asked_rows: np.ndarray) -> np.ndarray:
    """The label of the nearest of the learned classes' means: a student whose weights depend on its rows."""
    features, labels = learned
    means = np.stack([features[labels == c].mean(axis=0) if (labels == c).any() else np.zeros(FEATURES)
                      for c in range(CLASSES)])  # fmt: skip
    return ((asked_rows[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)


def held(simulations: int, rows: int, seed: int) -> dict[str, float]:
    """How often the 95 % interval of the gain by folds holds the siblings' mean true gain, and the student's own."""
    draw, hits = np.random.default_rng(seed), {"siblings": 0, "student": 0}
    for _ in range(simulations):
        centres = draw.normal(size=(CLASSES, FEATURES)) * 0.55
        features, labels = rows_drawn(draw, rows, centres)
        fresh, wanted = rows_drawn(draw, FRESH, centres)
        weak = centres + draw.normal(size=centres.shape) * 0.9  # the baseline has learned none of these rows
        own = np.arange(CLASSES)
        by_weak, fresh_weak = nearest((weak, own), features) == labels, (nearest((weak, own), fresh) == wanted).mean()
        fold, right, gains = draw.permutation(rows) % FOLDS, np.zeros(rows), []
        for number in range(FOLDS):
            rest, part = fold != number, fold == number
            learned = features[rest], labels[rest]
            right[part] = nearest(learned, features[part]) == labels[part]
            gains.append((nearest(learned, fresh) == wanted).mean() - fresh_weak)
        shipped = draw.permutation(rows)[: round(0.7 * rows)]
        alone = (nearest((features[shipped], labels[shipped]), fresh) == wanted).mean() - fresh_weak
        interval = difference(right - by_weak, np.arange(rows), np.zeros(0), 0.95)
        for who, truth in (("siblings", np.mean(gains)), ("student", alone)):
            hits[who] += interval.low <= truth <= interval.high
    return {who: count / simulations for who, count in hits.items()}


@pytest.mark.parametrize(
    ("simulations", "rows"), [(60, 150), pytest.param(2_000, 60, marks=pytest.mark.proof),
                              pytest.param(2_000, 200, marks=pytest.mark.proof)]
)  # fmt: skip
def test_the_interval_by_folds_holds_the_siblings_gain_as_often_as_it_says(simulations: int, rows: int) -> None:
    seen = held(simulations, rows, 7)
    noise = 3 * (0.05 * 0.95 / simulations) ** 0.5
    assert seen["siblings"] >= 0.94 - noise
    assert seen["student"] >= 0.94 - noise, "which is trained in the same way on about as many rows"
