"""Parity: does a served bundle see the tokens, give the probabilities and say the answers that training's model did?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.bundles.checks import Check
from workbench.bundles.manifest import read_text
from workbench.engines.served import EXACT, Served, chat, forced, in_slots, prompt_ids
from workbench.errors import RequestError
from workbench.progress_bar import progress
from workbench.records import Answer, Message, message_dicts, message_of_dict

if TYPE_CHECKING:
    import torch

PARITY = "parity.json"
TOP = 20  # alternatives a position: as many as vLLM gives without being told otherwise
NOTHING = 1e-6  # probability mass below the rounding of a list of log-probabilities

Scorer = Callable[["Reference", str], float]


@dataclass(frozen=True)
class Reference:
    """One held-out row as training's own engine saw it: what a served bundle is held against.

    `answer_ids` end with the stop token where `finish` is stop; `top` has the most likely tokens of every answer
    position, token id → log-probability in nats; `score` is the answer's, where there is a scorer, held against the
    answer that was `expected`.
    """

    id: str
    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    top: tuple[Mapping[int, float], ...]
    answer: str
    score: float | None = None
    finish: Literal["stop", "length"] = "stop"
    expected: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class ServedRow:
    """What a served engine made of one row. Ids and probabilities are None where the engine does not tell them."""

    prompt_ids: tuple[int, ...] | None
    top: tuple[Mapping[int, float], ...] | None
    answer: Answer


@dataclass(frozen=True)
class Difference:
    """The first prompt that differs: its row, the first position that does, and the ids from there (None: no more)."""

    id: str
    position: int
    ours: int | None
    engines: int | None
    bos: Literal["twice", "added", "missing"] | None


@dataclass(frozen=True)
class Parity:
    """A served bundle against its references. KL in nats a token; None where the engine does not tell."""

    n: int
    prompts_equal: int | None
    difference: Difference | None
    miscounted: int
    kl_mean: float | None
    kl_max_row: float | None
    kl_max_id: str
    top_token_agreement: float | None
    stops_wanted: int
    stops_seen: int
    unheard_stops: int
    same_answers: int
    score_reference: float | None
    score_served: float | None


def kl_on_shared(reference: Mapping[int, float], served: Mapping[int, float]) -> float:
    """KL(reference ‖ served) in nats from two lists of the most likely tokens: at most the KL of the whole vocabulary.

    Tokens in both lists count each for itself, all others as one, which can only lower a KL (log sum inequality,
    Cover and Thomas, Elements of Information Theory, theorem 2.7.1). Tokens that only the reference lists are a part
    of their own: to the server each is no more likely than the last one of its list, and all together no more than
    what its list leaves over. So two models that share no likely token are far apart, not equal.
    """
    shared = reference.keys() & served.keys()
    total = sum(math.exp(reference[t]) * (reference[t] - served[t]) for t in shared)
    alone = reference.keys() - shared
    p_alone = sum(math.exp(reference[t]) for t in alone)
    p_rest = max(0.0, 1.0 - p_alone - sum(math.exp(reference[t]) for t in shared))
    q_outside = max(NOTHING, 1.0 - sum(math.exp(served[t]) for t in shared))
    p_outside = p_alone + p_rest
    if p_outside < NOTHING:
        return max(0.0, total)
    most = min(len(alone) * math.exp(min(served.values(), default=0.0)), 1.0 - sum(map(math.exp, served.values())))
    q_alone = min(q_outside * p_alone / p_outside, max(most, NOTHING))
    for p, q in ((p_alone, q_alone), (p_rest, max(q_outside - q_alone, NOTHING))):
        total += p * math.log(p / q) if p >= NOTHING else 0.0
    return max(0.0, total)


def compare(references: Sequence[Reference], served: Sequence[ServedRow], scorer: Scorer | None = None) -> Parity:
    """Hold what an engine said against the references, row by row.

    A row's KL is the mean over its answer's positions, `kl_mean` the mean over all positions of all rows.
    """
    pairs = list(zip(references, served, strict=True))
    tokenized = [(r, s.prompt_ids) for r, s in pairs if s.prompt_ids is not None]
    differing = [first_difference(r, ids) for r, ids in tokenized if tuple(ids) != r.prompt_ids]
    divergence = {
        r.id: [kl_on_shared(mine, theirs) for mine, theirs in zip(r.top, s.top, strict=True)]
        for r, s in pairs
        if s.top is not None
    }
    positions = [kl for row in divergence.values() for kl in row]
    by_row = {name: sum(row) / len(row) for name, row in divergence.items() if row}
    worst = max(by_row, key=by_row.__getitem__, default="")
    same = [likeliest(mine) == likeliest(theirs) for r, s in pairs if s.top for mine, theirs in zip(r.top, s.top)]
    ended = [(r, s) for r, s in pairs if r.finish == "stop"]
    scored = [r.score for r, _ in pairs if r.score is not None]
    return Parity(
        n=len(pairs),
        prompts_equal=len(tokenized) - len(differing) if tokenized else None,
        difference=differing[0] if differing else None,
        miscounted=sum(s.answer.tokens_in != len(s.prompt_ids) for _, s in pairs if s.prompt_ids is not None),
        kl_mean=mean(positions),
        kl_max_row=by_row.get(worst),
        kl_max_id=worst,
        top_token_agreement=mean(same),
        stops_wanted=len(ended),
        stops_seen=sum(s.answer.finish == "stop" for _, s in ended),
        unheard_stops=sum(
            s.answer.finish == "length" and bool(s.top) and likeliest(s.top[-1]) == r.answer_ids[-1]
            for r, s in ended
            if s.top
        ),
        same_answers=sum(s.answer.text == r.answer for r, s in pairs),
        score_reference=mean(scored) if scorer else None,
        score_served=mean([scorer(r, s.answer.text) for r, s in pairs if r.score is not None]) if scorer else None,
    )


def first_difference(row: Reference, ids: Sequence[int]) -> Difference:
    """Where the engine's prompt parts from ours, and whether that is a matter of a BOS token at the start."""
    ours, theirs = list(row.prompt_ids), list(ids)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    bos: Literal["twice", "added", "missing"] | None = None
    if theirs[1:] == ours:
        bos = "twice" if theirs[:1] == ours[:1] else "added"
    elif ours[1:] == theirs:
        bos = "missing"
    position = 0 if bos else at
    return Difference(
        row.id, position, ours[position] if position < len(ours) else None,
        theirs[position] if position < len(theirs) else None, bos,
    )  # fmt: skip


