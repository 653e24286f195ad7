"""Three recipes at once for some minutes, killed at random, with full disks and a dead MLflow; then the faults stop.

    python tests/support/soak.py MINUTES [FOLDER]

Each recipe labels with a teacher on loopback, trains, evaluates, bundles and registers. Until the time is up, a run is
killed (SIGKILL, SIGTERM or SIGINT) after a random while, finds the disk full now and then, or an MLflow that is silent
or gives 500. All three lie on one small disk in memory, which is filled to the last bytes; where none may be mounted
(that takes root), a run is given a largest size of its files instead. Afterwards each command is given once more
without faults. Prints a line for each try and what was lost or doubled; exits 1 where something failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hole_server import hole_server
from odd_teacher import Odd, completion, odd_teacher

NAMES = ("one", "two", "three")
PROMPTS = 40
RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data:
  train: file:{name}.jsonl
  test: file:gold.jsonl
  validation_share: 0.1
  columns: {{prompt: question, answer: answer}}
  privacy: public
teacher: {{api: openai, model: gpt-test, key_variable: TEACHER_KEY, base_url: "{url}", route: mistral_api,
  family: mistral, price: {{input_mtok: 1.0, output_mtok: 4.0}}, budget_usd: 1.0, max_new_tokens: 16, concurrency: 2}}
method: {{learning_rate: 2e-2, epochs: 1000, max_steps: 40, evaluations: 4, sample_answers: 0, save_minutes: 0.01}}
evaluate: {{few_shot: 2, max_new_tokens: 4, general: null, harmful: null, energy: false}}
gate: {{min_rows: 5, better_by: -1.0, quantized_margin: 1.0}}
bundle: {{parity_rows: 4, most_kl: 0.02}}
"""
FAULTS = ("kill", "kill", "kill", "term", "interrupt", "full", "full", "mlflow silent", "mlflow 500", "none")
DISK_MB = 64  # at the end 3.4 MB lay on it, registered models left out
LEFT_BYTES = (0, 4_000, 40_000, 250_000, 1_500_000)  # what a full disk has free
LARGEST_BYTES = (20_000, 100_000, 1_000_000)  # a file's, where no disk can be filled
# What a run may end with while it is disturbed: done, a failure with a sentence, a signal's own code.
ENDS = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}


class Book:
    """What held and what did not, one line each."""

    def __init__(self) -> None:
        self.held = 0
        self.failed: list[str] = []
        self.lock = threading.Lock()

    def check(self, what: str, holds: bool, seen: object = "") -> None:
        with self.lock:
            self.held += holds
            if not holds:
                self.failed.append(what)
            print(f"  {'ok  ' if holds else 'FAIL'} {what} {seen}", flush=True)


