"""Serve a model folder, or an adapter on its base, through vLLM, which lives in a Python environment of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from workbench.engines.child import free_port, outside_environment, program, tail, wait_until
from workbench.engines.device import release_memory, threads_of
from workbench.engines.llamacpp import request
from workbench.errors import RequestError

VARIABLE = "VLLM_PYTHON"  # names the interpreter of that environment
LOCKS = Path(__file__).parents[1] / "locks"
START_TIMEOUT_S = 900.0  # reading a large model, and compiling it on a GPU, takes minutes
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


@contextmanager
def serve(
    folder: Path,
    *,
    python: Path,
    context: int = 2048,
    parallel: int = 8,
    threads: int | None = None,
    port: int = 0,
    base: Path | None = None,
) -> Iterator[tuple[str, Callable[[], str]]]:
    """A healthy vLLM server: its base URL, and a function that gives the end of its log.

    The model is served under its folder's name. An adapter is served unmerged on `base`, or on the folder that its
    adapter_config.json names. `context` is the longest prompt and answer together, in tokens; port 0 is any free one.
    On a CPU it runs eagerly with `threads` threads and 1 GiB of keys and values (VLLM_CPU_KVCACHE_SPACE says
    otherwise); on a GPU it takes what is free there, see `memory_share`. WorkbenchError with the log's end when it
    does not come up.
    """
    folder = folder.resolve()
    release_memory()  # what this process keeps of the card for later is not there for the server
    on_cpu = not has_gpu(python)
    share = [] if on_cpu else ["--gpu-memory-utilization", str(memory_share(*card_memory(python)))]
    number = port or free_port()
    # Not `vllm serve`: that command looks for a package named vllm, and the build for the CPU is named vllm-cpu.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", *model_options(folder, base)]
    command += ["--host", "127.0.0.1", "--port", str(number)]
    command += ["--max-model-len", str(context), "--max-num-seqs", str(parallel)]
    command += ["--disable-uvicorn-access-log", *(["--enforce-eager"] if on_cpu else share)]
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | (cpu_environment(threads) if on_cpu else {})
    url = f"http://127.0.0.1:{number}"
    with program(command, environment) as (process, log):
        wait_until(
            lambda: serves(url, folder.name), process, log,
            what="vLLM's server", where=str(folder), timeout_s=START_TIMEOUT_S,
            remedy="the last lines above are the server's own",
        )  # fmt: skip
        yield url, lambda: tail(log)


def model_options(folder: Path, base: Path | None) -> list[str]:
    """What to load and by which name: a model folder, or an adapter with its own tokenizer and template on its base."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return ["--model", str(folder), "--served-model-name", folder.name, "--dtype", saved_dtype(folder)]
    settings = json.loads(adapter.read_text(encoding="utf-8"))
    under = (base or Path(settings.get("base_model_name_or_path") or "")).expanduser()
    if not (under / "config.json").is_file():
        raise RequestError(
            f"the adapter's base model is not a folder here: {under}",
            where=str(adapter),
            remedy="give the folder of the base model's weights",
        )
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    options = ["--model", str(under.resolve()), "--dtype", saved_dtype(under)]
    options += [
        "--served-model-name",
        f"{folder.name}-base",
        "--enable-lora",
        "--lora-modules",
        f"{folder.name}={folder}",
    ]
    options += ["--max-lora-rank", str(next((size for size in ADAPTER_RANKS if size >= rank), rank))]
    for option, name in (("--tokenizer", "tokenizer.json"), ("--generation-config", "generation_config.json")):
        options += [option, str(folder)] if (folder / name).is_file() else []
    template = folder / "chat_template.jinja"
    return options + (["--chat-template", str(template)] if template.is_file() else [])


def saved_dtype(folder: Path) -> str:
    """The dtype that config.json names: vLLM's own choice would round float32 weights to 16 bits."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def cpu_environment(threads: int | None) -> dict[str, str]:
    """Threads are counted but bound to no core: binding reads the machine's layout, which containers often hide."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "OMP_NUM_THREADS": str(threads_of(threads)),
        "TORCHDYNAMO_DISABLE": "1",  # one small function of its log-probabilities is compiled else, for 15 s
    }


def has_gpu(python: Path) -> bool:
    """Whether that environment's torch sees a GPU."""
    return bool(card_name(python))


@cache
def card_name(python: Path) -> str:
    """The card that environment's torch sees, "" where it sees none; asked once."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env=outside_environment())
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RequestError(f"its torch does not load: {words}", where=f"{VARIABLE}={python}", remedy=how_to())
    return done.stdout.strip()


def card_memory(python: Path) -> tuple[int, int]:
    """Free and total bytes of the card that environment's torch sees, now."""
    code = "import torch; print(*torch.cuda.mem_get_info())"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env=outside_environment())
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RequestError(f"its torch cannot ask the GPU: {words}", where=f"{VARIABLE}={python}", remedy=how_to())
    free, total = map(int, done.stdout.split()[-2:])
    return free, total


def memory_share(free: int, total: int) -> float:
    """The share of a card's memory that vLLM may take: all that is free but 3 % of the card, and never more than 90 %.

    vLLM does not start where its share is more than what is free, as it is beside a desktop or another program.
    """
    return max(0.01, min(0.9, math.floor(100 * (free / total - 0.03)) / 100))


@cache
def version() -> str:
    """The version of vLLM in that environment; the CPU build is a package of another name."""
    code = (
        "import importlib.metadata as m\n"
        "print(next((d.version for d in m.distributions() if d.name.lower().replace('_', '-') in "
        "('vllm', 'vllm-cpu')), ''))"
    )
    done = subprocess.run(
        [os.environ.get(VARIABLE, ""), "-c", code],
        capture_output=True,
        text=True,
        env=outside_environment(),
        check=False,
    )
    return done.stdout.strip()


def available() -> str | None:
    """None when vLLM can be started here, else why not and what to do."""
    named = os.environ.get(VARIABLE, "")
    if not named:
        return f"{VARIABLE} is not set: {how_to()}"
    if not os.access(named, os.X_OK):
        return f"{VARIABLE}={named} is no interpreter: {how_to()}"
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if subprocess.run([named, "-c", code], capture_output=True, env=outside_environment()).returncode != 0:
        return f"{VARIABLE}={named} has no vLLM: {how_to()}"
    return None


def how_to() -> str:
    """How that environment is made, in one line, for the card or the CPU that is here."""
    names = ("vllm_cuda",) if card_is_here() else ("vllm_cpu", "torch_cpu")
    files = " ".join(f"-r {LOCKS / name}.txt" for name in names)
    return (
        f"python3 -m venv ENV && ENV/bin/pip install --no-deps {files}, "
        f"then set {VARIABLE}=ENV/bin/python; configs/quantize/README.md has more"
    )


def card_is_here() -> bool:
    """Whether an NVIDIA card's driver is here: its command is found, whatever torch this environment has."""
    return shutil.which("nvidia-smi") is not None


def serves(url: str, model: str) -> bool:
    """Whether the server is healthy and lists the model: another program may have taken the port."""
    try:
        return any(entry["id"] == model for entry in request(f"{url}/v1/models", timeout_s=5.0)["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
