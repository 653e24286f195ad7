"""Run a function or a program in a child: quiet, offline, in a folder of its own, never outliving its parent."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files import temporary_folder
from workbench.isolation import isolated, named_folders

LOG, RESULT = "log.txt", "result.json"
GRACE_S = 15.0  # what a server may take to end by itself
# A traceback is for those who ask for it; what a person reads is the error at its end, and where that came from.
TRACEBACK = re.compile(
    r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*|\n(?:During handling of|The above exception was).*\n"
)


@contextmanager
def child(
    function: str, arguments: dict[str, Any], *, group: bool = False, inside: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start `module:function` with JSON arguments; gives the process and its temporary folder, and ends both.

    The folder is the child's working directory; all it prints goes to `log.txt` there, what it returns to
    `result.json`. The network is forbidden to Hugging Face's libraries. Native code that crashes takes only the
    child down; and when the parent dies, even by kill -9, the child's standard input closes: it removes its folder and
    exits. With `group` it leads a process group of its own, and whatever it has started ends with it. With `inside` its
    folder lies there, and in it the temporary files of all that it loads.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    env = (
        os.environ
        | isolated()
        | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([package_root, *named_folders()]),
        }
    )
    with temporary_folder(inside) as folder:
        env |= {"TMPDIR": str(folder)} if inside else {}
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.engines.child", function, json.dumps(arguments), str(folder)],
                cwd=folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=group,
            )  # fmt: skip
        try:
            yield process, folder
        finally:
            if group:
                end_group(process)
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


@contextmanager
def program(command: Sequence[str], environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a program of another environment as `child` runs a function; it and all it starts end with us.

    It inherits our environment variables, less the ones that point Python at our packages, and `environment`; its
    temporary files lie in its own folder.
    """
    arguments = {"command": list(command), "environment": environment}
    with child("workbench.engines.child:run_here", arguments, group=True) as started:
        yield started


def run_here(command: list[str], environment: dict[str, str]) -> None:
    """Run a program until it ends; this process then exits with its code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group's end reaches the program too: stay until it has ended
    env = outside_environment() | {"TMPDIR": os.getcwd()} | environment
    code = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False).returncode
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)


def outside_environment() -> dict[str, str]:
    """Our environment variables without those that would point another environment's Python at our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process group to end, so that it can put its shared memory away, and kill what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)


def call(
    function: str, arguments: dict[str, Any], *, what: str, timeout_s: float | None = None, inside: Path | None = None
) -> Any:
    """Run the function to its end in a child and give what it returned; WorkbenchError with its last words."""
    with child(function, arguments, inside=inside) as (process, folder):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkbenchError(f"{what} did not end in {timeout_s:.0f} s\n{tail(folder)}") from None
        if code != 0 or not (folder / RESULT).is_file():
            error = WorkbenchError(f"{what} failed (exit {code})\n{tail(folder)}")
            error.add_note((folder / LOG).read_text(encoding="utf-8", errors="replace"))  # shown with debug=true
            raise error
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    folder: Path,
    *,
    what: str,
    where: str,
    timeout_s: float,
    remedy: str,
) -> None:
    """Wait for a server to be ready; WorkbenchError with the end of its log when it ends before, or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "ended" if process.poll() is not None else f"was not ready after {timeout_s:.0f} s"
            raise WorkbenchError(f"{what} {state}\n{tail(folder)}", where=where, remedy=remedy)
        time.sleep(0.05)


def free_port() -> int:
    """A port on loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(folder: Path, lines: int = 15) -> str:
    """The last lines a child printed, indented, of a traceback its last place and the error; a bar is one line."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    text = TRACEBACK.sub(lambda traceback: last_place(traceback[0]), text)
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line[:300]}" for line in kept) or "    (it printed nothing)"


def last_place(traceback: str) -> str:
    """The line of a traceback that names the file and function in which the error was raised."""
    places = [line for line in traceback.splitlines(keepends=True) if line.lstrip().startswith('File "')]
    return places[-1] if places else ""


def _exit_with_parent(folder: str) -> None:
    while os.read(0, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_S)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(130)


def _main() -> None:
    function, arguments, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    threading.Thread(target=_exit_with_parent, args=(folder,), daemon=True).start()
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    Path(RESULT).write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some libraries hang or crash while Python takes them down; the work is on disk


if __name__ == "__main__":
    _main()
