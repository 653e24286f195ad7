"""What a distillation tells beside its arms: what the next labels would buy, how much faster a smaller student is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from workbench.evaluation.answers import Prediction
from workbench.evaluation.figures import interval_in_points, points
from workbench.evaluation.report import STUDENT

FASTER_THAN = ("base", "base_few_shot", "teacher")


def next_labels(first: int, last: int, doubling: Mapping[str, float], confidence: float) -> str:
    """One sentence on what the next labels would buy, from the step from `first` to `last` labels.

    `doubling` is the points gained a doubling, with its interval. Nothing is promised beyond one more doubling.
    """
    low, high = doubling["ci_low"], doubling["ci_high"]
    moved = "gained" if doubling["value"] >= 0 else "lost"
    head = (
        f"from {first:,} to {last:,} labels a doubling {moved} {points(abs(doubling['value']))} points "
        f"({interval_in_points(low, high, confidence)}, of the rows judged on: each point was trained once)"
    )
    coming = f"the next one, to {2 * last:,} labels"
    if low > 0:
        return f"{head}; {coming}, would buy about as much while the curve goes on so, and less where it bends"
    if high < 0:
        return f"{head}; {coming}, is not likely to help: look at what the teacher gets wrong"
    return f"{head}; no gain is certain, so none is to be expected of {coming}"


def faster(
    predictions: Mapping[str, Sequence[Prediction]], engines: Mapping[str, str], formats: Sequence[str]
) -> list[dict[str, Any]]:
    """How many times less the student and its formats take than what they come from, row by row, the median.

    `[{"candidate", "baseline", "times", "times_a_token", "same_engine", "n"}]`: `times` is of the seconds an answer,
    `times_a_token` of the seconds a token that was said, for one that babbles is slow by its length. The student is
    held against all, a format against those asked in its own engine. Answers that were not asked now, such as a
    teacher's from the ledger, tell no time. Seconds of one batch are shared, so there is no interval.
    """
    found = []
    for candidate in (STUDENT, *formats):
        for baseline in FASTER_THAN:
            if candidate not in predictions or baseline not in predictions:
                continue
            same = engines.get(candidate) == engines.get(baseline)
            if candidate != STUDENT and not same:
                continue
            pairs = [
                (theirs, own)
                for theirs, own in zip(predictions[baseline], predictions[candidate], strict=True)
                if timed(theirs) and timed(own)
            ]
            if pairs:
                times = median(theirs.seconds / own.seconds for theirs, own in pairs)
                a_token = median(
                    theirs.seconds / max(1, theirs.tokens_out) / (own.seconds / max(1, own.tokens_out))
                    for theirs, own in pairs
                )
                found.append(
                    {"candidate": candidate, "baseline": baseline, "times": round(times, 3),
                     "times_a_token": round(a_token, 3), "same_engine": same, "n": len(pairs)}
                )  # fmt: skip
    return found


def timed(prediction: Prediction) -> bool:
    """Whether its seconds are those of an answer that was given for it."""
    return prediction.latency is not None and prediction.seconds > 0
