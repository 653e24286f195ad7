"""How near a forecast comes: memory and time of four shapes, each forecast from the three others' measured trainings.

    python tests/benchmarks/plan_forecast.py [--steps 12]

Trains random models of four shapes on random rows on the CPU, each in a process of its own, with the estimate that the
summary of a training keeps; then leaves each out in turn and prints what the line through the others says of it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES = {  # hidden, MLP, layers, heads, key heads, tokens of a row
    "15M": (256, 768, 6, 4, 2, 96),
    "40M": (512, 1536, 8, 8, 4, 96),
    "SmolLM2-135M's": (576, 1536, 30, 9, 3, 96),
    "120M, long rows": (768, 2048, 12, 12, 4, 192),
}
VOCABULARY = 16_384


def train_one(name: str, folder: Path, steps: int) -> None:
    """Train one shape and print its summary with its estimate as JSON."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from workbench.recipe import Method
    from workbench.records import TokenRow
    from workbench.training.forecast import Estimate, as_facts, device_here, estimated, forecast
    from workbench.training.job import Job
    from workbench.training.loop import train
    from workbench.training.memory import shape_of
    from workbench.training.model import available_memory

    hidden, mlp, layers, heads, key_heads, tokens = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, tie_word_embeddings=True,
    )  # fmt: skip
    base = folder / "base"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w2").save_pretrained(base)
    draw = random.Random(1)
    rows = [
        TokenRow(f"r{n}", tuple(draw.randrange(3, VOCABULARY) for _ in range(tokens)), (False, *[True] * (tokens - 1)))
        for n in range(64)
    ]
    method = Method(max_steps=steps, epochs=99.0, batch_size=8, micro_batch_size=8, evaluations=1, sample_answers=0,
                    save_minutes=99.0, compile=False)  # fmt: skip
    device, lengths = device_here("cpu"), [tokens] * len(rows)
    estimate, _ = estimated(shape_of(base), method, "bfloat16", device, lengths, steps, available_memory(device))
    summary = train(Job(base, method, rows, folder / "out", device="cpu"))
    print(json.dumps(summary | as_facts(estimate, forecast(Estimate("cpu", "", 0, 0.0, 0), []))))


def main() -> None:
    """Train each in a process of its own, forecast each from the others, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.one:
        train_one(options.one, options.folder, options.steps)
        return
    from workbench.training.forecast import Estimate, forecast

    measured: dict[str, dict[str, Any]] = {}
    for name in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", name, "--folder", folder, "--steps", str(options.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured[name] = json.loads(done.stdout.splitlines()[-1])
        facts = measured[name]
        print(f"{name}: {facts['peak_memory_bytes'] / 1e9:.2f} GB, {facts['seconds']:.1f} s, by shapes "
              f"{facts['estimate']['memory_bytes'] / 1e9:.2f} GB", flush=True)  # fmt: skip
    for name, facts in measured.items():
        others = [other for key, other in measured.items() if key != name]
        seen = forecast(Estimate(**facts["estimate"]), others)
        memory, seconds = seen.memory_bytes or 0, seen.seconds or 0.0
        print(f"{name} from the others: memory {memory / facts['peak_memory_bytes'] - 1:+.0%}, "
              f"time {seconds / facts['seconds'] - 1:+.0%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
