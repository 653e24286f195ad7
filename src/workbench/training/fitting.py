"""How much of a step is read at once: estimated, on a card measured, and halved aloud where memory runs out after all.

What a step holds never hangs on it, only how its rows are cut, so a run that is cut otherwise learns the same but for
rounding. To end with the very same weights, a resumed run takes the cut that the run before it had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from workbench.engines.device import computed_in, release_memory
from workbench.errors import WorkbenchError
from workbench.files import read_sealed, write_sealed
from workbench.records import digest
from workbench.stored_tokens import lengths_of
from workbench.training.batches import Batch, Cut, Plan, plan_of
from workbench.training.checkpoints import random_state, set_random_state
from workbench.training.job import Job, Loss, Moment, Student
from workbench.training.memory import fit
from workbench.training.shards import is_sharded
from workbench.training.targets import sequences
from workbench.training.world import World

CUT = "cut.json"
SHARE_OF_CARD = 0.92  # of what is free: kernels want some of it for themselves, and freed blocks do not fit each other
PROBED = (0.125, 0.25)  # shares of the estimated tokens that are measured
# Bytes a trained parameter that the first step will still take: two moments, and the masters' gradients.
TO_COME = {"adamw": 12, "adamw_8bit": 2}
CPU_WORDS = "DefaultCPUAllocator"  # what torch says when the system gives it no memory


def plan_that_fits(job: Job, device: str, packed: bool, free: int) -> Plan:
    """The plan with as many tokens at once as memory takes, activations recomputed only where it must be.

    `free` are the device's bytes before the model is there. A run that goes on takes the cut it began with.
    """
    method = job.method
    lengths = lengths_of(job.rows)
    if job.targets:
        lengths = [sum(len(part.input_ids) for part in sequences(row, job.targets.get(row.id))) for row in job.rows]
    whole = plan_of(lengths, method, job.seed, Cut(method.batch_size, 1, packed))
    kept = (job.world or World()).same(kept_cut(job))
    if kept.get("of") == cut_by(job, packed):
        return replace(whole, cut=Cut(**kept["cut"]), recomputed=kept["recomputed"])
    by_step = [sorted((lengths[row] for row in rows), reverse=True) for rows in whole.rows]

    def tokens(micro: int) -> int:
        most = max(sum(step[:micro]) if packed else len(step[:micro]) * step[0] for step in by_step)
        return min(most, max(method.micro_batch_tokens, max(lengths))) if method.micro_batch_tokens else most

    dtype = computed_in(job.dtype, device)
    micro, recomputed = fit(job.base, method, dtype, tokens, free, device=device, longest=max(lengths))
    cut = Cut(method.micro_batch_size or method.batch_size, method.micro_batch_tokens or tokens(micro), packed)
    cut, recomputed = (job.world or World()).same((cut, recomputed))
    return replace(whole, cut=cut, recomputed=recomputed)


def kept_cut(job: Job) -> dict[str, Any]:
    """How the run before this one has cut its steps; nothing where there was none, or, aloud, it is damaged."""
    kept = read_sealed(job.out / CUT)
    if kept is None and (job.out / CUT).exists():
        job.event("said", text=f"{CUT} is not as it was written: steps are cut anew, which rounds sums otherwise")
    return kept or {}


def cut_by(job: Job, packed: bool) -> str:
    """Digest of what a cut was found for."""
    method = job.method
    limits = (method.micro_batch_size, method.micro_batch_tokens, method.checkpointing, method.batch_size, packed)
    return digest([*limits, len(job.rows)])


def keep_cut(job: Job, plan: Plan) -> None:
    """Write how this run's steps are cut, for whoever goes on with it."""
    facts = {"of": cut_by(job, plan.cut.packed), "cut": asdict(plan.cut), "recomputed": plan.recomputed}
    write_sealed(job.out / CUT, facts)


# A step, whatever fits of it.

Noise = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Taken:
    """What was read of a step: this process's batches, the loss of each, and the whole step's loss and counts."""

    batches: Sequence[Batch]
    parts: Sequence[float]
    loss: float
    tokens: int
    trained_tokens: int


def backward(job: Job, student: Student, loss: Loss, plan: Plan, step: int, noise: Noise) -> tuple[Plan, Taken]:
    """This process's share of a step, the gradients taken; and the plan, cut smaller where memory ran out.

    WorkbenchError where not even one row fits, or where others train along: they are waiting for what this one is to
    send.
    """
    world = job.world or World()
    while True:
        before, refusal = random_state(student.device), ""
        try:
            cuts = share(plan, step, world)
            return plan, summed(job, loss, cuts, ("step", step - 1), noise(step), plan.of_step(step))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            refusal = str(error).splitlines()[0]
        student.model.zero_grad()
        release_memory()
        plan = halved(job, plan, step, refusal)
        keep_cut(job, plan)
        set_random_state(before)


def share(plan: Plan, step: int, world: World) -> list[list[int]]:
    """This process's micro-batches of a step: every `size`-th row of all, by their length, so that all have alike."""
    rows = sorted(plan.rows[step - 1], key=lambda row: -plan.lengths[row])
    return plan.of_step(step) if world.size == 1 else plan.cut.of(rows[world.rank :: world.size], plan.lengths)


