"""What a run learns, kind after kind on the same weights: its rows, or a teacher's text, reasons, log-probabilities."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.data.chat import load_tokenizer, render, render_all
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Recipe
from workbench.recipe.distil import KINDS
from workbench.records import Example, Message, TokenRow
from workbench.runs import Run, read_json
from workbench.teacher.logprobs import read_parquet

PLAIN = "sft"  # the rows' own answers, where no kind of distillation is named
MARK = "[rationale]"  # the task's prefix in the user's text (arXiv 2305.02301 trains on [label] and [rationale])


@dataclass(frozen=True)
class Task:
    """What is learned from: rows with their weights and reasons by id, and the rows that judge, as they are rendered.

    `base` has the tokenizer they are rendered with. `event` receives what training tells; `development` is what the
    student is scored on as it learns; `judges` are the examples that `validation` was rendered from.
    """

    recipe: Recipe
    run: Run
    base: Path
    examples: Sequence[Example]
    weights: Mapping[str, float]
    reasons: Mapping[str, str]
    validation: Sequence[TokenRow]
    development: Any
    event: Callable[..., None]
    judges: Sequence[Example] = ()


@dataclass(frozen=True)
class Start:
    """The weights a kind begins from: a model's folder, and the adapter of the kind before it, if there is one."""

    base: Path
    adapter: Path | None = None


def learn(task: Task, start: Start, folder: Path) -> dict[str, Any]:
    """Every kind of the recipe in turn; the last writes into `folder`, those before into `folder/before`.

    A kind that is whole there is not learned again. Gives the last kind's facts.
    """
    kinds, facts, steps = task.recipe.method.distil or [PLAIN], {}, 0
    for number, kind in enumerate(kinds):
        last = number == len(kinds) - 1
        out = folder if last else folder / "before" / f"{number + 1}_{kind}"
        if not last and (out / "summary.json").is_file():
            facts = read_json(out / "summary.json")
        else:
            if len(kinds) > 1:
                task.event("said", text=f"{kind}: {number + 1} of {len(kinds)} kinds")
            facts = taught(kind, after(task, steps), start, out)
            if not last:
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
        steps += facts["steps"]
        whole = task.recipe.method.kind == "full"
        start = Start(out / "model") if whole else Start(start.base, out / "adapter")
    return facts


def after(task: Task, steps: int) -> Task:
    """The task with its events' steps counted on from the kinds before."""

    def event(kind: str, **fields: Any) -> None:
        if fields.get("step") is not None:
            fields["step"] += steps
        task.event(kind, **fields)

    return replace(task, event=event) if steps else task


def taught(kind: str, task: Task, start: Start, out: Path) -> dict[str, Any]:
    """One kind, from `start`, into `out`: the one place where a kind is chosen. Gives its facts, `steps` among them."""
    match kind:
        case "sft" | "text":
            return supervised(task, start, out, answer_rows(task))
        case "rationale":
            return supervised(task, start, out, [*answer_rows(task), *reason_rows(task)])
        case "logprobs":
            rows = answer_rows(task)
            return supervised(task, start, out, rows, said_by_teacher(task, rows))
        case "on_policy":
            from workbench.stages import on_policy

            return on_policy.taught(task, start, out)
        case "preference":
            from workbench.stages import preference

            return preference.taught(task, start, out)
    raise RequestError(f"{kind!r} is no kind of distillation", where="method.distil", remedy=", ".join(KINDS))


def supervised(
    task: Task, start: Start, out: Path, rows: Sequence[TokenRow], targets: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Training on rows, with a teacher's targets where there are some."""
    from workbench.training.distil import Lesson
    from workbench.training.sft import train

    method, launch = task.recipe.method, task.recipe.launch
    task.event("said", text=token_line(rows, method.max_length))
    return train(
        start.base,
        method,
        rows,
        task.validation,
        out,
        seed=task.recipe.seed,
        dtype=task.recipe.model.dtype,
        device=launch.device,
        threads=launch.threads,
        event=task.event,
        lesson=Lesson(targets or {}, method.teach),
        development=task.development,
        start=start.adapter,
    )


def answer_rows(task: Task) -> list[TokenRow]:
    """The examples as they are learned, each with its weight."""
    rows = rendered(task.recipe, task.base, task.examples)
    return [replace(row, weight=task.weights.get(row.id, 1.0)) for row in rows]


def reason_rows(task: Task) -> list[TokenRow]:
    """The second task (Distilling step-by-step, arXiv 2305.02301): the same prompt, marked, asks for the reason.

    The paper adds both tasks' mean losses, so reasons, which are longer, are weighed down to the answers' sum.
    """
    marked = [marked_for_reason(e, task.reasons[e.id]) for e in task.examples if e.id in task.reasons]
    if not marked:
        raise WorkbenchError("no kept answer has a reason", where="label/labels.jsonl", remedy="teacher.rationale=true")
    rows = rendered(task.recipe, task.base, marked)
    of_answers = sum(sum(row.trained) for row in rendered(task.recipe, task.base, task.examples))
    of_reasons = sum(sum(row.trained) for row in rows)
    share = task.recipe.method.teach.rationale_weight * of_answers / of_reasons
    task.event(
        "said",
        text=f"{len(rows):,} rows ask for the reason, marked {MARK}: {of_reasons:,} tokens beside {of_answers:,} of "
        f"answers, each with weight {share:.3g}",
    )
    return [replace(row, id=f"{row.id}~why", weight=share * task.weights.get(row.id, 1.0)) for row in rows]


def marked_for_reason(example: Example, reason: str) -> Example:
    """The row with its last user text marked and the reason as the answer."""
    turns = list(example.prompt)
    last = max(n for n, turn in enumerate(turns) if turn.role == "user")
    turns[last] = Message("user", f"{MARK} {turns[last].content}")
    return replace(example, messages=(*turns, Message("assistant", reason)))


def said_by_teacher(task: Task, rows: Sequence[TokenRow]) -> dict[str, Any]:
    """The stored log-probabilities as targets for these rows; how many go which way is said."""
    from workbench.training.targets import answer_ids, targets_of, told_ways

    recipe = task.recipe
    tokenizer = load_tokenizer(task.base, recipe.model.chat_template)
    first = task.examples[0]
    labels = {
        label: answer_ids(
            render(
                replace(first, messages=(*first.prompt, Message("assistant", label))),
                tokenizer,
                train_on="last_answer",
                max_length=sys.maxsize,
            )
        )
        for label in recipe.teacher.labels
    }
    told = read_parquet(task.run.folder / "label" / "logprobs.parquet")
    targets, ways = targets_of(rows, told, tokenizer, alignment=recipe.method.teach.alignment, labels=labels)
    task.event("said", text=told_ways(ways))
    if not targets:
        raise WorkbenchError(
            f"none of the {len(rows):,} rows has log-probabilities that fit its answer",
            where="method.teach.alignment",
            remedy="method.teach.alignment=auto, or method.distil=[text]",
        )
    return targets


def rendered(recipe: Recipe, base: Path, examples: Sequence[Example]) -> list[TokenRow]:
    """Every row as the model will see it; the first row that cannot be trained on as asked is an error."""
    return render_all(examples, load_tokenizer(base, recipe.model.chat_template), recipe.method)


def token_line(training: Sequence[TokenRow], max_length: int) -> str:
    """One line with the token counts."""
    lengths = sorted(len(r.input_ids) for r in training)
    trained = sum(sum(r.trained) for r in training)
    return (
        f"{sum(lengths):,} tokens in {len(lengths):,} rows (median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}, limit {max_length}), {trained:,} of them trained"
    )
