"""Quantize: the merged model in each wanted format, calibrated on training rows; one stage a format."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from workbench.compress.preflight import write_format
from workbench.engines.served import engine_for
from workbench.recipe import Quantize, Recipe, source_text
from workbench.records import digest
from workbench.runs import Run, stage
from workbench.stages.common import hold_made, is_done, merged_model, need, say
from workbench.stages.held_out import PROBE_ROWS, distance, probe_rows
from workbench.stages.rows import part
from workbench.terms.policy import read_duties, write_duties

if TYPE_CHECKING:
    from workbench.compress.merge_adapter import Seen


def run(recipe: Recipe, run: Run) -> bool:
    """Make every wanted format that is not done."""
    need(run, "merge", "quantize")
    worked, student = False, None
    for name, wanted in recipe.quantize.items():
        fingerprint = digest(
            {"merge": run.output_digest("merge"), "format": asdict(wanted), "seed": recipe.seed, "probe": PROBE_ROWS},
            16,
        )
        if is_done(run, f"quantize/{name}", fingerprint):
            continue
        if not worked:
            hold_made(run, "merge")
        worked = True
        with stage(run, f"quantize/{name}", fingerprint) as staging:
            texts = calibration_texts(recipe, run, wanted)
            facts = write_format(
                wanted.format,
                merged_model(run),
                staging.folder,
                texts,
                rows=wanted.calibration_rows,
                tokens=wanted.calibration_tokens,
            )
            staging.facts = facts | {"format": wanted.format}
            if staging.facts["calibration_rows"]:  # a format that goes to the nearest value has seen none
                log_calibration(recipe, run, name, texts)
            student = student or student_logprobs(recipe, run)
            staging.facts |= distance(recipe, run, staging.folder, engine_for(staging.folder), student)
            write_duties(staging.folder, read_duties(merged_model(run)))
            size = sum(p.stat().st_size for p in staging.folder.rglob("*") if p.is_file())
            staging.facts["bytes"] = size
            facts = staging.facts
            say(
                run,
                f"quantize/{name}",
                f"{name}: {size / 1e6:.0f} MB, {facts['bits_per_weight']:.3g} bits a weight; against the student on "
                f"{facts['rows']} held-out rows ({facts['measured_in']}): KL {facts['kl']:.2g}, "
                f"same first choice {facts['top_token_agreement']:.1%}",
            )
    return worked


def log_calibration(recipe: Recipe, run: Run, name: str, texts: list[str]) -> None:
    """Tell the record which rows a format has seen."""
    run.event(
        "dataset",
        stage=f"quantize/{name}",
        name=f"{recipe.data.name or 'data'}-calibration",
        source=source_text(recipe.data.train),
        digest=digest(texts, 32),
        rows=len(texts),
        role="calibration",
    )


def student_logprobs(recipe: Recipe, run: Run) -> Seen:
    """The student's log-probabilities on the probe rows, taken once for all formats."""
    from workbench.compress.merge_adapter import folder_logprobs

    return folder_logprobs(merged_model(run), probe_rows(recipe, run), device=recipe.launch.device)


def calibration_texts(recipe: Recipe, run: Run, wanted: Quantize) -> list[str]:
    """Training rows as rendered text, never evaluation rows; the student has its base's tokenizer."""
    from workbench.data.chat import load_tokenizer, render_all

    tokenizer = load_tokenizer(merged_model(run), None)
    training = render_all(part(recipe, run, "train")[: wanted.calibration_rows], tokenizer, recipe.method)
    return [tokenizer.decode(list(row.input_ids)) for row in training]
