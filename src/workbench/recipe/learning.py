"""The keys of learning from one's own rows: what is preferred to what, and what is rewarded."""

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
