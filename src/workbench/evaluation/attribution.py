"""How much of its teacher's gain a student kept: a ratio of two paired differences, with Fieller's interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from workbench.evaluation import statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import STUDENT, Measured, interval_in_points, percent, points
from workbench.evaluation.statistics import Estimate, Floats, Ints, cell, item_row, total_row

TEACHER = "teacher"


def kept_of(
    measured: Measured, arms: Sequence[str], baseline: str, metric: str, confidence: float
) -> dict[str, Any] | None:
    """Each arm's share of what the teacher gained over `baseline`: (arm − baseline) / (teacher − baseline).

    `{"baseline", "metric", "teacher_gain", "kept": {arm: {"value", "ci_low", "ci_high"}}, "why"}`: `why` says why a
    value or an interval is missing. None where one of them was not asked, or has not the metric.
    """
    values = {arm: metrics[metric] for arm, metrics in measured.values.items() if metric in metrics}
    arms = [arm for arm in arms if arm in values]
    if not arms or TEACHER not in values or baseline not in values:
        return None
    clusters_n, draws = measured.clusters_n, {arm: measured.draws[arm][metric] for arm in values}
    gain = gain_of(measured, baseline, metric, confidence)
    shares = {
        arm: share_kept(
            (values[arm], values[TEACHER], values[baseline]),
            (draws[arm], draws[TEACHER], draws[baseline]),
            clusters_n,
            confidence,
        )
        for arm in arms
    }
    why = why_not(gain, baseline, confidence)
    if why is None and any(share is None or share.low is None for share in shares.values()):
        why = f"the teacher's own gain over {baseline} is too uncertain on so few rows"
    if why is not None:
        shares = {arm: share and Estimate(share.value, None, None) for arm, share in shares.items()}
    nothing = {"value": None, "ci_low": None, "ci_high": None}
    kept = {arm: nothing if share is None else cell(share) for arm, share in shares.items()}
    return {"baseline": baseline, "metric": metric, "teacher_gain": cell(gain), "kept": kept, "why": why}


def gain_of(measured: Measured, baseline: str, metric: str, confidence: float) -> Estimate:
    """Teacher minus baseline, with the interval that every paired difference of a report has."""
    clusters_n = measured.clusters_n
    draws_b = measured.draws[TEACHER][metric] - measured.draws[baseline][metric]
    ours, theirs = (measured.items[arm].get(metric) for arm in (TEACHER, baseline))
    if ours is not None and theirs is not None:
        row = item_row(ours, theirs, draws_b, clusters_n, confidence)
    else:
        delta = measured.values[TEACHER][metric] - measured.values[baseline][metric]
        row = total_row(delta, draws_b, clusters_n, len(clusters_n), confidence)
    return Estimate(row["delta"], row["ci_low"], row["ci_high"])


def why_not(gain: Estimate, baseline: str, confidence: float) -> str | None:
    """Why no share of this gain can be told with an interval; None where one can."""
    if gain.low is not None and gain.low > 0:
        return None
    gained = f"{points(gain.value, sign=True)} points, {interval_in_points(gain.low, gain.high, confidence)}"
    return f"the teacher's own gain over {baseline} is not certain ({gained}), so a share of it has no interval"


def share_kept(
    values: tuple[float, float, float], draws: tuple[Floats, Floats, Floats], clusters_n: Ints, confidence: float
) -> Estimate | None:
    """(student − baseline) / (teacher − baseline) from the arms' values and their draws (B,) over the same resamples.

    The interval is Fieller's (J. R. Statist. Soc. B 16, 1954), with the covariance of the two differences over the
    paired cluster bootstrap and t's quantile at the effective number G of clusters. Resampling spreads √((G−1)/G) too
    little, which is put back. In no direction is the variance taken for less than 1/(N·G), which one differing row of N
    would make where all stand alone, or arms that never differ would be known exactly. No interval where it would have
    no end: the gain's own holds zero. None where the teacher gained nothing.
    """
    student, teacher, baseline = values
    own, gain = student - baseline, teacher - baseline
    if gain <= 0:
        return None
    if int(clusters_n.max()) == 0:
        return Estimate(own / gain, None, None)
    count = statistics.effective_clusters(clusters_n)
    if count <= 1:
        return Estimate(own / gain, None, None)
    spread = np.cov(np.stack([draws[0] - draws[2], draws[1] - draws[2]])) * count / (count - 1)
    sizes, ways = np.linalg.eigh(spread)
    spread = (ways * np.maximum(sizes, 1 / (count * len(clusters_n)))) @ ways.T
    ends = fieller(own, gain, spread, statistics.quantile(confidence, count - 1))
    return Estimate(own / gain, *(ends or (None, None)))


def fieller(above: float, below: float, spread: Floats, z: float) -> tuple[float, float] | None:
    """All ratios ρ with |above − ρ·below| ≤ z·√(V₁₁ − 2ρV₁₂ + ρ²V₂₂), V being their covariance (2, 2).

    A quadratic in ρ; None where the solution is no interval, since `below` is not certainly other than zero.
    """
    a = below**2 - z**2 * float(spread[1, 1])
    if a <= 0:
        return None
    b = above * below - z**2 * float(spread[0, 1])
    c = above**2 - z**2 * float(spread[0, 0])
    half = math.sqrt(max(0.0, b * b - a * c))
    return (b - half) / a, (b + half) / a


def kept_lines(report: Mapping[str, Any]) -> list[str]:
    """What the terminal says of it: the student first, then the formats; nothing where no teacher was asked."""
    section = report.get("distillation", {})
    if not section.get("kept"):
        return []
    level = f"{100 * report['confidence']:.3g} % interval"
    parts = []
    for number, (arm, share) in enumerate(section["kept"].items()):
        if share["value"] is None:
            continue
        words = f"{arm}{' kept' if number == 0 else ''} {whole(share['value'])} %"
        words += f" of the teacher's gain over {section['baseline']}" if number == 0 else ""
        if share["ci_low"] is not None:
            ends = f"{whole(share['ci_low'])} to {whole(share['ci_high'])}"
            words += f" ({level} {ends})" if number == 0 else f" ({ends})"
        parts.append(words)
    parts += [section["why"]] if section["why"] else []
    return ["; ".join(parts)]


def whole(share: float) -> str:
    """A share in whole per cent, without its sign: 0.923 as `92`."""
    return f"{round(100 * share) + 0:d}".replace("-", "−")


# The chain of attribution: each joint from the teacher to what is served, so that a lost point has one place.

ADAPTER = "adapter"


def joints(report: Mapping[str, Any], distances: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every joint between two arms that answered the same rows, in the order in which a model passes them.

    `distances` maps an arm to how far its token probabilities are from those of the arm before it
    (`kl` in nats, `top_token_agreement`). Each joint: `{"joint", "before", "after", "metric", "delta", "ci_low",
    "ci_high", "kl", "top_token_agreement", "lost"}`; `lost` when the whole interval lies below zero. Of an adapter
    that was not asked only the distances are told.
    """
    arms = report["arms"]
    formats = [name for name in report.get("formats", ()) if name in arms]
    wanted = [("training", TEACHER, ADAPTER if ADAPTER in arms else STUDENT), ("merging", ADAPTER, STUDENT)]
    wanted += [("quantizing", STUDENT, name) for name in formats]
    rows = []
    for joint, before, after in wanted:
        row, far = paired(report, after, before), distances.get(after, {})
        if row is None:
            if before != ADAPTER or far.get("kl") is None:
                continue
            row = dict.fromkeys(("delta", "ci_low", "ci_high"))  # the adapter was not asked, its distance is known
        rows.append(
            {"joint": joint, "before": before, "after": after, "metric": report["primary"]}
            | {key: row[key] for key in ("delta", "ci_low", "ci_high")}
            | {key: far.get(key) for key in ("kl", "top_token_agreement")}
            | {"lost": row["ci_high"] is not None and row["ci_high"] < 0}
        )
    return rows


