"""What a run learns from, as one value, and the jobs that it becomes: a kind after the other on the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.chat import recipe_tokenizer, render_all, render_many, rendering_notes
from workbench.errors import RequestError
from workbench.files import changed_since, file_sha256, flush_tree, hashes_of, read_json, read_sealed, write_sealed
from workbench.recipe import Recipe, has_teacher
from workbench.recipe.methods import learned
from workbench.records import Example, TokenRow, digest
from workbench.runs import Run, kept_data
from workbench.stages.common import PREPARED, base_model
from workbench.stored_tokens import StoredTokens, lengths_of, stored_tokens, take_over, trained_in
from workbench.training.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.training.development import Development

TOKENS = "tokens"  # the folder of a run's `data/` where rows lie as the model sees them, when they are many
WRITTEN = "written.json"  # the hash of every file of a training that something else goes on from


@dataclass(frozen=True)
class Task:
    """What is learned from: rows with their weights and reasons by id, and the rows that judge, as they are rendered.

    `base` has the tokenizer they are rendered with. `event` receives what training tells; `development` is what the
    student is scored on as it learns; `judges` are the examples that `validation` was rendered from. `tokens` are the
    examples as they are rendered, where that is done already.
    """

    recipe: Recipe
    run: Run
    base: Path
    examples: Sequence[Example]
    weights: Mapping[str, float]
    reasons: Mapping[str, str]
    validation: Sequence[TokenRow]
    development: Development | None
    event: Callable[..., None]
    judges: Sequence[Example] = ()
    tokens: Sequence[TokenRow] | None = None

    def token_rows(self) -> Sequence[TokenRow]:
        """Every example as the model will see it."""
        return self.tokens if self.tokens is not None else rendered(self.recipe, self.base, self.examples)


@dataclass(frozen=True)
class Start:
    """The weights a kind begins from: a model's folder, and the adapter that is on it, if there is one.

    The adapter is that of the kind before, or `given` by the recipe.
    """

    base: Path
    adapter: Path | None = None
    given: bool = False


def jobs(task: Task, start: Start, folder: Path) -> Iterator[Job]:
    """A job for each kind of the recipe, in turn; the next begins where the one before has been trained to.

    The last is written into `folder`, those before into `folder/before`; a kind that is there as it was written is not
    trained again. What a training held is given back before the next job is made.
    """
    from workbench.engines.device import release_memory

    kinds, steps = learned(task.recipe.method), 0
    for number, kind in enumerate(kinds):
        name = kind.name
        last = number == len(kinds) - 1
        out = folder if last else folder / "before" / f"{number + 1}_{name}"
        if last or not is_trained(out, name, task.event):
            if len(kinds) > 1:
                task.event("said", text=f"{name}: {number + 1} of {len(kinds)} kinds")
            try:
                yield kind.job(after(task, steps), start, out)
            finally:
                release_memory()
            if not last:
                keep_trained(out)
        steps += read_json(out / "summary.json")["steps"]
        whole = task.recipe.method.kind == "full"
        start = Start(out / "model") if whole else Start(start.base, out / "adapter")


def is_trained(out: Path, name: str, event: Callable[..., None]) -> bool:
    """Whether a whole training lies in `out` as `keep_trained` left it; one that is damaged goes, aloud."""
    written = read_sealed(out / WRITTEN)
    fault = changed_since(out, written) if written else None
    if fault:
        event("said", text=f"{name} was trained, but {fault}: it is trained again")
        shutil.rmtree(out)
    return bool(written) and not fault


def keep_trained(out: Path) -> None:
    """Keep a whole training for who comes again: without what only going on takes, flushed, and by its hashes."""
    for part in ("checkpoints", "before"):
        shutil.rmtree(out / part, ignore_errors=True)
    flush_tree(out)
    write_sealed(out / WRITTEN, hashes_of(out))


def after(task: Task, steps: int) -> Task:
    """The task with its events' steps counted on from the kinds before."""

    def event(kind: str, **fields: Any) -> None:
        if fields.get("step") is not None:
            fields["step"] += steps
        task.event(kind, **fields)

    return replace(task, event=event) if steps else task


def job_of(task: Task, start: Start, out: Path, rows: Sequence[TokenRow], groups: Sequence[str] | None = None) -> Job:
    """Training on these rows' answers, as the recipe says: what every kind's job begins with.

    `groups` tie near copies among the rows that judge together; None: those of the task's own.
    """
    from workbench.stages.train.intervals import held_against  # with numpy, which reading a recipe need not wait for

    recipe = task.recipe
    return Job(
        base=start.base,
        method=recipe.method,
        rows=rows,
        out=out,
        validation=task.validation,
        development=task.development,
        start=start.adapter,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
        device=recipe.launch.device,
        threads=recipe.launch.threads,
        event=task.event,
        made_of=weights_digest(start.adapter) if start.given else "",
        compared=held_against(recipe, [group_of(e) for e in task.judges] if groups is None else groups, task.event),
    )


