"""What other tools call a key: the words of Axolotl, LLaMA-Factory, TRL, Unsloth and OpenAI's fine-tuning jobs.

One table serves two askers: a mistyped key is answered with ours, and `init from=` carries a whole file over. Keys as
their documentation had them in November 2026.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """A word of theirs: our `key` (None where there is none), and what else to know in a few words."""

    key: str | None
    note: str = ""


SLIP, NEAR = 0.85, 0.65  # how alike two words are: a slip of the finger; near enough to be named
BY_KEY: dict[str, tuple[str, ...]] = {  # ours: theirs, where the value means the same
    "model.source": ("base_model", "model_name_or_path", "model_name", "model_id", "pretrained_model_name_or_path"),
    "method.rank": ("lora_r", "lora_rank", "r"),
    "method.alpha": ("lora_alpha",),
    "method.dropout": ("lora_dropout",),
    "method.rslora": ("use_rslora", "peft_use_rslora"),
    "method.dora": ("use_dora", "peft_use_dora"),
    "method.target_modules": ("lora_target_modules", "lora_target"),
    "method.learning_rate": ("lr",),
    "method.schedule": ("lr_scheduler", "lr_scheduler_type"),
    "method.warmup_share": ("warmup_ratio",),
    "method.optimizer": ("optim",),
    "method.epochs": ("num_epochs", "num_train_epochs", "n_epochs"),
    "method.micro_batch_size": ("per_device_train_batch_size", "train_batch_size"),
    "method.max_length": ("sequence_len", "cutoff_len", "max_seq_length", "max_seq_len", "seq_length", "block_size"),
    "method.compile": ("torch_compile",),
    "data.train": ("datasets", "dataset", "dataset_name", "training_file", "train_file", "data_files", "dataset_path"),
    "data.validation": ("test_datasets", "eval_dataset", "validation_file", "eval_file"),
    "data.validation_share": ("val_set_size", "val_size", "validation_split_percentage"),
    "data.limit": ("max_samples", "max_train_samples"),
    "data.system": ("system_prompt", "default_system"),
    "data.columns.prompt": ("field_instruction", "prompt_column"),
    "data.columns.answer": ("field_output", "response_column"),
    "data.columns.system": ("field_system",),
    "seed": ("random_state", "data_seed"),
    "launch.experiments": ("output_dir",),
    "launch.device": ("device_map",),
    "tracking.uri": ("mlflow_tracking_uri",),
    "tracking.experiment": ("mlflow_experiment_name", "wandb_project"),
    "tracking.registered_model": ("suffix", "hub_model_id", "run_name", "wandb_name"),
    "fresh": ("overwrite_output_dir",),
}
NOTED: dict[str, Foreign] = {
    "adapter": Foreign("method.kind", "lora, qlora or full; or a noun: method=qlora"),
    "finetuning_type": Foreign("method.kind", "lora, qlora or full; or a noun: method=full"),
    "use_peft": Foreign("method.kind", "lora; method=full trains every weight"),
    "full_finetuning": Foreign("method.kind", "method=full"),
    "load_in_4bit": Foreign("method.kind", "method=qlora: an adapter on a 4-bit base"),
    "quantization_bit": Foreign("method.kind", "method=qlora for 4 bits; an 8-bit base is not trained on here"),
    "load_in_8bit": Foreign(None, "an 8-bit base is not trained on here; method=qlora takes 4 bits"),
    "lora_target_linear": Foreign("method.target_modules", "[all-linear], the default"),
    "learning_rate_multiplier": Foreign("method.learning_rate", "a rate itself, no multiple of one"),
    "warmup_steps": Foreign("method.warmup_share", "a share of the steps, not their number"),
    "gradient_accumulation_steps": Foreign(
        "method.batch_size", "rows a step: theirs a device times the accumulation; method.micro_batch_size a pass"
    ),
    "gradient_checkpointing": Foreign("method.checkpointing", "auto, on or off"),
    "use_gradient_checkpointing": Foreign("method.checkpointing", "auto, on or off"),
    "bf16": Foreign("model.dtype", "bfloat16, the default"),
    "fp16": Foreign("model.dtype", "float16"),
    "torch_dtype": Foreign("model.dtype"),
    "template": Foreign("model.chat_template", "the model's own is used; a Jinja file replaces it"),
    "chat_template_jinja": Foreign("model.chat_template", "a Jinja file"),
    "model_revision": Foreign("model.source", "behind an @: hf:ORG/NAME@REVISION"),
    "revision": Foreign("model.source", "behind an @: hf:ORG/NAME@REVISION"),
    "train_on_inputs": Foreign("method.train_on", "answers alone carry loss: last_answer or all_answers"),
    "train_on_prompt": Foreign("method.train_on", "answers alone carry loss: last_answer or all_answers"),
    "mask_history": Foreign("method.train_on", "last_answer, the default"),
    "completion_only_loss": Foreign("method.train_on", "last_answer, the default"),
    "assistant_only_loss": Foreign("method.train_on", "all_answers"),
    "roles_to_train": Foreign("method.train_on", "last_answer or all_answers"),
    "train_on_responses_only": Foreign("method.train_on", "last_answer or all_answers"),
    "eval_steps": Foreign("method.evaluations", "how many looks in all, not steps between two"),
    "evals_per_epoch": Foreign("method.evaluations", "how many looks in all"),
    "eval_strategy": Foreign("method.evaluations", "how many looks in all"),
    "evaluation_strategy": Foreign("method.evaluations", "how many looks in all"),
    "save_steps": Foreign("method.save_minutes", "minutes between checkpoints, not steps"),
    "saves_per_epoch": Foreign("method.save_minutes", "minutes between checkpoints"),
    "save_strategy": Foreign("method.save_minutes", "minutes between checkpoints"),
    "eval_batch_size": Foreign("evaluate.batch_tokens", "padded tokens in one batch"),
    "per_device_eval_batch_size": Foreign("evaluate.batch_tokens", "padded tokens in one batch"),
    "dataset_dir": Foreign("data.train", "with its path: file:FOLDER/rows.jsonl"),
    "dataset_text_field": Foreign("data.columns.answer", "a column of raw text is an answer without a prompt"),
    "dpo_beta": Foreign("method.teach.dpo_beta", "with method.distil=[preference]"),
    "pref_beta": Foreign("method.teach.dpo_beta", "with method.distil=[preference]"),
    "rl": Foreign("method.distil", "[preference] is DPO; method=distil_preference"),
    "stage": Foreign("method.kind", "what is trained; until=STAGE ends a command early"),
    "early_stopping_patience": Foreign("method.patience"),
    "load_best_model_at_end": Foreign(None, "the weights of the lowest validation loss are kept anyway"),
    "metric_for_best_model": Foreign(None, "the weights of the lowest validation loss are kept anyway"),
    "save_total_limit": Foreign(None, "the last checkpoint and the best are kept, until the stage is whole"),
    "resume_from_checkpoint": Foreign(None, "the same command goes on from the last whole checkpoint"),
    "auto_resume_from_checkpoints": Foreign(None, "the same command goes on from the last whole checkpoint"),
    "sample_packing": Foreign("method.packing", "auto, on or off; no row is cut, and each attends to itself alone"),
    "packing": Foreign("method.packing", "auto, on or off; no row is cut, and each attends to itself alone"),
    "neat_packing": Foreign("method.packing", "auto, on or off; no row is cut, and each attends to itself alone"),
    "pad_to_sequence_len": Foreign(None, "a batch is as long as its longest row"),
    "group_by_length": Foreign(None, "rows of like length share a pass, and no step holds one length alone"),
    "flash_attention": Foreign(None, "the attention that the device has is taken"),
    "flash_attn": Foreign(None, "the attention that the device has is taken"),
    "attn_implementation": Foreign(None, "the attention that the device has is taken"),
    "logging_steps": Foreign(None, "every step is logged, up to 500 lines"),
    "report_to": Foreign("tracking.uri", "MLflow keeps the record; null: a store in the experiments folder"),
    "push_to_hub": Foreign(None, "a proven bundle is handed on by the verb export: to=FOLDER_OR_URL"),
    "hub_token": Foreign(None, "the environment has it: HF_TOKEN"),
    "hf_token": Foreign(None, "the environment has it: HF_TOKEN"),
    "trust_remote_code": Foreign(None, "a model that brings code of its own is refused"),
    "deepspeed": Foreign("launch.device", "one device trains here"),
    "fsdp": Foreign("launch.device", "one device trains here"),
    "tokenizer_type": Foreign(None, "the model's own tokenizer is read"),
    "model_type": Foreign(None, "the model's own config says it"),
    "dataset_prepared_path": Foreign(None, "prepared rows lie in the run's data/ folder"),
    "dataset_num_proc": Foreign("launch.threads"),
    "preprocessing_num_workers": Foreign("launch.threads"),
    "neftune_noise_alpha": Foreign("method.neftune"),
    "init_lora_weights": Foreign("method.adapter_init"),
    "num_generations": Foreign("method.reward.samples"),
    "val_files": Foreign("data.validation"),
    "special_tokens": Foreign(None, "the model's own special tokens are kept"),
    "plot_loss": Foreign(None, "the report draws the loss"),
    "do_train": Foreign(None, "the verb says it: train"),
    "do_eval": Foreign(None, "the verb says it: evaluate"),
}
FOREIGN: dict[str, Foreign] = {word: Foreign(key) for key, words in BY_KEY.items() for word in words} | NOTED
VALUES: dict[str, dict[str, str | None]] = {  # theirs: ours, by our key; None where there is none
    "method.optimizer": {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw", "adamw_8bit": "adamw_8bit", "adamw": "adamw",
    },
    "method.schedule": {
        "cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant",
        "cosine_with_restarts": "cosine", "cosine_with_min_lr": "cosine",
    },
    "method.kind": {"freeze": None, "none": "full", "dora": "lora", "oft": None},
}  # fmt: skip
VERBS: dict[str, str] = {
    "sft": "train", "finetune": "train", "fine-tune": "train", "fine_tune": "train", "tune": "train", "fit": "train",
    "run": "train", "resume": "train", "dpo": "train", "eval": "evaluate", "test": "evaluate", "score": "evaluate",
    "infer": "chat", "inference": "chat", "generate": "chat", "predict": "chat", "talk": "chat", "ask": "chat",
    "merge_lora": "merge", "merge-lora": "merge", "push": "export", "upload": "export", "deploy": "serve",
    "api": "serve", "preprocess": "preview", "estimate": "plan", "dry-run": "plan", "new": "init", "create": "init",
    "migrate": "init", "ls": "list", "models": "list", "recipes": "list", "show": "list", "diff": "compare",
    "mlflow": "ui", "webui": "ui", "gui": "ui", "env": "doctor", "info": "doctor", "check": "doctor",
    "distill": "train", "distil": "train", "gguf": "quantize", "convert": "quantize", "publish": "export",
}  # fmt: skip


def answer(word: str) -> str | None:
    """What another tool's key is here, in one line; None for a word that none of them has."""
    known = FOREIGN.get(word.replace("-", "_").lower())
    if known is None:
        return None
    if known.key is None:
        return f"there is no such key here: {known.note}"
    return f"that is {known.key!r} here" + (f": {known.note}" if known.note else "")


