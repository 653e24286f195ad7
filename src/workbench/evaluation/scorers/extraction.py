"""extraction: the answer is a JSON list of what was found in a text, in no order.

An item is a string, `{"text": …}`, `{"text": …, "label": …}`, or a span `{"start": …, "end": …, "label": …}`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from workbench.errors import RequestError
from workbench.evaluation.scorers.scorer import Counts, Scorer, json_list
from workbench.recipe.schema import Evaluate

Items = frozenset[Hashable]


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """F1 of this answer's items, whether the set is exactly the wanted one, and validity.

    Where every wanted item is a span, items are equal when start, end and label are, and the text beside them does
    not count; else when text (stripped, case matters) and label are. An item said twice counts once. Where
    nothing is wanted an empty list is right. An invalid answer has found nothing.
    """
    wanted, got = both(expected, answer)
    if got is None:
        return {"item_f1": 0.0, "exact_match": 0.0, "validity": 0.0}
    f1 = 2 * len(wanted & got) / (len(wanted) + len(got)) if wanted or got else 1.0
    return {"item_f1": f1, "exact_match": float(wanted == got), "validity": 1.0}


def counts(evaluate: Evaluate, expected: str, answer: str) -> dict[str, Counts]:
    """(hits, wanted, answered) items. An invalid answer counts as one wrong item: saying nothing is never so bad."""
    wanted, got = both(expected, answer)
    hits, answered = (0, 1) if got is None else (len(wanted & got), len(got))
    return {"micro_f1": (float(hits), float(len(wanted)), float(answered))}


def both(expected: str, answer: str) -> tuple[Items, Items | None]:
    """The wanted items, and the answered ones or None when the answer is no such list. RequestError on bad data."""
    listed = json_list(expected)
    spans = bool(listed) and all(is_span(item) for item in listed or ())
    wanted = None if listed is None else keys(listed, spans)
    if wanted is None:
        raise RequestError(
            f"a wanted answer is no JSON list of strings or of objects with text or start and end: {expected[:120]!r}",
            where="evaluate.scorer",
            remedy='write it as ["…", "…"] or [{"text": "…", "label": "…"}], or use another scorer',
        )
    answered = json_list(answer)
    return wanted, None if answered is None else keys(answered, spans)


def keys(items: Sequence[Any], spans: bool) -> Items | None:
    """What each item is compared by; None when one of them is no item."""
    compared = [key(item, spans) for item in items]
    return None if None in compared else frozenset(compared)


def key(item: Any, spans: bool) -> Hashable | None:
    """What an item is compared by: (start, end, label) among spans, else (text, label). None when it is no item."""
    if isinstance(item, str):
        return (item.strip(), None)
    if not isinstance(item, dict):
        return None
    text, label = item.get("text"), item.get("label")
    if label is not None and not isinstance(label, str):
        return None
    label = label.strip() if label is not None else None
    if is_span(item) and (spans or text is None):
        return (item["start"], item["end"], label)
    return (text.strip(), label) if isinstance(text, str) else None


def is_span(item: object) -> bool:
    """Whether an item says where it stands, as whole numbers of characters."""
    ends = (item.get("start"), item.get("end")) if isinstance(item, dict) else (None, None)
    return all(isinstance(end, int) and not isinstance(end, bool) for end in ends)


SCORER = Scorer(
    lambda evaluate: ["item_f1", "exact_match", "validity"],
    score,
    counted=lambda evaluate: ["micro_f1"],
    counts=counts,
    structured=True,
)
