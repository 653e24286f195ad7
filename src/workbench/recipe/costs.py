"""The keys of what each way costs: whatever is not said here is measured, read from a dated table, or assumed aloud."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from workbench.recipe.key import key

given = partial(key, None, makes_weights=False)


@dataclass
class Cost:
    """What the API, serving the student oneself, and both together cost a month; a key left null is looked up."""

    name: str = key("", "short name, as in configs/cost/", makes_weights=False)
    requests_a_month: float | None = given("your volume", unit="requests a month", above=0)
    tokens_in: float | None = given("read for one request, cached ones included", unit="tokens", at_least=0)
    tokens_cached: float | None = given("of them, read from the provider's cache", unit="tokens", at_least=0)
    tokens_out: float | None = given("of one answer", unit="tokens", at_least=0)
    tokens_thought: float | None = given("thought before one answer, billed as output", unit="tokens", at_least=0)
    api: str | None = given("the model in genai-prices whose price stands for the API; null: the recipe's teacher")
    input_mtok: float | None = given("the API's input", unit="USD a million tokens", at_least=0)
    cached_mtok: float | None = given("its input from the cache", unit="USD a million tokens", at_least=0)
    output_mtok: float | None = given("its output", unit="USD a million tokens", at_least=0)
    batch_share: float | None = given(
        "of the requests, those that can wait for a batch", unit="share", at_least=0, at_most=1
    )
    batch_discount: float | None = given("of the price, what a batch saves", unit="share", at_least=0, at_most=1)
    retry_factor: float | None = given("requests paid for one answer", unit="times", at_least=1)
    device: str = key("cpu", "what serves the student", choices=("cpu", "cuda"), makes_weights=False)
    machine: str = key("", "that machine's name, for people", makes_weights=False)
    answers_per_second: float | None = given(
        "what one machine answers within slo_seconds; with its source in cost.sources", unit="answers a second", above=0
    )
    slo_seconds: float = key(
        2.0, "the objective: 95 of 100 askers wait no longer", unit="seconds", above=0, makes_weights=False
    )
    usd_per_hour: float | None = given("one machine, rented", unit="USD an hour", at_least=0)
    purchase_usd: float | None = given("one machine, bought: then no usd_per_hour", unit="USD", at_least=0)
    purchase_months: float | None = given("it serves so long", unit="months", above=0)
    kilowatts: float | None = given("a bought machine draws", unit="kW", at_least=0)
    pue: float | None = given("its building draws for each kW of its own", unit="kW", at_least=1)
    usd_per_kwh: float | None = given("power", unit="USD a kWh", at_least=0)
    kwh_per_1000_api: float | None = given("energy of 1,000 answers of the API", unit="kWh", at_least=0)
    kwh_per_1000_self: float | None = given("energy of 1,000 answers at home", unit="kWh", at_least=0)
    grams_per_kwh: float | None = given("CO2 of the power; null: no CO2 is told", unit="grams a kWh", at_least=0)
    redundancy: float | None = given("machines beyond those that the peak takes", unit="machines", at_least=0)
    peak_factor: float | None = given("requests at the peak, over the month's mean", unit="times", at_least=1)
    storage_usd: float | None = given("storage and logs", unit="USD a month", at_least=0)
    usd_per_1000_more: float | None = given(
        "1,000 answers at home beside the machines: egress, or a host that bills by the answer", unit="USD", at_least=0
    )
    engineers: float | None = given("people who keep it running", unit="full-time people", at_least=0)
    engineer_usd_a_year: float | None = given("one of them, all included", unit="USD a year", at_least=0)
    labels_usd: float | None = given("labels for one training", unit="USD", at_least=0)
    training_usd: float | None = given("one training", unit="USD", at_least=0)
    evaluation_usd: float | None = given("one evaluation and bundling", unit="USD", at_least=0)
    months_between: float | None = given("between two trainings", unit="months", above=0)
    setup_weeks: float | None = given("of one engineer, once", unit="weeks", at_least=0)
    horizon_months: float | None = given("over which that is paid off", unit="months", above=0)
    hybrid: str = key(
        "cascade", "who sees a request first: the student all of them, or a router before it",
        choices=("cascade", "before"), makes_weights=False,
    )  # fmt: skip
    escalated: float | None = given("of the requests, those that go to the API", unit="share", at_least=0, at_most=1)
    harm: float | None = given(
        "of all requests: wrong at home where the API is right", unit="share", at_least=0, at_most=1
    )
    router_usd: float | None = given("what stands between both", unit="USD a month", at_least=0)
    usd_per_error: float | None = given("what a wrong answer costs you", unit="USD", at_least=0)
    error_api: float | None = given("of the API's answers, those that are wrong", unit="share", at_least=0, at_most=1)
    error_self: float | None = given(
        "of the student's answers, those that are wrong", unit="share", at_least=0, at_most=1
    )
    load: bool = key(
        False, "measure what the run's bundle answers under load, in its engine, before the table", makes_weights=False
    )
    load_seconds: float = key(
        20.0, "arrivals at each rate that is tried, 60 at least", unit="seconds", at_least=1, makes_weights=False
    )
    ranges: dict[str, Any] = key(dict, "key → [low, high], where more than one value may hold")
    sources: dict[str, str] = key(dict, "key → where its value was read")
    as_of: dict[str, str] = key(dict, "key → the day it was read, YYYY-MM-DD")
    claim: str = key("", "a public rule of thumb, which these values recompute", makes_weights=False)
    claimed: list[float] = key(list, "its figure, or both ends of it")
    finds: str = key(
        "", "what the model finds in its place",
        choices=("", "parity_usd_per_mtok", "parity_tokens_a_day", "parity_engineers", "saving", "share_at_home"),
        makes_weights=False,
    )  # fmt: skip
