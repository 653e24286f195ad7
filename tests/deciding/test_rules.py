"""Public rules of thumb, recomputed from their own figures, each to one per cent of what is known of it."""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import Any

import pytest

from workbench.compose import checked, find_recipe, options
from workbench.deciding.costing import costed
from workbench.deciding.inputs import inputs_of
from workbench.deciding.rules import factor

TODAY = date(2026, 11, 28)


@cache
def recomputed(seed: str) -> dict[str, Any]:
    """What the shipped noun finds, through the recipe as a command composes it."""
    cost = checked(find_recipe("legal_lora"), [f"cost={seed}"]).cost
    return costed(cost, inputs_of(cost, {}), 17, TODAY)


def test_every_rule_of_thumb_has_a_claim_a_finding_and_dated_prices() -> None:
    seeds = [name for name in options("cost") if name.startswith("seed_")]
    assert seeds == ["seed_bill_50k", "seed_home_80", "seed_parity_50m_a_day", "seed_parity_5m", "seed_saving_95"]
    for seed in seeds:
        result = recomputed(seed)
        assert result["rule"]["claim"]
        assert result["rule"]["why"]
        sourced = {each["name"]: each["source"] for each in result["inputs"] if each["kind"] in ("table", "yours")}
        assert sourced["input_mtok"] != "the recipe", seed


def test_parity_at_five_to_ten_million_tokens_a_month_takes_a_price_that_nobody_charges() -> None:
    result = recomputed("seed_parity_5m")
    rule = result["rule"]
    assert result["ways"]["self"]["usd_a_month"] == pytest.approx(1825, rel=0.01)
    assert (rule["low"], rule["high"]) == (pytest.approx(182, rel=0.01), pytest.approx(365, rel=0.01))
    assert rule["holds"] == "does not hold"
    assert recomputed("seed_parity_5m")["cheapest"] == "api"


def test_parity_at_fifty_to_a_hundred_million_tokens_a_day_holds_at_the_dear_end() -> None:
    rule = recomputed("seed_parity_50m_a_day")["rule"]
    # One H100 and one engineer, 16,825 dollars a month, over $2,000 and $500 for ten million tokens a day.
    assert rule["low"] == pytest.approx(16_825 / 2_000 * 10e6, rel=0.01)
    assert rule["high"] == pytest.approx(16_825 / 500 * 10e6, rel=0.01)
    assert rule["holds"] == "holds at the dear end"


def test_a_bill_of_fifty_thousand_pays_for_one_and_a_half_to_two_engineers_not_for_four_to_six() -> None:
    rule = recomputed("seed_bill_50k")["rule"]
    assert (rule["low"], rule["high"]) == (pytest.approx(1.5, rel=0.01), pytest.approx(2.0, rel=0.01))
    assert rule["holds"] == "holds with 1.5 to 2.0 engineers"
    assert "$60,000 to $90,000" in rule["why"]
    assert recomputed("seed_bill_50k")["ways"]["self"]["usd_a_month"] > 50_000  # with four


def test_seventy_to_eighty_per_cent_at_home_save_fifty_six_to_seventy_two() -> None:
    rule = recomputed("seed_home_80")["rule"]
    assert (rule["low"], rule["high"]) == (pytest.approx(0.56, rel=0.01), pytest.approx(0.72, rel=0.01))
    assert rule["holds"] == "holds in part"


def test_ninety_five_per_cent_less_needs_nearly_every_request_at_home() -> None:
    rule = recomputed("seed_saving_95")["rule"]
    assert rule["low"] == pytest.approx(0.983, rel=0.01)
    assert rule["holds"] == "needs 98.3 % at home"


def test_published_rules_disagree_by_a_factor_that_is_told_with_its_causes() -> None:
    assert factor() == pytest.approx(300, rel=0.01)
    (line,) = [note for note in recomputed("seed_parity_5m")["notes"] if "factor of 300" in note]
    assert "count no engineer, or six" in line
