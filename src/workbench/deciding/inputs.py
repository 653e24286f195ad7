"""The inputs of a cost: each a value with its range, where and when it was read, and of what kind it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import RequestError, nearest
from workbench.recipe.costs import Cost

Floats = NDArray[np.float64]
Kind = Literal["measured", "table", "yours", "assumed"]
STALE_DAYS = 90


@dataclass(frozen=True)
class Input:
    """One number of the model. `low` and `high` are the range it is drawn from; equal to `value` where it has none.

    `kind`: measured by a run of this recipe, read from a dated public table, yours (the recipe says it), or assumed.
    """

    name: str
    value: float
    low: float
    high: float
    source: str
    as_of: str
    kind: Kind
    unit: str = ""
    meaning: str = ""

    @property
    def is_range(self) -> bool:
        """Whether more than one value may hold."""
        return self.low < self.high


@dataclass(frozen=True)
class Known:
    """What is known of an input before the recipe has its word: as an `Input`, without its name."""

    value: float
    low: float
    high: float
    source: str
    as_of: str = ""
    kind: Kind = "assumed"


def exactly(value: float, source: str, as_of: str = "", kind: Kind = "assumed") -> Known:
    """A value without a range."""
    return Known(value, value, value, source, as_of, kind)


# What is taken where nobody has said or measured anything: each stands in the table with a star.
ASSUMED: dict[str, Known] = {
    "requests_a_month": exactly(1e6, "no volume was given: cost.requests_a_month=…"),
    "tokens_in": Known(400, 200, 1_000, "a short prompt; a finished run measures it"),
    "tokens_cached": exactly(0, "nothing is read from a cache"),
    "tokens_out": Known(60, 20, 300, "a short answer; a finished run measures it"),
    "tokens_thought": exactly(0, "the API does not think before it answers"),
    "batch_share": exactly(0, "every request is answered at once"),
    "batch_discount": exactly(0.5, "what most providers take off a batch"),
    "retry_factor": Known(1.02, 1.0, 1.1, "some requests are sent again"),
    "purchase_months": Known(36, 24, 48, "written off in three years"),
    "kilowatts": Known(1.0, 0.5, 1.5, "a server with one accelerator"),
    "pue": Known(1.4, 1.1, 1.6, "a common data centre"),
    "usd_per_kwh": Known(0.15, 0.08, 0.30, "industrial power"),
    "kwh_per_1000_api": Known(
        0.24,
        0.03,
        3.0,
        "Google's median text prompt of Gemini, 0.24 Wh (the-decoder.com); other models tell none",
        "2025-08-21",
    ),
    "redundancy": exactly(1, "one machine more, so that one may fail"),
    "peak_factor": Known(3, 1.5, 6, "the busiest hour over the mean"),
    "storage_usd": Known(20, 5, 100, "a bundle, its logs and backups"),
    "usd_per_1000_more": exactly(0, "answers leave the building for nothing"),
    "engineers": Known(0.25, 0.1, 0.5, "a day or so a week"),
    "engineer_usd_a_year": Known(180_000, 120_000, 240_000, "a senior engineer, all included"),
    "labels_usd": exactly(0, "the rows bring their own answers"),
    "training_usd": Known(5, 1, 50, "an adapter on one small machine"),
    "evaluation_usd": Known(1, 0.1, 10, "an evaluation on that machine"),
    "months_between": Known(3, 1, 12, "trained anew each quarter"),
    "setup_weeks": Known(2, 1, 6, "until it is in production"),
    "horizon_months": Known(24, 12, 36, "paid off over two years"),
    "escalated": Known(0.3, 0.1, 0.6, "`route` measures it"),
    "harm": Known(0.02, 0.0, 0.05, "`route` measures it"),
    "router_usd": Known(10, 0, 50, "a small process beside the server"),
    "usd_per_error": exactly(0, "a wrong answer is priced at nothing: cost.usd_per_error=…"),
    "error_api": Known(0.05, 0.01, 0.15, "an evaluation with a teacher measures it"),
    "error_self": Known(0.08, 0.02, 0.25, "an evaluation measures it"),
}
# Rented, where the recipe names no price. Read in public lists on the day named.
RENTED: dict[str, Known] = {
    "cpu": Known(
        0.0816, 0.04, 0.17, "two vCPUs, on demand: AWS m7g.large, us-east-1 (factualminds.com)", "2026-06-17", "table"
    ),
    "cuda": Known(
        2.50, 1.99, 6.88, "one H100: specialised clouds $2.50 (mercatus-ai.com), AWS on demand $6.88 (compux.net)",
        "2026-05-31", "table",
    ),
}  # fmt: skip
BOUGHT = ("purchase_usd", "purchase_months", "kilowatts", "pue", "usd_per_kwh")  # in place of usd_per_hour
NUMBERS = tuple(spec.name for spec in dataclasses.fields(Cost) if spec.type == "float | None")


def inputs_of(cost: Cost, known: Mapping[str, Known]) -> dict[str, Input]:
    """Every input: your own word, else what was measured, else a table, else what is assumed; left out where none is.

    A value of the recipe is a table's where it has a source and a day, else yours. Raises RequestError naming the key.
    """
    refuse_unknown(cost)
    inputs = {}
    unused = ("usd_per_hour",) if cost.purchase_usd is not None else BOUGHT
    for spec in dataclasses.fields(cost):
        if spec.name not in NUMBERS or spec.name in unused:
            continue
        value = getattr(cost, spec.name)
        base = known.get(spec.name) or ASSUMED.get(spec.name)
        ranges = cost.ranges
        if value is not None:
            source, day = cost.sources.get(spec.name, ""), cost.as_of.get(spec.name, "")
            written = exactly(value, source or "the recipe", day, "table" if source and day else "yours")
            if written.kind == "table" and base is not None and base.kind == "measured":
                ranges = {}  # they are the table's
            else:
                base = written
        if base is None:
            continue
        low, high = ranges.get(spec.name, (base.low, base.high))
        held = Input(
            spec.name, float(base.value), float(low), float(high), base.source, base.as_of, base.kind,
            spec.metadata["unit"], spec.metadata["meaning"],
        )  # fmt: skip
        refuse_range(held)
        inputs[spec.name] = held
    cached, read = inputs["tokens_cached"], inputs["tokens_in"]
    if cached.value > read.value:
        raise RequestError(
            f"{cached.value:g} of {read.value:g} tokens cannot be cached", where="cost.tokens_cached",
            remedy="cost.tokens_in counts the cached ones too",
        )  # fmt: skip
    return inputs


def refuse_unknown(cost: Cost) -> None:
    """A range, a source or a day of what is no input; a day that is none."""
    for section in ("ranges", "sources", "as_of"):
        for name in getattr(cost, section):
            if name not in NUMBERS:
                raise RequestError(
                    f"{name!r} is no input of a cost", where=f"cost.{section}.{name}", remedy=nearest(name, NUMBERS)
                )
    for name, day in cost.as_of.items():
        if day_of(day) is None:
            raise RequestError(f"{day!r} is no day", where=f"cost.as_of.{name}", remedy="YYYY-MM-DD")
    for name, ends in cost.ranges.items():
        plain = isinstance(ends, list) and all(
            isinstance(end, int | float) and not isinstance(end, bool) for end in ends
        )
        if not plain or len(ends) != 2:
            raise RequestError("a range is two numbers", where=f"cost.ranges.{name}", remedy="[low, high]")


def refuse_range(held: Input) -> None:
    """A range that does not hold its value, or leaves what the key may be."""
    here = f"cost.ranges.{held.name}"
    limits = next(spec.metadata for spec in dataclasses.fields(Cost) if spec.name == held.name)
    if not held.low <= held.value <= held.high:
        raise RequestError(
            f"{held.value:g} does not lie between {held.low:g} and {held.high:g}", where=here, remedy="widen it"
        )
    least, most, above = limits["at_least"], limits["at_most"], limits["above"]
    if (
        (least is not None and held.low < least)
        or (most is not None and held.high > most)
        or (above is not None and held.low <= above)
    ):
        raise RequestError(
            f"[{held.low:g}, {held.high:g}] leaves what cost.{held.name} may be", where=here,
            remedy=", ".join(f"{word} {limit:g}" for word, limit in
                             (("at least", least), ("at most", most), ("above", above)) if limit is not None),
        )  # fmt: skip


def day_of(text: str) -> date | None:
    """A day as YYYY-MM-DD, or None."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def stale(inputs: Iterable[Input], today: date) -> list[Input]:
    """The figures of public tables that were read more than 90 days ago."""
    days = ((each, day_of(each.as_of)) for each in inputs if each.kind == "table")
    return [each for each, day in days if day is not None and (today - day).days > STALE_DAYS]


def values_of(inputs: Mapping[str, Input]) -> dict[str, float]:
    """The values alone."""
    return {name: each.value for name, each in inputs.items()}