def group_of(example: Example) -> str:
    """What ties near copies of a row together: its group, or its own name."""
    return example.group or example.id


def start_model(recipe: Recipe, run: Run) -> Path:
    """The folder of the model that training starts from: the base, or a smaller one cut from its layers."""
    from workbench.training.shrink import shrunk

    return shrunk(base_model(recipe, run), recipe.model.shrink)


def weights_digest(folder: Path | None) -> str:
    """What an adapter's weights are."""
    return digest([file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]) if folder else ""


def rendered(recipe: Recipe, base: Path, examples: Sequence[Example]) -> list[TokenRow]:
    """Every row as the model will see it; the first row that cannot be trained on as asked is an error.

    Raw text is no conversation: of it the beginning is shown, and what `pretrain` makes of it is its own.
    """
    tokenizer = recipe_tokenizer(base, recipe.model, recipe.method)
    if examples and not any(example.prompt for example in examples):
        return [as_text(example, tokenizer, recipe.method.max_length) for example in examples]
    return render_all(examples, tokenizer, recipe.method)


def many_rendered(recipe: Recipe, run: Run, base: Path) -> StoredTokens | None:
    """The run's training rows as the model will see them, in `data/tokens/`, where they are too many to hold.

    They are rendered there once, shard by shard, and read from there by whoever comes again. None where they are few,
    or where a kind learns of anything else than rows' own answers.
    """
    if has_teacher(recipe) or not all(kind.name in ("sft", "text") for kind in learned(recipe.method)):
        return None
    from workbench.stages.rows import many_rows  # with all that asks a teacher: a recipe is read without

    examples = many_rows(run)
    if examples is None or not examples[0].prompt:
        return None
    method, tokenizer = recipe.method, recipe_tokenizer(base, recipe.model, recipe.method, light=True)
    keys = ("train_on", "max_length", "reasoning", "too_long")
    words = [file_sha256(path) for path in sorted(base.glob("tokenizer*")) if path.is_file()]
    rows = (kept_data(run, PREPARED) or {})["train.jsonl"]
    of = digest([rows, tokenizer.chat_template, words, [getattr(method, key) for key in keys]], 32)

    def make(first: int, last: int) -> tuple[list[tuple[int, TokenRow]], int]:
        part = list(examples[first:last])
        numbered = [replace(example, id=str(number)) for number, example in enumerate(part)]
        made = [(int(row.id), row) for row in render_many(numbered, tokenizer, method)]
        own = [(first + number, replace(row, id=part[number].id)) for number, row in made]
        return own, sum(example.good is False for example in part)

    folder = run.folder / "data" / TOKENS
    for other in sorted(run.folder.parent.glob(f"*/data/{TOKENS}")):
        take_over(other, folder, of)
    tokens = stored_tokens(folder, of, len(examples), make)
    if not len(tokens):
        raise RequestError(f"all {len(examples):,} rows are longer", where="method.max_length", remedy="raise it")
    return tokens


def notes_of(recipe: Recipe, run: Run, base: Path, examples: Sequence[Example], tokens: StoredTokens) -> list[str]:
    """What `rendering_notes` says of so many rows, read beside their tokens where it has been looked up before."""
    path = run.folder / "data" / TOKENS / "notes.json"
    known = read_sealed(path) or {}
    if known.get("of") != tokens.digest:
        tokenizer = recipe_tokenizer(base, recipe.model, recipe.method, light=True)
        known = {"of": tokens.digest, "notes": rendering_notes(examples, tokenizer, recipe.method)}
        write_sealed(path, known)
    return known["notes"]


def as_text(example: Example, tokenizer: PreTrainedTokenizerBase, most: int) -> TokenRow:
    """The beginning of a document, `most` tokens, as a model reads it: all but the first token is predicted."""
    ids = tuple(tokenizer(example.answer)["input_ids"])[:most]
    return TokenRow(example.id, ids, (False, *[True] * (len(ids) - 1)), example.where)


def token_line(training: Sequence[TokenRow], max_length: int) -> str:
    """One line with the token counts."""
    lengths, trained = sorted(lengths_of(training)), trained_in(training)
    return (
        f"{sum(lengths):,} tokens in {len(lengths):,} rows (median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}, limit {max_length}), {trained:,} of them trained"
    )
