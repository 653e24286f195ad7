"""Supervised fine-tuning: rows and a base model in, an adapter (or a model) and its summary out."""

from __future__ import annotations

import gc
import json
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback
from transformers.utils import logging as hf_logging

from workbench.engines.device import device_of, threads_of
from workbench.engines.memory import keep_freed_memory, release_freed_memory
from workbench.errors import WorkbenchError
from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.training.batches import plan_batches, total_steps
from workbench.training.checkpoints import progress_of, step_of, whole_checkpoints
from workbench.training.development import Development, noted, refuse_hacking, samples
from workbench.training.distil import Lesson, sequences
from workbench.training.model import available_memory, fit, load_model, load_weights
from workbench.training.proof import fingerprints, prove_moved
from workbench.training.settings import (
    arguments,
    evaluation_steps,
    fingerprint_of,
    optimizer_of,
    refuse_what_cannot_train,
)
from workbench.training.targets import targets_digest
from workbench.training.trainer import AnswerTrainer
from workbench.training.watch import Progressed, Watch, stopping

Event = Callable[..., None]


def train(
    base_dir: Path,
    method: Method,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    out_dir: Path,
    *,
    seed: int,
    dtype: str,
    device: str,
    threads: int | None,
    event: Event,
    lesson: Lesson | None = None,
    development: Development | None = None,
    start: Path | None = None,
    trainer_class: Callable[..., Any] = AnswerTrainer,
    beside: str = "",
) -> dict[str, Any]:
    """Train, keep the step with the lowest validation loss, prove that it moved, and write it.

    `lesson` is a teacher's word on the rows. `development` are gold rows on which the student is scored at every
    evaluation (`metric` development/score); those of the step that stays go to `out_dir/development.json`. `start` is
    the adapter to go on from, in a chain of methods. `trainer_class` may read the rows otherwise, see preference.py
    and on_policy.py; `beside` names what it depends on and rows and method do not hold, for the checkpoints.

    Writes `out_dir/adapter` (`full`: `out_dir/model`), `out_dir/summary.json`, and `out_dir/checkpoints` as it goes;
    with whole checkpoints of the same request there, it goes on from the last. `event(kind, **fields)` receives
    `metric`, `sample` and `said`. Returns the summary. Raises WorkbenchError when a loss is not finite or a tensor
    did not move, GateError when the student games its teacher (see development.py), KeyboardInterrupt after SIGINT or
    SIGTERM once a checkpoint is written.
    """
    refuse_what_cannot_train(rows)
    device = device_of(device)
    torch.set_num_threads(threads_of(threads))
    if device == "cpu":
        keep_freed_memory()
    quiet = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with stopping() as stop:
            return run(
                base_dir, method, rows, validation, out_dir, seed, dtype, device, event, stop,
                lesson, development, start, trainer_class, beside,
            )  # fmt: skip
    finally:
        gc.collect()  # a trainer and its model hold each other
        release_freed_memory()
        hf_logging.set_verbosity(quiet)
        hf_logging.enable_progress_bar()


