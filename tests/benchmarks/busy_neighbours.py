"""What waiting threads cost beside three busy processes, and alone, by policy: layers of a small model, both ways.

`python tests/benchmarks/busy_neighbours.py [seconds]`. Each policy is measured alone and beside the neighbours, one
after the other in two rounds, each in a process of its own: OpenMP reads its policy when it is loaded. Needs a quiet
machine; only the ratios travel.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

NEIGHBOURS, ROUNDS = 3, 2
CORES = len(os.sched_getaffinity(0))
POLICIES: dict[str, dict[str, str]] = {
    "as it comes": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "passive, one thread fewer": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(max(1, CORES - 1))},
}


def work(seconds: float) -> float:
    """Steps a second of two layers of SmolLM2's shape on 512 tokens, forward and backward."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    shapes = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576), "gate": (1536, 576),
              "up": (1536, 576), "down": (576, 1536)}  # fmt: skip
    layers = [{n: (torch.randn(shape) * 0.02).requires_grad_() for n, shape in shapes.items()} for _ in range(2)]
    given = torch.randn(4, 128, 576)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(4, 128, -1, 64).transpose(1, 2)

    def step() -> None:
        x = given
        for layer in layers:
            y = F.rms_norm(x, (576,))
            q, k, v = (heads(y @ layer[name].T) for name in "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + mixed.transpose(1, 2).reshape(4, 128, 576) @ layer["o"].T
            y = F.rms_norm(x, (576,))
            x = x + (F.silu(y @ layer["gate"].T) * (y @ layer["up"].T)) @ layer["down"].T
        x.sum().backward()
        for layer in layers:
            for weight in layer.values():
                weight.grad = None

    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - started)


def measured(settings: dict[str, str], seconds: float) -> float:
    """The same in a process with these environment variables."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    command = [sys.executable, __file__, "--work", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | settings)
    return float(done.stdout.split()[-1])


def main() -> None:
    """A table of the means."""
    if sys.argv[1:2] == ["--work"]:
        print(work(float(sys.argv[2])))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    speeds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(ROUNDS):
        for busy in (False, True):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NEIGHBOURS * busy)]
            try:
                for name, settings in POLICIES.items():
                    speeds.setdefault((name, busy), []).append(measured(settings, seconds))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    usual = statistics.mean(speeds["as it comes", False])
    print(f"{CORES} cores, {NEIGHBOURS} neighbours; shares of the lone speed as it comes ({usual:.2f} steps a second)")
    for name in POLICIES:
        alone, beside = (statistics.mean(speeds[name, busy]) for busy in (False, True))
        print(f"{name:28} alone {alone / usual:5.2f}   beside three {beside / usual:5.2f}")


if __name__ == "__main__":
    main()
