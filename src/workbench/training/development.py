"""The student's score on gold development rows as it trains, and the sign of one that games its teacher's answers.

A student that gets better at the answers it is trained on and worse at the task learns what is wrong in its teacher
(teacher hacking, arXiv 2502.02671): its loss falls, and so does its score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.engines.decode import left_padded
from workbench.errors import GateError
from workbench.records import TokenRow
from workbench.training.batches import by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STANDARD_ERRORS = 2.0  # of the paired difference: a fall that is smaller may be chance
KEY = "method.teach.hacking_drop"
REMEDY = "mix gold rows in (method.teach.gold_share), or look at what the teacher gets wrong"
BATCH_TOKENS = 4096  # padded prompt tokens asked at once


@dataclass(frozen=True)
class Point:
    """One look: the step, each row's score (0 to 1), their mean, and the loss at that step with its name."""

    step: int
    score: float
    scores: list[float]
    loss: float
    loss_name: str


@dataclass(frozen=True)
class Development:
    """Gold rows, and how the answer to the n-th of them is scored; `drop` is the most it may fall, None: any.

    By the score the best step is chosen where it `decides`. `key` is the recipe's for `drop`, `remedy` what else may
    be done where the score falls by more. `all_scores` scores all answers at once, in the place of `score`.
    """

    rows: Sequence[TokenRow]
    score: Callable[[int, str], float]
    max_new_tokens: int
    drop: float | None = None
    decides: bool = True
    key: str = KEY
    remedy: str = REMEDY
    all_scores: Callable[[Sequence[str]], list[float]] | None = None

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: str) -> list[float]:
        """Each row's score by the model's greedy answer as it is now."""
        replies = answers(model, tokenizer, self.rows, self.max_new_tokens, device)
        if self.all_scores is not None:
            return self.all_scores(replies)
        return [self.score(number, answer) for number, answer in enumerate(replies)]

    def point(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str,
        step: int,
        loss: float,
        loss_name: str,
    ) -> Point:
        """One look at the model."""
        scores = self.scores(model, tokenizer, device)
        return Point(step, sum(scores) / len(scores), scores, loss, loss_name)


def noted(curve: list[dict[str, Any]], now: Point) -> list[Point]:
    """The curve with this look at its end; a step looked at once more after resuming replaces what was there."""
    curve[:] = [*(point for point in curve if point["step"] < now.step), asdict(now)]
    return [Point(**point) for point in curve]


def best_of(points: Sequence[Point]) -> Point:
    """The look with the highest score, the earliest of equals."""
    return max(points, key=lambda point: (point.score, -point.step))


def refuse_hacking(points: Sequence[Point], drop: float | None, key: str = KEY, remedy: str = REMEDY) -> None:
    """GateError when the last look's score fell by more than `drop` from the best one's while its loss fell on.

    The fall must also exceed two standard errors of the rows' paired differences, or chance would stop good runs.
    """
    now, best = points[-1], best_of(points)
    fall = best.score - now.score
    if drop is None or fall <= drop or now.loss >= best.loss:
        return
    paired = [b - a for b, a in zip(best.scores, now.scores, strict=True)]
    spread = math.sqrt(sum((p - fall) ** 2 for p in paired) / max(1, len(paired) - 1) / len(paired))
    if fall <= STANDARD_ERRORS * spread:
        return
    losses = ", ".join(f"{p.loss:.4f}" for p in points)
    scores = ", ".join(f"{p.score:.3f}" for p in points)
    steps = ", ".join(str(p.step) for p in points)
    raise GateError(
        f"the student falls while its {now.loss_name} falls: at steps {steps} the {now.loss_name} was {losses} and the "
        f"score on {len(now.scores)} gold development rows {scores}; its best was {best.score:.3f} at step {best.step}",
        where=key,
        remedy=f"the checkpoint step-{best.step:08d} is kept: train for {best.step} steps (method.max_steps), {remedy}",
    )


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], device: str
) -> list[dict[str, str]]:
    """What the model answers to some rows' prompts as it is now, beside what was wanted."""
    shown = []
    for row in rows:
        first = row.answer_start
        longest = min(len(row.input_ids) - first + 16, 256)
        (answer,) = answers(model, tokenizer, [row], longest, device)
        parts = (row.input_ids[:first], row.input_ids[first:])
        prompt, wanted = (tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
        shown.append({"prompt": prompt, "expected": wanted, "answer": answer})
    return shown


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TokenRow],
    max_new_tokens: int,
    device: str,
) -> list[str]:
    """Greedy answers to the rows' prompts, in batches padded on the left, stopped by the rows' own stop token."""
    from transformers import GenerationConfig

    stop = rows[0].input_ids[-1]
    prompts = [row.input_ids[: row.answer_start] for row in rows]
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=stop, pad_token_id=stop
    )
    replies = [""] * len(rows)
    was_training = model.training
    model.eval()
    # Each new length would compile the layers anew.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in by_length([len(prompt) for prompt in prompts], BATCH_TOKENS):
            ids, mask = left_padded([prompts[number] for number in batch], stop, device)
            # Of several processes one writes answers: transformers would wait for all where weights lie in shards.
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=False)
            made = made[:, ids.shape[1] :].tolist()
            for number, new in zip(batch, made, strict=True):
                replies[number] = tokenizer.decode(
                    new[: new.index(stop)] if stop in new else new, skip_special_tokens=True
                )
    model.train(was_training)
    return replies
