"""A desk against a server, without the door: for many short runs in one process, and for speed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from teacher_project import RECIPE
from workbench.recipe import Price, Teacher
from workbench.records import Label
from workbench.teacher.calls import Desk, Pace
from workbench.teacher.client import open_client
from workbench.teacher.egress import ChokePoint, EgressLog
from workbench.teacher.labeller import Prompt, Rejected, Rules, label_all
from workbench.teacher.ledger import open_ledger
from workbench.teacher.prices import pricing_of

ABLE = {"model": "gpt-test", "logprobs": 20, "json_schema": True, "seed": True, "echo": False}
RULES = Rules(ABLE, lambda text, originals: text)


def teacher_of(**keys: Any) -> Teacher:
    """The tests' teacher section, with these keys changed."""
    section: dict[str, Any] = {**RECIPE["teacher"], "labels": ["yes", "no"], "key_variable": "TEACHER_KEY", **keys}  # type: ignore[dict-item]
    return Teacher(**section | {"price": Price(**section["price"])})


@contextlib.asynccontextmanager
async def desk(folder: Path, url: str, teacher: Teacher) -> AsyncIterator[Desk]:
    """Everything that a request passes, with its files in `folder`."""
    with (
        contextlib.closing(EgressLog(folder / "egress.jsonl")) as log,
        open_ledger(folder / "ledger.db", "run") as ledger,
    ):
        choke = ChokePoint(url, log, lambda privacy: "raw", lambda text: {}, teacher.concurrency)
        ledger.settle_abandoned()
        async with open_client(teacher, f"openai:{url}", url, choke) as client:
            pace = Pace(teacher.concurrency, teacher.requests_per_minute, teacher.tokens_per_minute)
            yield Desk(teacher, client, ledger, pricing_of(teacher), pace)


def labelled(folder: Path, url: str, teacher: Teacher, prompts: Iterable[Prompt]) -> tuple[int, int, Exception | None]:
    """(kept, rejected, the error that ended the run or None)."""

    async def work() -> tuple[int, int, Exception | None]:
        kept = rejected = 0
        async with desk(folder, url, teacher) as open_desk:
            try:
                async for outcome in label_all(open_desk, prompts, RULES):
                    kept += isinstance(outcome, Label)
                    rejected += isinstance(outcome, Rejected)
            except Exception as error:
                return kept, rejected, error
        return kept, rejected, None

    return asyncio.run(work())
