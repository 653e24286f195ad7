"""GRPO (arXiv 2402.03300): the student answers each prompt several times, and what scores above its group is raised.

A step's answers are sampled at once, from a seed of the step's own: neither the micro-batch nor a resumption changes
what the student says. With `method.reward.updates` above 1 several steps learn from the same answers, against the
probabilities they were sampled with; those are kept in `rollouts/` beside the checkpoints, where a resumed run reads
them. The validation loss is 1 minus the reward of the greedy answers to the validation prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.engines.ask import stop_ids
from workbench.errors import WorkbenchError
from workbench.files import read_sealed, write_sealed
from workbench.recipe import Reward
from workbench.training.batches import Batch, by_length, collate, on_device
from workbench.training.development import answers as greedy_answers
from workbench.training.distil import token_logprobs
from workbench.training.dpo import NO_DROPOUT, without_dropout
from workbench.training.job import HeldOut, Job, Loss, Moment, Student
from workbench.training.losses import trained_positions
from workbench.training.own_answers import answered, room_for, sampled_answers
from workbench.training.sampling import Asking
from workbench.training.targets import Sampled

Score = Callable[[int, str], float]  # a row's number, the validation rows after the others, and an answer → 0 to 1
ROLLOUTS = "rollouts"
EVEN = 1e-4  # added to a group's spread, as TRL does: alike rewards divide by no nought


@dataclass(frozen=True)
class Rollout:
    """One sampled answer: its row's number, its tokens, its advantage, and what sampled it thought of each token.

    `old` are the tokens' log-probabilities when it was sampled, () where no second update needs them; `start` those of
    the student as it started, () without a KL term.
    """

    number: int
    answer: Sequence[int]
    advantage: float
    old: Sequence[float] = ()
    start: Sequence[float] = ()


def on_rewards(job: Job, reward: Reward, score: Score) -> Job:
    """The job, trained on its own answers to its rows' prompts, `reward.samples` to each, rewarded by `score`.

    Of a row the prompt alone is read. With each loss come `train/reward` (mean), `train/reward_spread` (mean standard
    deviation within a prompt's answers), `train/alike` (share of prompts whose answers all earn the same and teach
    nothing), `train/clipped` (share of tokens), `train/kl`, `train/answer_tokens`, `train/answers_cut`.
    """
    if job.method.dropout:
        job.event("said", text=NO_DROPOUT)
    rows = [room_for(row, reward.max_new_tokens, 0) for row in job.rows]
    targets = {row.id: Sampled(reward.samples) for row in rows}
    return replace(job, rows=rows, targets=targets, loss=partial(rewarded, reward=reward, score=score))


def rewarded(job: Job, student: Student, reward: Reward, score: Score) -> Loss:
    """Σ over the answers of `answer_terms`' mean over its tokens, each by its row's weight."""
    without_dropout(student)
    rows, first = [*job.rows, *job.validation], len(job.rows)
    head = student.decoder.get_output_embeddings().weight.shape[0]
    stop = job.validation[0].input_ids[-1] if job.validation else rows[0].input_ids[-1]
    stops = stop_ids(student.decoder, student.tokenizer) | {stop}
    how = Asking(reward.samples, reward.temperature, reward.max_new_tokens, job.seed, stop)
    as_it_started = start_of(student)
    step: dict[str, float] = {}

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        if moment[0] == "validation":
            return [looked_at(cut) for cut in cuts]
        block = moment[1] - moment[1] % reward.updates
        if block < moment[1]:
            groups, counts = kept_rollouts(job.out, block, student.request)
            step.update(counts)
        else:
            groups = rollouts(cuts, block)
        if block == moment[1] and reward.updates > 1:
            keep_rollouts(job.out, block, student.request, groups, step)
        step["clipped"] = step["tokens"] = step["kl"] = 0.0
        sizes = iter(groups)
        return [batch_of([one for _ in cut for one in next(sizes)]) for cut in cuts]

    def rollouts(cuts: Sequence[Sequence[int]], moment: int) -> list[list[Rollout]]:
        """Each prompt's answers, by the student as it is now."""
        numbers = [number for cut in cuts for number in cut]
        prompts = [rows[number].input_ids[: rows[number].answer_start] for number in numbers]
        padding = range(len(student.tokenizer), head)
        drawn = sampled_answers(student.model, prompts, how, stops, padding, ("step", moment))
        groups = [drawn[at : at + how.samples] for at in range(0, len(drawn), how.samples)]
        earned = torch.tensor(
            [[score(n, text_of(answer)) for answer in group] for n, group in zip(numbers, groups, strict=True)],
            dtype=torch.float64,
        )
        step.update(
            reward=float(earned.mean()), reward_spread=float(earned.std(1).mean()),
            alike=float((earned.std(1) < EVEN).double().mean()),
            answer_tokens=sum(map(len, drawn)) / len(drawn),
            answers_cut=sum(answer[-1] not in stops for answer in drawn) / len(drawn),
        )  # fmt: skip
        made = [
            [Rollout(n, answer, gain) for answer, gain in zip(group, gains, strict=True)]
            for n, group, gains in zip(numbers, groups, advantages(earned).tolist(), strict=True)
        ]
        if reward.updates > 1:
            made = [noted(group, "old") for group in made]
        if reward.kl:
            with as_it_started():
                made = [noted(group, "start") for group in made]
        return made

    def noted(group: Sequence[Rollout], name: str) -> list[Rollout]:
        """The answers with their tokens' log-probabilities by the weights as they are."""
        with torch.no_grad():
            batch = batch_of(group)
            values = answer_logprobs(student, batch, reward.temperature).split(batch["counts"].tolist())
        return [replace(one, **{name: part.tolist()}) for one, part in zip(group, values, strict=True)]

    def text_of(answer: Sequence[int]) -> str:
        return student.tokenizer.decode([token for token in answer if token not in stops], skip_special_tokens=True)

    def batch_of(group: Sequence[Rollout]) -> Batch:
        read = [(one.number, answered(rows[one.number], one.answer)) for one in group]
        batch = collate(read, student.pad)
        tensors = {
            "counts": torch.tensor([len(one.answer) for one in group]),
            "advantages": torch.tensor([one.advantage for one in group]),
            "share": torch.tensor([rows[one.number].weight for one in group]),
        }
        for name in ("old", "start"):
            if getattr(group[0], name):
                tensors[name] = torch.tensor([value for one in group for value in getattr(one, name)])
        return on_device(batch | tensors, student.device, sum(rows[one.number].weight for one in group))

    def summed(batch: Batch) -> torch.Tensor:
        if "lost" in batch:
            return batch["lost"]
        logprobs = answer_logprobs(student, batch, reward.temperature)
        of_token = torch.repeat_interleave(torch.arange(len(batch["counts"]), device=logprobs.device), batch["counts"])
        old = batch.get("old", logprobs.detach())
        terms, clipped = answer_terms(logprobs, old, batch["advantages"][of_token], reward.clip)
        if "start" in batch:
            distance = distance_to(batch["start"], logprobs)
            terms = terms + reward.kl * distance
            step["kl"] += float(distance.detach().sum())
        step["clipped"] += float(clipped.sum())
        step["tokens"] += len(logprobs)
        share = batch["share"] / batch["counts"]
        return (terms * share[of_token]).sum()

    def looked_at(cut: Sequence[int]) -> Batch:
        """The greedy answers to some validation prompts, already scored."""
        earned = greedy_rewards(cut)
        batch = collate([(number, rows[number]) for number in cut], student.pad)
        lost = torch.tensor(sum(1 - value for value in earned))
        return on_device(batch, student.device, len(cut)) | {"lost": lost}

    def greedy_rewards(cut: Sequence[int]) -> list[float]:
        texts = greedy_answers(
            student.model, student.tokenizer, [rows[n] for n in cut], reward.max_new_tokens, student.device
        )
        return [score(number, answer) for number, answer in zip(cut, texts, strict=True)]

    def metrics() -> dict[str, float]:
        tokens = max(1.0, step["tokens"])
        rest = {name: value for name, value in step.items() if name != "tokens"}
        return rest | {"clipped": step["clipped"] / tokens, "kl": step["kl"] / tokens}

    def held_out() -> HeldOut:
        values = {n: value for cut in looks for n, value in zip(cut, greedy_rewards(cut), strict=True)}
        return HeldOut(
            "reward of a held-out prompt's greedy answer",
            "up",
            [values[n] for n in sorted(values)],
            [1.0] * len(values),
        )

    lengths = [len(row.input_ids) + reward.max_new_tokens for row in job.validation]
    looks = [[first + number for number in cut] for cut in by_length(lengths, student.batch_tokens)]
    return Loss(batches, summed, looks, metrics, held_out, name="lack of reward (1 - reward) on held-out prompts")


