"""What happens between steps: figures, the validation loss, sample answers, checkpoints, signals, the progress bar."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.training import checkpoints
from workbench.training.batches import collate
from workbench.training.losses import answer_cross_entropy

VALIDATION_TOKENS = 4096
SAMPLE_TOKENS = 64


class Watch(TrainerCallback):
    """The trainer's callback. It owns no decision of training but: save now, stop now, this is the best so far."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        method: Method,
        validation: Sequence[TokenRow],
        folder: Path,
        steps: int,
        event: Callable[..., None],
    ):
        self.model, self.tokenizer, self.method, self.validation = model, tokenizer, method, validation
        self.folder, self.steps, self.event = folder, steps, event
        self.evaluate_at = {round(steps * (i + 1) / method.evaluations) for i in range(method.evaluations)}
        self.history: list[tuple[int, float]] = []
        self.tokens = self.tokens_since = 0
        self.stopped_by: int | None = None
        self.saved = self.since = time.monotonic()
        self.bar = Progress(
            TextColumn("  training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("training", total=steps, loss="—", speed="—")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock at the first step, after the model is ready."""
        if not self.bar.live.is_started:
            self.bar.start()
            self.saved = self.since = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Every figure of a step as an event."""
        if "loss" not in logs:
            return
        speed = self.tokens_since / max(1e-9, time.monotonic() - self.since)
        self.tokens_since, self.since = 0, time.monotonic()
        names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate"}
        for key, name in names.items():
            if key in logs:
                self.event("metric", name=name, value=float(logs[key]), step=state.global_step)
        self.event("metric", name="train/tokens_per_second", value=round(speed, 1), step=state.global_step)
        self.bar.update(self.task, completed=state.global_step, loss=f"{logs['loss']:.4f}", speed=f"{speed:,.0f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Evaluate when it is due; ask for a checkpoint by the clock, after an evaluation, and before a stop."""
        due = state.global_step in self.evaluate_at
        if due:
            self.evaluate(state.global_step)
        if self.stopped_by is not None:
            control.should_training_stop = True
        by_clock = time.monotonic() - self.saved > self.method.save_minutes * 60
        last = state.global_step >= self.steps
        control.should_save = not last and (due or by_clock or self.stopped_by is not None)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole: from here on a killed run goes on from it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoints.mark(folder, {"step": state.global_step, "tokens": self.tokens, "history": self.history})
        self.saved = time.monotonic()

    def evaluate(self, step: int) -> None:
        """Validation loss over trained tokens, the best weights kept, and a few sample answers."""
        if not self.validation:
            return
        started = time.monotonic()
        loss = validation_loss(self.model, self.validation, self.tokenizer.pad_token_id)
        self.history.append((step, loss))
        self.event("metric", name="validation/loss", value=loss, step=step)
        if loss <= min(value for _, value in self.history):
            checkpoints.save_best(self.model, self.folder / "best", {"step": step, "loss": loss})
        for row in self.validation[: self.method.sample_answers]:
            prompt, expected, answer = sample(self.model, self.tokenizer, row)
            self.event("sample", step=step, prompt=prompt, expected=expected, answer=answer)
        self.bar.console.print(f"  step {step}: validation loss {loss:.4f}", highlight=False)
        self.since += time.monotonic() - started  # the clock of tokens a second stands still meanwhile

    def __enter__(self) -> Watch:
        """Catch Ctrl-C and SIGTERM: the step is finished and saved before they take effect."""
        self.handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self.interrupt)
        return self

    def interrupt(self, number: int, _frame: Any) -> None:
        """Remember the signal; a second one takes effect at once."""
        self.stopped_by = number
        self.restore()
        self.bar.console.print("  stopping after this step, its checkpoint is kept …")

    def restore(self) -> None:
        """Give signals back to whoever had them."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self.restore()
        self.bar.stop()


def validation_loss(model: Any, rows: Sequence[TokenRow], pad: int) -> float:
    """Mean −log p over the rows' trained tokens, in nats."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    with torch.no_grad():
        while ordered:
            take = max(1, VALIDATION_TOKENS // len(ordered[-1].input_ids))
            batch, ordered = ordered[-take:], ordered[:-take]
            tensors = collate(batch, pad)
            loss, tokens = answer_cross_entropy(model, tensors["input_ids"].to(device), tensors["labels"].to(device))
            total, count = total + float(loss), count + tokens
    model.train(was_training)
    return total / max(1, count)


def sample(model: Any, tokenizer: Any, row: TokenRow) -> tuple[str, str, str]:
    """Prompt, wanted answer and the model's own greedy answer of one row."""
    start = row.trained.index(True)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    prompt = torch.tensor([row.input_ids[:start]], device=device)
    with torch.no_grad():
        told = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
            use_cache=True,
            eos_token_id=row.input_ids[-1],
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(was_training)
    wanted = [token for token, trained in zip(row.input_ids, row.trained, strict=True) if trained]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt[0], wanted, told[0, start:])]
    return texts[0], texts[1], texts[2]
