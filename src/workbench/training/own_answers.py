"""On-policy: the student's own answers, held against a teacher token by token, by GOLD where vocabularies differ.

GOLD (trl.experimental.gold): TRL's is the comparison of two distributions at a token: words that both vocabularies have
by generalised JSD, the others by their size alone (ULD, arXiv 2402.12030), each weighed by its share of the teacher's
words. Ours is what TRL's trainer does to get there: words are matched by their bytes, so that the other vocabulary need
not be a byte-level BPE; the two tokens that end an answer are one word, else the student would not learn to stop; the
teacher reads the question in its own chat template; and answers are taken one at a time, so that no more than one
answer × vocabulary is made.

Two things to know. It is no distance: over the shared words alone it may be negative, and TRL's JSD is not divided by
β(1−β), so it vanishes as β nears 0 or 1, where it jumps to the two KLs. And it teaches only as far as the tokenizers
cut alike, since a word that the teacher would say in other pieces counts as one it would not say: tiny students whose
answers were cut alike at 72 % of their tokens rose from 61 to 83 % right; at 61 % they fell to 25 % and less, while
their loss fell. Below MET_SHARE it is refused. Tokens that are cut differently are left out: TRL multiplies their
probabilities into one, and the loss then falls fastest for a student that says what the two cut differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AutoTokenizer

from workbench.engines.ask import stop_ids
from workbench.errors import RequestError
from workbench.files import file_sha256
from workbench.recipe import Teach
from workbench.records import TokenRow, digest, other_id
from workbench.training.align import ids_by_bytes, token_bytes
from workbench.training.batches import Batch, collate, on_device
from workbench.training.distil import LogitRows, own_head, plain_head
from workbench.training.job import Job, Loss, Moment, Student
from workbench.training.losses import Divergence, HeadRows, divergence_of, full, trained_positions
from workbench.training.open_teacher import OpenTeacher, load_teacher
from workbench.training.sampling import Asking, new_tokens
from workbench.training.targets import answer_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STOP = b""  # the word that both stop tokens are; no other token is without bytes
TRIED = 100  # rows whose own answers are aligned before the first step
MET_SHARE = 0.7  # of their tokens that both tokenizers must have cut alike
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0}


@dataclass(frozen=True)
class OtherWords:
    """What the teacher is asked, as its own tokens, by the student's tokens of the same prompt; and its stop token."""

    questions: Mapping[tuple[int, ...], tuple[int, ...]]
    stop: int


@dataclass(frozen=True)
class Words:
    """A tokenizer's words by their bytes, as far as its model has them, with the stop token as STOP."""

    tokenizer: PreTrainedTokenizerBase
    stop: int
    rows: int

    def get_vocab(self) -> dict[bytes, int]:
        """Word → id: the one thing that ULDLoss asks a tokenizer."""
        words = {word: number for word, number in ids_by_bytes(self.tokenizer).items() if number < self.rows}
        return {word: number for word, number in words.items() if number != self.stop} | {STOP: self.stop}


@dataclass(frozen=True)
class Side:
    """One side's tokens of an answer, and the bytes (start, end) of each."""

    ids: list[int]
    spans: list[tuple[int, int]]


def beta_of(teach: Teach) -> float:
    """GOLD's mixture for the recipe's divergence. RequestError for one that it does not have."""
    if teach.divergence == "jsd":
        return teach.beta
    if teach.divergence not in BETAS:
        raise RequestError(
            f"the teacher's vocabulary is another, and GOLD has no {teach.divergence}",
            where="method.teach.divergence",
            remedy="jsd, forward_kl or reverse_kl; or a teacher with the student's own vocabulary",
        )
    return BETAS[teach.divergence]


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def shared_words(student: Path, teacher: Path) -> tuple[int, int]:
    """How many of the teacher's words the student has too, by their bytes, and how many the teacher has.

    Raises RequestError for a tokenizer that does not say which bytes its tokens stand for.
    """
    try:
        ours, theirs = (ids_by_bytes(tokenizer_of(folder)) for folder in (student, teacher))
    except RequestError as error:
        raise RequestError(
            f"the teacher's vocabulary is another, and cannot be aligned: {error.what}",
            where="teacher.weights",
            remedy="a teacher with the student's own vocabulary, or one that is served: method.distil=[text]",
        ) from error
    return len(ours.keys() & theirs.keys()), len(theirs)


