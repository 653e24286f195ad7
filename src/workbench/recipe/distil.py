"""The keys of distillation: what of the teacher is learned, how, and when a run that learns the wrong thing stops."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.recipe.keys import key


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
