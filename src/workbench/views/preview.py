"""Rows as the model will see them: every token, the trained ones in colour, the counts below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from workbench.data.chat import recipe_tokenizer, render_all
from workbench.data.prepare import documents, gather, prepare
from workbench.data.raw_text import document_row
from workbench.errors import RequestError
from workbench.recipe import Data, Recipe, judged_by, makes_rows, sources_of, weights_of
from workbench.recipe.methods import ANSWERS, JUDGED, PAIRS, TEXT, Kind, learned, material_of
from workbench.records import Example, TokenRow
from workbench.runs import find_run, run_digest
from workbench.screen import SafeConsole, json_line
from workbench.sources import content_digests, model_folder
from workbench.teacher.document_rows import ROWS, data_of
from workbench.views.plan import blank_filled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOR, AGAINST = "bold black on green", "bold black on red"  # tokens that become likelier, and those that become less so
UNWANTED = ("rejected", "bad")


def run(recipe: Recipe) -> int:
    """Show `rows` training rows as they are rendered, and count tokens over all of them."""
    teacher = recipe.teacher
    if teacher.api == "none" or makes_rows(recipe):
        data = made_data(recipe) if makes_rows(recipe) else recipe.data
        splits = prepare(data, recipe.seed, learns=material_of(recipe), judged_by=judged_by(recipe))
        examples, notes = splits.train, list(splits.notes)
    else:
        questions = gather(recipe.data, teacher.prompts, teacher.limit, recipe.seed, judged_by=judged_by(recipe))
        examples = [blank_filled(e) for e in questions.examples]
        notes = [*questions.notes, "the answers are the rows' own, or a stand-in: the teacher's are not there yet"]
    base = model_folder(recipe.model.source, recipe.model.sha256, key="model.source")
    tokenizer = recipe_tokenizer(base, recipe.model, recipe.method, light=True)
    kind = learned(recipe.method)[-1]
    if kind.documents and recipe.data.documents:
        read = documents(recipe.data, recipe.seed, splits.test)
        examples, notes = read.train, [*notes, *read.notes]
    examples = list(kind.conversations(examples))
    words = words_of(examples, kind)
    if kind.material == {TEXT}:
        rows = [document_row(example, tokenizer) for example in examples]
    else:
        # Of answers that are compared the last turn alone is trained: both have the turns before it.
        method = replace(recipe.method, train_on="last_answer") if words else recipe.method
        rows = render_all(examples, tokenizer, method, notes)
    if kind.replaces:
        notes.append(
            f"{kind.name} trains on what the student itself answers to these prompts; the answers shown guard it"
        )
    counts = {
        "rows": len(rows),
        "tokens": sum(len(r.input_ids) for r in rows),
        "trained_tokens": sum(sum(r.trained) for r in rows),
        "longest_row": max(len(r.input_ids) for r in rows),
        "max_length": recipe.method.max_length,
        "left_out": len(examples) - len(rows),
    }
    if recipe.output == "json":
        shown = [as_json(row, tokenizer, words.get(row.id)) for row in rows[: recipe.rows]]
        print(json_line({"rows": shown, "counts": counts, "said": notes}))
        return 0
    console = SafeConsole(highlight=False, markup=False)
    for row in rows[: recipe.rows]:
        trained = sum(row.trained)
        word = words.get(row.id)
        title = f"{row.where or row.id}{f', {word}' if word else ''}: {len(row.input_ids)} tokens, {trained} trained"
        console.rule(title, align="left")
        console.print(coloured(row, tokenizer, AGAINST if word in UNWANTED else FOR))
    console.rule(align="left")
    for line in notes:
        console.print(line, markup=False)
    share = counts["trained_tokens"] / counts["tokens"]
    console.print(
        f"{counts['tokens']:,} tokens in {counts['rows']:,} rows, {counts['trained_tokens']:,} trained ({share:.1%}), "
        f"longest {counts['longest_row']:,} of {counts['max_length']:,}"
        + (f", {counts['left_out']:,} left out that are longer" if counts["left_out"] else "")
    )
    return 0


def made_data(recipe: Recipe) -> Data:
    """The data section of a recipe whose teacher has made its rows; RequestError before it has."""
    run_id = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    run = find_run(Path(recipe.launch.experiments), recipe.name, run_id)
    if run is None or run.done("label") is None:
        raise RequestError(
            "the teacher has not made the rows yet", where="teacher.documents",
            remedy=f"python -m workbench label recipe={recipe.name}",
        )  # fmt: skip
    return data_of(recipe.data, run.folder.resolve() / "label" / ROWS)


def words_of(examples: Sequence[Example], kind: Kind) -> dict[str, str]:
    """By the row's id what its answer is to the kind: chosen or rejected, good or bad; empty where all are wanted."""
    if not kind.material & {PAIRS, JUDGED} or ANSWERS in kind.material:
        return {}
    wanted, unwanted = ("good", "bad") if JUDGED in kind.material else ("chosen", "rejected")
    return {e.id: unwanted if not e.rejected and e.good is False else wanted for e in examples}


def coloured(row: TokenRow, tokenizer: PreTrainedTokenizerBase, style: str) -> Text:
    """The row's text; trained tokens in that style and, where there is no colour, between ⟦ and ⟧."""
    text = Text()
    for ids, trained in stretches(row):
        piece = tokenizer.decode(ids)
        text.append(f"⟦{piece}⟧" if trained else piece, style=style if trained else "dim")
    return text


def stretches(row: TokenRow) -> list[tuple[list[int], bool]]:
    """Neighbouring tokens of one kind, so that multi-token characters decode whole."""
    parts: list[tuple[list[int], bool]] = []
    for token, trained in zip(row.input_ids, row.trained, strict=True):
        if parts and parts[-1][1] == trained:
            parts[-1][0].append(token)
        else:
            parts.append(([token], trained))
    return parts


def as_json(row: TokenRow, tokenizer: PreTrainedTokenizerBase, word: str | None) -> dict[str, Any]:
    """The row's stretches as text, each marked as trained or not, and what its answer is to a kind that compares."""
    parts = [{"text": tokenizer.decode(ids), "tokens": len(ids), "trained": t} for ids, t in stretches(row)]
    return {"id": row.id, "where": row.where} | ({"answer": word} if word else {}) | {"parts": parts}
