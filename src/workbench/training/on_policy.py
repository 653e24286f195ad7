"""On-policy distillation (arXiv 2306.13649): the student answers, the teacher tells for each token what it would say.

TRL's DistillationTrainer samples a step's answers at once and shares them out among its micro-batches; loop, optimizer
and schedule are its own too. Ours are the plan of rows, the loss (TRL's generalised JSD is discontinuous at both ends,
see divergences.py), the checkpoints, and a seed a step, so that neither the micro-batch nor a resumption changes what
the student says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from trl import DistillationConfig, DistillationTrainer, SFTConfig

from workbench.engines.device import device_of
from workbench.recipe import Method, Teach
from workbench.records import TokenRow, digest, file_sha256, other_id
from workbench.training import sft
from workbench.training.batches import collate
from workbench.training.distil import Lesson, own_head, plain_head
from workbench.training.divergences import Divergence
from workbench.training.head import full
from workbench.training.losses import head_is_plain, trained_positions
from workbench.training.open_teacher import OpenTeacher, load_teacher
from workbench.training.sampling import own_settings
from workbench.training.trainer import AnswerTrainer
from workbench.training.watch import Watch

if TYPE_CHECKING:
    from workbench.training.gold import OtherWords


class Scored(Protocol):
    """How a batch of the student's answers is held against the teacher."""

    def items(self, batch: Mapping[str, torch.Tensor]) -> int:
        """What the summed loss is divided by over a step."""

    def loss(
        self, student: Any, batch: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
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
        self, student: Any, batch: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
    ) -> torch.Tensor:
        """Σ over the answers' tokens. Words from `vocabulary` on are padding on both sides."""
        mask, target = trained_positions(batch["labels"])
        told = full(self.teacher.logits(batch["input_ids"], mask), self.divergence, self.temperature)
        head = (plain_head if plain else own_head)(student, batch, mask, vocabulary)
        at = torch.arange(len(target), device=target.device)
        return head.loss(at, told, torch.ones_like(at))


def train(
    base_dir: Path,
    method: Method,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    out_dir: Path,
    *,
    weights: Path,
    other_words: OtherWords | None = None,
    dtype: str,
    device: str,
    **settings: Any,
) -> dict[str, Any]:
    """`sft.train` on what the student says to the rows' prompts: what that writes, tells and refuses holds here too.

    Of a row the prompt alone is read, `method.teach.samples` times an epoch. `weights` is the folder of the teacher,
    `other_words` what it needs where its vocabulary is another (gold.py). The validation loss is the loss on the
    student's own answers to the validation prompts. `train/answer_tokens` (mean) and `train/answers_cut` (share) are
    told with every step.
    """
    device = device_of(device)
    teacher = load_teacher(weights, dtype=dtype, device=device)
    lesson, teach = Lesson({}, method.teach), method.teach
    words = len(AutoTokenizer.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False))
    scored: Scored
    if other_words is None:
        scored, words = TokenByToken(teacher, lesson.divergence, teach.temperature), min(words, teacher.words)
    else:
        from workbench.training.gold import by_bytes

        scored = by_bytes(teacher, base_dir, weights, other_words, rows, teach, device, out_dir)
    held = [file_sha256(path) for path in sorted(weights.glob("*.safetensors"))]
    return sft.train(
        base_dir,
        method,
        [room_for(row, teach.max_new_tokens, number) for row in rows for number in range(teach.samples)],
        validation,
        out_dir,
        dtype=dtype,
        device=device,
        lesson=lesson,
        trainer_class=partial(OnPolicyTrainer, scored=scored, words=words),
        beside=digest([type(scored).__name__, held]),
        **settings,
    )


def room_for(row: TokenRow, tokens: int, number: int) -> TokenRow:
    """The row's prompt with an answer as long as one may be, in its stop token's place: plan and memory go by it."""
    found = answered(row, [row.input_ids[-1]] * tokens)
    return replace(found, id=other_id(row.id, number))


