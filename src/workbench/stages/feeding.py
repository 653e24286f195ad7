"""The process that feeds MLflow beside a run: started, heard and ended here. No stage waits for it.

It is `python -m workbench.stages.feeding`, fed by what the run writes. Its standard input is a pipe that it never
reads from: it closes when the run's process ends, however that ends, and then it feeds how, and ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.isolation import isolated
from workbench.privacy.secrets import masked
from workbench.recipe import Recipe, Tracking
from workbench.runs import Run
from workbench.stages.common import SCREEN, say, tracking_egress
from workbench.tracking import GIVEN_UP, follow, is_server, store_uri

# What the end of a command waits for: a server that answers gets the last of it now, one that is slow gets it later.
SERVER_S, FILE_S, AWAY_S = 15.0, 120.0, 4.0
STOPPED_S = 15.0  # after a signal: who sends one may give 30 seconds, and then kills
NICE = 5  # beside training it comes second


class Feed:
    """One running feeder. `end` lets it feed the rest, and is safe to call again."""

    def __init__(self, recipe: Recipe, run: Run, experiments: Path):
        self.run = run
        self.uri = store_uri(recipe.tracking, experiments)
        self.away = self.ended = False
        self.wanted = json.dumps({
            "folder": str(run.folder), "experiments": str(experiments), "tracking": asdict(recipe.tracking),
        })  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C and what ends a whole group reach the run, not this."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.stages.feeding", self.wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | isolated(),
            start_new_session=True,
        )
        self.listener = threading.Thread(target=self.listen, args=(self.process,), daemon=True)
        self.listener.start()

    def listen(self, process: subprocess.Popen[bytes]) -> None:
        """Show what the feeder has to say, until it ends."""
        assert process.stdout
        for line in process.stdout:
            with contextlib.suppress(ValueError, OSError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self.hear(message)

    def hear(self, message: Mapping[str, Any]) -> None:
        """One message: where the run is shown, what was not fed and why, that the store is away or back."""
        if "run" in message:
            SCREEN.print(f"  live in MLflow: {message['run']}", markup=False, soft_wrap=True)
        for line in message.get("said", ()):
            SCREEN.print(f"  {masked(line)}", markup=False, soft_wrap=True)
        if "away" in message:
            self.away = True
            if is_server(self.uri):
                GIVEN_UP.add(self.uri)
            say(self.run, "run", f"MLflow is not fed now, and nothing waits for it: {message['away']}")
        if "back" in message:
            self.away = False
            GIVEN_UP.discard(self.uri)
            say(self.run, "run", "MLflow answers again, and has been caught up")

    def end(self) -> None:
        """Have it feed the rest and how the run stands, and end; a store that is away, or takes long, is left."""
        if self.ended:
            return
        self.ended = True
        try:
            self.wait_for_it(FILE_S)
            if self.process.returncode and not self.away:  # something has killed it
                self.start()
                self.wait_for_it(FILE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.listener.join(1.0)

    def leave(self) -> None:
        """`end` after a signal: it is waited for a little, and else goes on alone until MLflow says KILLED."""
        if not self.ended:
            self.ended = True
            self.wait_for_it(STOPPED_S)

    def wait_for_it(self, most: float) -> None:
        """Let it hear that the run has ended, and wait as long as its store may take, or so many seconds."""
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(min(most, AWAY_S if self.away else SERVER_S if is_server(self.uri) else FILE_S))
        except subprocess.TimeoutExpired:
            if not self.away:
                SCREEN.print("  MLflow is slow: it gets the rest later (`python -m workbench ui`)", markup=False)


def start_feeding(recipe: Recipe, run: Run) -> Feed | None:
    """Start the process that feeds MLflow from this run; where it cannot be started, that is said, and no more."""
    try:
        return Feed(recipe, run, Path(recipe.launch.experiments).resolve())
    except OSError as error:
        say(run, "run", f"MLflow is not fed now: {error}")
        return None


# In the process itself.


def main(words: list[str]) -> int:
    """Feed one run until the pipe on standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    wanted = json.loads(words[0])
    experiments = Path(wanted["experiments"])
    try:
        follow(
            Path(wanted["folder"]),
            Tracking(**wanted["tracking"]),
            experiments,
            tracking_egress(experiments),
            pipe_closed,
            tell,
        )
    except (OSError, WorkbenchError, BrokenPipeError) as error:
        with contextlib.suppress(OSError):
            tell({"away": str(error)})
        return 1
    return 0


def pipe_closed(seconds: float) -> bool:
    """Wait so long for the run's process to end; whether it has."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and os.read(0, 1) == b""


def tell(message: Mapping[str, Any]) -> None:
    """One message to the run's process; when that has gone, to nobody."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