def run(
    base_dir: Path,
    method: Method,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    out_dir: Path,
    seed: int,
    dtype: str,
    device: str,
    event: Event,
    stop: Any,
    lesson: Lesson | None,
    development: Development | None,
    start: Path | None,
    trainer_class: Callable[..., Any],
    beside: str,
) -> dict[str, Any]:
    """`train` once the device is known and Hugging Face is quiet: the whole story, in order."""
    lengths = [len(row.input_ids) for row in rows]
    targets = lesson.targets if lesson else {}
    read = [sum(len(one.input_ids) for one in sequences(row, targets.get(row.id))) for row in rows]
    longest = max(lengths)
    steps = total_steps(len(rows), method.batch_size, method.epochs, method.max_steps)

    def plan_of(micro: int) -> list[list[int]]:
        return plan_batches(lengths, method.batch_size, micro, steps, seed)

    def padded_tokens(micro: int) -> int:
        return max(len(batch) * max(read[row] for row in batch) for batch in plan_of(micro))

    micro, checkpointing = fit(base_dir, method, dtype, padded_tokens, available_memory(device))
    plan = plan_of(micro)
    tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(base_dir, method, dtype=dtype, device=device, longest=longest, seed=seed)
    if start is not None:
        load_weights(model, start)
    before = fingerprints(model)

    beside += (targets_digest(targets) if targets else "") + (str(start) if start else "")
    request = fingerprint_of(method, rows, seed, dtype, beside)
    checkpoints = out_dir / "checkpoints"
    resumed, progressed = last_checkpoint(checkpoints, request, event)
    evaluate_at = evaluation_steps(steps, method.evaluations) if validation or development else frozenset()
    watch = Watch(evaluate_at, method.save_minutes * 60, progressed, stop, event)

    def looked_at(step: int) -> None:
        for told in samples(model, tokenizer, validation[: method.sample_answers], device):
            event("sample", step=step, **told)
        if development:
            now = development.point(model, tokenizer, device, step, *watch.loss_now())
            watch.developed(step, now.score)
            refuse_hacking(noted(progressed.development, now), development.drop)

    trainer = trainer_class(
        model=model,
        args=arguments(method, micro, steps, checkpointing, checkpoints, seed, device),
        processing_class=tokenizer,
        rows=rows,
        validation=validation,
        plan=plan,
        watch=watch,
        checkpoints=checkpoints,
        fingerprint=request,
        after_evaluation=looked_at,
        evaluation_tokens=max(2 * micro * longest, 2048),
        lesson=lesson,
        optimizer_cls_and_kwargs=optimizer_of(method, dtype),
    )
    trainer.remove_callback(PrinterCallback)
    event("said", text=opening_line(trainer, method, steps, micro, checkpointing, resumed))
    if method.compile:
        for layer in trainer.decoder.base_model.layers:
            layer.compile(dynamic=True)
    try:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        watch.screen.close()
    if trainer.state.global_step < steps:
        event("said", text=f"stopped after step {trainer.state.global_step} of {steps}: a checkpoint is written")
        stop.take_effect()

    best = progressed.best_step
    if best is not None and best != steps:
        load_weights(model, checkpoints / f"step-{best:08d}")
        event("said", text=f"step {best} had the lowest validation loss ({progressed.best_loss:.4f}): its weights stay")
    moved = prove_moved(model, before, method.kind)
    if development:
        seen = {point["step"]: point["scores"] for point in progressed.development}
        scores = seen.get(best or steps) or development.scores(model, tokenizer, device)
        told = {"rows": [row.id for row in development.rows], "scores": scores, "curve": progressed.development}
        (out_dir / "development.json").write_text(json.dumps(told) + "\n")
    write_weights(model, tokenizer, out_dir / ("model" if method.kind == "full" else "adapter"))
    summary = {
        "kind": method.kind,
        "steps": steps,
        "epochs": round(steps * method.batch_size / len(rows), 3),
        "rows": len(rows),
        "batch_size": method.batch_size,
        "micro_batch_size": micro,
        "checkpointing": checkpointing,
        "total_tokens": progressed.tokens,
        "trained_tokens": progressed.trained_tokens,
        "seconds": round(progressed.seconds, 1),
        "tokens_per_second": round(progressed.tokens / max(progressed.seconds, 1e-9), 1),
        "first_validation_loss": progressed.first_loss,
        "last_validation_loss": progressed.last_loss,
        "best_validation_loss": progressed.best_loss,
        "best_step": steps if best is None else best,
        "development_score": sum(scores) / len(scores) if development else None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "trained_tensors": len(before.trained),
        "moved_tensors": moved,
        "peak_memory_bytes": peak_memory(device),
        "device": device,
        "resumed_from": step_of(resumed) if resumed else None,
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def last_checkpoint(checkpoints: Path, request: str, event: Event) -> tuple[Path | None, Progressed]:
    """The last whole checkpoint of this request, and what was counted up to it."""
    found = whole_checkpoints(checkpoints)
    ours = [p for p in found if progress_of(p)["fingerprint"] == request]
    if found and not ours:
        event("said", text=f"{len(found)} checkpoints were made from other rows or settings: starting over")
        shutil.rmtree(checkpoints)
    if not ours:
        return None, Progressed()
    event("said", text=f"resumed from step {step_of(ours[-1])}")
    return ours[-1], Progressed(**progress_of(ours[-1])["progressed"])


def opening_line(
    trainer: AnswerTrainer, method: Method, steps: int, micro: int, checkpointing: bool, resumed: Path | None
) -> str:
    """What is about to be trained, in one line."""
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in trainer.model.parameters())
    head = "" if trainer.plain else ", loss through the model's own head"
    again = ", activations recomputed" if checkpointing else ""
    return (
        f"{method.kind}: {trained:,} of {whole:,} parameters train, {steps} steps of {method.batch_size} rows "
        f"({method.batch_size // micro} × {micro}){again}{head}"
    )


def write_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write adapter or model beside its place and rename it; a model takes its tokenizer along."""
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.config.use_cache = True
    model.save_pretrained(staging)
    if folder.name == "model":
        tokenizer.save_pretrained(staging)
    if not list(staging.glob("*.safetensors")):
        raise WorkbenchError("no weights were written", where=str(folder))
    staging.rename(folder)


def peak_memory(device: str) -> int:
    """Most bytes held at once: on the GPU, or by the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
