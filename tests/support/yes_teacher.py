"""A tiny model taught to answer the questions of `teacher_project` with yes: a base that can fall, one that stops."""

from __future__ import annotations

from pathlib import Path

from teacher_project import questions
from workbench.data.chat import load_tokenizer, render
from workbench.recipe import Method
from workbench.records import Example, Message
from workbench.training.job import Job
from workbench.training.loop import train


def taught_yes(base: Path, folder: Path) -> Path:
    """Train the model in the folder; gives the folder of its weights."""
    tokenizer = load_tokenizer(base, None)
    asked = [*questions(60), *(f"{part} question number {n}" for part in ("validation", "test") for n in range(12))]
    made = [
        render(Example(f"r{n}", (Message("user", text), Message("assistant", "yes"))), tokenizer,
               train_on="last_answer", max_length=128)
        for n, text in enumerate(asked)
    ]  # fmt: skip
    how = Method(kind="full", learning_rate=1e-2, max_steps=60, epochs=50.0, evaluations=1, sample_answers=0)
    train(Job(base, how, made, folder, seed=1, dtype="bfloat16", device="cpu", threads=1))
    return folder / "model"
