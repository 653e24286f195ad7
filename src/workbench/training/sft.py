"""Supervised fine-tuning: TRL's trainer on token rows, gone on from the last whole checkpoint, proven at the end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from workbench.errors import WorkbenchError
from workbench.recipe import Method
from workbench.records import TokenRow
from workbench.training import checkpoints
from workbench.training.batches import collator, row_order, steps_of
from workbench.training.losses import answer_cross_entropy
from workbench.training.memory import micro_batch
from workbench.training.model import check_moved, fingerprints, load_model, place
from workbench.training.watch import Watch


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with the loss on trained tokens only, rows in the order given, and a stop at a non-finite loss."""

    rows: Sequence[TokenRow]
    watch: Watch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum over the micro batch by the count of the whole step, so that accumulation changes nothing."""
        loss, tokens = answer_cross_entropy(model, inputs["input_ids"], inputs["labels"])
        if not torch.isfinite(loss):
            ids = ", ".join(self.rows[n].where or self.rows[n].id for n in inputs["rows"].tolist())
            raise WorkbenchError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1}, in the batch of rows {ids}",
                where="train",
                remedy="lower method.learning_rate, or look at these rows; the last whole checkpoint is kept",
            )
        self.watch.tokens += inputs["input_ids"].numel()
        self.watch.tokens_since += inputs["input_ids"].numel()
        return loss / (tokens if num_items_in_batch is None else num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Checkpoints need no model card."""


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
    event: Callable[..., None],
) -> dict[str, Any]:
    """Train and write `out_dir/adapter` (or `model`) and `out_dir/summary.json`; returns the summary.

    `rows` and `validation` hold token ids and loss masks. Whole checkpoints in `out_dir/checkpoints` are gone
    on from. Raises WorkbenchError on a non-finite loss and when tensors did not move as they should;
    KeyboardInterrupt, after saving, on Ctrl-C.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    torch.manual_seed(seed)
    where = place(device)
    checkpointing = method.checkpointing == "on" or (
        method.checkpointing == "auto" and short_of_memory(base_dir, method)
    )
    model = load_model(base_dir, method, dtype=dtype, device=where, checkpointing=checkpointing)
    before = fingerprints(model)
    tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
    steps = steps_of(len(rows), method.batch_size, method.epochs, method.max_steps)
    order = row_order([len(r.input_ids) for r in rows], method.batch_size, steps, seed)
    if method.compile:
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=True)

    resumed = checkpoints.last_whole(out_dir / "checkpoints")
    with Watch(model, tokenizer, method, validation, out_dir, steps, event) as watch:
        trainer = AnswerTrainer(
            model=model,
            args=settings(method, out_dir, steps, seed, where),
            train_dataset=Dataset.from_dict({"row": order}),
            data_collator=collator(rows, tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.rows, trainer.watch = rows, watch
        trainer.model_accepts_loss_kwargs = True  # compute_loss divides by the step's own count
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                trainer.remove_callback(callback)
        if resumed:
            facts = json.loads((resumed[0] / checkpoints.MARK).read_text())
            watch.history, watch.tokens = [tuple(pair) for pair in facts["history"]], facts["tokens"]
            event("said", text=f"resumed from step {resumed[1]} of {steps}")
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
        seconds = time.monotonic() - started
    if watch.stopped_by is not None:
        signal.raise_signal(watch.stopped_by)  # its own handler is back, and ends the command as the door does

    best = take_best(model, out_dir)
    moved = check_moved(model, before)
    kind = "model" if method.kind == "full" else "adapter"
    model.save_pretrained(out_dir / kind)
    tokenizer.save_pretrained(out_dir / kind)
    (out_dir / kind / "README.md").unlink(missing_ok=True)
    shutil.rmtree(out_dir / "best", ignore_errors=True)
    summary = {
        "kind": method.kind,
        "steps": steps,
        "epochs": round(steps * method.batch_size / len(rows), 3),
        "rows": len(rows),
        "trained_tokens": sum(sum(rows[i].trained) for i in order),
        "tokens": sum(len(rows[i].input_ids) for i in order),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(watch.tokens / seconds, 1) if not resumed else None,
        "validation_loss": dict(watch.history),
        "best_step": best["step"] if best else steps,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "moved_tensors": moved,
        "checkpointing": checkpointing,
        "micro_batch": micro_batch(method),
        "peak_memory_bytes": peak_memory(where),
        "resumed_from": resumed[1] if resumed else None,
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


def settings(method: Method, out_dir: Path, steps: int, seed: int, where: torch.device) -> SFTConfig:
    """The trainer's arguments. Saving, evaluating and logging to a screen are the watch's work."""
    micro = micro_batch(method)
    return SFTConfig(
        output_dir=str(out_dir / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=method.batch_size // micro,
        learning_rate=method.learning_rate,
        lr_scheduler_type=method.schedule,
        warmup_steps=round(method.warmup_share * steps),
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm,
        optim="adamw_bnb_8bit" if method.optimizer == "adamw_8bit" else "adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide what must stop the run
        save_strategy="no",  # the watch asks for each checkpoint
        save_total_limit=2,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        gradient_checkpointing=False,  # set on the model itself, where memory needs it
        bf16=False,  # the weights themselves are 16-bit: no autocast
        use_cpu=where.type == "cpu",
        seed=seed,
        max_length=None,
    )


def short_of_memory(base_dir: Path, method: Method) -> bool:
    """Whether activations without recomputation would pass half of what is free beside the weights."""
    from workbench.recipe import Model
    from workbench.training.memory import estimate_memory

    config = json.loads((base_dir / "config.json").read_text())
    size = sum(p.stat().st_size for p in base_dir.glob("*.safetensors"))
    model = Model(
        parameters=size // 2,
        layers=config.get("num_hidden_layers", 0),
        hidden_size=config.get("hidden_size", 0),
        intermediate_size=config.get("intermediate_size", 0),
        vocabulary=config.get("vocab_size", 0),
    )
    need = estimate_memory(model, method, tokens=micro_batch(method) * method.max_length)
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return need["activations"] > (free - need["weights"] - need["trained"]) / 2


def take_best(model: Any, out_dir: Path) -> dict[str, Any] | None:
    """Put the best weights back into the model when the last ones are not the best."""
    best = checkpoints.read_best(out_dir / "best")
    if best is None:
        return None
    files = sorted((out_dir / "best").glob("*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)
    else:
        missing = model.load_state_dict(state, strict=False)
        if missing.unexpected_keys:
            raise WorkbenchError(f"the best weights do not fit the model: {missing.unexpected_keys[0]}", where="train")
    return best


def peak_memory(where: torch.device) -> int:
    """Most memory taken, in bytes: on the CUDA device, else by the process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
