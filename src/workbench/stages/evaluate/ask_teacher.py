"""The teacher as an arm: it is asked the test rows as it was asked for labels, by the same terms, wall and ledger."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from workbench.engines import Ask
from workbench.errors import WorkbenchError
from workbench.files import file_sha256
from workbench.recipe import Recipe
from workbench.records import Answer, Example, Message, digest
from workbench.runs import Run
from workbench.stages.common import say
from workbench.stages.label import inherited, open_desk
from workbench.stages.prompts import prompt_of, put_back
from workbench.teacher.calls import Desk, RowError
from workbench.teacher.client import gguf_of, key_of
from workbench.teacher.egress import rule_for
from workbench.teacher.labeller import Prompt, Rules, one_answer
from workbench.teacher.probe import probe
from workbench.teacher.reach import require_way
from workbench.terms import policy

# Rows that the teacher was asked and would not or could not answer well: wrong answers. Anything else was no answer.
SAID_NO = ("refusal", "filtered", "truncated", "malformed", "blocked", "refused_by_provider")
WIDE = 4  # rows under way for each request at once, so that none of them waits for the slowest


def teacher_digest(recipe: Recipe) -> str:
    """What the teacher's answers depend on: who it is, and how it is asked."""
    t = recipe.teacher
    who = {"gguf": file_sha256(gguf_of(t))} if t.api == "local_gguf" else {"model": t.model, "base_url": t.base_url}
    how = {"fields": t.fields, "labels": t.labels, "rationale": t.rationale, "temperature": t.temperature}
    return digest(who | how | {"api": t.api, "longest": t.max_new_tokens, "repairs": t.repairs}, 16)


@contextmanager
def teacher_engine(recipe: Recipe, run: Run, items: Sequence[Example]) -> Iterator[Ask]:
    """The function that asks the teacher for the answers to these items, once each, within its budget.

    Terms are judged, a row leaves only as its privacy lets it, and an answer that was ever paid for comes from the
    ledger. None of the filters of labelling is applied: a refusal is a wrong answer here, not a row to leave out.
    """
    policy.require(recipe.teacher, inherited(recipe.teacher))
    rule = rule_for(recipe.teacher, recipe.data.privacy)
    for line in require_way(recipe.teacher, recipe.data.privacy):
        say(run, "evaluate", line)
    key_of(recipe.teacher)  # only that it is set
    rows = {tuple(e.prompt): e for e in items}

    def ask(
        prompts: Sequence[Sequence[Message]], max_new_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        redacted = [prompt_of(rows[tuple(p)], recipe.data.privacy, rule) for p in prompts]
        stream = answers(recipe, run, redacted, rule)

        async def following() -> tuple[int, Answer] | None:
            return await anext(stream, None)

        with asyncio.Runner() as runner:
            try:
                while (answer := runner.run(following())) is not None:
                    yield answer
            finally:
                runner.run(stream.aclose())

    yield ask


async def answers(
    recipe: Recipe, run: Run, prompts: Sequence[Prompt], rule: str
) -> AsyncGenerator[tuple[int, Answer], None]:
    """(place, answer) in the order asked; raises what ended the run, once all that was under way is settled."""
    single = replace(recipe.teacher, samples=1, logprobs=0, judge_at_least=None, batch=False)
    async with open_desk(replace(recipe, teacher=single), run, rule) as desk:
        desk.ledger.settle_abandoned()
        newest = desk.ledger.last_attempt()
        rules = Rules(await probe(desk), put_back, seed=recipe.seed)
        window: collections.deque[asyncio.Task[tuple[int, Answer]]] = collections.deque()
        try:
            for place, prompt in enumerate(prompts):
                window.append(asyncio.create_task(answer_of(desk, place, prompt, rules, newest)))
                if len(window) >= WIDE * single.concurrency:
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            with contextlib.suppress(Exception):
                await asyncio.gather(*window, return_exceptions=True)


async def answer_of(desk: Desk, place: int, prompt: Prompt, rules: Rules, newest: int) -> tuple[int, Answer]:
    """One row's answer, with what all its turns took; one from the ledger, no newer than `newest`, tells no latency."""
    try:
        bought = await one_answer(desk, prompt, 0, rules)
    except RowError as error:
        if error.reason not in SAID_NO:
            raise WorkbenchError(
                f"the teacher did not answer row {prompt.id}: {error}",
                where=f"teacher {desk.teacher.model or desk.teacher.source}",
                remedy="run the same command again: only what is missing is asked",
            ) from error
        cut = error.reason == "truncated"
        seconds = desk.took.pop(prompt.id, 0.0) / desk.teacher.concurrency
        return place, Answer(error.answer, "length" if cut else "stop", 0, 0, seconds)
    seconds = desk.took.pop(prompt.id, 0.0)
    text = rules.restore(bought.answer.answer, prompt.originals)
    asked_now = all(reply.attempt > newest for reply in bought.replies)
    return place, Answer(
        text=text,
        finish="stop",
        tokens_in=sum(reply.usage.tokens_in for reply in bought.replies),
        tokens_out=sum(reply.usage.out for reply in bought.replies),
        seconds=seconds / desk.teacher.concurrency,
        latency=seconds if asked_now and seconds else None,
        usd=sum(reply.cost for reply in bought.replies) / 1e9,
    )
