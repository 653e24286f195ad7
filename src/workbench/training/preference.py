"""Preference distillation: DPO (arXiv 2305.18290) with a teacher's answer chosen and the student's own rejected.

TRL's loop trains, by way of AnswerTrainer: our plan of batches, head and checkpoints, a row read as two sequences. Its
DPOTrainer would put a copy of the adapter into the model, which every checkpoint and the student would carry along,
and makes its tokens itself; what is left of it is `preference_loss`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from trl.trainer.utils import disable_dropout_in_model

from workbench.errors import RequestError
from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.runs import read_json, write_whole
from workbench.training import sft
from workbench.training.batches import by_length, collate
from workbench.training.development import Development
from workbench.training.distil import Lesson, own_head, plain_head
from workbench.training.likelihoods import summed
from workbench.training.losses import trained_positions
from workbench.training.targets import Rejected
from workbench.training.trainer import AnswerTrainer

REFERENCE = "reference.json"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: what the teacher says, whose id and weight are the pair's, and what it is to beat."""

    chosen: TokenRow
    rejected: TokenRow


def train(
    base_dir: Path,
    method: Method,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    out_dir: Path,
    *,
    seed: int,
    dtype: str,
    device: str,
    threads: int | None,
    event: Callable[..., None],
    development: Development | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """`sft.train` on pairs: what it writes, tells, keeps and refuses holds here too; the validation loss is DPO's.

    The reference is the student as it is when this starts: `base_dir` with the adapter `start`. Its log-probabilities
    are taken before the first step and kept in `out_dir/reference.json`. With each loss come `train/reward_margin`,
    the mean of what the loss takes the sigmoid of, and `train/reward_accuracy`, the share of pairs where it is above 0.
    """
    targets = {pair.chosen.id: Rejected(pair.rejected) for pair in (*pairs, *validation)}
    if len(targets) < len(pairs) + len(validation):
        raise RequestError("two pairs have the same id", where="training")
    if method.dropout:
        event("said", text="no dropout here: the student is held against itself as it starts, which has none")
    return sft.train(
        base_dir,
        method,
        [pair.chosen for pair in pairs],
        [pair.chosen for pair in validation],
        out_dir,
        seed=seed,
        dtype=dtype,
        device=device,
        threads=threads,
        event=event,
        lesson=Lesson(targets, method.teach),
        development=development,
        start=start,
        trainer_class=PreferenceTrainer,
    )


def preference_loss(
    logprob_N2: torch.Tensor, reference_N2: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair's loss and margin, (N,), of log-likelihoods (nats) of the chosen and the rejected answer (eq. 7).

    margin = β · ( (log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l)) ),   loss = −log σ(margin)
    """
    moved = logprob_N2 - reference_N2
    margin = beta * (moved[:, 0] - moved[:, 1])
    return -F.logsigmoid(margin), margin


def pair_logprobs(
    model: Any, inputs: Mapping[str, torch.Tensor], *, plain: bool, vocabulary: int | None
) -> torch.Tensor:
    """Log-likelihood of the chosen and the rejected answer, (pairs, 2), of a batch where the two alternate.

    A token's is taken in float32, the sum in float64: long answers' likelihoods are large and their differences small.
    """
    mask, target = trained_positions(inputs["labels"])
    head = (plain_head if plain else own_head)(model, inputs, mask, vocabulary)
    likely = head.likely(torch.arange(len(target), device=target.device), target)
    return summed(likely.double(), mask.nonzero()[:, 0], len(mask)).view(-1, 2)


class PreferenceTrainer(AnswerTrainer):
    """Trains on pairs: a row is the chosen answer, its target in the lesson the rejected one."""

    def __init__(self, **settings: Any):
        disable_dropout_in_model(settings["model"])
        super().__init__(**settings)
        self.pairs, self.margin, self.right = 0, 0.0, 0.0  # since the last line of the log
        # The weights are those of the start still: a checkpoint is loaded when training begins.
        self.reference: dict[str, list[float]] = self.kept_reference()

    def kept_reference(self) -> dict[str, list[float]]:
        """Both answers' log-likelihoods under the student as it starts, by pair: read, or taken once and written."""
        path = self.checkpoints.parent / REFERENCE
        kept = read_json(path) if path.is_file() else {}
        if kept.get("of") == self.fingerprint:
            return kept["logprobs"]
        rows = [*self.token_rows, *self.validation]
        self.watch.event("said", text=f"{len(rows):,} pairs are read by the student as it starts: the reference")
        found: dict[str, list[float]] = {}
        self.model.eval()
        with torch.no_grad():
            for batch in self.batches(rows):
                inputs = self._prepare_inputs(self.read(batch))
                found |= zip((row.id for _, row in batch), self.logprobs(inputs).tolist(), strict=True)
        write_whole(path, json.dumps({"of": self.fingerprint, "logprobs": found}))
        return found

    def batches(self, rows: Sequence[tuple[int, TokenRow]]) -> list[list[tuple[int, TokenRow]]]:
        """Every pair once, in batches of like length: without gradients."""
        lengths = [2 * max(len(row.input_ids), len(self.rejected(row).input_ids)) for _, row in rows]
        return [[rows[i] for i in batch] for batch in by_length(lengths, self.evaluation_tokens)]

    def rejected(self, row: TokenRow) -> TokenRow:
        """The other half of a pair."""
        target = self.lesson.targets[row.id]
        assert isinstance(target, Rejected)
        return target.row

    def read(self, rows: Sequence[tuple[int, TokenRow]]) -> dict[str, Any]:
        """Padded tensors of some pairs, (2 × pairs, T): the chosen and the rejected answer alternate."""
        batch = collate(rows, self.pad, self.lesson.targets)
        batch.pop("taught")
        batch["weights"] = batch["weights"][::2]
        batch["trained"] += torch.tensor([sum(self.rejected(row).trained[1:]) for _, row in rows])
        return batch

    def collate(self, rows: Sequence[tuple[int, TokenRow]]) -> dict[str, Any]:
        """`read` with the reference, (pairs, 2)."""
        reference = torch.tensor([self.reference[row.id] for _, row in rows], dtype=torch.float64)
        return self.read(rows) | {"reference": reference}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """A step's micro-batches and the number of pairs in all of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, torch.tensor(len(self.step_rows), device=device)

    def logprobs(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Log-likelihoods of a batch's answers, (pairs, 2)."""
        return pair_logprobs(self.decoder, inputs, plain=self.plain, vocabulary=self.vocabulary)

    def summed_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Summed loss of a batch's pairs, each by its weight."""
        loss, margin = preference_loss(self.logprobs(inputs), inputs["reference"], self.lesson.teach.dpo_beta)
        if torch.is_grad_enabled():
            self.pairs += len(margin)
            self.margin += float(margin.detach().sum())
            self.right += float((margin > 0).sum())
        return (loss * inputs["weights"]).sum().float()

    def validation_loss(self) -> float:
        """Mean loss of the validation pairs."""
        batches = self.batches(self.validation)
        total = sum(float(self.summed_loss(self._prepare_inputs(self.collate(batch)))) for batch in batches)
        return total / max(len(self.validation), 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What TRL logs, and the mean margin and accuracy of the pairs since the last time."""
        if self.pairs and "loss" in logs:
            for name, told in (("reward_margin", self.margin), ("reward_accuracy", self.right)):
                self.watch.event("metric", name=f"train/{name}", value=told / self.pairs, step=self.state.global_step)
            self.pairs, self.margin, self.right = 0, 0.0, 0.0
        super().log(logs, start_time)
