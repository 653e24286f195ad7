"""Training in several processes, from the lifecycle's side: the job as files, torchrun, and what comes back.

The lifecycle stays one process, which alone holds the run's lock, its manifest, MLflow and the signals. It writes the
job into a folder, starts torchrun with worker.py on it, and plays back what the first process tells there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import errors
from workbench.engines.device import threads_of
from workbench.errors import RequestError, WorkbenchError
from workbench.files import read_json, write_whole
from workbench.isolation import isolated
from workbench.recipe import Launch
from workbench.training.handover import EVENTS, RESULT, STOP, write_job
from workbench.training.job import Job
from workbench.training.progress import Screen, Stop, stopping

FOLDER, LOG, OWN = "processes", "torchrun.log", "torchrun"
PROCESSES_A_CORE = 8
TORCHRUN = "WORKBENCH_TORCHRUN"  # words that start `-m workbench.training.worker FOLDER` on every device, if set


def train_together(job: Job, launch: Launch) -> dict[str, Any]:
    """`loop.train` in `launch.processes` × `launch.nodes` processes; what a process raised is raised here.

    Raises RequestError for a kind of training whose loss is made of more than rows and targets, WorkbenchError naming
    the process that died, and what SIGINT and SIGTERM do once the processes have written a checkpoint.
    """
    if job.loss is not None:
        raise RequestError(
            "only answers are trained in several processes: rows of one's own, a teacher's text or log-probabilities",
            where="launch.processes",
            remedy="launch=local: this kind trains in one process",
        )
    refuse_too_many(launch)
    folder = (job.out / FOLDER).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    each = max(1, threads_of(job.threads) // launch.processes)
    write_job(replace(job, threads=each), folder)
    (folder / EVENTS).touch()
    words = [*starter(launch, folder), "-m", "workbench.training.worker", str(folder)]
    if launch.nodes > 1 and not os.environ.get(TORCHRUN):
        job.event("said", text=f"on each of the other {launch.nodes - 1} machines: {shlex.join(words)}")
    environment = {**os.environ, **isolated(), "OMP_NUM_THREADS": str(each)}
    with stopping() as stop, (folder / LOG).open("wb") as log, ExitStack() as shown:
        # Its standard input is the line that the processes hang on. A session of its own: a Ctrl-C is ours alone.
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            follow(job, child, folder, stop, shown)
        finally:
            assert child.stdin is not None
            child.stdin.close()
            if child.poll() is None:
                child.terminate()
                child.wait()
        states = states_in(folder)
        if child.returncode:
            raise failure(folder, states, launch.processes * launch.nodes)
        if any(state["state"] == "stopped" for state in states):
            job.event("said", text="the processes have written a checkpoint and ended")
            if stop.requested:
                stop.take_effect()
            raise WorkbenchError(
                "the processes were asked to end by somebody else", where="training", remedy="the same command goes on"
            )
    summary = read_json(folder / RESULT)
    shutil.rmtree(folder)
    return summary


def refuse_too_many(launch: Launch) -> None:
    """RequestError for more processes than this machine could ever run: starting them would bring it down."""
    cores = os.cpu_count() or 1
    if launch.processes > PROCESSES_A_CORE * cores:
        raise RequestError(
            f"{launch.processes:,} processes would start on a machine of {cores:,} cores",
            where="launch.processes",
            remedy="one for each GPU, or for each core",
        )


def starter(launch: Launch, folder: Path) -> list[str]:
    """The words that start what follows them in every process: torchrun's, or what WORKBENCH_TORCHRUN says.

    What torchrun writes for itself goes into `folder`: where nothing is said, it leaves a folder among the system's
    temporary ones each time.
    """
    own = shlex.split(os.environ.get(TORCHRUN, ""))
    if own:
        return own
    words = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0", f"--nproc-per-node={launch.processes}"]
    words.append(f"--log-dir={folder / OWN}")
    if launch.nodes == 1:
        return [*words, "--standalone"]
    meeting = f"--rdzv-endpoint={launch.rendezvous}"
    return [*words, f"--nnodes={launch.nodes}", "--rdzv-backend=c10d", meeting, "--rdzv-id=workbench"]


def follow(job: Job, child: subprocess.Popen[bytes], folder: Path, stop: Stop, shown: ExitStack) -> None:
    """Play back what the first process tells until all have ended; a wish to stop is handed on."""
    screen = Screen()
    with (folder / EVENTS).open(encoding="utf-8") as lines:
        half = ""
        while True:
            ended = child.poll() is not None  # looked at before the last lines are read
            for part in lines:
                half += part
                if half.endswith("\n"):
                    play(job, json.loads(half), folder, screen, shown)
                    half = ""
            if ended:
                return
            if stop.requested and not (folder / STOP).exists():
                (folder / STOP).touch()
            time.sleep(0.05)


def play(job: Job, line: Mapping[str, Any], folder: Path, screen: Screen, shown: ExitStack) -> None:
    """One line: an event, something for the screen, or answers to be scored."""
    if "event" in line:
        job.event(line["event"], **line["fields"])
    elif "answers" in line:
        assert job.development is not None
        scores = [job.development.score(number, answer) for number, answer in enumerate(line["answers"])]
        write_whole(folder / line["into"], json.dumps(scores))
    else:
        screen.loss, values = line["loss"], line["values"]
        match line["screen"]:
            case "shown":
                shown.enter_context(screen.shown(*values))
            case "step":
                screen.step(*values)
            case _:
                screen.line(*values)


def states_in(folder: Path) -> list[dict[str, Any]]:
    """What each process has noted of itself, by rank."""
    return sorted((read_json(path) for path in folder.glob("process-*.json")), key=lambda state: state["rank"])


def failure(folder: Path, states: Sequence[Mapping[str, Any]], size: int) -> WorkbenchError:
    """What ended the processes: what one of them raised, one that died without a word, or torchrun itself."""
    by_time = sorted((state for state in states if state["state"] == "failed"), key=lambda state: state["at"])
    ours = next((state for state in by_time if "kind" in state), None)
    if ours:
        kind = getattr(errors, ours["kind"], WorkbenchError)
        return kind(ours["what"], where=ours["where"], remedy=ours["remedy"])
    remedy = f"the same command goes on from the last checkpoint; {folder / LOG} has the processes' own words"
    silent = [state for state in states if state["state"] == "running"]
    if silent:
        names = ", ".join(f"{s['rank']} of {size} (host {s['host']}, pid {s['pid']})" for s in silent)
        return WorkbenchError(f"process {names} died without a word: killed, or out of memory", remedy=remedy)
    if by_time:
        first = by_time[0]
        return WorkbenchError(
            f"process {first['rank']} of {size} (host {first['host']}): {first['what']}", remedy=remedy
        )
    last = [line for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()][-1:]
    return WorkbenchError(f"torchrun ended without its processes: {' '.join(last)}", where="launch", remedy=remedy)
