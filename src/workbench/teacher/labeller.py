"""Rows become labels: samples are asked, mended, voted on and filtered; what is not kept says why."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Teacher
from workbench.records import Another, Label, Message
from workbench.teacher.calls import Desk, RowError, buy
from workbench.teacher.egress import Sending
from workbench.teacher.ledger import Outcome
from workbench.teacher.replies import (
    MalformedError,
    ParsedAnswer,
    conversation,
    parse,
    plea,
    ranked,
    schema_of,
    with_calls,
)
from workbench.teacher.wire import Reply, Request, make_request

JUDGE = (
    "Grade the answer to the task below for correctness and completeness. "
    'Answer with one JSON object {"grade": g}, g a whole number from 0 (wrong) to 10 (perfect), nothing else.'
)


@dataclass(frozen=True)
class Prompt:
    """What is asked for one row: the conversation as it may leave, and what stays here.

    `originals` are the texts behind placeholders; `gold` is the row's own answer, "" when it has none. Of a row that
    `judges` no answer is trained on, so it is kept whether it is right or quotes what is judged on. `tools` are the
    functions that its answer may call, in OpenAI's layout.
    """

    id: str
    messages: tuple[Message, ...]
    privacy: str = "public"
    redacted: Mapping[str, int] = field(default_factory=dict)
    originals: Mapping[str, str] = field(default_factory=dict)
    gold: str = ""
    judges: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A row without a label: a short `reason` for the count, the details, and the last answer if there was one."""

    id: str
    reason: str
    details: str
    answer: str = ""


@dataclass(frozen=True)
class Rules:
    """What the stage hands in: what the endpoint can do, how placeholders go back, how an answer is scored.

    `answers` is how many different ones are kept a prompt; `refuses` tells whether a text declines in words,
    `fault` why an answer to a prompt is not what is wanted ("" where it is).
    """

    able: Mapping[str, Any]
    restore: Callable[[str, Mapping[str, str]], str]
    score: Callable[[str, str], float] | None = None
    leaks: Callable[[str], str | None] = lambda text: None
    seed: int = 0
    answers: int = 1
    refuses: Callable[[str], bool] = lambda text: False
    fault: Callable[[Prompt, str], str] = lambda prompt, answer: ""


async def label_all(desk: Desk, prompts: Iterable[Prompt], rules: Rules) -> AsyncIterator[Label | Rejected]:
    """Every prompt's label or rejection, in the prompts' order, with a bounded number of rows in memory.

    When the run ends early (budget, key, credit) what is in flight is waited for, since it is paid for; rows that
    could not be asked any more are left out, and the error is raised last.
    """
    window: collections.deque[asyncio.Task[Label | Rejected]] = collections.deque()
    wide = max(64, 4 * desk.teacher.concurrency)
    try:
        for prompt in prompts:
            if desk.closed:
                break
            window.append(asyncio.create_task(one_row(desk, prompt, rules)))
            if len(window) >= wide:
                result = await whole(window.popleft(), desk)
                if result is not None:
                    yield result
        while window:
            result = await whole(window.popleft(), desk)
            if result is not None:
                yield result
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
    if desk.closed:
        raise desk.closed


async def whole(task: asyncio.Task[Label | Rejected], desk: Desk) -> Label | Rejected | None:
    """A row's outcome; None when the run ended before it could be asked."""
    try:
        return await task
    except WorkbenchError as error:
        desk.closed = desk.closed or error
        return None


