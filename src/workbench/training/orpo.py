"""ORPO (arXiv 2403.07691): the chosen answer is learned as text, and its odds are raised against the rejected one's.

No reference is held: the same step teaches the answer and moves it away from the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from workbench.training.batches import Batch
from workbench.training.dpo import Pair, as_pairs, likelier, paired
from workbench.training.job import Job, Loss, Moment, Student
from workbench.training.losses import trained_positions

CERTAIN = -1e-7  # a mean log-probability is at most this: at 0 the odds are infinite


def on_odds(job: Job, pairs: Sequence[Pair], validation: Sequence[Pair], weight: float) -> Job:
    """The job, trained on pairs with the odds ratio weighed by `weight`; its validation loss is ORPO's.

    With each loss come `train/odds_margin`, the mean of the log odds ratio, and `train/odds_accuracy`, the share of
    pairs where it is above 0.
    """
    return replace(as_pairs(job, pairs, validation), loss=partial(odds, weight=weight))


def odds(job: Job, student: Student, weight: float) -> Loss:
    """Σ over the pairs of ORPO's loss, each by its weight."""
    pairs, step = paired(job, student), {"margin": 0.0, "right": 0.0, "pairs": 0}

    def means(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask, _ = trained_positions(batch["labels"])
        return pairs.logprobs(batch) / mask.sum(1).view(-1, 2)

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        step.update(margin=0.0, right=0.0, pairs=0)
        return [pairs.collated(cut) for cut in cuts]

    def summed(batch: Batch) -> torch.Tensor:
        loss, margin = odds_loss(means(batch), weight)
        step["pairs"] += len(margin)
        step["margin"] += float(margin.detach().sum())
        step["right"] += float((margin > 0).sum())
        return (loss * batch["weights"]).sum().float()

    def metrics() -> dict[str, float]:
        return {"odds_margin": step["margin"] / step["pairs"], "odds_accuracy": step["right"] / step["pairs"]}

    return Loss(batches, summed, pairs.looks, metrics, held_out=lambda: likelier(pairs, means))


def odds_loss(mean_N2: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair's loss and log odds ratio, (N,), of the mean log-probability (nats a token) of both answers.

    With P the exponential of that mean, equations 2 to 7 are odds(y) = P / (1 − P),

        margin = log odds(y_w) − log odds(y_l),   loss = −log P(y_w) + λ · (−log σ(margin))
    """
    mean_N2 = mean_N2.clamp(max=CERTAIN)
    log_odds = mean_N2 - torch.log(-torch.expm1(mean_N2))
    margin = log_odds[:, 0] - log_odds[:, 1]
    return -mean_N2[:, 0] - weight * F.logsigmoid(margin), margin
