"""The processes that train together: which of them this is, its share of a step, and sums that all of them know.

Every process knows the whole plan, so that nothing is dealt out by one of them: each takes its share of a step's rows,
and the step's loss is divided by the count of all. Small numbers and words go over gloo, on the CPU, whatever the
tensors go over; with one process nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One process of `size`; where the file `stop` is, all save after the step, and end."""

    rank: int = 0
    size: int = 1
    stop: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def summed(self, *values: float) -> list[float]:
        """Each value's sum over the processes; every process gets the same."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is true in any process."""
        return [value > 0 for value in self.summed(*map(float, flags))]

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def same(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here: what the first has written can be read after it."""
        self.summed(0.0)

    def stops(self) -> bool:
        """Whether the first process sees that they are to stop; the others hear it from it."""
        return self.first and self.stop is not None and self.stop.exists()

    def begin_alike(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the first one's values of what trains."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def add_up(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes in float32, once a step: an adapter's are small, and go as one tensor.

        torch's DistributedDataParallel would join them as the backward pass goes, but wants every loss to come of the
        wrapped model's own forward, the same number of times in each process.
        """
        if self.size == 1:
            return
        flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters
        ])  # fmt: skip
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
