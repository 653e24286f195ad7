"""Several processes that train together on the CPU, over gloo: the same curve, and nothing lost when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from token_rows import method, rows
from workbench.recipe import Launch
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.processes import train_together
from workbench.training.targets import TokenTargets

STEPS = 6


def job_in(base: Path, out: Path, **changes: Any) -> Job:
    """Six steps of eight rows in float32; a step's rate is small, for Adam makes a whole step of a rounding near 0."""
    how = {"max_steps": STEPS, "learning_rate": 2e-3, "evaluations": 2, "sample_answers": 1, "micro_batch_size": 2}
    return Job(
        base, method(**{**how, **changes}), rows(40), out, validation=rows(9, start=100), seed=3, dtype="float32",
        device="cpu", threads=1,
    )  # fmt: skip


def curve(job: Job, processes: int = 1) -> tuple[dict[tuple[str, int], float], dict[str, Any]]:
    """Every loss, by its name and step, and the summary."""
    losses: dict[tuple[str, int], float] = {}

    def event(kind: str, **fields: Any) -> None:
        if kind == "metric" and fields["name"] in ("train/loss", "validation/loss", "train/grad_norm"):
            losses[fields["name"], fields["step"]] = fields["value"]

    heard = replace(job, event=event)
    summary = train(heard) if processes == 1 else train_together(heard, Launch(processes=processes))
    return losses, summary


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_have_the_curve_of_one(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    alone, _ = curve(job_in(tiny_model, tmp_path / "one", kind=kind))
    both, summary = curve(job_in(tiny_model, tmp_path / "two", kind=kind), 2)
    assert both == pytest.approx(alone, abs=1e-4)
    assert summary["processes"] == 2
