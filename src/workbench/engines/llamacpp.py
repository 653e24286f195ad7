"""Ask a GGUF file through llama.cpp's own server, on loopback, in a process of its own that dies with this one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.records import Answer, Message, message_dicts

START_SECONDS = 120
ANSWER_SECONDS = 600
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@contextmanager
def llamacpp_engine(
    gguf: Path, *, parallel: int = 8, context: int = 4096, threads: int | None = None
) -> Iterator[Callable[[Sequence[Sequence[Message]], int], Iterator[tuple[int, Answer]]]]:
    """Serve a GGUF file and give the function that asks it, `parallel` prompts at a time, greedily.

    Prompts are rendered by the file's own chat template. `context` bounds prompt and answer together, in tokens.
    `Answer.seconds` is a request's wall time over `parallel`, so that the answers' sum is the arm's wall time.
    Raises WorkbenchError, with the end of the server's log, when it does not come up or stops answering.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        request = {"model": str(gguf), "parallel": parallel, "context": context, "threads": threads or os.cpu_count()}
        with log.open("w") as stream:
            server = subprocess.Popen(
                [sys.executable, "-m", "workbench.engines.llamacpp", json.dumps(request)],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        try:
            address = wait_for_address(server, log)

            def ask(prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> Iterator[tuple[int, Answer]]:
                with ThreadPoolExecutor(parallel) as pool:
                    waiting = {
                        pool.submit(answer, address, prompt, max_new_tokens, parallel): index
                        for index, prompt in enumerate(prompts)
                    }
                    try:
                        for done in as_completed(waiting):
                            yield waiting[done], done.result()
                    except (OSError, json.JSONDecodeError, KeyError) as error:
                        raise WorkbenchError(f"llama.cpp stopped answering: {error}\n{tail(log)}") from None
                    finally:
                        for future in waiting:
                            future.cancel()

            yield ask
        finally:
            server.kill()
            server.wait()


def wait_for_address(server: subprocess.Popen[str], log: Path) -> str:
    """The server's address, once it says so and answers as healthy."""
    assert server.stdout is not None
    line = server.stdout.readline().strip()  # empty when the child has died
    deadline = time.monotonic() + START_SECONDS
    while line and server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{line}/v1/models", timeout=5):
                return line
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise WorkbenchError(f"llama.cpp could not load the file:\n{tail(log)}", where="llama.cpp")


def tail(log: Path) -> str:
    """The end of the server's log."""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-6:])


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        return json.load(response)


def answer(address: str, prompt: Sequence[Message], max_new_tokens: int, parallel: int) -> Answer:
    """Ask one prompt."""
    body = {
        "messages": message_dicts(prompt),
        "max_tokens": max_new_tokens,
        "temperature": 0,
        "cache_prompt": True,
    }
    started = time.perf_counter()
    told = post(f"{address}/v1/chat/completions", body)
    seconds = (time.perf_counter() - started) / parallel
    choice, usage = told["choices"][0], told["usage"]
    return Answer(
        choice["message"].get("content") or "",
        "stop" if choice["finish_reason"] == "stop" else "length",
        int(usage["prompt_tokens"]),
        int(usage["completion_tokens"]),
        seconds,
    )


def main() -> None:
    """The child: load, say the address on standard output, serve until the parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    request = json.loads(sys.argv[1])
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = request["model"]
    parameters.port = 0
    parameters.n_parallel = request["parallel"]
    parameters.n_ctx = request["context"] * request["parallel"]
    parameters.cpuparams.n_threads = request["threads"]
    parameters.cpuparams_batch.n_threads = request["threads"]
    parameters.use_jinja = True
    parameters.n_gpu_layers = -1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while os.getppid() != 1:
        time.sleep(1)


if __name__ == "__main__":
    main()
