"""What the labelling says of itself while it runs: kept, rejected by reason, speed, tokens, money."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workbench.progress_bar import progress
from workbench.records import Label
from workbench.teacher.calls import Desk
from workbench.teacher.labeller import Rejected
from workbench.teacher.ledger import NANO


@contextmanager
def labelling(desk: Desk, total: int) -> Iterator[Callable[[Label | Rejected], None]]:
    """Gives the function that takes every row's outcome and moves the bar."""
    kept, rejected = 0, Counter[str]()
    started, sent_before = time.monotonic(), desk.sent

    def state() -> str:
        spent, reserved = desk.ledger.spending()
        speed = (desk.sent - sent_before) / max(time.monotonic() - started, 1e-9)
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rejected.most_common(3))
        wall = f" of {desk.teacher.budget_usd:g}" if desk.teacher.budget_usd is not None else ""
        money = f"{spent / NANO:.4f}{wall} USD spent, {reserved / NANO:.4f} reserved"
        rows = f"{kept:,} kept, {rejected.total():,} rejected{f' ({reasons})' if reasons else ''}"
        return (
            f"{rows} · {speed:.0f} requests/s, {desk.from_ledger:,} from the ledger · {desk.tokens:,} tokens · {money}"
        )

    with progress("label", total, facts=state) as move:

        def count(outcome: Label | Rejected) -> None:
            nonlocal kept
            if isinstance(outcome, Label):
                kept += 1
            else:
                rejected[outcome.reason] += 1
            move(kept + rejected.total())

        yield count
