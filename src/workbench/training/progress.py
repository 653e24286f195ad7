"""What is seen of training as it goes: counts, metrics as events, a bar on the screen, and the wish to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.progress_bar import memory_held, time_left
from workbench.screen import SafeConsole
from workbench.training.job import Event, Shown

LINE_SECONDS = 60.0
LOGGED_STEPS = 500  # lines of a long training's log
AS_THEY_ARE = ("learning_rate", "grad_norm", "memory_gb")  # no means of these


@dataclass
class Progressed:
    """What a checkpoint carries beside weights and state, so that a resumed run ends with true sums.

    `best_rank` is what the best step stays for, the higher the better: its development score and then its validation
    loss, negated, or the latter alone. `window` holds what was told since the last line of the log, `recent` the
    training losses since the last look.
    """

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    best_rank: list[float] | None = None
    looks_since_best: int = 0
    development: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, list[float]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)

    def best_steps(self) -> list[int]:
        """The step whose weights stay, and that with the highest development score, where there are."""
        best = max(self.development, key=lambda point: (point["score"], -point["step"]), default=None)
        lowest = [] if self.best_step is None else [self.best_step]
        return [*lowest, best["step"]] if best else lowest


@dataclass
class Stop:
    """Set by a first SIGINT or SIGTERM; a second one is not caught."""

    requested: bool = False
    number: int = 0
    handler: signal.Handlers | int | Callable[[int, FrameType | None], object] | None = None

    def take_effect(self) -> None:
        """What the signal would have done: its own handler, where it is a function, else KeyboardInterrupt."""
        if callable(self.handler):
            self.handler(self.number, None)
        raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a wish that training grants after the step: a checkpoint, then the end."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.requested, stop.number, stop.handler = True, number, before[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Counts what training does, and tells it as events and on the screen."""

    def __init__(
        self, steps: int, progressed: Progressed, event: Event, by_score: bool = False, screen: Shown | None = None
    ):
        self.steps, self.progressed, self.event, self.by_score = steps, progressed, event, by_score
        self.every = max(1, steps // LOGGED_STEPS)  # steps between two lines of the log
        self.since_line = (0, 0.0)  # tokens, seconds of steps
        self.screen = screen or Screen()

    def stepped(self, step: int, values: Mapping[str, float], tokens: int, trained_tokens: int, seconds: float) -> None:
        """Count a step; at every `every`-th and the last, tell the means of what was told since the line before.

        Before the first of these, at the first step and at each that doubles it: a long training has a curve at once.

        `told` are the step's metrics by their names after `train/`; the learning rate and the gradient's norm are
        told as they are.
        """
        p = self.progressed
        p.tokens += tokens
        p.trained_tokens += trained_tokens
        p.seconds += seconds
        self.since_line = (self.since_line[0] + tokens, self.since_line[1] + seconds)
        for name, value in values.items():
            p.window.setdefault(name, []).append(value)
        is_early = step < self.every and step & (step - 1) == 0
        if step % self.every and step != self.steps and not is_early:
            return
        means = {n: v[-1] if n in AS_THEY_ARE else sum(v) / len(v) for n, v in p.window.items()}
        p.window = {}
        p.recent.append(means["loss"])
        tokens, seconds = self.since_line
        self.since_line = (0, 0.0)
        speed = tokens / seconds if seconds else 0.0
        for name, value in {**means, "tokens_per_second": speed}.items():
            self.event("metric", name=f"train/{name}", value=value, step=step)
        self.screen.step(step, means["loss"], speed)

    def evaluated(self, step: int, loss: float) -> None:
        """Note a validation loss; the lowest is the best where no development score decides."""
        p = self.progressed
        p.last_loss = loss
        p.first_loss = loss if p.first_loss is None else p.first_loss
        if p.best_loss is None or loss < p.best_loss:
            p.best_loss = loss
        if not self.by_score:
            self.ranked(step, [-loss])
        self.event("metric", name="validation/loss", value=loss, step=step)
        self.screen.line(f"step {step} of {self.steps} · validation loss {loss:.4f}")
        self.screen.loss = f" · validation {loss:.3f}"

    def ranked(self, step: int, rank: list[float]) -> None:
        """Keep the step if it is better than all before; count the looks since."""
        p = self.progressed
        if p.best_rank is None or rank > p.best_rank:
            p.best_rank, p.best_step, p.looks_since_best = rank, step, 0
        else:
            p.looks_since_best += 1

    def loss_now(self, name: str = "validation loss") -> tuple[float, str]:
        """The loss that a development score is held beside: the last validation's, else training's since the last."""
        p = self.progressed
        recent = sum(p.recent) / len(p.recent) if p.recent else float("inf")
        p.recent = []
        return (recent, "training loss") if p.last_loss is None else (p.last_loss, name)

    def developed(self, step: int, score: float) -> None:
        """Note a development score; where it decides, the highest is the best, and of equals the lowest loss."""
        if self.by_score:
            last = self.progressed.last_loss
            self.ranked(step, [score, *([] if last is None else [-last])])
        self.event("metric", name="development/score", value=score, step=step)
        self.screen.line(f"step {step} of {self.steps} · development score {score:.3f}")


class Screen:
    """A progress bar on standard error; where that is not a terminal, a line now and then."""

    def __init__(self) -> None:
        self.console = SafeConsole(stderr=True, highlight=False)
        columns = (
            TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task, self.loss = self.bar.add_task("", total=None, facts=""), ""
        self.steps, self.done, self.started, self.lined = 0, 0, 0.0, 0.0

    @contextmanager
    def shown(self, done: int, steps: int) -> Iterator[None]:
        """The bar, with so many steps done."""
        self.steps, self.done = steps, done
        self.started = self.lined = time.monotonic()
        self.bar.update(self.task, total=steps, completed=done)
        self.bar.start()
        try:
            yield
        finally:
            self.bar.stop()

    def step(self, step: int, loss: float, speed: float) -> None:
        """Move the bar."""
        facts = f"loss {loss:.3f}{self.loss} · {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, facts=facts)
        if time.monotonic() - self.lined > LINE_SECONDS:
            left = (time.monotonic() - self.started) / max(1, step - self.done) * (self.steps - step)
            self.line(f"step {step} of {self.steps} · {facts} · {time_left(left)} · {memory_held()}")

    def line(self, text: str) -> None:
        """A line where there is no bar."""
        if not self.console.is_terminal:
            self.lined = time.monotonic()
            self.console.print(f"  {text}", markup=False)
