"""One live line of the labelling: rows, kept, rejected by reason, speed, tokens, money, time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from workbench.records import Label
from workbench.teacher.calls import Desk
from workbench.teacher.labeller import Rejected
from workbench.teacher.ledger import NANO

LINE_SECONDS = 30.0


@contextmanager
def progress(desk: Desk, total: int, console: Console) -> Iterator[Callable[[Label | Rejected], None]]:
    """Gives the function that is told every row's outcome. Without a terminal, a line every half minute."""
    kept, rejected = 0, Counter[str]()
    started = last = time.monotonic()
    sent_before = desk.sent

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

    columns = (TextColumn("  label"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[state]}"))  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, state="")

        def tell(outcome: Label | Rejected) -> None:
            nonlocal kept, last
            if isinstance(outcome, Label):
                kept += 1
            else:
                rejected[outcome.reason] += 1
            done = kept + rejected.total()
            now = time.monotonic()
            if now - last >= (0.2 if console.is_terminal else LINE_SECONDS) or done == total:
                last = now
                bar.update(task, completed=done, state=state())
                if not console.is_terminal:
                    left = (now - started) / done * (total - done)
                    console.print(
                        f"  {done:,} of {total:,} · {state()} · {left:.0f} s left", markup=False, soft_wrap=True
                    )

        yield tell
