"""Training: a job in, an adapter (or a model) and its summary out. A kind of training is a loss: see job.py."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from workbench.engines.device import device_of, free_on_card, keep_at_most
from workbench.errors import RequestError, WorkbenchError
from workbench.files import read_sealed, write_sealed, write_whole
from workbench.records import TokenRow
from workbench.stored_tokens import StoredTokens
from workbench.training import checkpoints
from workbench.training.batches import Plan, evaluation_steps
from workbench.training.development import Point, best_of, noted, refuse_hacking, samples
from workbench.training.distil import answers
from workbench.training.fitting import backward, facts_of, keep_cut, keep_pace, probes
from workbench.training.fitting import measured as measured_plan
from workbench.training.job import HeldOut, Job, Loss, Student
from workbench.training.neftune import noise_for
from workbench.training.optimizer import optimizer_for, schedule_for
from workbench.training.progress import Progressed, Watch, stopping
from workbench.training.shards import (
    gathered,
    is_sharded,
    put_state,
    sharded,
    whole_state,
    whole_tensor,
    whole_weights,
)
from workbench.training.student import (
    computing,
    fingerprints,
    load_student,
    load_weights,
    narrow,
    peak_memory,
    prove_moved,
    write_weights,
)
from workbench.training.world import World

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

HELD_OUT = "held_out.json"


def train(job: Job) -> dict[str, Any]:
    """Train, keep the best step (of the lowest validation loss, or development score), prove it moved, and write it.

    Writes `job.out/adapter` (`full`: `job.out/model`), `job.out/summary.json`, `job.out/development.json` where there
    are development rows, and `job.out/checkpoints` as it goes; with sound checkpoints of the same request there, it
    goes on from the last. `job.event(kind, **fields)` receives `metric`, `sample` and `said`. Returns the summary.
    Raises WorkbenchError when a loss is not finite or a tensor did not move, GateError when the student games its
    teacher (see development.py), KeyboardInterrupt after SIGINT or SIGTERM once a checkpoint is written. What it held
    is free when it returns: `release_memory` gives that back to the system. As one process of several (`job.world`) it
    takes its share of each step; the first of them alone writes and gives a summary.
    """
    refuse_what_cannot_train(job.rows, alone=job.world is None)
    method, event, device, world = job.method, job.event, device_of(job.device), job.world or World()
    job.out.mkdir(parents=True, exist_ok=True)
    with computing(device, job.threads), stopping() as stop:
        # Load: the plan of every micro-batch, the student, what the kind loses, and how weights are moved.
        student, plan = load_student(job, device)
        model, before = student.model, fingerprints(student.model)
        loss, in_shards = (job.loss or answers)(job, student), is_sharded(method.kind, world)
        if in_shards:
            loss = sharded(student, loss, world)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not in_shards:
            world.begin_alike(trained)
        start, noise = measured(job, student, loss), noise_for(student, method.neftune, job.seed)
        optimizer = optimizer_for(model, method, student.dtype)
        schedule = schedule_for(optimizer, method, plan.steps)
        if probes(job, student, plan):
            plan = measured_plan(job, student, loss, plan, noise, free_on_card)
        if world.first:
            keep_cut(job, plan)
        set_seed(job.seed + world.rank)
        done, progressed = resumed(job, student, optimizer, schedule)
        event("said", text=opening_line(job, student, plan))
        evaluate_at = evaluation_steps(plan.steps, method.evaluations) if job.validation or job.development else ()
        by_score = bool(job.development and job.development.decides)
        watch = Watch(plan.steps, progressed, event, by_score, job.screen)
        saved, step, ending = time.monotonic(), done, False
        pause = method.save_minutes * 60
        if method.compile:
            for layer in student.decoder.base_model.layers:
                layer.compile(dynamic=True)
        model.train()

        with watch.screen.shown(done, plan.steps):
            for step in range(done + 1, plan.steps + 1):
                if tired(progressed, method.patience):
                    step -= 1
                    break
                # Forward, backward: this process's share of the step, as much of it at once as fits.
                begun = time.monotonic()
                plan, taken = backward(job, student, loss, plan, step, noise)
                for batch, value in zip(taken.batches, taken.parts, strict=True):
                    refuse_non_finite("loss", value, step, [job.rows[row] for row in batch["rows"].tolist()])

                # Step.
                if not in_shards:
                    world.add_up(trained)
                norm = clipped(trained, method.max_grad_norm)
                refuse_non_finite("gradient", norm, step, [job.rows[row] for row in plan.rows[step - 1]])
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()

                # Look, save, and end where a signal asks for it.
                values = {"loss": taken.loss, "grad_norm": norm, "learning_rate": rate} | loss.metrics()
                values["memory_gb"] = peak_memory(device) / 1e9
                watch.stepped(step, values, taken.tokens, taken.trained_tokens, time.monotonic() - begun)
                if step in evaluate_at:
                    look(job, student, loss, watch, step)
                late = world.first and time.monotonic() - saved > pause
                late, ending = world.any(late, stop.requested or world.stops())
                ends = step == plan.steps or tired(progressed, method.patience)
                if step in evaluate_at or late or ends or ending:
                    began = time.monotonic()
                    save(job, student, optimizer, schedule, progressed, step)
                    saved = time.monotonic()
                    pause = checkpoints.pause(method.save_minutes, saved - began)
                if ending:
                    break
                if device == "cpu":
                    keep_at_most()

        if ending and step < plan.steps and not tired(progressed, method.patience):
            event("said", text=f"stopped after step {step} of {plan.steps}: a checkpoint is written")
            stop.take_effect()
        if step < plan.steps:
            event(
                "said", text=f"ended after step {step} of {plan.steps}: {method.patience} looks brought nothing better"
            )
        keep_best(job, student, progressed, step)
        moved = {"trained_tensors": len(before.trained), "moved_tensors": prove_moved(model, before, method.kind)}
        with gathered(loss, job.development is not None):
            score = write_development(job, student, progressed, step) if world.first else None
            world.wait()
        rest = moved | {"development_score": score, "resumed_from": done or None}
        if start and loss.held_out and job.compared:
            model.eval()
            rest |= job.compared(start, loss.held_out())
        if in_shards:
            weights = whole_weights(model, world.first, getattr(torch, job.dtype))
            model.config.dtype = getattr(torch, job.dtype)
        else:
            weights = {}
            narrow(model, job.dtype)
        if not world.first:
            return {}
        write_weights(model, student.tokenizer, job.out / ("model" if method.kind == "full" else "adapter"), weights)
        return write_summary(job, student, plan, progressed, step, rest)


def measured(job: Job, student: Student, loss: Loss) -> HeldOut | None:
    """The kind's own measure of the held-out rows before the first step: taken once, and read by who resumes."""
    if loss.held_out is None or job.compared is None or not job.validation:
        return None
    path = job.out / HELD_OUT
    kept = read_sealed(path) or {}
    if kept.get("of") == student.request:
        return HeldOut(**kept["start"])
    student.model.eval()
    start = loss.held_out()
    write_sealed(path, {"of": student.request, "start": asdict(start)})
    return start


