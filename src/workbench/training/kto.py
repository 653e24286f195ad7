"""KTO (arXiv 2402.01306): each row says of one answer that it is good, or bad; no pairs are needed.

A row's implied reward is held against z₀, how far the student has moved from its start on answers that do not belong
to their prompts. As TRL does, each prompt is given another row's answer for that; which one is drawn once, by the
seed, so that its likelihood under the start can be taken once as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from workbench.errors import RequestError
from workbench.recipe import Prefer
from workbench.records import TokenRow, digest
from workbench.training.batches import Batch
from workbench.training.dpo import NO_DROPOUT, Pair, as_pairs, kept_reference, pair_logprobs, paired, without_dropout
from workbench.training.job import HeldOut, Job, Loss, Moment, Student
from workbench.training.targets import answer_ids


@dataclass(frozen=True)
class Judged:
    """A row, and a person's word on its answer."""

    row: TokenRow
    good: bool


def on_judged(job: Job, judged: Sequence[Judged], validation: Sequence[Judged], prefer: Prefer) -> Job:
    """The job, trained on rows called good or bad; its validation loss is KTO's.

    With each loss come `train/reward_good` and `train/reward_bad`, the mean implied rewards β log π/π_ref of the step's
    rows, and `train/kl`, its z₀. Raises RequestError where all the rows are called the same.
    """
    if len({one.good for one in judged}) < 2:
        raise RequestError(
            f"all {len(judged):,} rows are called {'good' if judged[0].good else 'bad'}: nothing is to be told apart",
            where="method.learn",
            remedy="give rows of both sorts, or method.learn=[sft] for good ones alone",
        )
    if job.method.dropout:
        job.event("said", text=NO_DROPOUT)
    good = {one.row.id: one.good for one in (*judged, *validation)}
    job = as_pairs(job, mismatched(judged, job.seed), mismatched(validation, job.seed))
    made_of = job.made_of + digest(sorted(good.items()))
    return replace(job, made_of=made_of, loss=partial(judgement, good=good, prefer=prefer))


def mismatched(judged: Sequence[Judged], seed: int) -> list[Pair]:
    """Each row beside its own prompt with another row's answer: the next one's, in an order that the seed draws.

    Where there is one, a row with another prompt and another answer is taken.
    """
    order = random.Random(seed).sample(range(len(judged)), len(judged))
    made = []
    for at, number in enumerate(order):
        row, later = judged[number].row, [judged[n].row for n in (*order[at + 1 :], *order[:at])]
        answer, prompt = answer_ids(row), row.input_ids[: row.answer_start]
        others = (o for o in later if answer_ids(o) != answer and o.input_ids[: o.answer_start] != prompt)
        other = answer_ids(next(others, later[0] if later else row))
        trained = (False,) * len(prompt) + (True,) * len(other)
        made.append((number, Pair(row, replace(row, input_ids=(*prompt, *other), trained=trained))))
    return [pair for _, pair in sorted(made, key=lambda item: item[0])]


def judgement(job: Job, student: Student, good: dict[str, bool], prefer: Prefer) -> Loss:
    """Σ over the rows of KTO's loss, each by its weight. Takes the reference: the student is as it starts."""
    without_dropout(student)
    pairs, step = paired(job, student), dict[str, float]()
    rows = pairs.rows
    reference = kept_reference(job, student, rows, pairs.lengths, lambda cut: pairs.logprobs(pairs.collated(cut)))
    look: dict[str, float] = {}

    def moved(cuts: Sequence[Sequence[int]]) -> float:
        """z₀ over all of these rows, by the student as it is now."""
        moves = []
        with torch.no_grad():
            for cut in cuts:
                held = torch.tensor([reference[rows[n].id][1] for n in cut], dtype=torch.float64)
                moves += (halves(pairs.collated(cut), 1).cpu() - held).tolist()
        return max(0.0, sum(moves) / len(moves))

    def halves(batch: Batch, side: int) -> torch.Tensor:
        """Log-likelihoods (rows,) of the rows' own answers (0), or of the ones that are not theirs (1)."""
        part = {name: batch[name][side::2] for name in ("input_ids", "attention_mask", "labels")}
        return single_logprobs(student, part)

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        if moment[0] == "step":
            step.clear()
            z = step["kl"] = moved(cuts)
        else:
            if moment[1] == pairs.looks[0][0]:  # a look's first: the weights stay until its last
                look["kl"] = moved(pairs.looks)
            z = look["kl"]
        made = []
        for cut in cuts:
            # Answers that are not a prompt's own are looked at, and not learned.
            counts = {"trained_tokens": sum(sum(rows[n].trained[1:]) for n in cut), "z": z}
            held = torch.tensor([reference[rows[n].id][0] for n in cut], dtype=torch.float64)
            word = torch.tensor([good[rows[n].id] for n in cut])
            beside = {"reference": held.to(student.device), "good": word.to(student.device)}
            made.append(pairs.collated(cut) | beside | counts)
        return made

    def each(batch: Batch) -> torch.Tensor:
        reward = prefer.beta * (halves(batch, 0) - batch["reference"])
        for name, word in (("good", batch["good"]), ("bad", ~batch["good"])):
            step[f"sum_{name}"] = step.get(f"sum_{name}", 0.0) + float(reward.detach()[word].sum())
            step[f"n_{name}"] = step.get(f"n_{name}", 0) + int(word.sum())
        return judgement_loss(reward, batch["good"], prefer.beta * batch["z"], prefer)

    def summed(batch: Batch) -> torch.Tensor:
        return (each(batch) * batch["weights"]).sum().float()

    def metrics() -> dict[str, float]:
        means = {f"reward_{n}": step[f"sum_{n}"] / step[f"n_{n}"] for n in ("good", "bad") if step.get(f"n_{n}")}
        return means | {"kl": step["kl"]}

    def held_out() -> HeldOut:
        values: dict[int, float] = {}
        with torch.no_grad():
            for cut in pairs.looks:
                (batch,) = batches([cut], ("validation", cut[0]))
                values |= zip(cut, each(batch).tolist(), strict=True)
        return HeldOut("KTO's loss of a held-out row", "down", [values[n] for n in sorted(values)], [1.0] * len(values))

    return Loss(batches, summed, pairs.looks, metrics, held_out=held_out)


def single_logprobs(student: Student, batch: Batch) -> torch.Tensor:
    """Log-likelihood of each row's answer, (rows,)."""
    return pair_logprobs(student.decoder, batch, plain=student.plain, vocabulary=student.vocabulary, each=1)[:, 0]


def judgement_loss(reward_N: torch.Tensor, good_N: torch.Tensor, z: float, prefer: Prefer) -> torch.Tensor:
    """Each row's loss, (N,), of its implied reward r = β log(π/π_ref); `z` is β z₀ (equations 7 and 8).

    good: λ_D (1 − σ(r − β z₀)),   bad: λ_U (1 − σ(β z₀ − r))
    """
    weight = torch.where(good_N, prefer.good_weight, prefer.bad_weight)
    return weight * (1 - torch.sigmoid(torch.where(good_N, reward_N - z, z - reward_N)))
