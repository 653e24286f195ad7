"""Verdicts on a served bundle's parity that name what is guilty: a doubled BOS, say, or a stop token not heard."""

from __future__ import annotations

from collections.abc import Callable

from workbench.serving.checks import Check
from workbench.serving.parity import Parity

MOST_RUN_ON = 0.05  # share of answers that may run on: a quantized model loops now and then, a lost stop token always


def parity_checks(
    parity: Parity,
    *,
    most_kl: float,
    score_margin: float,
    least_agreement: float = 0.0,
    token_text: Callable[[int], str] | None = None,
) -> list[Check]:
    """The verdicts on prompt_ids, stops, kl and answers; without the first and third where the engine does not tell.

    `most_kl` bounds the mean KL in nats a token, `least_agreement` the share of positions with the same first choice
    (a KL over listed tokens sees little where all are alike), `score_margin` what the mean score may lose.
    `token_text` shows ids.
    """
    checks = [stops(parity), answers(parity, score_margin)]
    if parity.prompts_equal is not None:
        checks.insert(0, prompts(parity, token_text or (lambda token: "")))
    if parity.kl_mean is not None:
        agreement = parity.top_token_agreement or 0.0
        agreed = f"the same first choice at {agreement:.1%} of positions, at least {least_agreement:.0%}"
        why = f"mean KL {parity.kl_mean:.4f} nats a token, at most {most_kl:g} is allowed; {agreed}"
        why += f"; the row farthest off is {parity.kl_max_id} at {parity.kl_max_row or 0.0:.4f}"
        checks.insert(-1, Check("kl", parity.kl_mean <= most_kl and agreement >= least_agreement, why))
    return checks


def prompts(parity: Parity, token_text: Callable[[int], str]) -> Check:
    """Whether every prompt has the same token ids in training and in the engine."""
    difference = parity.difference
    if difference is None and parity.miscounted:
        why = f"the engine's chat counted other prompt tokens than its own tokenizer in {parity.miscounted} rows"
        return Check("prompt_ids", False, why)
    if difference is None:
        return Check("prompt_ids", True, f"{parity.prompts_equal} of {parity.n} prompts have the same token ids")
    ours, theirs = (shown(token, token_text) for token in (difference.ours, difference.engines))
    match difference.bos:
        case "twice":
            why = f"the engine puts the BOS token twice ({theirs}): the template writes it and the engine adds it"
        case "added":
            why = f"the engine puts a BOS token in front ({theirs}) that training never saw"
        case "missing":
            why = f"the engine leaves out the BOS token ({ours}) that training saw"
        case _:
            why = f"training saw {ours}, the engine {theirs}"
    equal = f"{parity.prompts_equal} of {parity.n} prompts are equal"
    return Check("prompt_ids", False, f"{why}; row {difference.id}, position {difference.position}; {equal}")


def stops(parity: Parity) -> Check:
    """Whether answers end where training's did, and whether a stop token was chosen and not heard."""
    run_on = parity.stops_wanted - parity.stops_seen
    why = f"{parity.stops_seen} of {parity.stops_wanted} answers that ended by a stop token end so when served"
    if parity.unheard_stops:
        why += f"; in {parity.unheard_stops} the engine held the stop token likeliest and did not stop there"
    return Check("stops", run_on <= MOST_RUN_ON * parity.stops_wanted, why)


def answers(parity: Parity, score_margin: float) -> Check:
    """Whether the served answers score as the references do; without a scorer, only how many are the same text."""
    same = f"{parity.same_answers} of {parity.n} answers are the same text"
    if parity.score_reference is None or parity.score_served is None:
        return Check("answers", True, f"{same}; there is no score to hold them to")
    lost = parity.score_reference - parity.score_served
    why = f"they score {parity.score_served:.3f}, training's {parity.score_reference:.3f}"
    return Check("answers", lost <= score_margin, f"{why}; at most {score_margin:g} may be lost; {same}")


def shown(token: int | None, token_text: Callable[[int], str]) -> str:
    """A token's id and its text where that is known."""
    if token is None:
        return "nothing more"
    text = token_text(token)
    return f"id {token} {text!r}" if text else f"id {token}"
