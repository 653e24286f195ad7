"""A small project with a teacher, for tests through the door: rows, a recipe, the command, and what it left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.__main__ import main

KEY = "sk-teacher-test-key"
RECIPE = {
    "defaults": ["workbench", {"model": "smollm2_135m"}, {"method": "lora"}, {"evaluate": "exact_match"}, "_self_"],
    "data": {
        "train": "file:prompts.jsonl", "validation": "file:validation.jsonl", "test": "file:test.jsonl",
        "format": "columns", "columns": {"prompt": "text", "answer": "answer", "id": "id"}, "privacy": "public",
    },
    "teacher": {
        "api": "openai", "model": "gpt-test", "key_variable": "TEACHER_KEY", "route": "mistral_api",
        "family": "mistral", "price": {"input_mtok": 1.0, "output_mtok": 4.0, "cached_mtok": 0.1},
        "budget_usd": 100.0, "max_new_tokens": 64, "timeout_s": 10.0, "concurrency": 32,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Project:
    """The folder of the project."""

    folder: Path

    def label(self, *words: str, key: str = KEY) -> Done:
        """`workbench label recipe=./mine.yaml …`, to its end."""
        return self.run("label", "recipe=./mine.yaml", *words, key=key)

    def run(self, *words: str, key: str = KEY) -> Done:
        """Any command of the workbench, to its end, in this process: importing everything anew takes seconds."""
        shown, told = io.StringIO(), io.StringIO()
        before = os.environ.get("TEACHER_KEY")
        os.environ["TEACHER_KEY"] = key
        try:
            with contextlib.chdir(self.folder), redirect_stdout(shown), redirect_stderr(told):
                code = main(list(words))
        finally:
            del os.environ["TEACHER_KEY"]
            if before is not None:
                os.environ["TEACHER_KEY"] = before
        return Done(code, shown.getvalue(), told.getvalue())

    def start(self, *words: str, key: str = KEY) -> subprocess.Popen[bytes]:
        """Any command in a process of its own, to be killed."""
        env = os.environ | {"TEACHER_KEY": key}
        command = [sys.executable, "-m", "workbench", *words]
        return subprocess.Popen(command, cwd=self.folder, env=env, stdout=subprocess.DEVNULL)

    @property
    def stage(self) -> Path:
        """The label stage's folder: whole, or still in the making."""
        (run,) = [p.parent for p in self.folder.glob("experiments/mine/*/run.json")]
        return run / "label" if (run / "label").is_dir() else run / ".label.staging"

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of `labels` or `rejected`."""
        return [json.loads(line) for line in (self.stage / f"{name}.jsonl").read_text().splitlines()]

    def ledger(self, query: str) -> list[tuple[Any, ...]]:
        """What a query on the ledger gives."""
        with closing(sqlite3.connect(self.folder / "experiments" / "ledger.db")) as database:
            return database.execute(query).fetchall()

    def everything(self) -> bytes:
        """Every byte the workbench has written, the rows it was given aside."""
        return b"\0".join(p.read_bytes() for p in sorted((self.folder / "experiments").rglob("*")) if p.is_file())


def project(folder: Path, prompts: Sequence[str], base_url: str, **teacher: Any) -> Project:
    """Write the rows and the recipe; `teacher` keys go over those above, `privacy` to the data."""
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"row-{n}", "text": text}) + "\n" for n, text in enumerate(prompts))
    )
    for part in ("validation", "test"):
        rows = [{"id": f"{part}-{n}", "text": f"{part} question number {n}", "answer": "yes"} for n in range(12)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["privacy"] = teacher.pop("privacy", "public")
    recipe["teacher"] |= {"base_url": base_url} | teacher
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    return Project(folder)


def questions(count: int, start: int = 0) -> list[str]:
    """Different short prompts."""
    return [f"Is item {n} of shelf {n % 97} in stock?" for n in range(start, start + count)]


def outcomes(made: Project) -> Counter[str]:
    """Settled attempts by outcome, the probe's left out."""
    settled = "kind != 'probe' AND state = 'settled'"
    return Counter(dict(made.ledger(f"SELECT outcome, COUNT(*) FROM attempts WHERE {settled} GROUP BY outcome")))
