"""Fresh rows for a model that is in production: read as its recipe read its own, and held against what it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from workbench.data.load import Loaded, load
from workbench.data.split import joined, normalised
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Data
from workbench.records import Example, Message
from workbench.serving.parity import read_parity
from workbench.sources import is_here, resolve
from workbench.stages.bundle import parity_beside
from workbench.stages.production import Production

AS_THE_RECIPE = "lay the rows out as those of the model's recipe (its recipe.yaml, under data), right answers included"


def fresh_rows(source: str, data: Data) -> Loaded:
    """The rows of a file, by the recipe's own settings; too many bad ones are refused as in training.

    The columns for id and group may be missing. Rows that are near copies get one group, as a split would tie them:
    they are right or wrong together.
    """
    path, columns, said = resolve(source), data.columns, list[str]()
    while True:
        try:
            found = load(path, replace(data, columns=columns), part="test")
            break
        except RequestError as error:
            column = error.where.removeprefix("data.columns.")
            if column not in ("id", "group"):
                raise RequestError(error.what, where=f"data={source}", remedy=AS_THE_RECIPE) from None
            said.append(f"there is no column {getattr(columns, column)!r} for the {column}")
            columns = replace(columns, **{column: None})
    total = len(found.examples) + len(found.bad)
    if found.bad and len(found.bad) / total > data.max_bad_share:
        reasons = "".join(f"\n    {bad.where}: {bad.reason}" for bad in found.bad[:3])
        raise RequestError(
            f"{len(found.bad):,} of {total:,} rows cannot be read, and the model's recipe allows "
            f"{data.max_bad_share:.1%}; the first:{reasons}",
            where=f"data={source}",
            remedy=AS_THE_RECIPE,
        )
    if not found.examples:
        raise RequestError("there are no rows", where=f"data={source}", remedy="give it rows")
    return replace(found, examples=tied(found.examples), said=[*found.said, *said])


def tied(examples: Sequence[Example]) -> list[Example]:
    """The rows, with one group for those that share theirs or are near copies of each other."""
    rows = list(examples)
    for number, members in enumerate(joined(rows).values()):
        if len(members) > 1:
            for at in members:
                rows[at] = replace(rows[at], group=f"near-{number}")
    return rows


def known_rows(examples: Sequence[Example], found: Production) -> dict[str, list[str]]:
    """Ids of the rows whose text the model was trained on, or judged on, as far as those rows can be read here."""
    held_out = [*read_parity(found.folder), *read_parity(found.folder.parent, parity_beside(found.folder).name)]
    judged = rows_of(found.data.test, found.data)[: found.evaluate.limit]
    seen = {
        "trained on": texts_of(rows_of(found.data.train, found.data)),
        "judged on": texts_of(judged) | {asked(row.messages) for row in held_out},
    }
    return {part: [e.id for e in examples if texts_of([e]) & texts] for part, texts in seen.items()}


def texts_of(examples: Sequence[Example]) -> set[str]:
    """The rows' own text, and the user's turns as the model sees them, the recipe's instruction included."""
    return {normalised(e.text) for e in examples} | {asked(e.prompt) for e in examples}


def asked(messages: Sequence[Message]) -> str:
    """The user's turns, for exact comparison."""
    return normalised("\n".join(m.content for m in messages if m.role == "user"))


def rows_of(source: str | None, data: Data) -> list[Example]:
    """The rows of one of the recipe's own sources, when it is at hand."""
    try:
        return load(resolve(source), data, unanswered=True).examples if source and is_here(source) else []
    except WorkbenchError:  # moved, changed, or never on this machine: then only the bundle's own rows are known
        return []


def known_lines(known: Mapping[str, Sequence[str]]) -> list[str]:
    """What to say of rows that are not fresh."""
    return [
        f"{len(ids):,} of these rows the model was {part} already, the first {ids[0]}: they are not fresh, and the "
        "verdict leans on them"
        for part, ids in known.items()
        if ids
    ]