def uld_loss(student: Words, teacher: Words, teach: Teach, device: str, folder: Path) -> Callable[..., torch.Tensor]:
    """TRL's loss with the recipe's temperature and mixture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is experimental
        from trl.experimental.gold.gold_config import GOLDConfig
        from trl.experimental.gold.gold_trainer import ULDLoss

        settings = GOLDConfig(
            output_dir=str(folder),
            use_cpu=device == "cpu",
            bf16=False,
            report_to="none",
            max_length=None,
            use_uld_loss=True,
            uld_use_hybrid_loss=True,
            uld_token_merge_strategy="bayesian",
            uld_skip_student_eos=False,
            uld_skip_teacher_eos=False,
            uld_student_temperature=teach.temperature,
            uld_teacher_temperature=teach.temperature,
            beta=beta_of(teach),
        )
    return ULDLoss(settings, student, teacher, torch.device(device))


@dataclass(frozen=True)
class ByBytes:
    """GOLD's loss of each answer, the mean over the tokens that meet; answers count alike, whatever their length."""

    teacher: OpenTeacher
    student_words: Words
    teacher_words: Words
    other: OtherWords
    uld: Callable[..., torch.Tensor]

    def items(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The answers."""
        return len(batch["rows"])

    def loss(
        self, student: PreTrainedModel, batch: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
    ) -> torch.Tensor:
        """Σ over the answers. One whose bytes the teacher's tokenizer changes has nothing to be held against."""
        mask, target = trained_positions(batch["labels"])
        counts = mask.sum(1).tolist()
        starts = [int(row.nonzero()[0, 0]) + 1 for row in mask]
        prompts = [tuple(ids[:start].tolist()) for ids, start in zip(batch["input_ids"], starts, strict=True)]
        sides = [self.sides(ids.tolist()) for ids in target.split(counts)]
        teachers = self.teacher_logits(prompts, [theirs for _, theirs in sides], target.device)
        if plain:
            read = student.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1][mask]
            head = student.get_output_embeddings()
            weight, bias = head.weight[:vocabulary], getattr(head, "bias", None)
            bias = None if bias is None else bias[:vocabulary]
        else:
            out = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            read = out.logits[:, :-1][mask][:, :vocabulary]
        total = 0.0 * read[0, 0].float()  # of the graph even where no answer can be followed
        for (ours, theirs), teacher, start in zip(sides, teachers, accumulate(counts, initial=0)):
            if not meeting(ours, theirs):
                continue
            at = slice(start, start + len(ours.ids))
            held = self.held(ours, theirs, teacher)
            if plain:
                total = total + HeadRows.apply(read[at], weight, bias, held, len(ours.ids))
            else:
                total = total + LogitRows.apply(read[at], held)
        return total

    def sides(self, answer: Sequence[int]) -> tuple[Side, Side]:
        """An answer as both sides' tokens, each with its bytes; both are empty where they do not hold the same.

        A sampled answer may break off inside a character, or never have been text: it is followed as far as it is.
        """
        stopped = answer[-1] == self.student_words.stop
        ours = list(answer[:-1] if stopped else answer)
        words = token_bytes(self.student_words.tokenizer, ours)
        text = readable(b"".join(words))
        while b"".join(words) != text:
            words.pop()
            text = readable(b"".join(words))
        whole = stopped and len(words) == len(ours)
        theirs = list(self.teacher_words.tokenizer(text.decode(), add_special_tokens=False)["input_ids"])
        others = token_bytes(self.teacher_words.tokenizer, theirs, text.decode())
        if b"".join(others) != text:
            return Side([], []), Side([], [])
        ours = [*ours[: len(words)], *([self.student_words.stop] if whole else [])]
        theirs = [*theirs, *([self.teacher_words.stop] if whole else [])]
        return Side(ours, spans_of(words, whole)), Side(theirs, spans_of(others, whole))

    def met_share(self, rows: Sequence[TokenRow]) -> float:
        """The share of the rows' own answers' tokens that are the teacher's too."""
        answers = [answer_ids(row) for row in rows]
        return sum(len(meeting(*self.sides(answer))) for answer in answers) / max(1, sum(map(len, answers)))

    def teacher_logits(
        self, prompts: Sequence[tuple[int, ...]], answers: Sequence[Side], device: torch.device
    ) -> list[torch.Tensor]:
        """The teacher's logits (n, V) at each answer's n tokens, after its own rendering of the question."""
        rows = []
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            question = self.other.questions[prompt]
            trained = (False,) * len(question) + (True,) * len(answer.ids)
            rows.append((number, TokenRow(str(number), (*question, *answer.ids), trained)))
        batch = collate(rows, self.other.stop)
        mask, _ = trained_positions(batch["labels"])
        logits = self.teacher.logits(batch["input_ids"].to(device), mask.to(device))
        spans = pairwise(accumulate((len(answer.ids) for answer in answers), initial=0))
        return [logits(slice(*span))[:, : self.teacher_words.rows] for span in spans]

    def held(self, ours: Side, theirs: Side, teacher: torch.Tensor) -> Callable[..., Any]:
        """`losses.Rows` of one answer: its loss stands in the first row, the others' are nought."""
        met = meeting(ours, theirs)
        at, other = (torch.tensor(numbers, device=teacher.device) for numbers in zip(*met))
        labels, ids, spans = zip(
            *(
                framed([side.ids[n] for n in numbers], teacher.device)
                for side, numbers in zip((ours, theirs), zip(*met))
            )
        )

        def rows(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
            with torch.enable_grad():
                own = logits.detach().requires_grad_()
                loss = self.uld(own[at][None], teacher[other][None], *labels, *ids, *spans)
                (slope,) = torch.autograd.grad(loss, own)
            values = logits.new_zeros(len(logits))
            values[0] = loss.detach()
            return values, lambda: slope

        return rows


def meeting(ours: Side, theirs: Side) -> list[tuple[int, int]]:
    """The tokens, as their numbers on both sides, that hold the very same bytes."""
    there = {span: number for number, span in enumerate(theirs.spans)}
    return [(n, there[span]) for n, span in enumerate(ours.spans) if span in there and span[0] < span[1]]


def framed(ids: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens as TRL wants them, after a prompt of one: labels (1, n+1), ids (1, n+1), a byte for each (1, n+1, 2)."""
    labels = torch.tensor([[-100, *ids]], device=device)
    spans = torch.tensor([[(0, 0), *pairwise(range(len(ids) + 1))]], device=device)
    return labels, labels.clamp(min=0), spans


def readable(text: bytes) -> bytes:
    """As much of it as is UTF-8, from its beginning."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start]
    return text


def spans_of(words: Sequence[bytes], stopped: bool) -> list[tuple[int, int]]:
    """Where each word lies; a stop token takes a byte of its own after them, so that it meets the other side's."""
    return list(pairwise(accumulate([*map(len, words), *([1] if stopped else [])], initial=0)))


def by_bytes(
    teacher: OpenTeacher,
    base: Path,
    weights: Path,
    other: OtherWords,
    rows: Sequence[TokenRow],
    teach: Teach,
    device: str,
    out: Path,
) -> ByBytes:
    """GOLD between the tokenizers of two model folders, for a student that answers as the rows do.

    RequestError where the two cut the rows' own answers too differently.
    """
    stop = rows[0].input_ids[-1]
    ours, theirs = tokenizer_of(base), tokenizer_of(weights)
    student_words = Words(ours, stop, len(ours))
    teacher_words = Words(theirs, other.stop, min(len(theirs), teacher.words))
    loss = uld_loss(student_words, teacher_words, teach, device, out)
    made = ByBytes(teacher, student_words, teacher_words, other, loss)
    share = made.met_share(rows[:TRIED])
    if share < MET_SHARE:
        raise RequestError(
            f"the teacher's vocabulary is another and cuts text otherwise: {share:.0%} of the answers' tokens are its "
            f"own too, and below {MET_SHARE:.0%} GOLD teaches a student what is wrong",
            where="teacher.weights",
            remedy="a teacher with the student's own vocabulary, or one that is served: method.distil=[text]",
        )
    return made


# On-policy distillation (arXiv 2306.13649): the student answers, the teacher tells for each token what it would say.
#
# A step's answers are sampled at once, from a seed of the step's own, and then cut into its micro-batches: neither the
# micro-batch nor a resumption changes what the student says. The divergences are ours (losses.py): the generalised JSD
# of the paper, as TRL and Liger compute it, is discontinuous at both ends. Another vocabulary: GOLD, above.


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
    vocabulary is another (GOLD). The validation loss is the loss on the student's own answers to the validation
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
    teacher = load_teacher(weights, dtype=student.dtype, device=student.device)
    words = len(student.tokenizer)
    scored: Scored
    if other_words is None:
        scored = TokenByToken(teacher, divergence_of(teach), teach.temperature)
        words = min(words, teacher.words)
    else:
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