async def one_row(desk: Desk, prompt: Prompt, rules: Rules) -> Label | Rejected:
    """One row: its samples, the vote, and the filters."""
    teacher = desk.teacher
    samples = await asyncio.gather(
        *(one_answer(desk, prompt, n, rules) for n in range(teacher.samples)), return_exceptions=True
    )
    for failed in samples:
        if isinstance(failed, BaseException) and not isinstance(failed, RowError):
            raise failed
    good = [s for s in samples if isinstance(s, Answered)]
    if not good:
        first = next(s for s in samples if isinstance(s, RowError))
        return Rejected(prompt.id, first.reason, str(first), first.answer)
    (majority, votes), *rest = ranked([answered.answer for answered in good])
    chosen = last_reply(good, majority)
    thoughts = chosen.reasoning if teacher.thoughts else ""
    why = await unkept(desk, prompt, majority, votes, rules, thoughts)
    if why:
        return Rejected(prompt.id, *why, majority.answer)
    others = []
    for another, count in rest[: rules.answers - 1]:
        # The majority it has not, and need not have: it counts by its share.
        if await unkept(desk, prompt, another, teacher.samples, rules) is None:
            packed = last_reply(good, another).logprobs
            share = count / teacher.samples
            others.append(Another(another.answer, another.rationale, share, packed, another.tool_calls))
    return Label(
        id=prompt.id,
        answer=majority.answer,
        rationale=majority.rationale,
        model=chosen.model or teacher.model,
        agreement=votes / teacher.samples,
        usd=sum(reply.cost for answered in good for reply in answered.replies) / 1e9,
        requests=tuple(answered.hash for answered in good),
        logprobs=chosen.logprobs,
        others=tuple(others),
        reasoning=chosen.reasoning,
        tool_calls=majority.tool_calls,
    )


async def unkept(
    desk: Desk, prompt: Prompt, parsed: ParsedAnswer, votes: int, rules: Rules, thoughts: str = ""
) -> tuple[str, str] | None:
    """(reason, details) why an answer is not kept; None when it is. `thoughts` are those that are learned with it."""
    teacher = desk.teacher
    # What is kept on disk keeps its placeholders; the originals are only put back here, to be compared.
    answer, rationale = (rules.restore(text, prompt.originals) for text in (parsed.answer, parsed.rationale))
    if votes / teacher.samples < teacher.min_agreement:
        return "disagreement", f"{votes} of {teacher.samples} samples agree"
    if prompt.judges:
        return None
    if prompt.gold and rules.score is not None and rules.score(answer, prompt.gold) < 1.0:
        return "differs_from_gold", "the row's own answer is another"
    calls = "".join(f"\n{call.name} {call.arguments}" for call in parsed.tool_calls)
    if (where := rules.leaks(f"{rationale}\n{answer}{calls}\n{thoughts}")) is not None:
        return "repeats_evaluation", f"it shares words with {where}"
    if teacher.judge_at_least is not None:
        grade = await judged(desk, prompt, parsed, rules)
        if grade < teacher.judge_at_least:
            return "judged_low", f"graded {grade:.1f} of 1"
    return None


def last_reply(good: Sequence[Answered], answer: ParsedAnswer) -> Reply:
    """The reply that gave this answer."""
    return next(answered for answered in good if answered.answer is answer).replies[-1]


@dataclass(frozen=True)
class Answered:
    """A well-formed answer, the hash of the request that gave it, and all replies it took."""

    answer: ParsedAnswer
    hash: str
    replies: tuple[Reply, ...]


async def one_answer(desk: Desk, prompt: Prompt, sample: int, rules: Rules) -> Answered:
    """One sample, mended up to `repairs` times. Raises RowError when it ends without a usable answer."""
    replies = []
    turns = opening(desk, prompt, rules)
    for left in range(desk.teacher.repairs, -1, -1):
        request = request_of(desk, prompt, turns, sample, rules)
        reply = await priced(desk, request, prompt, lambda reply: outcome_of(desk, reply, rules, prompt))
        replies.append(reply)
        outcome, answer, why = reading(desk.teacher, reply, rules, prompt)
        refuse_eaten(desk, reply)
        if answer is not None:
            return Answered(answer, request.hash, tuple(replies))
        if outcome != "malformed" or not left:
            raise RowError(outcome, why, reply.text)
        turns = (*turns, Message("assistant", reply.text or "(empty)"), plea(why))
    raise AssertionError("a loop of at least one turn")


def opening(desk: Desk, prompt: Prompt, rules: Rules) -> tuple[Message, ...]:
    """The conversation that the first request of a row sends."""
    # A schema would forbid the calls that the row's tools allow: with tools the shape is asked for in words.
    return conversation(desk.teacher, prompt.messages, in_words=not rules.able["json_schema"] or bool(prompt.tools))


