"""What is seen of training as it goes: metrics and samples as events, a bar on the screen, and the wish to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from workbench.engines.memory import keep_at_most

Event = Callable[..., None]
LINE_SECONDS = 30.0
NAMES = {"loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm"}


@dataclass
class Progressed:
    """What a checkpoint carries beside Hugging Face's own state, so that a resumed run ends with true sums."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    development: list[dict[str, Any]] = field(default_factory=list)

    def best_developed(self) -> list[int]:
        """The step with the highest development score, where there is one."""
        best = max(self.development, key=lambda point: (point["score"], -point["step"]), default=None)
        return [best["step"]] if best else []


@dataclass
class Stop:
    """Set by a first SIGINT or SIGTERM; a second one is not caught."""

    asked: bool = False
    number: int = 0
    handler: Any = None

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

    def ask(number: int, frame: Any) -> None:
        stop.asked, stop.number, stop.handler = True, number, before[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch(TrainerCallback):
    """Decides when to evaluate, save and stop, and tells what happened."""

    def __init__(
        self, evaluate_at: frozenset[int], save_seconds: float, progressed: Progressed, stop: Stop, event: Event
    ):
        self.evaluate_at, self.save_seconds, self.stop, self.event = evaluate_at, save_seconds, stop, event
        self.progressed = progressed
        self.saved = self.ticked = time.monotonic()
        self.since_log = (0, 0.0)  # tokens, seconds of optimizer steps alone
        self.recent: list[float] = []  # training losses since the last evaluation
        self.screen = Screen()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = self.ticked = time.monotonic()
        self.screen.start(state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.screen.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ticked = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        seconds = time.monotonic() - self.ticked
        self.progressed.seconds += seconds
        self.since_log = (self.since_log[0], self.since_log[1] + seconds)
        last = state.global_step >= state.max_steps
        control.should_evaluate = state.global_step in self.evaluate_at
        due = time.monotonic() - self.saved > self.save_seconds
        control.should_save = control.should_evaluate or due or last or self.stop.asked
        control.should_training_stop = control.should_training_stop or last or self.stop.asked
        control.should_log = control.should_log or last
        keep_at_most()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = time.monotonic()

    def saw(self, tokens: int, trained: int) -> None:
        """Count the tokens of a micro-batch."""
        self.progressed.tokens += tokens
        self.progressed.trained_tokens += trained
        self.since_log = (self.since_log[0] + tokens, self.since_log[1])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        self.recent.append(float(logs["loss"]))
        for short, name in NAMES.items():
            if short in logs:
                self.event("metric", name=name, value=float(logs[short]), step=state.global_step)
        tokens, seconds = self.since_log
        self.since_log = (0, 0.0)
        speed = tokens / seconds if seconds else 0.0
        self.event("metric", name="train/tokens_per_second", value=speed, step=state.global_step)
        self.screen.step(state.global_step, logs["loss"], speed)

    def evaluated(self, step: int, loss: float) -> None:
        """Note a validation loss; the lowest is the best."""
        p = self.progressed
        p.last_loss = loss
        p.first_loss = loss if p.first_loss is None else p.first_loss
        if p.best_loss is None or loss < p.best_loss:
            p.best_loss, p.best_step = loss, step
        self.event("metric", name="validation/loss", value=loss, step=step)
        self.screen.validation(step, loss)

    def loss_now(self) -> tuple[float, str]:
        """The loss that a development score is held beside: the last validation's, else training's since the last."""
        p = self.progressed
        recent = sum(self.recent) / len(self.recent) if self.recent else float("inf")
        self.recent = []
        return (recent, "training loss") if p.last_loss is None else (p.last_loss, "validation loss")

    def developed(self, step: int, score: float) -> None:
        """Tell a development score."""
        self.event("metric", name="development/score", value=score, step=step)
        if not self.screen.console.is_terminal:
            self.screen.console.print(
                f"  step {step} of {self.screen.steps} · development score {score:.3f}", markup=False
            )


class Screen:
    """A progress bar on standard error; where that is not a terminal, a line now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task, self.steps, self.lined, self.loss = self.bar.add_task("", total=None, facts=""), 0, 0.0, ""

    def start(self, done: int, steps: int) -> None:
        self.steps, self.lined = steps, time.monotonic()
        self.bar.update(self.task, total=steps, completed=done)
        self.bar.start()

    def close(self) -> None:
        self.bar.stop()

    def step(self, step: int, loss: float, speed: float) -> None:
        facts = f"loss {loss:.3f}{self.loss} · {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, facts=facts)
        if not self.console.is_terminal and time.monotonic() - self.lined > LINE_SECONDS:
            self.lined = time.monotonic()
            self.console.print(f"  step {step} of {self.steps} · {facts}", markup=False)

    def validation(self, step: int, loss: float) -> None:
        self.loss = f" · validation {loss:.3f}"
        if not self.console.is_terminal:
            self.console.print(f"  step {step} of {self.steps} · validation loss {loss:.4f}", markup=False)
