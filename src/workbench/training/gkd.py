"""On-policy distillation (arXiv 2306.13649): the student answers, the teacher tells for each token what it would say.

A step's answers are sampled at once, from a seed of the step's own, and then cut into its micro-batches: neither the
micro-batch nor a resumption changes what the student says. The divergences are ours (losses.py): the generalised JSD of
the paper, as TRL and Liger compute it, is discontinuous at both ends. A teacher with another vocabulary: gold.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from workbench.engines.stops import stop_ids
from workbench.files import file_sha256
from workbench.records import TokenRow, digest, other_id
from workbench.training.batches import Batch, collate, on_device
from workbench.training.distil import own_head, plain_head
from workbench.training.job import Job, Loss, Moment, Student
from workbench.training.losses import Divergence, divergence_of, full, trained_positions
from workbench.training.open_teacher import OpenTeacher, load_teacher
from workbench.training.sampling import Asking, new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.training.gold import OtherWords


class Scored(Protocol):
    """How a batch of the student's answers is held against the teacher."""

    def items(self, batch: Mapping[str, torch.Tensor]) -> int:
        """What the summed loss is divided by over a step."""

    def loss(
        self, student: PreTrainedModel, batch: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
    ) -> torch.Tensor:
        """The batch's summed loss. `batch` is `batches.collate`'s; `plain` as in losses.head_is_plain."""


@dataclass(frozen=True)
class TokenByToken:
    """A teacher with the student's own vocabulary: the recipe's divergence at every token of the answer."""

    teacher: OpenTeacher
    divergence: Divergence
    temperature: float

    def items(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The answers' tokens."""
        return int(batch["trained"].sum())

    def loss(
        self, student: PreTrainedModel, batch: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
    ) -> torch.Tensor:
        """Σ over the answers' tokens. Words from `vocabulary` on are padding on both sides."""
        mask, target = trained_positions(batch["labels"])
        held = full(self.teacher.logits(batch["input_ids"], mask), self.divergence, self.temperature)
        head = (plain_head if plain else own_head)(student, batch, mask, vocabulary)
        at = torch.arange(len(target), device=target.device)
        return head.loss(at, held, torch.ones_like(at))


def on_own_answers(job: Job, weights: Path, other_words: OtherWords | None = None) -> Job:
    """The job, trained on what the student says to its rows' prompts, `method.teach.samples` times an epoch.

    Of a row the prompt alone is read. `weights` is the folder of the teacher, `other_words` what it needs where its
    vocabulary is another (gold.py). The validation loss is the loss on the student's own answers to the validation
    prompts, sampled alike at each look. With the loss: `train/answer_tokens` (mean) and `train/answers_cut` (share).
    """
    teach, plain_rows = job.method.teach, job.rows
    kind = "TokenByToken" if other_words is None else "ByBytes"
    held = [file_sha256(path) for path in sorted(weights.glob("*.safetensors"))]

    def loss(job: Job, student: Student) -> Loss:
        return own_answers(job, student, weights, other_words, plain_rows)

    rows = [room_for(row, teach.max_new_tokens, number) for row in job.rows for number in range(teach.samples)]
    return replace(job, rows=rows, loss=loss, made_of=job.made_of + digest([kind, held]))


def room_for(row: TokenRow, tokens: int, number: int) -> TokenRow:
    """The row's prompt with an answer as long as one may be, in its stop token's place: plan and memory go by it."""
    return replace(answered(row, [row.input_ids[-1]] * tokens), id=other_id(row.id, number))


def answered(row: TokenRow, answer: Sequence[int]) -> TokenRow:
    """The row's prompt with these tokens as its answer."""
    start = row.answer_start
    trained = (False,) * start + (True,) * len(answer)
    return TokenRow(row.id, (*row.input_ids[:start], *answer), trained, row.where)


def own_answers(
    job: Job, student: Student, weights: Path, other_words: OtherWords | None, plain_rows: Sequence[TokenRow]
) -> Loss:
    """Σ over the tokens, or the answers, of what the student says to a step's prompts; `asked` are the plain rows."""
    rows, teach = [*job.rows, *job.validation], job.method.teach
    teacher = load_teacher(weights, dtype=job.dtype, device=student.device)
    words = len(student.tokenizer)
    scored: Scored
    if other_words is None:
        scored = TokenByToken(teacher, divergence_of(teach), teach.temperature)
        words = min(words, teacher.words)
    else:
        from workbench.training.gold import by_bytes

        scored = by_bytes(teacher, job.base, weights, other_words, plain_rows, teach, student.device, job.out)
    head = student.decoder.get_output_embeddings().weight.shape[0]
    vocabulary = words if words < head else None
    stop = rows[0].input_ids[-1]
    how = Asking(1, teach.sample_temperature, teach.max_new_tokens, job.seed, stop)
    stops = stop_ids(student.decoder, student.tokenizer) | {stop}
    step: dict[str, float] = {}

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        numbers = [number for cut in cuts for number in cut]
        prompts = [rows[number].input_ids[: rows[number].answer_start] for number in numbers]
        answers = sampled_answers(student.model, prompts, how, stops, range(words, head), moment)
        step["answer_tokens"] = sum(map(len, answers)) / len(answers)
        step["answers_cut"] = sum(answer[-1] not in stops for answer in answers) / len(answers)
        made = []
        for start, end in pairwise(accumulate(map(len, cuts), initial=0)):
            pairs = zip(numbers[start:end], answers[start:end], strict=True)
            batch = collate([(number, answered(rows[number], answer)) for number, answer in pairs], student.pad)
            made.append(on_device(batch, student.device, scored.items(batch)))
        return made

    def summed(batch: Batch) -> torch.Tensor:
        return scored.loss(student.decoder, batch, plain=student.plain, vocabulary=vocabulary)

    a_look, first = job.method.batch_size, len(job.rows)
    looks = [list(range(n, min(n + a_look, len(rows)))) for n in range(first, len(rows), a_look)]
    return Loss(batches, summed, looks, lambda: dict(step))


def sampled_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    how: Asking,
    stops: set[int],
    padding: Sequence[int],
    moment: Moment,
) -> list[list[int]]:
    """An answer to each prompt with the stop token that ended it, without dropout, from the moment's own seed.

    The global generators are left alone. Rows of the head that no token has, `padding`, are never drawn.
    """
    training, devices = model.training, [model.device] if model.device.type == "cuda" else []
    model.eval()
    # Each new length would compile the layers anew.
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(int(digest([how.seed, *moment], 12), 16))
        new = new_tokens(model, prompts, how, stops, padding)
    model.train(training)
    ends = [next((at + 1 for at, token in enumerate(answer) if token in stops), len(answer)) for answer in new]
    return [answer[:end] for answer, end in zip(new, ends, strict=True)]