def tired(progressed: Progressed, patience: int | None) -> bool:
    """Whether as many looks as the recipe has patience for have brought nothing better."""
    return patience is not None and progressed.looks_since_best >= patience


def refuse_what_cannot_train(rows: Sequence[TokenRow], alone: bool = True) -> None:
    """Refuse no rows, a row that trains nothing, and a whole life that somebody else has started several times."""
    if not rows:
        raise RequestError("there are no training rows", where="data.train")
    if alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            "the life is one process, and starts those that train by itself",
            where="WORLD_SIZE",
            remedy="type it without torchrun or accelerate launch, and with launch=torchrun launch.processes=2",
        )
    for row in [] if isinstance(rows, StoredTokens) else rows:  # those were held to it as they were rendered
        if not any(row.trained[1:]) or len(row.trained) != len(row.input_ids):
            raise RequestError("the row trains nothing", where=row.where or row.id)


def resumed(
    job: Job, student: Student, optimizer: torch.optim.Optimizer, schedule: LRScheduler
) -> tuple[int, Progressed]:
    """The steps that are done and what was counted in them; the last sound checkpoint's state is put back."""
    world, folder = job.world or World(), job.out / "checkpoints"
    last = None
    if world.first:
        last = checkpoints.last_sound(folder, student.request, lambda text: job.event("said", text=text))
    last = world.same(last)
    if last is None:
        return 0, Progressed()
    load_weights(student.model, checkpoints.weights_in(last))
    state = torch.load(last / checkpoints.STATE, map_location="cpu", weights_only=True)
    put_state(optimizer, state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if world.first:  # saved after the step's look, as the next step would have found it
        checkpoints.set_random_state(state["random"])
    job.event("said", text=f"resumed from step {checkpoints.step_of(last)}")
    return checkpoints.step_of(last), Progressed(**checkpoints.progress_of(last)["progressed"])


def save(
    job: Job,
    student: Student,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    progressed: Progressed,
    step: int,
) -> None:
    """Write all that the next step depends on, whole: the first process does, and the others bring their shards."""
    world = job.world or World()
    in_shards = is_sharded(job.method.kind, world)
    weights = whole_weights(student.model, world.first) if in_shards else {}
    moments = whole_state(optimizer, world.first)

    def write(folder: Path) -> None:
        student.model.save_pretrained(folder, **({"state_dict": weights} if in_shards else {}))
        state = {"optimizer": moments, "schedule": schedule.state_dict()}
        torch.save(state | {"random": checkpoints.random_state(student.device)}, folder / checkpoints.STATE)

    progress = {"request": student.request, "progressed": asdict(progressed)}
    if world.first:
        checkpoints.write_checkpoint(job.out / "checkpoints", step, progress, write, keep=progressed.best_steps())
    world.wait()


def look(job: Job, student: Student, loss: Loss, watch: Watch, step: int) -> None:
    """The validation loss, samples, and the development score, which ends the training where it shows hacking."""
    model, development, world = student.model, job.development, job.world or World()
    model.eval()
    if job.validation:
        total, items = 0.0, 0.0
        cuts = loss.looks[world.rank :: world.size]
        behind = world.most(len(cuts)) - len(cuts) if is_sharded(job.method.kind, world) else 0
        with torch.no_grad():
            for cut in cuts:
                (batch,) = loss.batches([cut], ("validation", cut[0]))
                value, items = float(loss.summed(batch)), items + batch["items"]
                refuse_non_finite("validation loss", value, step, [job.validation[n - len(job.rows)] for n in cut])
                total += value
            keep_pace(loss, behind, loss.looks[:1], ("validation", loss.looks[0][0]))
        total, items = world.summed(total, items)
        watch.evaluated(step, total / (items or 1))
    shown = job.validation[: job.method.sample_answers]
    with gathered(loss, bool(shown or development)):
        for sample in samples(model, student.tokenizer, shown, student.device) if world.first else ():
            job.event("sample", step=step, **sample)
        if development and world.first:
            now = development.point(model, student.tokenizer, student.device, step, *watch.loss_now(loss.name))
            watch.developed(step, now.score)
            curve = noted(watch.progressed.development, now)
            refuse_hacking(curve, development.drop, development.key, development.remedy)
        world.wait()
    for name, value in world.same(asdict(watch.progressed)).items():
        setattr(watch.progressed, name, value)
    model.train()


def keep_best(job: Job, student: Student, progressed: Progressed, steps: int) -> None:
    """Put the best step's weights back, where that is not the last."""
    best = progressed.best_step
    if best is None or best == steps:
        return
    folder = checkpoints.folder_of(job.out / "checkpoints", best)
    world = job.world or World()
    fault = world.same(checkpoints.damage(folder) if world.first else None)
    if fault:
        raise WorkbenchError(
            f"the best step's checkpoint is damaged: {fault}",
            where=str(folder),
            remedy="the same command goes back to the last sound one",
        )
    load_weights(student.model, checkpoints.weights_in(folder))
    why = f"the lowest validation loss ({progressed.best_loss:.4f})"
    if job.development and job.development.decides:
        why = f"the highest development score ({best_of([Point(**p) for p in progressed.development]).score:.3f})"
    job.event("said", text=f"step {best} had {why}: its weights stay")


def write_development(job: Job, student: Student, progressed: Progressed, steps: int) -> float | None:
    """Write each development row's score by the weights that stay, and the curve; gives their mean."""
    if job.development is None:
        return None
    seen = {point["step"]: point["scores"] for point in progressed.development}
    scores = seen.get(progressed.best_step or steps)
    scores = scores or job.development.scores(student.model, student.tokenizer, student.device)
    ids = [row.id for row in job.development.rows]
    values = {"rows": ids, "scores": scores, "curve": progressed.development}
    write_whole(job.out / "development.json", json.dumps(values) + "\n")
    return sum(scores) / len(scores)


def clipped(parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
    """The norm of all gradients, which are scaled down to `limit` where it is above; 0 is no limit."""
    return float(whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)))


