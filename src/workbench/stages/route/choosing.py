"""The threshold that the promise allows: of every wanted way and score one candidate, of which the cheapest is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.deciding.before import LEAST_ROWS, before_scores, fit_before
from workbench.deciding.curve import curve, even_ratio, share_at, usd_of
from workbench.deciding.promise import PROMISES, Choice, choose, rows_for, shared
from workbench.deciding.scores import auroc, score_of
from workbench.errors import RequestError
from workbench.evaluation.answers import Prediction
from workbench.evaluation.scorers import deciding_score, find
from workbench.evaluation.scorers.scorer import BROKEN, json_value
from workbench.evaluation.statistics import Floats
from workbench.recipe import Evaluate, Recipe, Route
from workbench.stages.route.fresh_rows import halves

CASCADE, BEFORE, BOTH = "cascade", "before", "both"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of which it is told how many rows their promise would take
RATIOS = (0.01, 0.1, 0.5)  # of a student's price over a teacher's, at which the ways are compared


@dataclass(frozen=True)
class Pairs:
    """Rows that student and teacher have answered: whether each was right (0, 1), and whether the form was kept."""

    home: Sequence[Prediction]
    away: Sequence[Prediction]
    home_right: Floats
    away_right: Floats
    valid: Sequence[bool]
    texts: Sequence[str]

    @property
    def harmful(self) -> list[bool]:
        """Wrong at home where the teacher is right."""
        return [bool(a > 0 and h == 0) for h, a in zip(self.home_right, self.away_right, strict=True)]

    def at(self, places: Sequence[int]) -> Pairs:
        """Some of the rows."""
        return Pairs(
            [self.home[i] for i in places], [self.away[i] for i in places], self.home_right[list(places)],
            self.away_right[list(places)], [self.valid[i] for i in places], [self.texts[i] for i in places],
        )  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """Dollars of a student's answer, a teacher's, and a wrong one; None where nobody knows."""

    home: float | None
    away: float | None
    error: float


@dataclass(frozen=True)
class Candidate:
    """One way of choosing with the threshold that the promise allows it, and the scores of the rows that decided."""

    kind: str
    score: str
    certainty: float
    choice: Choice
    scores: Sequence[float]
    pairs: Pairs
    model: Mapping[str, Any] | None = None

    @property
    def share(self) -> float:
        """The share kept at home of the rows that decided."""
        return self.choice.kept / self.choice.n if self.choice.n else 0.0


def paired(
    recipe: Recipe, settings: Evaluate, home: Sequence[Prediction], away: Sequence[Prediction], texts: Sequence[str]
) -> Pairs:
    """Both answers of each row, and who was right. RequestError where answers are graded, and not right or wrong."""
    scorer = find(settings.scorer)
    if recipe.route.against == "teacher":
        own = [deciding_score(settings, b.answer, a.answer) for a, b in zip(home, away, strict=True)]
        theirs = [1.0] * len(away)
    else:
        own, theirs = ([deciding_score(settings, p.expected, p.answer) for p in part] for part in (home, away))
    if not set(own) | set(theirs) <= {0.0, 1.0}:
        raise RequestError(
            f"{settings.primary} grades answers, and harm is counted of answers that are right or wrong",
            where="evaluate.primary",
            remedy="take a metric of right answers: exact_match, accuracy, or a field's accuracy",
        )
    valid = [not scorer.structured or json_value(p.answer) is not BROKEN for p in home]
    return Pairs(home, away, np.array(own), np.array(theirs), valid, texts)


def cascade_scores(pairs: Pairs, score: str) -> list[float]:
    """The score of each answer of the student."""
    return [score_of(p, score, valid=ok) for p, ok in zip(pairs.home, pairs.valid, strict=True)]


def candidates(route: Route, pairs: Pairs, seed: int, notes: list[str]) -> list[Candidate]:
    """One a wanted way: of the answer each score, and the prompt alone where there are rows to learn it from.

    That the promise of each holds beside the others, they share 1 − certainty.
    """
    scores = list(route.scores) if route.kind in (CASCADE, BOTH) else []
    before = route.kind in (BEFORE, BOTH)
    taught, judging = halves(len(pairs.texts), seed)
    model = None
    if before and len(pairs.texts) < LEAST_ROWS:
        notes.append(
            f"a router before the student takes {LEAST_ROWS} rows, half of them to learn from, and {len(pairs.texts)} "
            "are here: it is left out"
        )
    elif before:
        part = pairs.at(taught)
        model = fit_before(part.texts, part.harmful, seed)
        if model is None:
            notes.append("in the half that a router before the student learns from all rows are alike: it is left out")
    certainty = shared(route.certainty, len(scores) + (model is not None))

    def chosen(
        kind: str, name: str, values: Sequence[float], rows: Pairs, own: Mapping[str, Any] | None = None
    ) -> Candidate:
        choice = choose(values, rows.harmful, route.most_harm, route.promise, certainty)
        return Candidate(kind, name, certainty, choice, values, rows, own)

    made = [chosen(CASCADE, name, cascade_scores(pairs, name), pairs) for name in scores]
    if model is not None:
        rows = pairs.at(judging)
        made.append(chosen(BEFORE, "prompt", before_scores(model, rows.texts), rows, model))
    return made


def best(made: Sequence[Candidate], prices: Prices) -> Candidate | None:
    """The candidate with the least expected dollars a request, else the one that keeps most; None: none keeps any."""
    able = [with_errors(c, prices) for c in made if c.choice.threshold is not None]
    if not able:
        return None
    if prices.away is None and not prices.error:
        return max(able, key=lambda c: c.share)
    return min(able, key=lambda c: (usd_expected(c, prices), -c.share))


def with_errors(candidate: Candidate, prices: Prices) -> Candidate:
    """Of the thresholds within the bound the one with the least expected dollars, where an error has its price."""
    lowest = candidate.choice.threshold
    if not prices.error or lowest is None:
        return candidate
    rows = candidate.pairs
    points = curve(candidate.scores, rows.home_right.tolist(), rows.away_right.tolist(), None)
    allowed = [p for p in points if p["threshold"] >= lowest]
    home, away = prices.home or 0.0, prices.away or 0.0

    def dollars(share: float, right: float) -> float:
        return usd_of(candidate.kind, home, away, 1 - share) + prices.error * (1 - right)

    point = min(allowed, key=lambda p: (dollars(p["share"], p["cascade"]), -p["share"]))
    n = candidate.choice.n
    moved = Choice(point["threshold"], n, round(point["share"] * n), round(point["harm"] * n), candidate.choice.allowed)
    return replace(candidate, choice=moved)


def usd_expected(candidate: Candidate, prices: Prices) -> float:
    """Dollars of one request on the rows that decided, its errors at their price."""
    kept = np.array(candidate.scores) >= (candidate.choice.threshold or 0.0)
    right = np.where(kept, candidate.pairs.home_right, candidate.pairs.away_right)
    answering = usd_of(candidate.kind, prices.home or 0.0, prices.away or 0.0, 1 - candidate.share)
    return answering + prices.error * float(1 - right.mean())


def more_rows(route: Route, candidate: Candidate) -> list[dict[str, Any]]:
    """For each share at home: the harm that was seen there, and how many rows its promise would take (None: no number).

    What was seen here is taken for the truth, so it is an estimate; a share whose harm is beyond the promise has none.
    """
    rows = candidate.pairs
    points = curve(candidate.scores, rows.home_right.tolist(), rows.away_right.tolist(), None)
    lines = []
    for share in SHARES:
        point = next((p for p in points if p["share"] >= share), None)
        if point is not None:
            needed = rows_for(point["harm"], route.most_harm, route.promise, candidate.certainty)
            lines.append({"share": share, "harm": round(point["harm"], 6), "rows": needed})
    return lines


def trade(route: Route, candidate: Candidate) -> list[dict[str, Any]]:
    """What each promise would allow and keep on these rows, and a threshold that merely looks right on them."""
    rows = candidate.pairs
    points = curve(candidate.scores, rows.home_right.tolist(), rows.away_right.tolist(), None)
    most = int(route.most_harm * len(rows.home))
    lines: list[dict[str, Any]] = []
    for promise in PROMISES:
        choice = choose(candidate.scores, rows.harmful, route.most_harm, promise, candidate.certainty)
        allowed = choice.allowed if choice.allowed >= 0 else None
        kept = round(choice.kept / max(1, choice.n), 6)
        lines.append({"promise": promise.replace("_", " "), "allowed": allowed, "share": kept})
    seen = round(share_at(points, route.most_harm), 6)
    return [*lines, {"promise": "none: it looks right here", "allowed": most, "share": seen}]


def described(candidate: Candidate) -> dict[str, Any]:
    """A candidate's figures for the report."""
    choice, rows = candidate.choice, candidate.pairs
    parts = auroc(candidate.scores, [bool(right) for right in rows.home_right])
    return {
        "kind": candidate.kind, "score": candidate.score, "rows": choice.n, "certainty": round(candidate.certainty, 6),
        "threshold": choice.threshold, "kept": choice.kept, "share": round(candidate.share, 6),
        "harmful": choice.harmful, "allowed": max(0, choice.allowed) if choice.allowed >= 0 else None,
        "auroc": None if parts is None else round(parts, 4),
    }  # fmt: skip