def advantages(reward_NG: torch.Tensor) -> torch.Tensor:
    """How much better than its group an answer is, (N, G): (r − mean) / (standard deviation + 1e-4), as TRL scales it.

    Outcome supervision of section 4.1.2. Where a group's rewards are all alike nothing is learned of it.
    """
    return (reward_NG - reward_NG.mean(1, keepdim=True)) / (reward_NG.std(1, keepdim=True) + EVEN)


def answer_terms(
    logprob_N: torch.Tensor, old_N: torch.Tensor, advantage_N: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's loss, (N,), and whether the clip holds it, of log-probabilities (nats) now and when it was sampled.

    The first term of equation 3, with ρ = π/π_old:   −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
    """
    ratio = torch.exp(logprob_N - old_N)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    held = ((ratio < 1 - clip) & (advantage_N < 0)) | ((ratio > 1 + clip) & (advantage_N > 0))
    return -torch.minimum(ratio * advantage_N, bounded * advantage_N), held


def distance_to(start_N: torch.Tensor, logprob_N: torch.Tensor) -> torch.Tensor:
    """Each token's estimate of KL(π ‖ π_ref), (N,), never negative: π_ref/π − log(π_ref/π) − 1 (equation 4)."""
    moved = start_N - logprob_N
    return torch.expm1(moved) - moved


def answer_logprobs(student: Student, batch: Batch, temperature: float) -> torch.Tensor:
    """log π of each answer's tokens, (N,) float32, at the temperature that they are sampled with."""
    decoder = student.decoder
    mask, target = trained_positions(batch["labels"])
    head = decoder.get_output_embeddings()
    if student.plain:
        hidden = decoder.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1][mask]
        bias = getattr(head, "bias", None)
        if temperature != 1:
            hidden, bias = hidden / temperature, None if bias is None else bias / temperature
        return token_logprobs(hidden, head.weight, bias, target, vocabulary=student.vocabulary)
    out = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits = out.logits[:, :-1][mask][:, : student.vocabulary].float() / temperature
    return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]


