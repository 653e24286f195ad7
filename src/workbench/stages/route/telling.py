"""What the test says of a route that is fixed: each figure with its interval, at the level that the looks leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.evaluation.statistics import (
    Floats,
    Ints,
    bounded,
    cell,
    cluster_numbers,
    difference,
    percentile,
    resampled_totals,
    share_interval,
)
from workbench.stages.route.choosing import CASCADE, Pairs

CASCADE_ARM, MIX = "cascade", "random_mix"


def tell(
    pairs: Pairs, kept_n: Sequence[bool], kind: str, confidence: float, resamples: int, seed: int,
    slices: Sequence[Mapping[str, Any]] = (), usd: tuple[float | None, float | None] = (None, None),
    waits: Sequence[float] = (),
) -> dict[str, Any]:  # fmt: skip
    """Escalated share, harm, who is right how often, the differences that count, dollars, seconds and the slices.

    The random mix keeps the cascade's share by chance; its lead is resampled with that share, by whole clusters.
    `usd` are the prices of one answer at home and away, `waits` the seconds that one asker waited at home, alone.
    """
    kept = np.array(kept_n, dtype=np.float64)
    home, away = pairs.home_right, pairs.away_right
    clusters = cluster_numbers([p.group for p in pairs.home])
    cascade = np.where(kept > 0, home, away)
    columns = np.column_stack([kept, home, away, cascade, np.ones(len(kept))])
    totals = resampled_totals(columns, clusters, resamples, seed)
    means = totals[:, :4] / totals[:, 4:]
    share_b, home_b, away_b, cascade_b = means.T
    mix_b = share_b * home_b + (1 - share_b) * away_b
    share = float(kept.mean())
    mix = share * float(home.mean()) + (1 - share) * float(away.mean())
    harm = kept * ((home == 0) & (away > 0))

    def of(column: Floats) -> dict[str, Any]:
        return cell(share_interval(column, clusters, confidence))

    def lead(column: Floats, draws: Floats) -> dict[str, Any]:
        return cell(difference(column, clusters, draws, confidence))

    told_arms = {
        CASCADE_ARM: of(cascade), "teacher": of(away), "student": of(home),
        MIX: cell(bounded(mix, mix_b, clusters, confidence)),
    }  # fmt: skip
    return {
        "n": len(kept), "clusters": int(clusters.max()) + 1,
        "escalated": of(1 - kept), "harm": of(harm), "arms": told_arms,
        "differences": {
            "cascade_vs_teacher": lead(cascade - away, cascade_b - away_b),
            "cascade_vs_student": lead(cascade - home, cascade_b - home_b),
            "cascade_vs_random_mix": cell(
                percentile(float(cascade.mean()) - mix, cascade_b - mix_b, confidence, clusters)
            ),
            "teacher_vs_student": lead(away - home, away_b - home_b),
        },
        "usd_per_1000": dollars(kept, kind, usd, clusters, confidence, resamples, seed),
        "seconds": seconds(pairs, kept, kind, waits, seed),
        "slices": [part for entry in slices if (part := slice_of(entry, pairs, kept, harm, confidence))],
    }  # fmt: skip


def dollars(
    kept: Floats, kind: str, usd: tuple[float | None, float | None], clusters: Ints, confidence: float, resamples: int,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Dollars of 1,000 requests: the cascade, the teacher for all, the student for all, and what the cascade saves.

    Empty where a price is not known. A cascade asks the student for every request, a router before it only for those
    it keeps; paired, so the saving's interval is that of the escalated share.
    """
    home, away = usd
    if home is None or away is None:
        return {}
    own = np.full(len(kept), home) if kind == CASCADE else home * kept
    spent = 1000 * (own + away * (1 - kept))
    totals = resampled_totals(np.column_stack([spent, np.ones(len(kept))]), clusters, resamples, seed)
    draws = totals[:, 0] / totals[:, 1]
    every = 1000 * away
    return {
        CASCADE_ARM: cell(percentile(float(spent.mean()), draws, confidence, clusters)),
        "teacher": cell(percentile(every, np.full_like(draws, every), confidence)),
        "student": cell(percentile(1000 * home, np.full_like(draws, 1000 * home), confidence)),
        "saved": cell(percentile(every - float(spent.mean()), every - draws, confidence, clusters)),
    }


def seconds(pairs: Pairs, kept: Floats, kind: str, waits: Sequence[float], seed: int) -> dict[str, float]:
    """The median and the 95th of 100 of what one asker waits; empty where either side's wait was not measured.

    The teacher's wait is that of its own request, the student's is drawn from `waits`: its answers to the test were
    made together, and are nobody's wait. What leaves a cascade has waited for the student first.
    """
    theirs = [p.latency for p in pairs.away]
    if not waits or any(not k and a is None for a, k in zip(theirs, kept, strict=True)):
        return {}
    own = np.random.default_rng(seed).choice(np.asarray(waits, dtype=float), len(theirs))
    whole = [
        h * (kind == CASCADE or bool(k)) + (0.0 if k else a or 0.0) for h, a, k in zip(own, theirs, kept, strict=True)
    ]
    return {"p50": float(np.quantile(whole, 0.5)), "p95": float(np.quantile(whole, 0.95))}


def slice_of(
    entry: Mapping[str, Any], pairs: Pairs, kept: Floats, harm: Floats, confidence: float
) -> dict[str, Any] | None:
    """Escalation and harm of one of the report's slices, without any promise; None where none of its rows is here."""
    ids = set(entry["items"])
    places = [at for at, p in enumerate(pairs.home) if p.id in ids]
    if not places:
        return None
    clusters = cluster_numbers([pairs.home[at].group for at in places])
    return {
        "field": entry["field"], "value": str(entry["value"]), "n": len(places),
        "escalated": cell(share_interval(1 - kept[places], clusters, confidence)),
        "harm": cell(share_interval(harm[places], clusters, confidence)),
    }  # fmt: skip


def refusals(told_test: Mapping[str, Any], level: float) -> list[dict[str, str]]:
    """Why a route that was told is refused: no router is needed, or it is no better than a random mix."""
    differences, refused = told_test["differences"], []
    teacher, mix = differences["teacher_vs_student"], differences["cascade_vs_random_mix"]
    if teacher["ci_low"] is None or teacher["ci_low"] <= 0:
        refused.append(
            {
                "name": "no_router_is_needed",
                "why": f"the teacher is not certainly better than the student on the test: {signed(teacher)} points "
                f"({100 * level:.3g} % interval)",
                "remedy": "no router is needed: ship the student",
            }
        )
    elif mix["ci_low"] is None or mix["ci_low"] <= 0:
        refused.append(
            {
                "name": "no_better_than_a_random_mix",
                "why": f"the route is no better than a random mix of equal share, for certain: {signed(mix)} points "
                f"({100 * level:.3g} % interval)",
                "remedy": "the score does not tell right from wrong well enough; another one may "
                "(route.scores=[logprob,least]), or keep all requests on one side",
            }
        )
    return refused


def signed(cell_of: Mapping[str, Any]) -> str:
    """`+2.1 (+0.3 to +4.0)` in points."""
    ends = [cell_of[end] for end in ("value", "ci_low", "ci_high")]
    value, low, high = (f"{100 * end:+.1f}" if end is not None else "unknown" for end in ends)
    return f"{value} ({low} to {high})"
