"""The kind preference: the student is sampled, what it says otherwise than its teacher is rejected, and pairs train it.

A prompt's rows are all that the teacher said to it (gold answers mixed in among them). A sample that says the same as
any of them makes no pair; any other makes one with each, of that row's weight. The same sample counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.chat import recipe_tokenizer, render
from workbench.errors import RequestError, WorkbenchError
from workbench.progress_bar import progress
from workbench.recipe import Evaluate, Recipe
from workbench.recipe.methods import Kind
from workbench.records import Example, Message, TokenRow
from workbench.stages.train.task import Start, Task, job_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.training.dpo import Pair
    from workbench.training.job import Job
    from workbench.training.sampling import Sample

SAMPLES = "samples.jsonl"
# What keeps a sample from making a pair, in the words of the line that counts them.
SAME, AGAIN, UNUSABLE = "say what the teacher says", "repeat another", "cannot be trained on (empty, or too long)"


@dataclass(frozen=True)
class Question:
    """One prompt, as token ids, and the rows with what the teacher said to it."""

    prompt: tuple[int, ...]
    examples: tuple[Example, ...]
    rows: tuple[TokenRow, ...]


def job(task: Task, start: Start, out: Path) -> Job:
    """Sample the student at `start` and make pairs to train on; how many there are goes into the summary.

    With `method.max_steps` no more prompts are asked than its pairs take. Raises WorkbenchError when there is no pair.
    """
    from workbench.training.dpo import on_pairs
    from workbench.training.sampling import Asking, answers, student

    recipe, method, launch = task.recipe, task.recipe.method, task.recipe.launch
    teach = method.teach
    if not task.examples:
        raise RequestError("there are no training rows", where="data.train")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe_tokenizer(task.base, recipe.model, recipe.method)
    learned = questions(task.examples, task.weights, tokenizer, method.max_length)
    judged = questions(task.judges, {}, tokenizer, method.max_length, "validation:")
    longest = max(len(item.prompt) for item in (*learned, *judged)) + teach.max_new_tokens
    stop = learned[0].rows[0].input_ids[-1]
    how = Asking(teach.samples, teach.sample_temperature, teach.max_new_tokens, recipe.seed, stop)
    of = f"{start.base} {start.adapter} {recipe.model.dtype} {method.kind}"
    with student(
        start.base, start.adapter, method, tokenizer, dtype=recipe.model.dtype, device=launch.device,
        threads=launch.threads, longest=longest, seed=recipe.seed,
    ) as draw:  # fmt: skip

        def pairs(items: Sequence[Question], samples: int, file: str, wanted: int | None) -> tuple[list[Pair], str]:
            sampled = answers(
                draw, [item.prompt for item in items], replace(how, samples=samples), out / file, of=of,
                batch_tokens=recipe.evaluate.batch_tokens,
            )  # fmt: skip
            return gathered(items, sampled, recipe, tokenizer, wanted)

        wanted = None if method.max_steps is None else method.max_steps * method.batch_size
        training, line = pairs(learned, teach.samples, SAMPLES, wanted)
        task.event("said", text=f"the student was asked {line}")
        if not training:
            raise WorkbenchError(
                f"the student was asked {line}: there is nothing to prefer",
                where="method.distil",
                remedy="leave preference out where the student says what its teacher says already; else raise "
                "method.teach.sample_temperature, method.teach.samples or method.teach.max_new_tokens",
            )
        validation, line = pairs(judged, 1, f"validation_{SAMPLES}", None)
        if judged:
            task.event("said", text=f"for the evaluation loss it was asked {line}")
    counts = {"pairs": len(training), "validation_pairs": len(validation)}
    return replace(on_pairs(job_of(task, start, out, []), training, validation), facts=counts)


KINDS = [Kind("preference", job, samples=True, alone=True)]


def questions(
    examples: Sequence[Example],
    weights: Mapping[str, float],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    mark: str = "",
) -> list[Question]:
    """The examples by their prompts, in the order of the first of each; `mark` begins their rows' ids."""
    by_prompt: dict[tuple[int, ...], list[tuple[Example, TokenRow]]] = {}
    for example in examples:
        row = rendered(example, tokenizer, max_length)
        named = replace(row, id=mark + row.id, weight=weights.get(row.id, 1.0))
        by_prompt.setdefault(row.input_ids[: row.answer_start], []).append((example, named))
    return [
        Question(prompt, tuple(example for example, _ in both), tuple(row for _, row in both))
        for prompt, both in by_prompt.items()
    ]


def rendered(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenRow:
    """The row with its last answer trained: earlier turns are the same in both halves of a pair, and would cancel."""
    return render(example, tokenizer, train_on="last_answer", max_length=max_length)


def gathered(
    items: Sequence[Question],
    answers: Iterator[tuple[int, Sequence[Sample]]],
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    wanted: int | None,
) -> tuple[list[Pair], str]:
    """The pairs that the answers make, `wanted` or a few more at most, and a line that counts what came of how many."""
    pairs: list[Pair] = []
    tally, heard, prompts = Counter[str](), 0, 0
    with progress("sampling", len(items), facts=lambda: f"{len(pairs):,} pairs") as move:
        for number, samples in answers:
            pairs += pairs_of(items[number], samples, recipe, tokenizer, tally)
            heard, prompts = heard + len(samples), prompts + 1
            move(prompts)
            if wanted is not None and len(pairs) >= wanted:
                break
    others = "".join(f"; {count:,} {why}" for why, count in tally.most_common())
    enough = ", which gives the pairs that its steps take" if prompts < len(items) else ""
    return pairs, (
        f"{prompts:,} of {len(items):,} prompts{enough}: {len(pairs):,} pairs come of {heard:,} answers{others}"
    )


def pairs_of(
    question: Question,
    samples: Sequence[Sample],
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    tally: Counter[str],
) -> list[Pair]:
    """The pairs of one prompt; what a sample makes none for is counted in `tally`."""
    from workbench.training.dpo import Pair

    pairs: list[Pair] = []
    seen: set[str] = set()
    for number, answer in enumerate(samples):
        text = answer.text.strip()
        if says_the_same(recipe.evaluate, question.examples, text):
            tally[SAME] += 1
            continue
        if text in seen:
            tally[AGAIN] += 1
            continue
        seen.add(text)
        example = question.examples[0]
        try:
            other = replace(example, messages=(*example.prompt, Message("assistant", text)))
            rejected = rendered(other, tokenizer, recipe.method.max_length)
        except RequestError:
            tally[UNUSABLE] += 1
            continue
        if not answer.whole:  # it was cut before its stop token, which it shall not be blamed for
            rejected = replace(rejected, input_ids=rejected.input_ids[:-1], trained=rejected.trained[:-1])
        for row in question.rows:
            name = f"{row.id}~against{number + 1}"
            pairs.append(Pair(replace(row, id=name), replace(rejected, id=name)))
    return pairs


def says_the_same(evaluate: Evaluate, examples: Sequence[Example], text: str) -> bool:
    """Whether the text is one of the answers, or gets full marks beside one by the recipe's scorer.

    An answer of the teacher's that the scorer cannot read is held against by its text alone.
    """
    from workbench.stages.train.guards import scores_of

    def same(example: Example) -> bool:
        try:
            return text == example.answer.strip() or scores_of(evaluate, [example], [text])[0] >= 1.0
        except RequestError:
            return False

    return any(map(same, examples))