def compared(made: Sequence[Candidate], prices: Prices) -> dict[str, Any] | None:
    """Which way is cheaper at which price of the student's answers, and why; None unless both keep anything."""
    able = {c.kind: c for c in sorted(made, key=lambda c: c.share) if c.choice.threshold is not None}
    if set(able) != {CASCADE, BEFORE}:
        return None
    cascade, before = (1 - able[kind].share for kind in (CASCADE, BEFORE))
    even = even_ratio(cascade, before)
    own = prices.home / prices.away if prices.home is not None and prices.away else None
    ratios = sorted({*RATIOS, *([round(own, 6)] if own is not None else [])})
    rows: list[dict[str, Any]] = [
        {
            "ratio": ratio, "yours": own is not None and ratio == round(own, 6),
            **{kind: round(usd_of(kind, ratio, 1.0, part), 6) for kind, part in ((CASCADE, cascade), (BEFORE, before))},
        }
        for ratio in ratios
    ]  # fmt: skip
    for row in rows:
        row["cheaper"] = CASCADE if row[CASCADE] <= row[BEFORE] else BEFORE
    if even is None or even <= 0:
        why = (
            "the router before the student sends no more away than the cascade, and saves the student's answers that "
            "the cascade throws away: it is cheaper at every price"
        )
    else:
        why = (
            f"the cascade sends {100 * cascade:.1f} % away and pays a student's answer for every request; the router "
            f"before it sends {100 * before:.1f} % away and pays one only for those it keeps. Below a price ratio of "
            f"{even:.2g} the better score wins, above it the answers saved do"
        )
    return {"cascade": round(cascade, 6), "before": round(before, 6), "even_ratio": even, "rows": rows, "why": why}
