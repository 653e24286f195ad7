"""How this task's answers are scored: by the rules of the report that came with it, in the standard library alone.

`python utils.py SAMPLES.jsonl PREDICTIONS.jsonl` holds what lm-evaluation-harness logged against the predictions of
the run, item by item.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCORER = "exact_match"
FIELDS: list[str] = []
LABELS: list[str] = []

INVALID = "\0invalid"  # the class of an answer that has none: no real class can equal it


def rows(**_: object) -> dict[str, Any]:
    """The test rows, read from beside this file: in memory, so that no cache keeps a copy of them."""
    from datasets import Dataset

    with (Path(__file__).parent / "test.jsonl").open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Every metric of one answer: 1 right and 0 wrong, and (wanted, answered) for each macro-F1."""
    return score(doc["expected"], results[0]) | labels(doc["expected"], results[0])


def score(expected: str, answer: str) -> dict[str, float]:
    """The metrics that are a mean over the items."""
    if SCORER == "json_fields":
        return json_score(expected, answer)
    right = float(expected.strip() == answer.strip())
    return (
        {"accuracy": right, "validity": float(is_label(answer.strip()))}
        if SCORER == "label"
        else {"exact_match": right}
    )


def labels(expected: str, answer: str) -> dict[str, list[str]]:
    """The wanted and the answered class of each metric that is a macro-F1."""
    if SCORER == "json_fields":
        return json_labels(expected, answer)
    label = answer.strip() if SCORER != "label" or is_label(answer.strip()) else INVALID
    return {"macro_f1": [expected.strip(), label or INVALID]}


def is_label(text: str) -> bool:
    """Whether a stripped text is one of the labels there are."""
    return bool(text) and (not LABELS or text in [label.strip() for label in LABELS])


def json_score(expected: str, answer: str) -> dict[str, float]:
    """Valid is one JSON object and nothing else; a field is right when it equals the wanted one, text stripped."""
    wanted, got = json_object(expected) or {}, json_object(answer)
    right = {field: got is not None and field in got and same(wanted[field], got[field]) for field in FIELDS}
    scores = {f"{field}_accuracy": float(hit) for field, hit in right.items()}
    share = sum(right.values()) / len(right) if right else 0.0
    valid = float(got is not None)
    return scores | {"exact_match": float(all(right.values())), "field_share": share, "validity": valid}


def json_labels(expected: str, answer: str) -> dict[str, list[str]]:
    """Each field's text as a class."""
    wanted, got = json_object(expected) or {}, json_object(answer)
    answered = {field: INVALID if got is None or field not in got else as_label(got[field]) for field in FIELDS}
    return {f"{field}_macro_f1": [as_label(wanted[field]), answered[field]] for field in FIELDS}


def json_object(text: str) -> dict[str, Any] | None:
    """The text as one JSON object without a name given twice, without NaN or Infinity; or None."""
    try:
        value = json.loads(text.strip(), object_pairs_hook=unique_names, parse_constant=float_only)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; ValueError when a name is given twice."""
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name is given twice")
    return named


def float_only(word: str) -> Any:
    """NaN and Infinity are no JSON."""
    raise ValueError(f"{word} is not JSON")


def same(wanted: object, got: object) -> bool:
    """Strings equal after stripping; anything else equal and of a like type (3 is not "3", 1 is not true)."""
    if isinstance(wanted, str) and isinstance(got, str):
        return wanted.strip() == got.strip()
    return isinstance(wanted, bool) == isinstance(got, bool) and bool(wanted == got)


def as_label(value: object) -> str:
    """A field's value as a class."""
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)


def macro_f1(pairs: Sequence[Sequence[str]]) -> float:
    """The mean of F1 over the wanted classes; an answer outside them is simply wrong."""
    classes = sorted({wanted for wanted, _ in pairs})
    hits = {name: sum(wanted == answered == name for wanted, answered in pairs) for name in classes}
    sizes = {name: sum((wanted == name) + (answered == name) for wanted, answered in pairs) for name in classes}
    return sum(2 * hits[name] / sizes[name] for name in classes) / len(classes)


def compare(samples: Path, predictions: Path) -> int:
    """Print every item whose score differs between the two files, then each metric in both; how many items differ."""
    own = {row["id"]: row for row in read(predictions)}
    pairs = []
    for sample in read(samples):
        row, reply = own[sample["doc"]["id"]], sample["filtered_resps"][0]
        pairs.append((score(row["expected"], reply), score(row["expected"], row["answer"])))
        if pairs[-1][0] != pairs[-1][1]:
            print(f"{row['id']}: harness {reply!r}, run {row['answer']!r}, wanted {row['expected']!r}")
    for name in pairs[0][0]:
        theirs, ours = (sum(pair[side][name] for pair in pairs) / len(pairs) for side in (0, 1))
        apart = sum(there[name] != here[name] for there, here in pairs)
        print(f"{name}: harness {theirs:.4f}, run {ours:.4f}; {apart} of {len(pairs)} items differ")
    return sum(there != here for there, here in pairs)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    sys.exit(min(1, compare(Path(sys.argv[1]), Path(sys.argv[2]))))