def request_of(desk: Desk, prompt: Prompt, turns: tuple[Message, ...], sample: int, rules: Rules) -> Request:
    """The request for one turn of one sample."""
    teacher = desk.teacher
    return make_request(
        teacher,
        desk.client.identity,
        prompt.id,
        turns,
        sample,
        schema=schema_of(teacher) if rules.able["json_schema"] and not prompt.tools else None,
        tools=prompt.tools,
        logprobs=teacher.logprobs,
        seed=rules.seed if rules.able["seed"] else None,
    )


async def priced(desk: Desk, request: Request, prompt: Prompt, check: Callable[[Reply], Outcome]) -> Reply:
    """Buy one answer for this row."""
    return await buy(desk, request, Sending(prompt.id, prompt.privacy, prompt.redacted), check)


def outcome_of(desk: Desk, reply: Reply, rules: Rules, prompt: Prompt) -> Outcome:
    """How a reply is classed in the ledger."""
    return reading(desk.teacher, reply, rules, prompt)[0]


EATEN_IN_A_ROW = 10  # answers whose whole length went into thoughts, with no other between: the limit is at fault


def is_eaten(reply: Reply) -> bool:
    """Whether the limit ended the answer before its first word."""
    return reply.finish == "length" and not reply.text.strip()


def refuse_eaten(desk: Desk, reply: Reply) -> None:
    """Close the desk when answer after answer is all thoughts: the other rows would be paid for in vain."""
    desk.eaten = desk.eaten + 1 if is_eaten(reply) else 0
    if desk.eaten >= EATEN_IN_A_ROW:
        desk.closed = desk.closed or RequestError(
            f"{desk.eaten} answers in a row had no word left after their thoughts: each was cut at "
            f"{desk.teacher.max_new_tokens:,} tokens",
            where="teacher.max_new_tokens",
            remedy="raise it well above what the teacher thinks, or have it think less; what was bought is kept",
        )


def reading(teacher: Teacher, reply: Reply, rules: Rules, prompt: Prompt) -> tuple[Outcome, ParsedAnswer | None, str]:
    """(outcome, the answer if it can be used, why not). A row's own answer may rightly decline."""
    match reply.finish:
        case "refusal":
            return "refusal", None, "the teacher would not answer"
        case "filter":
            return "filtered", None, "the provider's filter stopped the answer"
        case "length" if is_eaten(reply):
            return "truncated", None, f"all of its {teacher.max_new_tokens} tokens went into thoughts"
        case "length":
            return "truncated", None, f"the answer was cut at {teacher.max_new_tokens} tokens"
    try:
        if reply.tool_calls:
            return "ok", with_calls(reply.text, reply.tool_calls, prompt.tools), ""
        parsed = parse(teacher, reply.text)
        if why := rules.fault(prompt, parsed.answer):
            raise MalformedError(why)
    except MalformedError as error:
        return "malformed", None, str(error)
    free = not (teacher.labels or teacher.fields) and teacher.refusals == "set_aside"
    if free and rules.refuses(parsed.answer) and not rules.refuses(prompt.gold):
        return "refusal", None, f"the teacher declines in words: {parsed.answer[:80]!r}"
    return "ok", parsed, ""


async def judged(desk: Desk, prompt: Prompt, answer: ParsedAnswer, rules: Rules) -> float:
    """The teacher's own grade of an answer, 0 to 1; a grade that cannot be read counts as 0."""
    task = "\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages)
    turns = (Message("user", f"{JUDGE}\n\nTask:\n{task}\n\nAnswer:\n{answer.answer}"),)
    schema = {
        "type": "object", "properties": {"grade": {"type": "integer", "enum": list(range(11))}}, "required": ["grade"],
        "additionalProperties": False,
    }  # fmt: skip
    request = make_request(
        desk.teacher, desk.client.identity, prompt.id, turns, 0, schema=schema if rules.able["json_schema"] else None
    )
    reply = await priced(desk, request, prompt, lambda reply: "ok" if grade_in(reply.text) is not None else "malformed")
    return (grade_in(reply.text) or 0) / 10


def grade_in(text: str) -> int | None:
    """The grade in a judge's JSON."""
    try:
        grade = json.loads(text)["grade"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return grade if isinstance(grade, int) and 0 <= grade <= 10 else None
