"""Divergences between a student's and a teacher's distribution, each with its gradient written out.

A `Divergence` takes log-probabilities of student and teacher, both (n, C) float32, and gives each row's value (n,) in
nats and its derivative by the student's log-probabilities (n, C). With p the teacher's, q the student's probability
and r = log p − log q, all of them are sums over the C outcomes of

    log_mix(r, β) = log(1 + β(eʳ − 1)) = log((βp + (1−β)q) / q)

which keeps its relative precision at every β. `training/head.py` takes them through a softmax over a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# A teacher's probability of nothing counts as e^−10000: the reverse divergences stay finite, the forward ones exact.
LOWEST = -10_000.0


def named(name: str, mix: float) -> Divergence:
    """A recipe's divergence. `mix` (0 to 1) is β of `jsd` and α of `skew_kl` and `skew_reverse_kl`, else unused."""
    match name:
        case "forward_kl":
            return forward_kl
        case "reverse_kl":
            return reverse_kl
        case "jsd":
            return partial(jsd, beta=mix)
        case "skew_kl":
            return partial(skew_kl, alpha=mix)
        case "skew_reverse_kl":
            return partial(skew_reverse_kl, alpha=mix)
    raise ValueError(f"no divergence {name!r}")


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ q) = Σ p (log p − log q): the student must cover whatever the teacher says."""
    p = teacher.exp()
    return (p * (teacher - student)).sum(-1), p.neg_()


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q ‖ p) = Σ q (log q − log p): the student may say only what the teacher would."""
    q = student.exp()
    terms = q * (student - teacher)
    return terms.sum(-1), q.add_(terms)


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised Jensen–Shannon divergence over β(1−β): forward KL at β = 0, reverse KL at β = 1, continuous between.

    (β KL(p ‖ m) + (1−β) KL(q ‖ m)) / (β(1−β)) with m = βp + (1−β)q, as in GKD (arXiv 2306.13649) but for the divisor,
    without which it vanishes at both ends. In terms of `log_mix` the sums are −Σ q log_mix(r, β)/β and
    −Σ p log_mix(−r, 1−β)/(1−β), and the derivative by log q is the first sum's term alone.
    """
    refuse_outside(beta)
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    ratio = teacher - student
    ours = student.exp().mul_(log_mix(ratio, beta)).div_(-beta)
    theirs = teacher.exp().mul_(log_mix(ratio.neg_(), 1 - beta, beta)).div_(-(1 - beta))
    return theirs.add_(ours).sum(-1), ours


def skew_kl(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ αp + (1−α)q) of DistiLLM (arXiv 2402.03898), where α = 0.1 is usual: forward KL with bounded gradients."""
    refuse_outside(alpha)
    p, inverse = teacher.exp(), student - teacher
    value = -(p * log_mix(inverse, 1 - alpha, alpha)).sum(-1)
    return value, p.neg_().mul_(torch.sigmoid(inverse.add_(log_odds(1 - alpha, alpha))))


def skew_reverse_kl(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q ‖ (1−α)p + αq) of DistiLLM: reverse KL that stays finite where the teacher's probability is nought."""
    refuse_outside(alpha)
    q, ratio = student.exp(), teacher - student
    terms = q * log_mix(ratio, 1 - alpha, alpha)
    value = -terms.sum(-1)
    return value, q.mul_(torch.sigmoid(ratio.add_(log_odds(1 - alpha, alpha)))).sub_(terms)


def log_mix(ratio: torch.Tensor, beta: float, rest: float | None = None) -> torch.Tensor:
    """log(1 + β(eʳ − 1)), elementwise; `rest` is 1 − β where that is known better than float subtraction gives it."""
    rest = 1 - beta if rest is None else rest
    if beta == 0:
        return torch.zeros_like(ratio)
    mixed = torch.log1p(beta * torch.expm1(ratio.clamp(max=60.0)))
    if beta > 0.5:  # 1 − β·(almost 1) would cancel
        mixed = torch.where(ratio < -0.5, torch.log(rest + beta * torch.exp(ratio)).clamp_(min=LOWEST), mixed)
    return torch.where(ratio > 60.0, ratio + math.log(beta), mixed)


def log_odds(part: float, rest: float) -> float:
    """log(part / rest), infinite at the ends."""
    return math.inf if rest == 0 else -math.inf if part == 0 else math.log(part / rest)


def refuse_outside(mix: float) -> None:
    """A share of a mixture lies between 0 and 1."""
    if not 0 <= mix <= 1:
        raise ValueError(f"a mixture's share is {mix}, not between 0 and 1")
