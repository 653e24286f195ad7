"""Run one function in a child process that is quiet, offline, in a folder of its own, and never outlives its parent."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

LOG, RESULT = "log.txt", "result.json"


@contextmanager
def child(function: str, arguments: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start `module:function` with JSON arguments; gives the process and its temporary folder, and ends both.

    The folder is the child's working directory; all it prints goes to `log.txt` there, what it returns to
    `result.json`. The network is forbidden to Hugging Face's libraries. Native code that crashes takes only the
    child down; and when the parent dies, even by kill -9, the child's standard input closes and it exits.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")])),
    }
    with tempfile.TemporaryDirectory(prefix="workbench-") as name:
        folder = Path(name)
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.engines.child", function, json.dumps(arguments)],
                cwd=folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield process, folder
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


def call(function: str, arguments: dict[str, Any], *, what: str, timeout_s: float | None = None) -> Any:
    """Run the function to its end in a child and give what it returned; WorkbenchError with its last words."""
    with child(function, arguments) as (process, folder):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkbenchError(f"{what} did not end in {timeout_s:.0f} s\n{tail(folder)}") from None
        if code != 0 or not (folder / RESULT).is_file():
            raise WorkbenchError(f"{what} failed (exit {code})\n{tail(folder)}")
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def tail(folder: Path, lines: int = 15) -> str:
    """The last lines a child printed, indented; progress bars count as one line each."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line[:300]}" for line in kept) or "    (it printed nothing)"


def _exit_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(130)


def _main() -> None:
    function, arguments = sys.argv[1], json.loads(sys.argv[2])
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    Path(RESULT).write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some libraries hang or crash while Python takes them down; the work is on disk


if __name__ == "__main__":
    _main()
