"""Several sources of training rows become one: all of their rows, or a mixture in which each has its weight's part.

Of a mixture no more rows are held than it takes, so that sources may be larger than the memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from workbench.data.load import Loaded
from workbench.errors import RequestError
from workbench.recipe import RowSource
from workbench.records import DATA_SOURCE, Example
from workbench.stored_rows import HELD, pick, spooled

MIXED = 50_000  # training rows of a mixture where data.limit names no other number
SPARE = 1.5  # rows drawn for one that is wanted: repeats and overlaps are dropped afterwards


def most_of(sources: Sequence[RowSource], limit: int | None, held_out: float) -> dict[str, int | None]:
    """How many rows of each source are held at most; `held_out` is the share that is split off them."""
    whole = sum(source.weight or 0.0 for source in sources)
    return {
        source.name: None
        if source.weight is None
        else math.ceil(SPARE * (limit or MIXED) * source.weight / whole / (1 - held_out)) + 100
        for source in sources
    }


def joined_rows(loaded: Mapping[str, Loaded]) -> Loaded:
    """The rows of several sources as those of one: each says where it is from, and no id is there twice."""
    kinds = {part.material for part in loaded.values()}
    if len(kinds) > 1:
        listing = ", ".join(f"{name}: {part.material}" for name, part in loaded.items())
        raise RequestError(
            f"the sources hold rows of different kinds ({listing})", where="data.train", remedy="name those of one kind"
        )
    taken, repeats = set[str](), 0

    def own() -> Iterator[Example]:
        nonlocal repeats
        for name, part in loaded.items():
            for example in part.examples:
                identity, copy = example.id, 1
                while identity in taken:
                    copy += 1
                    identity = f"{example.id}-{copy}"
                repeats += copy > 1
                taken.add(identity)
                yield replace(example, id=identity, meta={**example.meta, DATA_SOURCE: name})

    examples = spooled(own()) if sum(len(part.examples) for part in loaded.values()) > HELD else list(own())
    notes = [
        line if line.startswith(name) else f"{name}: {line}" for name, part in loaded.items() for line in part.notes
    ]
    if repeats:
        notes.append(f"{repeats:,} ids are those of another source's rows: -2, -3, … was added to each")
    formats = " and ".join(dict.fromkeys(part.format for part in loaded.values()))
    return Loaded(examples, [bad for part in loaded.values() for bad in part.bad], formats, notes, kinds.pop())


def mixed(
    rows: Sequence[Example], sources: Sequence[RowSource], limit: int | None, seed: int, notes: list[str]
) -> Sequence[Example]:
    """The rows of each source in the part that its weight says, drawn by the seed, in the order of `rows`.

    No row is taken twice: where one source has fewer than its part, there are fewer rows in all, and that is said.
    Raises RequestError when a source has no row left.
    """
    weights = {source.name: source.weight or 0.0 for source in sources}
    own: dict[str, list[int]] = {name: [] for name in weights}
    for number, row in enumerate(rows):
        own[str(row.meta[DATA_SOURCE])].append(number)
    whole, there = sum(weights.values()), {name: len(numbers) for name, numbers in own.items()}
    for name in weights:
        if not there[name]:
            raise RequestError(
                f"no row of {name} is left for the mixture", where="data.train", remedy="give it more rows"
            )
    wanted = limit or MIXED
    least = min(weights, key=lambda name: there[name] / weights[name])
    total = min(wanted, math.floor(there[least] * whole / weights[least] + 1e-9))
    parts = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: min(there[name], math.floor(part + 1e-9)) for name, part in parts.items()}
    for name in sorted(parts, key=lambda name: counts[name] - parts[name])[: total - sum(counts.values())]:
        counts[name] = min(there[name], counts[name] + 1)
    draw, chosen = random.Random(seed), set[int]()
    for name, count in counts.items():
        chosen.update(draw.sample(own[name], count))
    total = len(chosen)
    listing = ", ".join(
        f"{name} {count:,} of {there[name]:,} rows ({count / max(total, 1):.1%})" for name, count in counts.items()
    )
    notes.append(f"the mixture's {total:,} training rows: {listing}")
    if total < wanted and limit:
        notes.append(f"data.limit={limit:,} is not reached: {least} has no more rows for its part")
    elif total == wanted and not limit:
        notes.append(f"a mixture takes {MIXED:,} rows; data.limit sets another number")
    return pick(rows, sorted(chosen))


def counts_by_source(rows: Mapping[str, Sequence[Example]]) -> list[str]:
    """One line a source: how many rows of each part are its own; none where rows do not say where they are from."""
    counts: dict[str, dict[str, int]] = {}
    for part, members in rows.items():
        for row in members:
            if DATA_SOURCE in row.meta:
                own = counts.setdefault(str(row.meta[DATA_SOURCE]), dict.fromkeys(rows, 0))
                own[part] += 1
    return [
        f"from {name}: " + ", ".join(f"{count:,} {part}" for part, count in own.items()) + " rows"
        for name, own in counts.items()
    ]
