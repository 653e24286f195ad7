"""Training rows that come back in answers: runs of words that the question did not hand over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation import statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.cells import cell
from workbench.evaluation.words import runs_of, words_of

WORDS = 13  # the run that the GPT-3 paper calls an overlap (Brown et al. 2020, appendix C)
LISTED = 20  # rows told of one arm
BASE = "base"
HOLDERS = 50  # training rows kept of a run that many of them share

Run = tuple[str, ...]


def memorised(
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    train_texts: Iterable[tuple[str, str]],
    words: int = WORDS,
    *,
    quote: bool = False,
    confidence: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """The share of each arm's answers that repeat a training row, with Wilson's interval, and the rows behind it.

    An answer repeats a row when both hold the same run of at least `words` words (case, accents and punctuation aside),
    and the run stands neither in the answer's own prompt, nor in an answer that the test itself wants, nor in one of
    base's: a notice that the item quotes, a phrase of the task, or one that the model knew untuned is no leak.
    `prompts` are the items' own texts by id, `train_texts` (row id, text) pairs, a row's text and its answer each a
    pair of its own.

    Gives by arm {"value", "ci_low", "ci_high", "n", "rows": [{"id", "words", "train", "train_rows"}]}: at most 20 rows,
    the longest run first, `words` its length, `train` one training row that holds it, and `train_rows` how many hold
    its rarest part, counted to 50: one is a row that came back, many are a phrase of the training answers. Of what was
    said nothing is told unless `quote` adds it as `text`: training rows may be private, and a report travels.

    What is shorter than `words` (a name, a number, a password) is never found, nor is a paraphrase. An arm that was
    shown training rows in its prompt may well repeat them: that is no memory.
    """
    wanted = {run for text in expected_texts(predictions) for run in runs_of(words_of(text), words)}
    asked: dict[str, set[Run]] = {}
    for rows in predictions.values():
        for p in rows:
            if p.id not in prompts:
                raise WorkbenchError(f"no prompt is known of item {p.id!r}", where="evaluate.memorised")
            asked.setdefault(p.id, set(runs_of(words_of(prompts[p.id]), words)))
    # What base says was learned before any tuning; its own rate shows how often that happens.
    untuned = {run for p in predictions.get(BASE, ()) for run in runs_of(words_of(p.answer), words)}
    known = {arm: wanted if arm == BASE else wanted | untuned for arm in predictions}
    said = {
        arm: [runs_to_look_up(p, words, asked[p.id], known[arm]) for p in rows] for arm, rows in predictions.items()
    }
    holders = rows_holding(
        {run for rows in said.values() for runs in rows for run in runs.values()}, train_texts, words
    )
    return {arm: arm_report(rows, said[arm], holders, words, quote, confidence) for arm, rows in predictions.items()}


def expected_texts(predictions: Mapping[str, Sequence[Prediction]]) -> set[str]:
    """Every answer that the test wants."""
    return {p.expected for rows in predictions.values() for p in rows}


def runs_to_look_up(prediction: Prediction, words: int, asked: set[Run], known: set[Run]) -> dict[int, Run]:
    """The runs of an answer that neither its prompt gave it nor anyone knew, by position."""
    runs = enumerate(runs_of(words_of(prediction.answer), words))
    return {position: run for position, run in runs if run not in asked and run not in known}


def rows_holding(runs: set[Run], train_texts: Iterable[tuple[str, str]], words: int) -> dict[Run, list[str]]:
    """Of each run that a training row holds, the rows: the first 50, since stock phrases stand in thousands."""
    found: dict[Run, list[str]] = {}
    if not runs:
        return found
    for name, text in train_texts:
        for run in runs.intersection(runs_of(words_of(text), words)):
            rows = found.setdefault(run, [])
            if len(rows) < HOLDERS and name not in rows[-1:]:
                rows.append(name)
    return found


def arm_report(
    rows: Sequence[Prediction],
    said: Sequence[Mapping[int, Run]],
    holders: Mapping[Run, Sequence[str]],
    words: int,
    quote: bool,
    confidence: float,
) -> dict[str, Any]:
    """One arm's share, its interval, and its longest repetitions."""
    told = []
    flags_n = np.zeros(len(rows))
    for i, (p, runs) in enumerate(zip(rows, said, strict=True)):
        start, length, train, shared = longest(runs, holders, words)
        if length:
            flags_n[i] = 1
            row: dict[str, Any] = {"id": p.id, "words": length, "train": train, "train_rows": shared}
            told.append(row | ({"text": " ".join(words_of(p.answer)[start : start + length])} if quote else {}))
    clusters_n = statistics.cluster_numbers([p.group for p in rows])
    figures = cell(statistics.share_interval(flags_n, clusters_n, confidence))
    told.sort(key=lambda row: -row["words"])
    return figures | {"n": len(rows), "rows": told[:LISTED]}


def longest(runs: Mapping[int, Run], holders: Mapping[Run, Sequence[str]], words: int) -> tuple[int, int, str, int]:
    """(first word, words, training row, rows that hold its rarest run) of the longest stretch that one row holds.

    No words where no row holds a run.
    """
    best = (0, 0, "")
    before: dict[str, int] = {}  # training row: the position at which its stretch began
    last = -2
    for position, run in runs.items():
        rows = holders.get(run, ())
        before = {row: before.get(row, position) if position == last + 1 else position for row in rows}
        last = position
        for row, start in before.items():
            if position - start + words > best[1]:
                best = (start, position - start + words, row)
    start, length, train = best
    stretch = (runs[i] for i in range(start, start + length - words + 1)) if length else ()
    return start, length, train, min((len(holders[run]) for run in stretch), default=0)
