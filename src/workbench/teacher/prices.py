"""What a call costs: the recipe's own price, else the dated table of `genai-prices`; nothing is free by ignorance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from workbench.errors import RequestError
from workbench.recipe import Teacher
from workbench.teacher.ledger import NANO
from workbench.teacher.wire import Usage


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
        told = genai_prices.Usage(input_tokens=usage.tokens_in, cache_read_tokens=usage.cached, output_tokens=usage.out)
        return genai_prices.calc_price(told, model_ref=teacher.model, provider_id=teacher.price_provider)

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
    told = f"{float(sample.input_price):g} in, {float(sample.output_price):g} out USD for a million tokens of each"
    return Pricing(cost, f"{told}, genai-prices {version('genai-prices')}", free=sample.total_price == 0)