def summed(
    job: Job,
    loss: Loss,
    cuts: Sequence[Sequence[int]],
    moment: Moment,
    noise: AbstractContextManager[None],
    pace: Sequence[Sequence[int]] = (),
) -> Taken:
    """Some micro-batches read, the gradients taken.

    A micro-batch's sum is divided by the count of the whole step, so that how a step is cut changes nothing: not its
    micro-batches, nor the processes that share them. `pace` are the step's, where others may have more to read.
    """
    world, losses = job.world or World(), []
    batches = loss.batches(cuts, moment)
    behind = world.most(len(cuts)) - len(cuts) if is_sharded(job.method.kind, world) else 0
    counts = [sum(batch[name] for batch in batches) for name in ("items", "tokens", "trained_tokens")]
    items, tokens, trained_tokens = world.summed(*counts)
    with noise:
        for batch in batches:
            part = loss.summed(batch) / (items or 1)
            part.backward()
            losses.append(part.detach())
    keep_pace(loss, behind, pace[:1], moment)
    parts = torch.stack(losses).tolist() if losses else []
    (whole,) = world.summed(sum(parts))
    return Taken(batches, parts, whole, int(tokens), int(trained_tokens))


def keep_pace(loss: Loss, behind: int, cuts: Sequence[Sequence[int]], moment: Moment) -> None:
    """Pass forward, and backward where that is asked, so often more: shards are gathered by all processes at once.

    What is passed is a batch that another process counts, and counts nothing here.
    """
    for batch in loss.batches(cuts, moment) * behind if behind else ():
        nothing = loss.summed(batch) * 0.0
        if torch.is_grad_enabled():
            nothing.backward()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the system under the CPU, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_WORDS in str(error)


def halved(job: Job, plan: Plan, step: int, refusal: str) -> Plan:
    """The plan with half the tokens at once, which is said."""
    longest, cut = max(plan.lengths), plan.cut
    now = max(sum(plan.lengths[row] for row in part) for part in plan.of_step(step))
    if all(len(part) == 1 for part in plan.of_step(step)):
        raise WorkbenchError(
            f"memory does not hold one row: {refusal}",
            where="training",
            remedy="method.checkpointing=on, a smaller method.max_length, method.kind=qlora, or another device",
        )
    tokens = max(min(now, cut.tokens) // 2, min(longest, cut.tokens // 2))
    if job.world and job.world.size > 1:
        raise WorkbenchError(
            f"out of memory at step {step} in process {job.world.rank}: {refusal}",
            where="training",
            remedy=f"the last checkpoint is whole: go on with method.micro_batch_tokens={tokens}",
        )
    job.event(
        "said",
        text=f"out of memory at step {step} with {now:,} tokens at once ({refusal}): from here on at most {tokens:,}",
    )
    return replace(plan, cut=replace(cut, tokens=tokens))


# On a card: the cut is measured, not guessed.


def measured(job: Job, student: Student, loss: Loss, plan: Plan, noise: Noise, free: Callable[[], int]) -> Plan:
    """The plan whose largest micro-batch fills the card, by the memory and seconds of two small ones, said aloud.

    `free()` is what is left of the card now, the model on it. Gradients and random generators are left as they were.
    The step with the most tokens is then read once, so that memory runs out before the first step or never.
    """
    sums = [sum(plan.lengths[row] for row in rows) for rows in plan.rows]
    fullest = 1 + max(range(plan.steps), key=sums.__getitem__)
    before = random_state(student.device)
    student.model.train()  # activations are recomputed while it trains alone
    trained = sum(parameter.numel() for parameter in student.model.parameters() if parameter.requires_grad)
    to_come = trained * TO_COME[job.method.optimizer]
    taken: list[tuple[int, int]] = []
    for part_of_all in PROBED:
        small = replace(plan.cut, tokens=max(1, int(plan.cut.tokens * part_of_all)))
        part = small.of(plan.rows[fullest - 1], plan.lengths)[0]
        left, started = free(), time.monotonic()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        read = summed(job, loss, [part], ("step", fullest - 1), noise(fullest))
        torch.cuda.synchronize()
        seconds = time.monotonic() - started
        taken.append((read.tokens, torch.cuda.max_memory_allocated() - held))
        student.model.zero_grad()
    tokens = min(tokens_that_fit(taken, int((left - to_come) * SHARE_OF_CARD)), max(sums))
    (few, small_bytes), (more, large_bytes) = taken
    a_token = (large_bytes - small_bytes) / max(1, more - few)
    job.event(
        "said",
        text=f"measured: {a_token / 1e6:.2f} MB a token, {more / seconds:,.0f} tokens a second: at most {tokens:,} "
        "tokens at once",
    )
    plan = replace(plan, cut=replace(plan.cut, tokens=max(tokens, 1)))
    plan, _ = backward(job, student, loss, plan, fullest, noise)
    student.model.zero_grad()
    set_random_state(before)
    return plan


def tokens_that_fit(taken: Sequence[tuple[int, int]], free: int) -> int:
    """The tokens that so many free bytes hold, on the line through two measurements (tokens, bytes)."""
    (few, less), (more, most) = taken
    a_token = (most - less) / max(1, more - few)
    if a_token <= 0:
        a_token = most / max(1, more)  # too small to tell apart from what is fixed
        return int(free / max(a_token, 1))
    return max(0, int((free - (less - a_token * few)) / a_token))


def probes(job: Job, student: Student, plan: Plan) -> bool:
    """Whether the cut is measured: on a card, for rows that are read as they lie, where nobody has set it before."""
    method = job.method
    set_by_hand = method.micro_batch_size or method.micro_batch_tokens
    known = read_sealed(job.out / CUT) is not None
    alone = job.world is None or job.world.size == 1
    return student.device == "cuda" and alone and student.packs and not set_by_hand and not known


def facts_of(plan: Plan) -> dict[str, Any]:
    """How a plan is cut, for the summary."""
    return {
        "micro_batch_size": plan.cut.rows,
        "micro_batch_tokens": plan.cut.tokens,
        "packed": plan.cut.packed,
        "checkpointing": plan.recomputed,
    }
