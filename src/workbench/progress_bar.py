"""How far a long piece of work is: a bar on standard error, and where that is no terminal, a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from workbench.screen import SafeConsole

LINE_SECONDS = 60.0  # between two lines of a log
LOOK_SECONDS = 0.2  # between two moves of the bar
LEAST_DONE = 2  # before what is left can be told


def time_left(seconds: float) -> str:
    """`12 s left`, `4 min left`, `2.5 h left`."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def remaining(seconds: float, done: int, left: int) -> str:
    """The time that `left` takes, when `done` took so many seconds; too little done tells nothing."""
    if left and done < LEAST_DONE:
        return "time left not known yet"
    return time_left(seconds / max(1, done) * left)


def memory_held() -> str:
    """What this process holds now, and on the GPU where torch has one: `3.1 GB memory, 21.4 GB GPU memory`."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held = f"{decimal(pages * os.sysconf('SC_PAGE_SIZE'))} memory"
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            held += f", {decimal(torch.cuda.memory_reserved())} GPU memory"
        return held
    return "memory not known here"


@contextmanager
def progress(
    work: str, total: int, *, done: int = 0, facts: Callable[[], str] | None = None, size: bool = False
) -> Iterator[Callable[[int], None]]:
    """Gives the function that moves the bar: it takes how much of `total` is done by now; `done` was before.

    `facts` says more beside the bar, asked only when it is shown. With `size`, what is counted are bytes. Without a
    terminal a line comes every minute and when the whole is done, with the time that is left and the memory held. What
    is done comes in batches: the time is told by those that are whole, and not by the first that comes of the next.
    """
    console = SafeConsole(stderr=True, highlight=False)
    started = shown = last = time.monotonic()
    before_now = done
    columns = (
        TextColumn("  {task.description:<14}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn() if size else MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(work, total=total, completed=done, facts="")

        def move(by_now: int) -> None:
            nonlocal shown, last, before_now
            now, ended, whole = time.monotonic(), last, before_now
            last, before_now = now, by_now
            if by_now < total and now - shown < (LOOK_SECONDS if console.is_terminal else LINE_SECONDS):
                return
            shown, more = now, facts() if facts else ""
            bar.update(task, completed=by_now, facts=more)
            if not console.is_terminal:
                counts = f"{decimal(by_now)} of {decimal(total)}" if size else f"{by_now:,} of {total:,}"
                left = remaining(ended - started, whole - done, total - by_now)
                parts = [work, counts, *([more] if more else []), left, memory_held()]
                console.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)

        yield move
