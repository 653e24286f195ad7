"""What a call costs: the recipe's own price, else the dated table of `genai-prices`; nothing is free by ignorance."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from workbench.errors import RequestError
from workbench.recipe import Teacher
from workbench.records import Message, canonical
from workbench.teacher.ledger import NANO
from workbench.teacher.replies import conversation
from workbench.teacher.wire import Usage, make_request, said_in


@dataclass(frozen=True)
class Pricing:
    """`cost` of a usage in nano-dollars, rounded up, and `source`: where the price was read."""

    cost: Callable[[Usage], int]
    source: str
    free: bool

    def worst(self, most_in: int, most_out: int) -> int:
        """The most a request of at most so many tokens can cost, in nano-dollars."""
        return self.cost(Usage(tokens_in=most_in, out=most_out))


def pricing_of(teacher: Teacher, *, batch: bool = False, to_spend: bool = True) -> Pricing:
    """The teacher's price; RequestError when nobody knows it, or when money would be spent without a budget."""
    share = 1.0 - teacher.batch_discount if batch else 1.0
    pricing = own_price(teacher, share) or table_price(teacher, share)
    if to_spend and not pricing.free and teacher.budget_usd is None:
        raise RequestError(
            f"this teacher costs money ({pricing.source}) and no budget is set",
            where="teacher.budget_usd",
            remedy="teacher.budget_usd=5 allows five dollars for this run; `plan` estimates what it needs",
        )
    return pricing


def own_price(teacher: Teacher, share: float) -> Pricing | None:
    """The price in the recipe, or nothing to pay for an endpoint within one's walls; None when neither is said."""
    price = teacher.price
    if price.input_mtok is None or price.output_mtok is None:
        if price.input_mtok is not None or price.output_mtok is not None:
            raise RequestError("input_mtok and output_mtok belong together", where="teacher.price")
        return Pricing(lambda _: 0, "within your walls: 0 USD", free=True) if teacher.inside else None
    whole, out = price.input_mtok, price.output_mtok
    cached = whole if price.cached_mtok is None else price.cached_mtok

    def cost(usage: Usage) -> int:
        tokens = (usage.tokens_in - usage.cached) * whole + usage.cached * cached + usage.out * out
        return math.ceil(tokens * share * NANO / 1_000_000)

    day = f", as of {price.as_of}" if price.as_of else ""
    return Pricing(cost, f"{whole:g} in, {out:g} out USD a million tokens, from the recipe{day}", free=whole + out == 0)


def table_price(teacher: Teacher, share: float) -> Pricing:
    """The price in genai-prices; RequestError when the model is not in it."""
    from importlib.metadata import version

    import genai_prices

    def priced(usage: Usage) -> genai_prices.types.PriceCalculation:
        tokens = genai_prices.Usage(
            input_tokens=usage.tokens_in, cache_read_tokens=usage.cached, output_tokens=usage.out
        )
        return genai_prices.calc_price(tokens, model_ref=teacher.model, provider_id=teacher.price_provider)

    @lru_cache(maxsize=65_536)
    def cost(usage: Usage) -> int:
        return math.ceil(float(priced(usage).total_price) * share * NANO)

    try:
        sample = priced(Usage(tokens_in=1_000_000, out=1_000_000))
    except LookupError:
        raise RequestError(
            f"no price is known for {teacher.model!r}",
            where="teacher.price",
            remedy="give it: teacher.price.input_mtok=… teacher.price.output_mtok=… (USD a million tokens)",
        ) from None
    price = f"{float(sample.input_price):g} in, {float(sample.output_price):g} out USD for a million tokens of each"
    return Pricing(cost, f"{price}, genai-prices {version('genai-prices')}", free=sample.total_price == 0)


# What labelling would cost, before anything is sent: from the prompts' lengths, and what earlier answers took.

CHARACTERS_A_TOKEN = 4.0
PILOT_CALLS = 20  # earlier answers of this model from which on their mean is believed


@dataclass(frozen=True)
class Estimate:
    """Calls and dollars. `high` is the wall's own arithmetic: every answer as long as it may be, none mended."""

    calls: int
    low: float
    likely: float
    high: float
    why: str


def estimate(
    teacher: Teacher,
    prompts: Sequence[tuple[Message, ...]],
    golds: Sequence[str],
    ledger: Path,
    tools: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> Estimate:
    """The cost of asking these prompts once, samples included. Reads the ledger, sends nothing.

    `tools` are those of each prompt, where there are any.
    """
    pricing = pricing_of(teacher, batch=teacher.batch, to_spend=False)
    pilot = answers_before(ledger, teacher.model)
    own = [len(gold) for gold in golds if gold]
    if pilot:
        out, why = pilot, f"answers took {pilot:.0f} tokens in the ledger"
    elif own:
        out = sum(own) / len(own) / CHARACTERS_A_TOKEN * 1.3
        why = "answers as long as the rows' own"
    else:
        out, why = teacher.max_new_tokens / 4, "answers of a quarter of max_new_tokens"
    out = min(max(out, 1.0), teacher.max_new_tokens)
    low = likely = high = 0
    for messages, offered in zip_longest(prompts, tools, fillvalue=()):
        turns = conversation(teacher, messages, in_words=True)
        request = make_request(teacher, "plan", "plan", turns, 0, tools=offered)
        letters = sum(len(said_in(turn)) for turn in turns) + sum(len(canonical(tool)) for tool in offered)
        tokens = round(letters / CHARACTERS_A_TOKEN) + 8 * len(turns)
        low += pricing.cost(Usage(tokens_in=round(tokens * 0.8), out=max(1, round(out / 2))))
        likely += pricing.cost(Usage(tokens_in=tokens, out=round(out)))
        high += pricing.worst(request.most_in, request.most_out)
    n = teacher.samples
    return Estimate(len(prompts) * n, low * n / NANO, likely * n / NANO, high * n / NANO, why)


def answers_before(ledger: Path, model: str) -> float | None:
    """Mean answer length of this model in the ledger, in tokens; None with too few of them, or no ledger."""
    if not ledger.is_file():
        return None
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        count, mean = database.execute(
            "SELECT COUNT(*), AVG(tokens_out) FROM attempts "
            "WHERE model LIKE ? || '%' AND outcome = 'ok' AND kind != 'probe'",
            (model,),
        ).fetchone()
    return float(mean) if count >= PILOT_CALLS else None
