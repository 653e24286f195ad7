"""Train: rows and a base model become an adapter (or, for full fine-tuning, a model), proven to have moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.compress.preflight import preflight
from workbench.data.load import write_quarantine
from workbench.errors import RequestError
from workbench.recipe import Recipe
from workbench.records import TokenRow
from workbench.runs import Run, stage
from workbench.sources import model_folder
from workbench.stages.common import is_done, log_datasets, rows, say


def run(recipe: Recipe, run: Run) -> bool:
    """Train unless it is done. What a killed attempt has saved is gone on from."""
    if is_done(run, "train", run.digest):
        return False
    base = model_folder(recipe.model.source, recipe.model.sha256)
    refuse_impossible_formats(recipe, base)
    with stage(run, "train", run.digest, resume=True) as staging:
        splits = rows(recipe, run)
        for line in splits.said:
            say(run, "train", line)
        if splits.bad:
            write_quarantine(splits.bad, staging.folder / "quarantine.jsonl")
            say(run, "train", f"{len(splits.bad)} rows set aside in {staging.final / 'quarantine.jsonl'}")
        log_datasets(run, "train", splits.datasets, ("training", "validation"))
        training, validation = rendered(recipe, base, splits.train), rendered(recipe, base, splits.validation)
        say(run, "train", token_line(training, recipe.method.max_length))

        from workbench.training.sft import train

        def event(kind: str, **fields: Any) -> None:
            if kind == "said":
                say(run, "train", fields["text"])
            else:
                run.event(kind, stage="train", **fields)

        staging.facts = train(
            base,
            recipe.method,
            training,
            validation[: recipe.method.validation_rows],
            staging.folder,
            seed=recipe.seed,
            dtype=recipe.model.dtype,
            device=recipe.launch.device,
            threads=recipe.launch.threads,
            event=event,
        )
        staging.scratch = ["checkpoints"]
        staging.artefacts = ["model" if recipe.method.kind == "full" else "adapter"]
    return True


def rendered(recipe: Recipe, base: Path, examples: list[Any]) -> list[TokenRow]:
    """Every row as the model will see it; the first row that cannot be trained on as asked is an error."""
    from workbench.data.chat import load_tokenizer, render

    tokenizer = load_tokenizer(base, recipe.model.chat_template)
    method = recipe.method
    return [render(e, tokenizer, train_on=method.train_on, max_length=method.max_length) for e in examples]


def token_line(training: list[TokenRow], max_length: int) -> str:
    """One line with the token counts."""
    lengths = sorted(len(r.input_ids) for r in training)
    trained = sum(sum(r.trained) for r in training)
    return (
        f"{sum(lengths):,} tokens in {len(lengths):,} rows (median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}, limit {max_length}), {trained:,} of them trained"
    )


def refuse_impossible_formats(recipe: Recipe, base: Path) -> None:
    """Before hours are spent: the wanted formats must be possible for this model's shapes and tokenizer."""
    shape = json.loads((base / "config.json").read_text())
    wanted = {name: q.format for name, q in recipe.quantize.items()}
    for verdict in preflight(shape, base / "tokenizer.json", list(wanted.values())):
        if not verdict.ok:
            raise RequestError(f"{verdict.format}: {verdict.why}", where="quantize", remedy=verdict.remedy)
