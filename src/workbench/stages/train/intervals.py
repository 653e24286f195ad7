"""Scores of a training's held-out rows with their intervals: near copies are resampled together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.evaluation.statistics import (
    Floats,
    Ints,
    cluster_numbers,
    difference,
    item_estimate,
    percentile,
    resampled_totals,
)
from workbench.recipe import Recipe

if TYPE_CHECKING:
    from workbench.training.job import HeldOut

NATS = "(nats)"  # a measure with this is a mean log-loss, whose exponential is a perplexity


def compared(
    teacher: Sequence[float], base: Sequence[float], groups: Sequence[str], recipe: Recipe
) -> dict[str, float]:
    """Both means and the paired lead with its interval; near copies are resampled together."""
    ours, theirs, clusters = np.array(base), np.array(teacher), cluster_numbers(groups)
    delta = theirs - ours
    lead = difference(delta, clusters, resampled_means(delta, clusters, recipe), recipe.evaluate.confidence)
    means = {"teacher_score": float(theirs.mean()), "base_score": float(ours.mean())}
    return means | {"lead": lead.value, "lead_low": float(lead.low or 0.0), "lead_high": float(lead.high or 0.0)}


def resampled_means(values: Floats, clusters: Ints, recipe: Recipe) -> Floats:
    """The mean (B,) of the values over resamples of whole clusters."""
    columns = np.stack([values, np.ones(len(values))], 1)
    totals = resampled_totals(columns, clusters, recipe.evaluate.resamples, recipe.seed)
    return totals[:, 0] / totals[:, 1]


def interval(scores: Sequence[float], groups: Sequence[str], recipe: Recipe) -> dict[str, float]:
    """A mean score with its interval: `value`, `ci_low`, `ci_high`."""
    values, clusters = np.array(scores, dtype=float), cluster_numbers(groups)
    estimate = item_estimate(values, resampled_means(values, clusters, recipe), clusters, recipe.evaluate.confidence)
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return {"value": estimate.value, "ci_low": min(low, estimate.value), "ci_high": max(high, estimate.value)}


def held_against(
    recipe: Recipe, groups: Sequence[str], event: Callable[..., None]
) -> Callable[[HeldOut, HeldOut], Mapping[str, Any]]:
    """What a kind's own measure says of the held-out rows, whose groups these are, before training and after it.

    Gives `{"held_out": {"measure", "rows", "before", "after", "gain", "gain_low", "gain_high"}}`, the gain being what
    it got better by, row by row, each row by its weight; the line is said.
    """

    def facts(before: HeldOut, after: HeldOut) -> Mapping[str, Any]:
        old, new, weight = (np.array(part, dtype=float) for part in (before.values, after.values, after.weights))
        clusters = cluster_numbers(groups)
        delta = (new - old) * (1.0 if after.better == "up" else -1.0)
        totals = resampled_totals(
            np.stack([delta * weight, weight], 1), clusters, recipe.evaluate.resamples, recipe.seed
        )
        draws, value = totals[:, 0] / totals[:, 1], float((delta * weight).sum() / weight.sum())
        confidence = recipe.evaluate.confidence
        if np.all(weight == weight[0]):
            gain = difference(delta, clusters, draws, confidence)
        else:
            gain = percentile(value, draws, confidence, clusters)
        low, high = (gain.value if end is None else end for end in (gain.low, gain.high))
        means = {name: float((part * weight).sum() / weight.sum()) for name, part in (("before", old), ("after", new))}
        about = {
            "measure": after.measure,
            "rows": len(new),
            **means,
            "gain": gain.value,
            "gain_low": low,
            "gain_high": high,
        }
        for name in ("before", "after", "gain", "gain_low", "gain_high"):
            event("metric", name=f"held_out/{name}", value=about[name], step=None)
        event("said", text=line_of(about))
        return {"held_out": about}

    return facts


def line_of(about: Mapping[str, Any]) -> str:
    """The held-out measure in one line, a log-loss as a perplexity as well."""
    before, after = about["before"], about["after"]
    low, high = about["gain_low"], about["gain_high"]
    sure = "better" if low > 0 else "worse" if high < 0 else "no sure difference"
    line = (
        f"{about['measure']}: {before:.4f} before, {after:.4f} after, {sure} (a gain of {about['gain']:+.4f}, "
        f"{low:+.4f} to {high:+.4f}, on {about['rows']:,} held-out rows)"
    )
    if NATS not in about["measure"]:
        return line
    factor = ", ".join(f"{math.exp(-end):.3f}" for end in (about["gain"], high, low))
    return f"{line}; perplexity {math.exp(before):.2f} before, {math.exp(after):.2f} after (times {factor})"