def project(folder: Path, name: str, model: Path, url: str) -> None:
    """One recipe's rows and recipe."""
    rows = [{"question": f"{name}: which colour has item {n}x{n * 7 % 31}?"} for n in range(PROMPTS)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gold = [{"question": f"Gold {n}x{n * 3 % 17}?", "answer": "red"} for n in range(12)]
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    (folder / f"{name}.yaml").write_text(RECIPE.format(model=model, name=name, url=url))


def small_disk(folder: Path) -> bool:
    """Mount a small disk in memory on a folder; False where this user or system may not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "soak", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def full_disk(folder: Path, left: int, after: float) -> Iterator[None]:
    """After so many seconds, and until the block ends, the disk of a folder has no more than `left` bytes free."""
    filler = folder / f"filler-{threading.get_ident()}"
    timer = threading.Timer(after, fill, (filler, left))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        filler.unlink(missing_ok=True)


def fill(filler: Path, left: int) -> None:
    """Write a file until its disk has so many bytes free."""
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while (free := shutil.disk_usage(filler.parent).free) > left:
            stream.write(bytes(min(free - left, 1 << 16)))


def start(folder: Path, name: str, words: list[str], most: int | None) -> subprocess.Popen[str]:
    """`workbench train` on one recipe; no file may grow beyond `most` bytes."""

    def limited() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if most is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, "-m", "workbench", "train", f"recipe=./{name}.yaml", *words]
    # Python keeps the bytecode that a full disk has torn, and cannot import that module again.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
                            stdin=subprocess.DEVNULL, preexec_fn=limited)  # fmt: skip


def disturbed(folder: Path, name: str, until: float, draw: random.Random, book: Book) -> None:
    """Give one command again and again, each time with another fault, until the time is up."""
    number = 0
    while time.monotonic() < until:
        number += 1
        fault = draw.choice(FAULTS)
        shared = fault == "full" and os.path.ismount(folder)
        with book.lock:
            FAULTS_OF.update(NAMES if shared else [name])
        if fault.startswith("mlflow"):
            with hole_server(fault.removeprefix("mlflow ")) as hole:
                ended(
                    start(folder, name, [f"tracking.uri={hole}"], None), draw.uniform(20, 60), None, name, fault, book
                )
            continue
        if shared:
            left, after = draw.choice(LEFT_BYTES), draw.choice((0.0, draw.uniform(1, 30)))
            with full_disk(folder, left, after):
                ended(start(folder, name, [], None), draw.uniform(1, 45), None, name, f"full, {left:,} left", book)
            continue
        most = draw.choice(LARGEST_BYTES) if fault == "full" else None
        number_of = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}.get(fault)
        ended(start(folder, name, [], most), draw.uniform(1, 45), number_of, name, fault, book)


def ended(child: subprocess.Popen[str], after: float, number: int | None, name: str, fault: str, book: Book) -> None:
    """Let a command run so long, send it the signal, and look at how it ends."""
    try:
        text, _ = child.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        child.send_signal(number or signal.SIGTERM)
        try:
            text, _ = child.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            book.check(f"{name} {fault}: it ends within two minutes of the signal", False)
            return
    # `debug=true shows where` stands below an error that the workbench does not know.
    fine = child.returncode in ENDS and "Traceback" not in text and "debug=true" not in text
    last = (text.strip().splitlines() or [""])[-1][:160]
    seen = last if fine else text[-4000:]
    book.check(f"{name} {fault}: it ends as it should", fine, f"exit {child.returncode}: {seen}")


def judged(folder: Path, name: str, server: Odd, book: Book) -> None:
    """After the faults: the same command once more ends, and nothing is lost or doubled."""
    child = start(folder, name, [], None)
    text, _ = child.communicate(timeout=900)
    book.check(f"{name}: it ends once the faults stop", child.returncode == 0, text[-300:] if child.returncode else "")
    runs = list(folder.glob(f"experiments/{name}/*/run.json"))
    book.check(f"{name}: one run", len(runs) == 1, len(runs))
    if child.returncode or len(runs) != 1:
        return
    run = runs[0].parent
    stages = set(json.loads(runs[0].read_text())["stages"])
    book.check(
        f"{name}: every stage is done",
        {"label", "train", "merge", "evaluate", "bundle/student", "register"} <= stages,
        stages,
    )
    kept = [
        json.loads(line)["id"] for part in ("labels", "rejected") for line in lines_of(run / "label" / f"{part}.jsonl")
    ]
    book.check(f"{name}: each prompt is labelled once", len(kept) == len(set(kept)) >= PROMPTS, len(kept))
    steps = Counter(
        e["step"] for e in map(json.loads, lines_of(run / "events.jsonl"))
        if e.get("kind") == "metric" and e.get("name") == "train/loss"
    )  # fmt: skip
    book.check(f"{name}: every step is there", set(range(1, 41)) <= set(steps), sorted(set(range(1, 41)) - set(steps)))
    left = [p.name for p in run.rglob(".*") if p.name != ".lock"]
    book.check(f"{name}: nothing half done is left", not left, left)
    asked = Counter(json.dumps(body["messages"]) for body in server.rows if f"{name}: which" in json.dumps(body))
    book.check(f"{name}: each prompt was asked", len(asked) == PROMPTS, len(asked))
    # Each fault may lose what was in flight: two at a time.
    again = sum(count - 1 for count in asked.values())
    book.check(f"{name}: bought again is at most what was in flight at the faults", again <= 2 * FAULTS_OF[name], again)


FAULTS_OF: Counter[str] = Counter()


def lines_of(path: Path) -> list[str]:
    """A file's lines; none where it is not there."""
    return path.read_text().splitlines() if path.is_file() else []


def registered(folder: Path, book: Book) -> None:
    """Each model is registered once, and a champion."""
    with closing(sqlite3.connect(folder / "experiments" / "mlflow.db")) as store:
        versions = Counter(name for (name,) in store.execute("SELECT name FROM model_versions"))
        aliases = {name for name, alias in store.execute("SELECT name, alias FROM registered_model_aliases")
                   if alias == "champion"}  # fmt: skip
        running = store.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
    book.check("each model has one version", all(versions[name] == 1 for name in NAMES), dict(versions))
    book.check("each model has a champion", aliases >= set(NAMES), aliases)
    book.check("no run is left RUNNING in MLflow", running == 0, running)
    with closing(sqlite3.connect(folder / "experiments" / "ledger.db")) as ledger:
        reserved = ledger.execute("SELECT COUNT(*) FROM attempts WHERE state = 'reserved'").fetchone()[0]
    book.check("nothing is left reserved in the ledger", reserved == 0, reserved)


def main(minutes: float, folder: Path, model: Path, seed: int = 0) -> int:
    """The soak; 0 when all held."""
    book = Book()
    os.environ |= {"TEACHER_KEY": "sk-soak-key", "WORKBENCH_KEYS": str(folder / "keys"), "OMP_NUM_THREADS": "1"}

    def reply(body: dict[str, Any]) -> Any:
        time.sleep(0.05)
        return completion("red")

    with odd_teacher(reply) as server:
        for name in NAMES:
            project(folder, name, model, server.url)
        kind = f"{DISK_MB} MB in memory" if os.path.ismount(folder) else "the system's own; files have a largest size"
        print(f"the disk: {kind}", flush=True)
        until = time.monotonic() + 60 * minutes
        threads = [
            threading.Thread(target=disturbed, args=(folder, name, until, random.Random(seed + n), book))
            for n, name in enumerate(NAMES)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("the faults stop", flush=True)
        for name in NAMES:
            judged(folder, name, server, book)
    registered(folder, book)
    if os.path.ismount(folder):
        print(f"{shutil.disk_usage(folder).used / 1e6:.1f} MB lie on the disk")
    print(f"faults {dict(FAULTS_OF)}")
    print(f"held {book.held} failed {len(book.failed)}: {'; '.join(book.failed)}")
    return 1 if book.failed else 0


def tiny(folder: Path) -> Path:
    """The tests' own tiny model, made outside of pytest."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest

    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir(parents=True)
            return folder / name

    made: Path = conftest.tiny_model.__wrapped__(Factory())
    return made


if __name__ == "__main__":
    place = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="soak-"))
    small_disk(place / "disk")
    code = main(float(sys.argv[1]), place / "disk", tiny(place / "models"))
    if code:
        print(f"what is left lies in {place}; `umount {place / 'disk'}` frees the disk")
    else:
        if os.path.ismount(place / "disk"):
            subprocess.run(["umount", "-l", str(place / "disk")], check=True)
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(code)
