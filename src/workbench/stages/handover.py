"""Hand the evaluation over: the test rows, rendered for the student, as a task for lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.data.chat import load_tokenizer, special_ids, template_switches, template_text
from workbench.evaluation.handover import FOLDER, export_task
from workbench.evaluation.report import STUDENT
from workbench.recipe import Recipe
from workbench.records import Example
from workbench.runs import Run, read_json
from workbench.stages.common import merged_model, say

# What a model's generation_config.json may add to greedy decoding, and the value that leaves the probabilities alone.
PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "num_beams": 1}


def hand_over(recipe: Recipe, run: Run, items: Sequence[Example], folder: Path) -> None:
    """Write `folder`/lm_eval, `folder` being the evaluation's; the figures are report.json's where it is written.

    The folder holds test rows: it stays in the run, and goes neither to MLflow nor into a bundle.
    """
    model = merged_model(run)
    tokenizer = load_tokenizer(model, None)
    switches = template_switches(tokenizer, str(model))
    prompts = [template_text(tokenizer, item.prompt, True, switches, item.where) for item in items]
    written = folder / "report.json"
    report: dict[str, Any] = read_json(written) if written.is_file() else {}
    said = export_task(
        folder / FOLDER,
        recipe.evaluate,
        items,
        prompts,
        stop_strings(model, tokenizer),
        task=recipe.data.name or recipe.name,
        arm=report.get("arms", {}).get(STUDENT),
        dtype=recipe.model.dtype,
        plain_greedy=plain_greedy(model),
        public=recipe.data.privacy == "public",
    )
    for line in said:
        say(run, "evaluate", line)


def stop_strings(model: Path, tokenizer: Any) -> list[str]:
    """The tokens that end an answer, as text: the tokenizer's own and all that generation_config.json names."""
    named = generation_config(model).get("eos_token_id")
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    return [tokenizer.decode([number]) for number in sorted(ids & special_ids(tokenizer))]


def plain_greedy(model: Path) -> dict[str, Any]:
    """What must be switched off for the most likely token to be taken each time."""
    config = generation_config(model)
    return {key: plain for key, plain in PLAIN.items() if config.get(key) not in (None, plain)}


def generation_config(model: Path) -> dict[str, Any]:
    """A model folder's generation_config.json."""
    path = model / "generation_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
