"""One of the processes that train together: `torchrun … -m workbench.training.worker FOLDER`.

It finds its job in the folder, where processes.py has written it, and leaves there what became of it. The first tells
its events and asks for scores through files too, so that the lifecycle may be on another machine that sees the folder.
Its standard input is held open by the lifecycle: when that dies, however it does, the process ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from workbench.errors import RequestError, WorkbenchError
from workbench.files import write_whole
from workbench.runs import append_line, now

EVENTS = "events.jsonl"  # handover.py's, which is not loaded before the process is watched
A_DAY = timedelta(days=1)  # the others may wait long while the first writes answers; a dead one is seen by torchrun


def main(folder: Path) -> int:
    """Train as the process that torchrun's variables say; gives the exit code."""
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    note = Note(folder / f"process-{rank}.json", rank)
    note.write("running")
    signal.signal(signal.SIGTERM, end)
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    threading.Thread(target=watch, args=(note, reads), daemon=True).start()
    if rank:
        log = os.open(folder / f"process-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
    try:
        train_as(folder, rank, size, local)
    except KeyboardInterrupt:
        note.write("stopped")
        return 0
    except Exception as error:
        traceback.print_exc()
        about = {"what": f"{type(error).__name__}: {error}"}
        if isinstance(error, WorkbenchError):
            about = {"what": error.what, "where": error.where, "remedy": error.remedy, "kind": type(error).__name__}
        note.write("failed", **about)
        return 1
    note.write("done")
    return 0


def train_as(folder: Path, rank: int, size: int, local: int) -> None:
    """Join the others, and train; the first writes the summary beside the job."""
    from dataclasses import replace

    import torch
    import torch.distributed as dist

    from workbench.engines.device import device_of
    from workbench.training.handover import RESULT, STOP, read_job
    from workbench.training.job import silent
    from workbench.training.loop import train
    from workbench.training.world import World

    job = read_job(folder)
    device = device_of(job.device)
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise RequestError(
                f"this machine has {torch.cuda.device_count()} CUDA devices, and each process needs one",
                where="launch.processes",
                remedy=f"launch.processes={max(1, torch.cuda.device_count())}",
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=A_DAY)
    tell = Telling(folder) if rank == 0 else None
    development = job.development
    if development is not None and tell is not None:
        development = replace(development, all_scores=tell.scores)
    summary = train(
        replace(
            job, world=World(rank, size, folder / STOP), event=tell.event if tell else silent, screen=tell or Silence(),
            development=development,
        )
    )  # fmt: skip
    if rank == 0:
        write_whole(folder / RESULT, json.dumps(summary))
    dist.barrier()
    dist.destroy_process_group()


@dataclass(frozen=True)
class Note:
    """What a process says of itself, in a file of its own."""

    path: Path
    rank: int

    def write(self, state: str, **about: str) -> None:
        """Say in which state it is: running, asked to end, stopped, failed or done."""
        who = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "at": now(), "state": state}
        write_whole(self.path, json.dumps(who | about))


def end(_number: int, _frame: object) -> None:
    """SIGTERM before or after training, which has its own way with it."""
    raise KeyboardInterrupt


def watch(note: Note, reads: int) -> None:
    """End the process when the lifecycle dies, and note a SIGTERM even while the process waits for the others.

    `reads` is where the numbers of signals come out.
    """
    waiting = select.poll()
    waiting.register(0, 0)  # of standard input only its end: what is typed there is not ours
    waiting.register(reads, select.POLLIN)
    while True:
        for place, what in waiting.poll():
            if place == reads:
                if signal.SIGTERM in os.read(reads, 64):
                    note.write("asked to end")
            elif what & (select.POLLHUP | select.POLLERR):
                os._exit(1)
            else:
                waiting.unregister(place)


class Silence:
    """What the other processes show: nothing."""

    loss = ""

    @contextmanager
    def shown(self, done: int, steps: int) -> Iterator[None]:
        """Show nothing meanwhile."""
        yield

    def step(self, step: int, loss: float, speed: float) -> None:
        """Show nothing."""

    def line(self, text: str) -> None:
        """Say nothing."""


class Telling:
    """What the first process tells the lifecycle: events, what its screen would show, and answers that want scores."""

    def __init__(self, folder: Path):
        self.folder, self.loss, self.asks = folder, "", 0

    def event(self, kind: str, **fields: object) -> None:
        """An event of training."""
        append_line(self.folder / EVENTS, json.dumps({"event": kind, "fields": fields}))

    def screen(self, call: str, *values: object) -> None:
        """Something for the screen."""
        append_line(self.folder / EVENTS, json.dumps({"screen": call, "values": values, "loss": self.loss}))

    @contextmanager
    def shown(self, done: int, steps: int) -> Iterator[None]:
        """The bar, with so many steps done."""
        self.screen("shown", done, steps)
        yield

    def step(self, step: int, loss: float, speed: float) -> None:
        """Move the bar."""
        self.screen("step", step, loss, speed)

    def line(self, text: str) -> None:
        """A line where there is no bar."""
        self.screen("line", text)

    def scores(self, answers: Sequence[str]) -> list[float]:
        """What the lifecycle's scorer makes of answers to the development rows; waits for it."""
        self.asks += 1
        place = self.folder / f"scores-{self.asks}.json"
        append_line(self.folder / EVENTS, json.dumps({"answers": answers, "into": place.name}))
        while not place.exists():
            time.sleep(0.02)
        return json.loads(place.read_text(encoding="utf-8"))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may wait for others at an ordinary end
