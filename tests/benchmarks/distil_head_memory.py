"""Peak memory, seconds and loss of a distillation head, in chunks and with whole logits, each in a process of its own.

`python tests/benchmarks/distil_head_memory.py [--rows 8192] [--words 49152] [--width 576] [--json]`. Forward KL to a
teacher with the same vocabulary, both heads in float32, the student's trained. The naive way wants about five times
rows × words × 4 bytes: 8.6 GB at the sizes above. The peak is the process's (`ru_maxrss`), with interpreter and torch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

WAYS = ("naive", "ours")


def measure(way: str, rows: int, words: int, width: int) -> dict[str, float]:
    """One forward and backward pass of a way, in this process."""
    import torch

    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(rows, width), torch.randn(rows, width)
    weight, teacher_weight = torch.randn(words, width) * width**-0.5, torch.randn(words, width) * width**-0.5
    hidden.requires_grad_()
    weight.requires_grad_()
    started = time.perf_counter()
    loss = (chunked if way == "ours" else whole)(hidden, weight, teacher_hidden, teacher_weight)
    loss.backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gradients = float(hidden.grad.norm()), float(weight.grad.norm())
    return {"peak_bytes": peak, "seconds": seconds, "loss": float(loss.detach()), "gradient": sum(gradients)}


def whole(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    """As one writes it first: all logits of both, then PyTorch's own KL."""
    from torch.nn import functional

    student = functional.log_softmax(hidden @ weight.T, dim=-1)
    teacher = functional.log_softmax(teacher_hidden @ teacher_weight.T, dim=-1)
    return functional.kl_div(student, teacher, reduction="sum", log_target=True) / len(hidden)


def chunked(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    """The workbench's."""
    from workbench.training.losses import distil_loss, forward_kl, full, head_logits

    rows = full(head_logits(teacher_hidden, teacher_weight), forward_kl)
    return distil_loss(hidden, weight, None, rows, num_items=len(hidden))


def main() -> None:
    """Both ways one after the other, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--words", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sizes = (asked.rows, asked.words, asked.width)
    if asked.way:
        print(json.dumps(measure(asked.way, *sizes)))
        return
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--rows", str(sizes[0]), "--words", str(sizes[1])]
        said = subprocess.run([*command, "--width", str(sizes[2])], stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(said.stdout.splitlines()[-1])
        if not asked.json:
            one, share = found[way], found[way]["peak_bytes"] / found["naive"]["peak_bytes"]
            print(f"{way:6} {one['peak_bytes'] / 1e9:6.2f} GB {share:5.2f}×", end=" ")
            print(f"{one['seconds']:6.1f} s   loss {one['loss']:.6f}", flush=True)
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
