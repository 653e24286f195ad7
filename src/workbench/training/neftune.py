"""NEFTune (arXiv 2310.05914): noise on the embeddings of what is learned from, while it is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch

from workbench.records import digest
from workbench.training.attention import READING
from workbench.training.job import Student


def noise_for(student: Student, alpha: float, seed: int) -> Callable[[int], AbstractContextManager[None]]:
    """A context for each step in which the student's embeddings are noisy; with `alpha` 0 they never are.

    A row's noise comes of the seed, the step and its own tokens: neither how a step is cut, nor what a row is padded
    to, nor a resumption changes it.
    """
    if not alpha:
        return lambda step: nullcontext()
    now: list[int] = []
    # The stop token that ends a row counts where it is also what rows are padded with.
    own_end = student.pad == student.tokenizer.eos_token_id

    def noisy(module: torch.nn.Module, inputs: tuple[Any, ...], embedded_BTH: torch.Tensor) -> torch.Tensor | None:
        if not now:
            return None
        noise_BTH = torch.zeros_like(embedded_BTH)
        documents = READING.get()
        places = [(row, 0, ids) for row, ids in enumerate(inputs[0].tolist())]
        if documents is not None:  # each of a packed sequence is a row of its own
            parts = zip(documents.lengths, inputs[0][0].split(documents.lengths), strict=True)
            ends = accumulate(documents.lengths)
            places = [(0, end - length, part.tolist()) for end, (length, part) in zip(ends, parts, strict=True)]
        for row, start, ids in places:
            length = len(ids)
            while length and ids[length - 1] == student.pad:
                length -= 1
            noise = row_noise(ids[:length], own_end, embedded_BTH.shape[-1], alpha, f"{seed} {now[0]}")
            noise = noise[: len(ids)]
            noise_BTH[row, start : start + len(noise)] = noise.to(noise_BTH)
        return embedded_BTH + noise_BTH

    student.decoder.get_input_embeddings().register_forward_hook(noisy)

    @contextmanager
    def in_step(step: int) -> Iterator[None]:
        now.append(step)
        try:
            yield
        finally:
            now.clear()

    return in_step


def row_noise(ids: list[int], own_end: bool, width: int, alpha: float, seed: str) -> torch.Tensor:
    """Algorithm 1: a row of L tokens and d dimensions gets (L, d) values of Uniform(−1, 1), times α / √(L d)."""
    length = len(ids) + own_end
    generator = torch.Generator().manual_seed(int(digest([seed, ids], 15), 16))
    values = torch.rand(length, width, generator=generator) * 2 - 1
    return values * (alpha / math.sqrt(length * width))