def choice(key: str, value: str) -> str | None:
    """What another tool's value of this key is here, in one line."""
    table = VALUES.get(key, {})
    if value not in table:
        return None
    return f"that is {table[value]!r} here" if table[value] else "there is no such thing here"


def meant_by(path: str, keys: Sequence[str]) -> str:
    """What a key that the schema does not know may have been meant to be: no guess where none is near.

    Asked in turn: a slip in the last name, the same one elsewhere, another tool's word, a slip in the section.
    """
    parent, _, last = path.rpartition(".")
    by_last: dict[str, list[str]] = {}
    for key in keys:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    prefix = parent + "." if parent else ""
    siblings = [k[len(prefix) :] for k in keys if k.startswith(prefix) and "." not in k[len(prefix) :]]
    foreign = answer(last)
    slip = difflib.get_close_matches(last, siblings, n=1, cutoff=SLIP)
    if slip and parent and not foreign:
        return f"did you mean {prefix + slip[0]!r}?"
    exact = by_last.get(last, [])
    if 0 < len(exact) <= 2 and not (exact == ["name"] or foreign):
        slips = difflib.get_close_matches(path, exact, n=1, cutoff=0.6)
        return f"did you mean {(slips or exact)[0]!r}?"
    if foreign:
        return foreign
    for options, cutoff in ((keys, SLIP), ([prefix + name for name in siblings], NEAR), (keys, NEAR)):
        close = difflib.get_close_matches(path, options, n=1, cutoff=cutoff)
        if close and difflib.SequenceMatcher(None, last, close[0].rpartition(".")[2]).ratio() >= NEAR:
            return f"did you mean {close[0]!r}?"
    short = [name for name in siblings if initials(name) == last]  # bs → batch_size
    if short:
        return f"did you mean {prefix + short[0]!r}?"
    section = parent or difflib.get_close_matches(path, [k for k in keys if "." not in k], n=1, cutoff=NEAR)
    section = section if isinstance(section, str) else (section or [""])[0]
    known = ", ".join(sorted(siblings)) if parent and siblings else ""
    return (
        (f"known: {known}; " if known else "")
        + "what each key is: python -m workbench train --help "
        + (section if section in keys else "")
    )


def initials(name: str) -> str:
    """`batch_size` as `bs`."""
    return "".join(part[:1] for part in name.split("_"))