class OnPolicyTrainer(DistillationTrainer):
    """Trains on what the student says to TokenRows' prompts, in a fixed plan of steps."""

    eos_token_ids: list[int]  # TRL's: what ends an answer

    def __init__(
        self,
        *,
        rows: Sequence[TokenRow],
        validation: Sequence[TokenRow],
        plan: Sequence[Sequence[int]],
        watch: Watch,
        checkpoints: Path,
        fingerprint: str,
        after_evaluation: Callable[[int], None],
        lesson: Lesson,
        args: SFTConfig,
        optimizer_cls_and_kwargs: Any,
        scored: Scored,
        words: int,
        **settings: Any,
    ):
        self.token_rows = list(enumerate([*rows, *validation]))  # the validation rows' numbers go on from the others'
        self.validation, self.plan = list(validation), list(plan)
        self.watch, self.checkpoints, self.fingerprint = watch, checkpoints, fingerprint
        self.after_evaluation, self.scored, self.teach = after_evaluation, scored, lesson.teach
        self.staging: Path | None = None
        self.step_rows: list[int] = []
        self.moment: tuple[str, int] = ("step", 0)
        self.pad = settings["processing_class"].pad_token_id or 0
        settings.pop("evaluation_tokens")  # they follow the micro-batch, and what is said would follow them
        model = settings["model"]
        self.decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
        own = self.decoder.get_output_embeddings().weight.shape[0]
        self.vocabulary = words if words < own else None
        stop = rows[0].input_ids[-1]
        # TRL looks at a dataset's columns; the prompts come from the plan, see get_train_dataloader.
        columns = Dataset.from_dict({"prompt": ["-"]})
        super().__init__(
            train_dataset=columns,
            args=sampling_arguments(args, lesson.teach, words, own),
            callbacks=[watch],
            **settings,
        )
        if stop not in self.eos_token_ids:
            self.eos_token_ids = [stop, *self.eos_token_ids]
        self.generation_config.eos_token_id = self.eos_token_ids
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        probe = torch.tensor([rows[0].input_ids[: rows[0].answer_start][:256]], device=self.args.device)
        self.decoder.eval()
        self.plain = head_is_plain(self.decoder, probe)

    # TRL's SFTTrainer and DistillationTrainer are siblings: what writes, finds and judges is the same for both.
    evaluate = AnswerTrainer.evaluate
    refuse_non_finite = AnswerTrainer.refuse_non_finite
    _get_output_dir = AnswerTrainer._get_output_dir
    _save_checkpoint = AnswerTrainer._save_checkpoint
    _load_from_checkpoint = AnswerTrainer._load_from_checkpoint

    def get_train_dataloader(self) -> DataLoader:
        """The plan as a loader: TRL wants all of a step's rows at each of its micro-batches, and reads the first's."""
        cuts = self.args.gradient_accumulation_steps
        steps = [[row for batch in self.plan[at : at + cuts] for row in batch] for at in range(0, len(self.plan), cuts)]
        return DataLoader(
            [{"prompt": number} for number, _ in self.token_rows],
            batch_sampler=[rows for rows in steps for _ in range(cuts)],
            collate_fn=list,
            generator=torch.Generator().manual_seed(0),
        )

    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The prompts of these rows, as they are rendered."""
        rows = [self.token_rows[number][1] for number in prompts]
        return [list(row.input_ids[: row.answer_start]) for row in rows], None, {}

    def _generate_single_turn(self, *args: Any, **settings: Any) -> list[list[int]]:
        """TRL's sampling, without dropout and from a seed of its own, which leaves the global one alone."""
        training = self.model.training
        self.model.eval()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        # Each new length would compile the layers anew.
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), own_settings(self.model):
            torch.manual_seed(int(digest([self.args.seed, *self.moment], 12), 16))
            said = super()._generate_single_turn(*args, **settings)
        self.model.train(training)
        return said

    def _generate_and_score_completions(self, inputs: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        """What the student says to these rows, as a right-padded batch with loss on its own tokens."""
        numbers = [one["prompt"] for one in inputs]
        if self.model.training:
            self.moment, self.step_rows = ("step", self.state.global_step), numbers
        made = super()._generate_and_score_completions(inputs)
        said = zip(made["completion_ids"], made["completion_mask"].bool(), strict=True)
        answers = [ids[kept].tolist() for ids, kept in said]
        rows = [
            (number, answered(self.token_rows[number][1], answer))
            for number, answer in zip(numbers, answers, strict=True)
        ]
        batch = {name: tensor.to(self.args.device) for name, tensor in collate(rows, self.pad).items()}
        if self.model.training:
            self.tell(answers, int(batch["attention_mask"].sum()))
        return batch | {"items": torch.tensor(self.scored.items(batch), device=self.args.device)}

    def tell(self, answers: Sequence[Sequence[int]], tokens: int) -> None:
        """How much the student has said: answers that grow or shrink to nothing show first here."""
        said = sum(map(len, answers))
        self.watch.saw(tokens, said)
        cut = sum(answer[-1] not in self.eos_token_ids for answer in answers)
        for name, value in (("answer_tokens", said / len(answers)), ("answers_cut", cut / len(answers))):
            self.watch.event("metric", name=f"train/{name}", value=value, step=self.state.global_step + 1)

    def summed_loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Summed loss of some of a step's answers, padded as far as they need."""
        width = int(batch["attention_mask"].sum(1).max())
        cut = {name: tensor[:, :width] if tensor.dim() == 2 else tensor for name, tensor in batch.items()}
        return self.scored.loss(self.decoder, cut, plain=self.plain, vocabulary=self.vocabulary)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        """Summed loss of the micro-batch over the whole step's count of items."""
        return self.summed_loss(inputs) / inputs["items"].clamp(min=1)

    def training_step(self, *args: Any, **settings: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; a loss that is not finite ends the run before it does harm."""
        loss = super().training_step(*args, **settings)
        self.refuse_non_finite("loss", float(loss), self.step_rows)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.refuse_non_finite("gradient", float(norm), self.step_rows)
        return norm

    def validation_loss(self) -> float:
        """The mean loss of what the student now says to the validation prompts, sampled alike at each look."""
        first, a_step = len(self.token_rows) - len(self.validation), self.args.train_batch_size
        a_step *= self.args.gradient_accumulation_steps
        total, items = 0.0, 0
        for start in range(first, len(self.token_rows), a_step):
            self.moment = ("validation", start)
            rows = range(start, min(start + a_step, len(self.token_rows)))
            batch = self._generate_and_score_completions([{"prompt": number} for number in rows])
            total, items = total + float(self.summed_loss(batch)), items + int(batch["items"])
        return total / max(items, 1)


def answered(row: TokenRow, answer: Sequence[int]) -> TokenRow:
    """The row's prompt with these tokens as its answer."""
    start = row.answer_start
    trained = (False,) * start + (True,) * len(answer)
    return TokenRow(row.id, (*row.input_ids[:start], *answer), trained, row.where)


def sampling_arguments(args: SFTConfig, teach: Teach, words: int, rows: int) -> DistillationConfig:
    """The trainer's arguments with how answers are sampled: from the whole distribution, head rows without a word out.

    `words` are the rows of the head that stand for something, `rows` all of them.
    """
    kept = {f.name for f in fields(DistillationConfig)}
    told: dict[str, Any] = {name: value for name, value in args.to_dict().items() if name in kept}
    told |= {
        "max_completion_length": teach.max_new_tokens,
        "temperature": teach.sample_temperature,
        "generation_kwargs": {"use_cache": True}
        | ({"suppress_tokens": list(range(words, rows))} if words < rows else {}),
    }
    made = DistillationConfig(**told)
    made._n_gpu = args._n_gpu
    return made
