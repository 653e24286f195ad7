"""What labelling would cost, before anything is sent: from the prompts' lengths, and what earlier answers took."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.recipe import Teacher
from workbench.records import Message
from workbench.teacher.answers import asked
from workbench.teacher.ledger import NANO
from workbench.teacher.prices import pricing_of
from workbench.teacher.wire import Usage, make_request

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


def estimate(teacher: Teacher, prompts: Sequence[tuple[Message, ...]], golds: Sequence[str], ledger: Path) -> Estimate:
    """The cost of asking these prompts once, samples included. Reads the ledger, sends nothing."""
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
    for messages in prompts:
        turns = asked(teacher, messages, in_words=True)
        request = make_request(teacher, "plan", "plan", turns, 0)
        tokens = round(sum(len(turn.content) for turn in turns) / CHARACTERS_A_TOKEN) + 8 * len(turns)
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
