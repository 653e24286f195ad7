"""The rows whose prompts a teacher answers: read, freed of repeats and of all that would be judged on, drawn down."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.data.prepare import Splits, describe, prepare, readable, without_overlaps
from workbench.data.split import drop_repeats
from workbench.errors import RequestError
from workbench.recipe import Data
from workbench.records import Example


@dataclass(frozen=True)
class Asked:
    """Rows to ask, the recipe's rows by their use, what a user should hear, and the prompts' description.

    `judging` are the ids of the rows to ask whose answers are not trained on.
    """

    examples: list[Example]
    splits: Splits
    said: list[str]
    datasets: list[dict[str, Any]]
    judging: frozenset[str] = frozenset()


def gather(
    data: Data,
    prompts: str | None,
    limit: int | None,
    seed: int,
    validation: int = 0,
    contents: Mapping[str, str] | None = None,
) -> Asked:
    """The rows of `prompts`, or the training rows when there is no such file; at most `limit`, drawn by the seed.

    Their own answers may be missing: those are what is asked for. Of the validation rows the first `validation` are
    asked too, and all that have no answer of their own. `contents` are the digests that the sources must have.
    """
    splits = prepare(data, seed, unanswered=prompts is None, contents=contents)
    said = list(splits.said)
    if any(not e.answer for e in splits.test):
        raise RequestError(
            "the test rows would be prompts without an answer, and a teacher cannot be its own judge",
            where="data.test",
            remedy="name rows with right answers: data.test=file:gold.jsonl",
        )
    examples = beside(prompts, data, splits, said, contents) if prompts else splits.train
    if limit is not None and limit < len(examples):
        said.append(f"teacher.limit keeps {limit:,} of {len(examples):,} prompts, drawn by the seed")
        drawn = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = [examples[i] for i in drawn]
    # Validation rows that were split off prompts need answers too, for the evaluation loss.
    judging = [e for n, e in enumerate(splits.validation) if n < validation or not e.answer]
    examples = [*examples, *judging]
    told = [describe(examples, "prompts", prompts or data.train, data)]
    return Asked(examples, splits, said, told, frozenset(e.id for e in judging))


def beside(
    source: str, data: Data, splits: Splits, said: list[str], contents: Mapping[str, str] | None = None
) -> list[Example]:
    """Prompts from a file of their own, without those that repeat what is judged on."""
    found = readable("prompts", source, data, unanswered=True, contents=contents)
    said += [f"prompts: {line}" for line in found.said]
    rows, repeats = drop_repeats(found.examples)
    if repeats:
        said.append(f"dropped {repeats:,} prompts that repeat another one word for word")
    for judge, judging in (("test", splits.test), ("validation", splits.validation)):
        rows = without_overlaps("prompts", rows, judge, judging, data.overlap_words, said)
    return rows
