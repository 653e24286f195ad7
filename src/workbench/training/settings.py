"""The recipe's method in TRL's words, and what is refused before any weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from workbench.errors import RequestError
from workbench.recipe import Method
from workbench.records import TokenRow, digest
from workbench.training.optimizer import MasterAdamW

LOGGED_STEPS = 500


def arguments(
    method: Method, micro: int, steps: int, checkpointing: bool, folder: Path, seed: int, device: str
) -> SFTConfig:
    """TRL's arguments. Evaluation and saving are asked for by `Watch`; nothing is reported anywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=method.batch_size // micro,
        max_steps=steps,
        learning_rate=method.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(method.schedule, method.schedule),
        warmup_steps=round(method.warmup_share * steps),
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm,
        optim="adamw_bnb_8bit" if method.optimizer == "adamw_8bit" else "adamw_torch",
        gradient_checkpointing=checkpointing,
        bf16=False,  # the weights themselves are bf16: autocast would only add casts
        max_length=None,  # rows past method.max_length were refused when they were rendered
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=max(1, steps // LOGGED_STEPS),
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        seed=seed,
    )
    args._n_gpu = min(args.n_gpu, 1)  # on a machine with several, one is used: TRL refuses DataParallel
    return args


def optimizer_of(method: Method, dtype: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """AdamW with float32 masters for 16-bit weights; None leaves the choice to TRL's own `optim`."""
    if method.optimizer == "adamw_8bit" or dtype == "float32":
        return None
    return MasterAdamW, {"lr": method.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}


def refuse_what_cannot_train(rows: Sequence[TokenRow]) -> None:
    """Refuse no rows, and more than one process."""
    if not rows:
        raise RequestError("there are no training rows", where="data.train")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            "training runs in one process", where="WORLD_SIZE", remedy="start it without torchrun or accelerate launch"
        )
    for row in rows:
        if not any(row.trained[1:]) or len(row.trained) != len(row.input_ids):
            raise RequestError("the row trains nothing", where=row.where or row.id)


def evaluation_steps(steps: int, times: int) -> frozenset[int]:
    """Evenly spread steps after which the validation loss is taken, the last among them."""
    return frozenset(max(1, round(steps * k / times)) for k in range(1, times + 1))


def fingerprint_of(method: Method, rows: Sequence[TokenRow], seed: int, dtype: str, beside: str = "") -> str:
    """What a checkpoint must have been made from to be gone on from; `beside` names what is not in the rows."""
    makes = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("makes_weights", True)}
    makes.pop("micro_batch_size", None)  # how a step is cut does not change it
    teach = {f.name: getattr(method.teach, f.name) for f in fields(method.teach) if f.metadata["makes_weights"]}
    told = {"method": makes | {"teach": teach}, "seed": seed, "dtype": dtype, "beside": beside}
    return digest(told | {"rows": [asdict(r) | {"where": ""} for r in rows]})
