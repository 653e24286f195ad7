"""TRL's SFTTrainer with our rows, our loss and our checkpoints; the loop, optimizer and schedule stay TRL's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTTrainer

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Teach
from workbench.records import TokenRow
from workbench.training.batches import by_length, collate
from workbench.training.checkpoints import write_checkpoint
from workbench.training.distil import Lesson, taught_loss
from workbench.training.losses import answer_loss, head_is_plain, plain_loss
from workbench.training.model import load_weights
from workbench.training.watch import Watch


class AnswerTrainer(SFTTrainer):
    """Trains on TokenRows in a fixed plan of micro-batches, with the loss on the trained tokens alone."""

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
        evaluation_tokens: int,
        lesson: Lesson | None = None,
        **settings: Any,
    ):
        self.token_rows, self.validation, self.plan = list(enumerate(rows)), list(enumerate(validation)), list(plan)
        self.watch, self.checkpoints, self.fingerprint = watch, checkpoints, fingerprint
        self.lesson = lesson or Lesson({}, Teach())
        self.after_evaluation, self.evaluation_tokens = after_evaluation, evaluation_tokens
        self.staging: Path | None = None
        self.step_rows: list[int] = []
        self.pad = settings["processing_class"].pad_token_id or 0
        # TRL looks at a dataset's columns; the batches come from the plan, see get_train_dataloader.
        columns = Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
        super().__init__(train_dataset=columns, data_collator=self.collate, callbacks=[watch], **settings)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's tokens below, not by its batches
        self.decoder = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        probe = torch.tensor([rows[0].input_ids[:256]], device=self.args.device)
        self.decoder.eval()
        self.plain = head_is_plain(self.decoder, probe)
        named = len(settings["processing_class"])
        self.vocabulary = named if named < self.decoder.get_output_embeddings().weight.shape[0] else None
        if self.aux_loss_enabled and (self.lesson.targets or any(row.weight != 1.0 for row in rows)):
            raise RequestError(
                "a mixture of experts is trained on plain text alone here: rows have no weights, tokens no targets",
                where="method.distil",
                remedy="method.distil=[text] method.teach.vote_weight=false",
            )

    def collate(self, rows: Sequence[tuple[int, TokenRow]]) -> dict[str, Any]:
        """Padded tensors of some rows, the teacher's word among them."""
        return collate(rows, self.pad, self.lesson.targets)

    def get_train_dataloader(self) -> DataLoader:
        """The plan as a loader. It has a generator of its own, so that opening it leaves the global one alone."""
        return DataLoader(
            self.token_rows,
            batch_sampler=self.plan,
            collate_fn=self.collate,
            generator=torch.Generator().manual_seed(0),
            pin_memory=self.args.device.type == "cuda",
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """A step's micro-batches and the number of trained tokens in all of them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        trained = sum(int(batch["trained"].sum()) for batch in batches)
        self.step_rows = [int(row) for batch in batches for row in batch["rows"]]
        self.watch.saw(sum(int(batch["attention_mask"].sum()) for batch in batches), trained)
        return batches, torch.tensor(trained, device=device)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; a loss that is not finite ends the run before it does harm."""
        rows = inputs.pop("rows").tolist()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.refuse_non_finite("loss", float(loss), rows)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed loss of the micro-batch's trained tokens over the whole step's count of them."""
        if self.aux_loss_enabled:  # a mixture of experts: TRL adds the router's balancing loss
            plain = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        return self.summed_loss(inputs) / num_items_in_batch.clamp(min=1)

    def summed_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Summed loss of a batch's trained tokens."""
        if "taught" in inputs:
            lesson, at = self.lesson, self.vocabulary
            return taught_loss(self.decoder, inputs, lesson.teach, lesson.divergence, plain=self.plain, vocabulary=at)
        if self.plain:
            return answer_loss(self.decoder, inputs["input_ids"], inputs["labels"])
        return plain_loss(self.decoder, inputs["input_ids"], inputs["labels"], inputs["attention_mask"])

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.refuse_non_finite("gradient", float(norm), self.step_rows)
        return norm

    def refuse_non_finite(self, what: str, value: float, rows: Sequence[int]) -> None:
        """Stop at the first loss or gradient that is not a number, naming the step and its rows."""
        if not math.isfinite(value):
            ids = ", ".join(self.token_rows[row][1].id for row in rows)
            raise WorkbenchError(
                f"the {what} is {value} at step {self.state.global_step + 1}, rows {ids}",
                where="training",
                remedy="lower method.learning_rate, or look at these rows; the last checkpoint is whole",
            )

    def validation_loss(self) -> float:
        """Mean cross entropy over the validation rows' trained tokens: each token counts once, whatever its batch."""
        lengths = [len(row.input_ids) for _, row in self.validation]
        total = tokens = 0.0
        for batch in by_length(lengths, self.evaluation_tokens):
            inputs = self._prepare_inputs(collate([self.validation[i] for i in batch], self.pad))
            total += float(self.summed_loss(inputs))
            tokens += int(inputs["trained"].sum())
        return total / max(tokens, 1)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation loss, noted, and what else is looked at with it."""
        self.model.eval()
        with torch.no_grad():
            loss = self.validation_loss()
        self.refuse_non_finite("validation loss", loss, self.step_rows)
        if self.validation:
            self.watch.evaluated(self.state.global_step, loss)
        self.after_evaluation(self.state.global_step)
        self.model.train()
        metrics = {"eval_loss": loss}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Hugging Face's checkpoint, written aside and renamed when it is whole."""
        step = self.state.global_step

        def write(folder: Path) -> None:
            self.staging = folder
            Trainer._save_checkpoint(self, model, trial)  # without TRL's model card
            self.staging = None
            (inner,) = folder.iterdir()
            for path in inner.iterdir():
                path.rename(folder / path.name)
            inner.rmdir()

        progress = {"fingerprint": self.fingerprint, "progressed": asdict(self.watch.progressed)}
        told = self.watch.progressed
        write_checkpoint(self.checkpoints, step, progress, write, told.best_step, told.best_developed())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # PEFT's load_adapter would bring the adapter back in float32.
        load_weights(self.model, Path(resume_from_checkpoint))