def measure(server: Served, references: Sequence[Reference], *, top: int = TOP, max_new_tokens: int) -> list[ServedRow]:
    """Ask a running engine for every row's prompt ids, answer probabilities and answer, as many at once as it takes."""
    exact = server.engine in EXACT

    def measure_row(row: Reference, slot: int) -> ServedRow:
        ids = tuple(prompt_ids(server, row.messages, row.tools)) if exact else None
        likely = tuple(forced(server, row.prompt_ids, row.answer_ids, top, slot)) if exact else None
        return ServedRow(ids, likely, chat(server, row.messages, max_new_tokens, slot, tools=row.tools))

    with progress("parity", len(references)) as move:
        rows = []
        for row_served in in_slots(server, measure_row, references):
            rows.append(row_served)
            move(len(rows))
        return rows


def top_of(logprobs_NV: torch.Tensor, top: int = TOP) -> list[dict[int, float]]:
    """The most likely tokens of every row of a tensor of log-probabilities: token id → log-probability."""
    values, ids = logprobs_NV.topk(min(top, logprobs_NV.shape[-1]))
    return [dict(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]


def write_parity(folder: Path, references: Sequence[Reference], *, made_by: str, top: int = TOP) -> Path:
    """Write parity.json; log-probabilities to six decimals."""
    rows = [
        {
            "id": r.id,
            "messages": message_dicts(r.messages),
            "prompt_ids": list(r.prompt_ids),
            "answer_ids": list(r.answer_ids),
            "top": [[[token, round(value, 6)] for token, value in at.items()] for at in r.top],
            "answer": r.answer,
            "score": r.score,
            "finish": r.finish,
            "expected": r.expected,
        }
        | ({"tools": list(r.tools)} if r.tools else {})
        for r in references
    ]
    path = folder / PARITY
    text = json.dumps({"schema": 1, "made_by": made_by, "top": top, "rows": rows}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def read_parity(folder: Path, name: str = PARITY) -> list[Reference]:
    """The references that a bundle carries; none when it has no parity.json (or another file of that kind)."""
    path = folder / name
    if not path.is_file():
        return []
    try:
        return [
            Reference(
                id=row["id"],
                messages=tuple(map(message_of_dict, row["messages"])),
                prompt_ids=tuple(row["prompt_ids"]),
                answer_ids=tuple(row["answer_ids"]),
                top=tuple({int(token): float(value) for token, value in at} for at in row["top"]),
                answer=row["answer"],
                score=row.get("score"),
                finish=row.get("finish", "stop"),
                expected=row.get("expected", ""),
                tools=tuple(row.get("tools", ())),
            )
            for row in json.loads(read_text(path))["rows"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestError(f"not a parity file: {type(error).__name__}: {error}", where=str(path)) from error


def likeliest(top: Mapping[int, float]) -> int:
    """The token with the highest log-probability."""
    return max(top, key=top.__getitem__)


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


# Verdicts on a served bundle's parity that name what is guilty: a doubled BOS, say, or a stop token not heard.

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
