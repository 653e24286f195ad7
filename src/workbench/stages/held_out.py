"""Held-out rows as token ids: what a format, and later a served bundle, is held against the student on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.bundles.parity import TOP, Reference, kl_on_shared, top_of
from workbench.data.chat import load_tokenizer, render, render_all
from workbench.engines.served import forced, in_slots, serve_bundle
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.answers import read_predictions
from workbench.evaluation.report import settings_of
from workbench.evaluation.scorers import deciding_score, portable
from workbench.files import read_json
from workbench.recipe import Evaluate, Recipe
from workbench.records import Message, TokenRow
from workbench.runs import Run
from workbench.stages.common import merged_model
from workbench.stages.rows import part

if TYPE_CHECKING:
    from workbench.compress.merge_adapter import Seen

PROBE_ROWS = 32  # validation rows that a format is held against the student on
SERVED_TOP = 100  # alternatives a served engine is asked for at each position


def probe_rows(recipe: Recipe, run: Run) -> list[TokenRow]:
    """Validation rows as they were trained on, of which the last answer carries the loss."""
    last = replace(recipe.method, train_on="last_answer")
    probes = part(recipe, run, "validation")[:PROBE_ROWS]
    return render_all(probes, load_tokenizer(merged_model(run), None), last)


def parted(row: TokenRow) -> tuple[list[int], list[int]]:
    """A row's prompt, and its last answer with the stop token."""
    start = len(row.trained) - row.trained[::-1].index(False)
    return list(row.input_ids[:start]), list(row.input_ids[start:])


def distance(recipe: Recipe, run: Run, folder: Path, engine: str, student: Seen) -> dict[str, Any]:
    """How far a quantized folder is from the student on the probe rows: mean KL in nats, agreement, flip rate.

    `student` is what the student sees on them. In llama.cpp the KL is over its SERVED_TOP likeliest
    tokens and one bucket for the rest, a lower bound of the whole.
    """
    from workbench.compress.merge_adapter import agreement, folder_logprobs

    wanted = probe_rows(recipe, run)
    if engine != "llamacpp":
        facts = agreement(student, folder_logprobs(folder, wanted, device=recipe.launch.device))
        return facts | {"measured_in": "transformers"}
    total, same, positions = 0.0, 0, 0
    with serve_bundle(folder, engine, context=recipe.bundle.context, threads=recipe.launch.threads) as at:

        def forced_row(row: TokenRow, slot: int) -> list[dict[int, float]]:
            return forced(at, *parted(row), SERVED_TOP, slot)

        for served, logprobs in zip(in_slots(at, forced_row, wanted), student, strict=True):
            for mine, theirs in zip(top_of(logprobs, SERVED_TOP), served, strict=True):
                total += kl_on_shared(mine, theirs)
                same += max(mine, key=mine.__getitem__) == max(theirs, key=theirs.__getitem__)
                positions += 1
    share = same / positions
    facts = {"kl": total / positions, "top_token_agreement": share, "flip_rate": 1 - share}
    return facts | {"rows": len(wanted), "positions": positions, "measured_in": "llama.cpp"}


def scoring_of(run: Run) -> tuple[Evaluate, str]:
    """How a bundle's answers are scored, by whoever checks it; and why it is not as the recipe says, or ""."""
    return portable(settings_of(read_json(run.folder / "evaluate" / "report.json")))


def references(recipe: Recipe, run: Run) -> list[Reference]:
    """Test rows with what the student answered in training's own engine, and how likely it held each token.

    A row whose answer cannot be rendered again (it holds a special token, or is empty) is followed along the wanted
    answer instead.
    """
    from workbench.compress.merge_adapter import folder_logprobs

    tokenizer = load_tokenizer(merged_model(run), None)
    scored, _ = scoring_of(run)
    answers = run.folder / "evaluate" / "predictions"
    itself = answers / "student.own.jsonl"  # where siblings were judged: what the student says to its own test rows
    predictions = {p.id: p for p in read_predictions(itself if itself.is_file() else answers / "student.jsonl")}
    items = [e for e in part(recipe, run, "test") if e.id in predictions][: recipe.bundle.parity_rows]
    longest = recipe.method.max_length + recipe.evaluate.max_new_tokens
    rendered = []
    for item in items:
        own = predictions[item.id]
        for last in (Message("assistant", own.answer, reasoning=own.thoughts), item.messages[-1]):
            answered = replace(item, messages=(*item.prompt, last))
            try:
                rendered.append(render(answered, tokenizer, train_on="last_answer", max_length=longest))
                break
            except RequestError:
                continue
        else:
            raise WorkbenchError("this row cannot be rendered with its wanted answer", where=item.where)
    likely = folder_logprobs(merged_model(run), rendered, device=recipe.launch.device)
    built = []
    for item, row, values in zip(items, rendered, likely, strict=True):
        prompt, answer_ids = parted(row)
        own = predictions[item.id]
        built.append(
            Reference(
                id=item.id,
                messages=tuple(item.prompt),
                prompt_ids=tuple(prompt),
                answer_ids=tuple(answer_ids),
                top=tuple(top_of(values, TOP)),
                answer=own.answer,
                score=deciding_score(scored, own.expected, own.answer),
                finish="stop" if own.finish == "stop" else "length",
                expected=own.expected,
                tools=tuple(item.tools),
            )
        )
    return built
