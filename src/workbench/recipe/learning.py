"""What a method learns: what its rows prefer or reward, and how a teacher teaches a student."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.recipe.key import key


@dataclass
class Prefer:
    """How rows with a better and a worse answer, or with a person's word on theirs, are learned from."""

    beta: float = key(
        0.1, "dpo, kto: how far the student may move from its start; orpo: weight of the odds ratio", above=0
    )
    good_weight: float = key(1.0, "kto: weight of a row called good", above=0)
    bad_weight: float = key(1.0, "kto: weight of a row called bad", above=0)


@dataclass
class Reward:
    """How the student's own answers are rewarded by the recipe's scorer (grpo), and what stops one that games it."""

    samples: int = key(4, "the student's answers a prompt, held against each other", at_least=2)
    temperature: float = key(1.0, "of those answers", above=0)
    max_new_tokens: int = key(64, "longest of those answers", unit="tokens", at_least=1)
    updates: int = key(1, "optimizer steps taken with the same answers; above 1 the ratio is clipped", at_least=1)
    clip: float = key(0.2, "most the ratio of new to old probability counts from 1", above=0, at_most=1)
    kl: float = key(0.04, "weight of the distance to the student as it starts (arXiv 2402.03300)", at_least=0)
    guard: str | None = key(
        None, "another scorer, by which held-out answers must not fall; null: generation, or exact_match beside it"
    )
    guard_rows: int = key(
        64, "validation rows answered for it at each evaluation; 0: no guard", unit="rows", at_least=0
    )
    guard_drop: float | None = key(
        0.1, "most that score may fall from its best while the reward rises; null: told, not judged", at_least=0,
        at_most=1,
    )  # fmt: skip


# The keys of distillation: what of the teacher is learned, how, and when a run that learns the wrong thing stops.


@dataclass
class Shrink:
    """A smaller student cut from the open model's own layers; `base` stays the whole model."""

    layers: int | None = key(None, "layers that stay; null: all of them", unit="layers", at_least=1)
    keep: str = key(
        "spread",
        "spread: the first, the last and evenly between; first: the first so many",
        choices=("spread", "first"),
    )


@dataclass
class Teach:
    """How a student is taught by its teacher; each kind in `method.distil` reads what it needs."""

    divergence: str = key(
        "forward_kl",
        "logprobs, on_policy: distance to the teacher's distribution",
        choices=("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"),
    )
    beta: float = key(0.5, "jsd: its mixture, 0 is forward KL, 1 reverse KL", at_least=0, at_most=1)
    skew: float = key(0.1, "skew_kl, skew_reverse_kl: share mixed in (arXiv 2402.03898)", at_least=0, at_most=1)
    temperature: float = key(
        1.0, "logprobs, on_policy: divides both sides; the term is scaled so that its gradient keeps its size",
        above=0,
    )  # fmt: skip
    weight: float = key(
        0.5, "logprobs: share of the teacher's term; cross entropy on the text has the rest", at_least=0, at_most=1
    )
    alignment: str = key(
        "auto",
        "logprobs: how the teacher's tokens meet the student's; auto: row by row, by what was stored and fits",
        choices=("auto", "tokens", "bytes", "labels"),
    )
    gold_share: float = key(0.0, "of the rows carry their own answer; 0: none of those is trained on", at_least=0,
                            at_most=0.9)  # fmt: skip
    answers: int = key(1, "different answers kept a prompt, of teacher.samples", at_least=1, at_most=64)
    vote_weight: bool = key(True, "an answer's share of the samples is its row's weight")
    rationale_weight: float = key(1.0, "rationale: weight of all reasons against all answers", above=0)
    dpo_beta: float = key(0.1, "preference: how far the student may move from its start (arXiv 2305.18290)", above=0)
    samples: int = key(1, "on_policy, preference: the student's own answers a prompt", at_least=1)
    sample_temperature: float = key(1.0, "on_policy, preference: of those answers", above=0)
    max_new_tokens: int = key(128, "on_policy, preference: longest of those answers", unit="tokens", at_least=1)
    development_rows: int = key(
        100, "validation rows with gold answers that teacher and student are held against; 0: none", unit="rows",
        at_least=0,
    )  # fmt: skip
    headroom: float | None = key(
        0.0, "the teacher's lead over base there must exceed this, lower end; null: told, not judged", at_least=-1,
        at_most=1, makes_weights=False,
    )  # fmt: skip
    hacking_drop: float | None = key(
        0.1, "most the student's score there may fall from its best while its loss falls; null: told, not judged",
        at_least=0, at_most=1, makes_weights=False,
    )  # fmt: skip
    curve: bool = key(False, "also train on 25 and 50 % of the labels, to say what the next ones would buy")