def start_of(student: Student) -> Callable[[], Any]:
    """A context in which the student has the weights that it has now: those that train are copied once."""
    live = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    copies = [parameter.detach().clone() for parameter in live]

    @contextmanager
    def as_it_started() -> Iterator[None]:
        now = [parameter.data for parameter in live]
        try:
            for parameter, copy in zip(live, copies, strict=True):
                parameter.data = copy
            yield
        finally:
            for parameter, data in zip(live, now, strict=True):
                parameter.data = data

    return as_it_started


# Answers that a later step learns from once more: kept, for whoever resumes in between.


def rollout_file(out: Path, block: int) -> Path:
    """Where the answers sampled after so many steps lie."""
    return out / "checkpoints" / ROLLOUTS / f"{block:08d}.json"


def keep_rollouts(
    out: Path, block: int, request: str, groups: Sequence[Sequence[Rollout]], counts: dict[str, float]
) -> None:
    """Write them, with what was counted of them."""
    path = rollout_file(out, block)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [[[r.number, list(r.answer), r.advantage, list(r.old), list(r.start)] for r in group] for group in groups]
    write_sealed(path, {"of": request, "groups": plain, "counts": counts})


def kept_rollouts(out: Path, block: int, request: str) -> tuple[list[list[Rollout]], dict[str, float]]:
    """Read them. WorkbenchError where they are not there as they were written."""
    path = rollout_file(out, block)
    kept = read_sealed(path) or {}
    if kept.get("of") != request:
        raise WorkbenchError(
            "the answers that this step learns from a second time are gone, or not as they were written",
            where=str(path),
            remedy="begin the run again: fresh=true",
        )
    return [[Rollout(*values) for values in group] for group in kept["groups"]], kept["counts"]
