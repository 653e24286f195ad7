"""What a training will take of memory and time on this machine, from what earlier trainings took there.

An estimate by shapes (`memory.py`, and the products of matrices) is right in proportion at best: what the libraries
hold, how full the cores are and how fast they are only a measurement tells. Each finished training notes its estimate
beside what happened; a forecast is the line through those. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.recipe import Method
from workbench.training.memory import Shape, fitting


@dataclass(frozen=True)
class Estimate:
    """What shapes tell of a training: bytes at most, and floating point operations of a step; on which device."""

    device: str
    dtype: str
    memory_bytes: int
    step_operations: float
    steps: int
    processes: int = 1


@dataclass(frozen=True)
class Forecast:
    """An estimate brought onto the line of `runs` measured trainings; None where there is none to measure by."""

    memory_bytes: int | None
    seconds: float | None
    runs: int


def computes_16_bits_here() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself, as far as the system says without torch."""
    with suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
        return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    return True


def device_here(wanted: str) -> str:
    """The device that training takes, as far as it is known without torch."""
    return wanted if wanted != "auto" else "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def estimated(
    shape: Shape,
    method: Method,
    dtype: str,
    device: str,
    lengths: Sequence[int],
    steps: int,
    available: int,
    beside: int = 0,
    processes: int = 1,
) -> tuple[Estimate, dict[str, Any]]:
    """The estimate of training on rows of these lengths (tokens), and its parts as `memory.footprint` gives them."""
    if dtype == "bfloat16" and device == "cpu" and not computes_16_bits_here():
        dtype = "float32"
    longest = max(lengths)
    parts = fitting(
        shape, method, dtype, lambda micro: micro * longest, available, device=device, longest=longest, beside=beside
    )
    # Two operations a parameter forward, two for the gradients of what was read, two for the weights' own.
    passes = 6 if method.kind == "full" else 4
    passes += 2 if parts["checkpointing"] else 0
    operations = passes * (shape.parameters - (shape.ends if shape.tied is False else 0) / 2)
    a_step = method.batch_size * sum(lengths) / len(lengths)
    return Estimate(device, dtype, parts["total"], operations * a_step, steps, processes), parts


def measured(experiments: Path, like: Estimate) -> list[dict[str, Any]]:
    """The facts of finished trainings in these runs that ran on the same device as an estimate's: `{"estimate", …}`."""
    wanted = (like.device, like.dtype, like.processes)
    kept = []
    for path in sorted(experiments.glob("*/*/run.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(path.read_text(encoding="utf-8"))["stages"]["train"]["facts"]
            guess = facts["estimate"]
            same = (guess["device"], guess["dtype"], guess["processes"]) == wanted
            if same and facts["seconds"] > 0 and facts["steps"] > 0:
                kept.append(facts)
    return kept


def forecast(estimate: Estimate, past: Sequence[dict[str, Any]]) -> Forecast:
    """Where the estimate lies on the lines of what was measured: of memory, and of the seconds a step."""
    memory = [(p["estimate"]["memory_bytes"], p["peak_memory_bytes"]) for p in past]
    speed = [(p["estimate"]["step_operations"], p["seconds"] / p["steps"]) for p in past]
    bytes_here = on_line(memory, estimate.memory_bytes, grows=False)
    a_step = on_line(speed, estimate.step_operations)
    return Forecast(
        None if bytes_here is None else round(bytes_here),
        None if a_step is None else a_step * estimate.steps,
        len(past),
    )


ONE_SIZE = 0.01  # sizes that spread by less than a tenth tell nothing of how a value grows


def on_line(points: Sequence[tuple[float, float]], x: float, *, grows: bool = True) -> float | None:
    """The value at `x` of the line with the least squared relative errors; with a share for all that does not grow.

    Neither the share nor the slope is below 0: where the least squares would have one so, the other alone is fitted.
    Where one size alone was measured, a value `grows` in proportion, or is as much above the size as it was there.
    """
    points = [(at, value) for at, value in points if at > 0 and value > 0]
    if not points or not math.isfinite(x):
        return None
    # Minimise Σ (a/y + b·x/y − 1)².
    u, v = [1 / value for _, value in points], [at / value for at, value in points]
    uu, uv, vv = (sum(p * q for p, q in zip(*pair)) for pair in ((u, u), (u, v), (v, v)))
    determinant = uu * vv - uv * uv
    slope_alone = sum(v) / vv
    if determinant <= ONE_SIZE * uu * vv:
        above = sum(value - at for at, value in points) / len(points)
        return slope_alone * x if grows or above < 0 else x + above
    a, b = (sum(u) * vv - sum(v) * uv) / determinant, (sum(v) * uu - sum(u) * uv) / determinant
    if a < 0:
        return slope_alone * x
    return sum(u) / uu if b < 0 else a + b * x


def lines(estimate: Estimate, seen: Forecast, memory: float, seconds: float) -> str:
    """One line that holds a forecast beside what happened (bytes, seconds)."""
    if seen.memory_bytes is None or seen.seconds is None:
        return (
            f"took {memory / 1e9:.2f} GB and {seconds:,.0f} s; by the model's shapes {estimate.memory_bytes / 1e9:.2f} "
            "GB: no earlier training here told more"
        )
    return (
        f"took {memory / 1e9:.2f} GB where {seen.memory_bytes / 1e9:.2f} were forecast "
        f"({seen.memory_bytes / memory - 1:+.0%}), and {seconds:,.0f} s where {seen.seconds:,.0f} were "
        f"({seen.seconds / seconds - 1:+.0%}), by {seen.runs:,} earlier trainings"
    )


def as_facts(estimate: Estimate, seen: Forecast) -> dict[str, Any]:
    """What the summary of a training keeps of both."""
    return {"estimate": asdict(estimate), "forecast": asdict(seen)}
