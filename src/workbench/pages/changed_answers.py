"""The answers behind the figures, side by side: what each arm said to an item, and how its score changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation import scorers
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import BASELINES, STUDENT
from workbench.evaluation.report import settings_of

MOST = 400  # rows on a page; beyond, some of each kind, evenly apart
STEP = 0.1  # a score that moved less has not changed: of right or wrong answers it moves by one
KINDS = ("lost", "quantized", "gained", "wrong", "right")  # in the order in which a reader wants them
UNMARKED = ("quantized", "differs", "same")  # where a judge decides: it says which is better, not which is right
CHANGES = ("lost", "quantized", "gained", "differs")

Scores = Mapping[str, float]


@dataclass(frozen=True)
class GivenAnswer:
    """One answer, the arms that gave it, and whether it is right; None where a judge decides."""

    arms: tuple[str, ...]
    text: str
    right: bool | None


@dataclass(frozen=True)
class Row:
    """One item with every arm's answer; `right` is whether the arm it is told of, the student, is; None by a judge.

    `kinds` are of KINDS, or of UNMARKED; `slices` the positions of its slices in the report.
    """

    id: str
    kinds: tuple[str, ...]
    slices: tuple[int, ...]
    prompt: str
    expected: str
    answers: tuple[GivenAnswer, ...]
    right: bool | None = None

    @property
    def gist(self) -> str:
        """The first words of the prompt, in one line."""
        return " ".join((self.prompt or self.expected).split())[:160]


def changed_items(
    report: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    baseline: str,
) -> tuple[list[Row], dict[str, int]]:
    """The items, those that changed first, at most `MOST`, and how many of each kind there are in all.

    gained: the student scores better than the baseline; lost: the reverse; quantized: any format scores otherwise
    than the student; of the rest, wrong: the student is wrong; right: it is right. An item may be of several kinds.
    Where a judge decides, only texts are compared: quantized: a format's differs from the student's; differs: the
    student's from the baseline's; same: all the rest.
    """
    arms = [arm for arm in dict.fromkeys((baseline, STUDENT, *predictions)) if arm in predictions]
    formats = [arm for arm in arms if arm not in (*BASELINES, STUDENT)]
    if STUDENT not in arms:
        return [], {}

    def kinds_of(scores: Scores) -> tuple[str, ...]:
        own, before = scores[STUDENT], scores.get(baseline, scores[STUDENT])
        kinds = [word for word, gain in (("gained", own - before), ("lost", before - own)) if gain >= STEP]
        kinds += ["quantized"] if any(abs(scores[arm] - own) >= STEP for arm in formats) else []
        return tuple(kinds) or ("right" if own >= 1 else "wrong",)

    def unmarked(texts: Scores) -> tuple[str, ...]:
        kinds = ["quantized"] if any(texts[arm] != texts[STUDENT] for arm in formats) else []
        return tuple(kinds + (["differs"] if texts.get(baseline) not in (None, texts[STUDENT]) else [])) or ("same",)

    by = unmarked if by_judge(report) else kinds_of
    return rows_of(report, {arm: predictions[arm] for arm in arms}, prompts, by, STUDENT)


def rows_of(
    report: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    kinds_of: Callable[[Scores], tuple[str, ...]],
    focus: str,
) -> tuple[list[Row], dict[str, int]]:
    """Every item that `kinds_of` its scores by arm gives a kind, sorted by kind, at most `MOST`; and the counts."""
    marked, kinds_known = not by_judge(report), UNMARKED if by_judge(report) else KINDS
    scores = scores_of(report, predictions) if marked else texts_of(predictions)
    slices = slices_of(report)
    first = next(iter(predictions.values()), ())
    rows: list[Row] = []
    for i, item in enumerate(first):
        own = {arm: scores[arm][i] for arm in predictions}
        kinds = kinds_of(own)
        if kinds:
            answers = answers_of(i, predictions, own if marked else {})
            ordered = tuple(sorted(kinds, key=kinds_known.index))
            cut = slices.get(item.id, ())
            right = own[focus] >= 1 if marked else None
            rows.append(Row(item.id, ordered, cut, prompts.get(item.id, ""), item.expected, answers, right))
    counts = {kind: sum(kind in row.kinds for row in rows) for kind in kinds_known}
    by_kind = [[row for row in rows if row.kinds[0] == kind] for kind in kinds_known]
    return share_out(by_kind, MOST), counts


def share_out(by_kind: Sequence[Sequence[Row]], most: int) -> list[Row]:
    """At most so many rows in order: every kind its share, and what a small one leaves free goes to the next."""
    shown: list[Row] = []
    for i, rows in enumerate(by_kind):
        waiting = sum(map(len, by_kind[i + 1 :]))
        room = most - len(shown)
        shown += spread(rows, max(room // (len(by_kind) - i), room - waiting))
    return shown


def scores_of(report: Mapping[str, Any], predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, list[float]]:
    """Each arm's score an item, by the metric that `judged_by` names; where a scorer has none, by equal text."""
    metric, evaluate = judged_by(report), settings_of(report)
    if metric is None:
        return {arm: [float(p.answer.strip() == p.expected.strip()) for p in rows] for arm, rows in predictions.items()}
    return {
        arm: [scorers.score(evaluate, p.expected, p.answer)[metric] for p in rows] for arm, rows in predictions.items()
    }


def texts_of(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, list[float]]:
    """Each arm's answer an item as a number, equal where the texts are."""
    numbers: dict[str, int] = {}
    return {arm: [float(numbers.setdefault(p.answer, len(numbers))) for p in rows] for arm, rows in predictions.items()}


def by_judge(report: Mapping[str, Any]) -> bool:
    """Whether the deciding metric is a judge's verdict, which no answer has by itself."""
    evaluate = settings_of(report)
    return report["primary"] in scorers.find(evaluate.scorer).judged(evaluate)


def judged_by(report: Mapping[str, Any]) -> str | None:
    """The item-level metric an answer is right or wrong by: the primary one, or the scorer's first; None by a judge."""
    if by_judge(report):
        return None
    names = scorers.metric_names(settings_of(report))
    return report["primary"] if report["primary"] in names else next(iter(names), None)


def slices_of(report: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Item id → the positions of its slices in report["slices"]."""
    positions: dict[str, tuple[int, ...]] = {}
    for i, part in enumerate(report.get("slices", ())):
        for item in part.get("items", ()):
            positions[item] = (*positions.get(item, ()), i)
    return positions


def answers_of(i: int, predictions: Mapping[str, Sequence[Prediction]], scores: Scores) -> tuple[GivenAnswer, ...]:
    """The distinct answers to one item, each with the arms that gave it, in their order; `scores` may be empty."""
    by_text: dict[str, list[str]] = {}
    for arm, rows in predictions.items():
        by_text.setdefault(rows[i].answer, []).append(arm)
    return tuple(
        GivenAnswer(tuple(names), text, scores[names[0]] >= 1 if scores else None) for text, names in by_text.items()
    )


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many of the rows, evenly apart."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)
