"""The kind preference: the student is sampled, what it says otherwise than its teacher is rejected, and pairs train it.

A prompt's rows are all that the teacher said to it (gold answers mixed in among them). A sample that says the same as
any of them makes no pair; any other makes one with each, of that row's weight. The same sample counts once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.data.chat import load_tokenizer, render
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Evaluate, Recipe
from workbench.records import Example, Message, TokenRow
from workbench.runs import write_whole
from workbench.stages.common import SCREEN
from workbench.stages.guards import scores_of
from workbench.stages.learn import Start, Task

if TYPE_CHECKING:
    from workbench.training.preference import Pair
    from workbench.training.sampling import Said

LINE_SECONDS = 30.0
SAMPLES = "samples.jsonl"
# What keeps a sample from making a pair, in the words of the line that counts them.
SAME, AGAIN, UNUSABLE = "say what the teacher says", "repeat another", "cannot be trained on (empty, or too long)"


@dataclass(frozen=True)
class Question:
    """One prompt, as token ids, and the rows with what the teacher said to it."""

    prompt: tuple[int, ...]
    told: tuple[Example, ...]
    rows: tuple[TokenRow, ...]


def taught(task: Task, start: Start, out: Path) -> dict[str, Any]:
    """Sample the student at `start`, make pairs, train on them. Gives training's facts and `pairs`, among others.

    With `method.max_steps` no more prompts are asked than its pairs take. Raises WorkbenchError when there is no pair.
    """
    from workbench.training.preference import train
    from workbench.training.sampling import Asking, answers, student

    recipe, method, launch = task.recipe, task.recipe.method, task.recipe.launch
    teach = method.teach
    if not task.examples:
        raise RequestError("there are no training rows", where="data.train")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(task.base, recipe.model.chat_template)
    learned = questions(task.examples, task.weights, tokenizer, method.max_length)
    judged = questions(task.judges, {}, tokenizer, method.max_length, "validation:")
    longest = max(len(one.prompt) for one in (*learned, *judged)) + teach.max_new_tokens
    stop = learned[0].rows[0].input_ids[-1]
    how = Asking(teach.samples, teach.sample_temperature, teach.max_new_tokens, recipe.seed, stop)
    of = f"{start.base} {start.adapter} {recipe.model.dtype} {method.kind}"
    with student(
        start.base, start.adapter, method, tokenizer, dtype=recipe.model.dtype, device=launch.device,
        threads=launch.threads, longest=longest, seed=recipe.seed,
    ) as draw:  # fmt: skip

        def pairs(asked: Sequence[Question], samples: int, file: str, wanted: int | None) -> tuple[list[Pair], str]:
            told = answers(
                draw, [one.prompt for one in asked], replace(how, samples=samples), out / file, of=of,
                batch_tokens=recipe.evaluate.batch_tokens,
            )  # fmt: skip
            return gathered(asked, told, recipe, tokenizer, wanted)

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
    facts = train(
        start.base, method, training, validation, out, seed=recipe.seed, dtype=recipe.model.dtype,
        device=launch.device, threads=launch.threads, event=task.event, development=task.development,
        start=start.adapter,
    )  # fmt: skip
    facts |= {"pairs": len(training), "validation_pairs": len(validation)}
    write_whole(out / "summary.json", json.dumps(facts, indent=2) + "\n")
    return facts


def questions(
    examples: Sequence[Example], weights: Mapping[str, float], tokenizer: Any, max_length: int, mark: str = ""
) -> list[Question]:
    """The examples by their prompts, in the order of the first of each; `mark` begins their rows' ids."""
    found: dict[tuple[int, ...], list[tuple[Example, TokenRow]]] = {}
    for example in examples:
        row = rendered(example, tokenizer, max_length)
        named = replace(row, id=mark + row.id, weight=weights.get(row.id, 1.0))
        found.setdefault(row.input_ids[: row.answer_start], []).append((example, named))
    return [Question(prompt, tuple(e for e, _ in told), tuple(r for _, r in told)) for prompt, told in found.items()]


def rendered(example: Example, tokenizer: Any, max_length: int) -> TokenRow:
    """The row with its last answer trained: earlier turns are the same in both halves of a pair, and would cancel."""
    return render(example, tokenizer, train_on="last_answer", max_length=max_length)


def gathered(
    asked: Sequence[Question],
    answers: Iterator[tuple[int, Sequence[Said]]],
    recipe: Recipe,
    tokenizer: Any,
    wanted: int | None,
) -> tuple[list[Pair], str]:
    """The pairs that the answers make, `wanted` or a few more at most, and a line that counts what came of how many."""
    found: list[Pair] = []
    tally, heard, prompts = Counter[str](), 0, 0
    with progress(len(asked)) as tell:
        for number, said in answers:
            found += pairs_of(asked[number], said, recipe, tokenizer, tally)
            heard, prompts = heard + len(said), prompts + 1
            tell(prompts, len(found))
            if wanted is not None and len(found) >= wanted:
                break
    others = "".join(f"; {count:,} {why}" for why, count in tally.most_common())
    enough = ", which gives the pairs that its steps take" if prompts < len(asked) else ""
    return found, (
        f"{prompts:,} of {len(asked):,} prompts{enough}: {len(found):,} pairs come of {heard:,} answers{others}"
    )


def pairs_of(
    question: Question, said: Sequence[Said], recipe: Recipe, tokenizer: Any, tally: Counter[str]
) -> list[Pair]:
    """The pairs of one prompt; what a sample makes none for is counted in `tally`."""
    from workbench.training.preference import Pair

    found: list[Pair] = []
    seen: set[str] = set()
    for number, answer in enumerate(said):
        text = answer.text.strip()
        if says_the_same(recipe.evaluate, question.told, text):
            tally[SAME] += 1
            continue
        if text in seen:
            tally[AGAIN] += 1
            continue
        seen.add(text)
        example = question.told[0]
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
            found.append(Pair(replace(row, id=name), replace(rejected, id=name)))
    return found


def says_the_same(evaluate: Evaluate, told: Sequence[Example], text: str) -> bool:
    """Whether the text is one of the answers, or gets full marks beside one by the recipe's scorer.

    An answer of the teacher's that the scorer cannot read is held against by its text alone.
    """

    def same(example: Example) -> bool:
        try:
            return text == example.answer.strip() or scores_of(evaluate, [example], [text])[0] >= 1.0
        except RequestError:
            return False

    return any(map(same, told))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """Gives the function that is told the prompts asked and the pairs found. Without a terminal, a line at times."""
    columns = (
        TextColumn("  sampling"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[found]} pairs"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    last = time.monotonic()
    with Progress(*columns, console=SCREEN, disable=not SCREEN.is_terminal) as bar:
        task = bar.add_task("", total=total, found=0)

        def tell(prompts: int, found: int) -> None:
            nonlocal last
            bar.update(task, completed=prompts, found=found)
            if not SCREEN.is_terminal and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                SCREEN.print(f"  sampling · {prompts:,} of {total:,} prompts · {found:,} pairs", markup=False)

        yield tell
