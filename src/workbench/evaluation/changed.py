"""Which items to show side by side: those that the student, or a quantization, turned right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation import scorers
from workbench.evaluation.answers import Prediction
from workbench.evaluation.report import BASELINES, STUDENT, settings_of

EACH = 10  # items shown of a kind


@dataclass(frozen=True)
class Said:
    """One answer, the arms that gave it, and whether it is right."""

    arms: tuple[str, ...]
    text: str
    right: bool


@dataclass(frozen=True)
class Changed:
    """One item whose score differs between arms. `kinds` holds gained or lost, and quantized."""

    id: str
    kinds: tuple[str, ...]
    prompt: str
    expected: str
    said: tuple[Said, ...]


def changed_items(
    report: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    baseline: str,
) -> tuple[list[Changed], dict[str, int]]:
    """Up to `EACH` items of each kind, spread evenly over the test set, and how many of each there are.

    gained: the baseline was wrong and the student right; lost: the reverse; quantized: any format
    scored otherwise than the student. An item may be of two kinds, and is shown once.
    """
    arms = [arm for arm in (baseline, STUDENT, *predictions) if arm in predictions]
    arms = [arm for arm in dict.fromkeys(arms) if arm in (baseline, STUDENT) or arm not in BASELINES]
    if STUDENT not in arms:
        return [], {}
    metric, evaluate = judged_by(report), settings_of(report)
    scores = {arm: [scorers.score(evaluate, p.expected, p.answer)[metric] for p in predictions[arm]] for arm in arms}
    found: dict[str, list[int]] = {"gained": [], "lost": [], "quantized": []}
    for i, own in enumerate(scores[STUDENT]):
        before = scores[baseline][i] if baseline in scores else own
        if before != own:
            found["gained" if own > before else "lost"].append(i)
        if any(scores[arm][i] != own for arm in arms if arm not in (baseline, STUDENT)):
            found["quantized"].append(i)
    picked = dict.fromkeys(i for rows in found.values() for i in spread(rows))
    shown = []
    for i in picked:
        item = predictions[STUDENT][i]
        kinds = tuple(kind for kind, rows in found.items() if i in rows)
        said = answers_of(i, arms, predictions, scores)
        shown.append(Changed(item.id, kinds, prompts.get(item.id, ""), item.expected, said))
    return shown, {kind: len(rows) for kind, rows in found.items()}


def judged_by(report: Mapping[str, Any]) -> str:
    """The item-level metric an answer is right or wrong by: the primary one, or the scorer's first."""
    names = scorers.metric_names(settings_of(report))
    return report["primary"] if report["primary"] in names else names[0]


def answers_of(
    i: int,
    arms: Sequence[str],
    predictions: Mapping[str, Sequence[Prediction]],
    scores: Mapping[str, Sequence[float]],
) -> tuple[Said, ...]:
    """The distinct answers to one item, each with the arms that gave it, in the order of the arms."""
    by_text: dict[str, list[str]] = {}
    for arm in arms:
        by_text.setdefault(predictions[arm][i].answer, []).append(arm)
    return tuple(Said(tuple(names), text, scores[names[0]][i] >= 1) for text, names in by_text.items())


def spread(rows: Sequence[int]) -> list[int]:
    """At most `EACH` of the rows, evenly apart."""
    return [rows[i * len(rows) // EACH] for i in range(EACH)] if len(rows) > EACH else list(rows)