def paired(report: Mapping[str, Any], after: str, before: str) -> Mapping[str, Any] | None:
    """The report's paired row of the deciding metric for two arms, if it has one."""
    wanted = (after, before, report["primary"])
    rows = (row for row in report["comparisons"] if (row["candidate"], row["baseline"], row["metric"]) == wanted)
    return next(rows, None)


def chain_lines(chain: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """One line a joint, for the screen."""
    lines = []
    for joint in chain:
        near = "" if joint["kl"] is None else f", KL {joint['kl']:.2g}, same first choice "
        near += "" if joint["top_token_agreement"] is None else percent(joint["top_token_agreement"])
        way = f"{joint['before']} → {joint['after']} ({joint['joint']})"
        if joint["delta"] is None:
            lines.append(f"{way}: not asked{near}")
            continue
        ends = interval_in_points(joint["ci_low"], joint["ci_high"], confidence)
        word = "lost here" if joint["lost"] else "no certain loss"
        lines.append(f"{way}: {points(joint['delta'], sign=True)} points ({ends}){near}: {word}")
    return lines


# What a distillation tells beside its arms: what the next labels would buy, how much faster a smaller student is.

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
    rows = []
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
                rows.append(
                    {"candidate": candidate, "baseline": baseline, "times": round(times, 3),
                     "times_a_token": round(a_token, 3), "same_engine": same, "n": len(pairs)}
                )  # fmt: skip
    return rows


def timed(prediction: Prediction) -> bool:
    """Whether its seconds are those of an answer that was given for it."""
    return prediction.latency is not None and prediction.seconds > 0