def refuse_non_finite(what: str, value: float, step: int, rows: Sequence[TokenRow]) -> None:
    """Stop at the first loss or gradient that is not a number, before it does harm, naming the step and its rows."""
    if not math.isfinite(value):
        raise WorkbenchError(
            f"the {what} is {value} at step {step}, rows {', '.join(row.id for row in rows)}",
            where="training",
            remedy="lower method.learning_rate, or look at these rows; the last checkpoint is whole",
        )


def opening_line(job: Job, student: Student, plan: Plan) -> str:
    """What is about to be trained, in one line."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in student.model.parameters()]
    trained, whole = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    again = ", activations recomputed" if plan.recomputed else ""
    head = "" if student.plain else ", loss through the model's own head"
    wider = "" if student.dtype == job.dtype else f", in {student.dtype}: this CPU does not compute {job.dtype}"
    sums = [sum(plan.lengths[row] for row in rows) for rows in plan.rows]
    at_once = f"{'packed' if plan.cut.packed else 'padded'} into at most {min(plan.cut.tokens, max(sums)):,} tokens"
    return (
        f"{job.method.kind}: {trained:,} of {whole:,} parameters train, {plan.steps} steps of {job.method.batch_size} "
        f"rows, {at_once} at once{again}{head}{wider}"
    )


def write_summary(
    job: Job, student: Student, plan: Plan, progressed: Progressed, steps: int, rest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what was trained in numbers, and give it."""
    method = job.method
    summary = {
        "kind": method.kind,
        "steps": steps,
        "epochs": round(steps * method.batch_size / len(job.rows), 3),
        "rows": len(job.rows),
        "batch_size": method.batch_size,
        **facts_of(plan),
        "total_tokens": progressed.tokens,
        "trained_tokens": progressed.trained_tokens,
        "seconds": round(progressed.seconds, 3),
        "tokens_per_second": round(progressed.tokens / max(progressed.seconds, 1e-9), 1),
        "first_validation_loss": progressed.first_loss,
        "last_validation_loss": progressed.last_loss,
        "best_validation_loss": progressed.best_loss,
        "best_step": progressed.best_step or steps,
        "trainable_parameters": sum(p.numel() for p in student.model.parameters() if p.requires_grad),
        "peak_memory_bytes": peak_memory(student.device),
        "device": student.device,
        **({"processes": job.world.size} if job.world else {}),
        **rest,
        **job.facts,
    }
    write_whole(job.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
