"""What an endpoint can do, found out by asking it, once, and kept in the ledger."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Teacher
from workbench.records import Message, digest
from workbench.teacher.calls import Desk, RowError, buy
from workbench.teacher.client import wire_of
from workbench.teacher.egress import NO_ROW, Sending
from workbench.teacher.wire import Reply, Request, make_request

KEPT_DAYS = 7.0
QUESTION = (Message("user", "Reply with the word yes."),)
SCHEMA = {
    "type": "object", "properties": {"word": {"type": "string", "enum": ["yes", "no"]}}, "required": ["word"],
    "additionalProperties": False,
}  # fmt: skip


async def probe(desk: Desk) -> dict[str, Any]:
    """`{"model", "logprobs", "json_schema", "seed", "echo"}` of the teacher; asked again after a week.

    The first question is a plain one: a wrong key, an unknown or a retired model ends the run here, after one call.
    """
    teacher = desk.teacher  # with its own limit: what thinks before it speaks says nothing within a few tokens
    name = digest({"at": desk.client.identity, "model": teacher.model}, 40)
    known = desk.ledger.probe(name, time.time() - KEPT_DAYS * 86_400)
    if known is not None:
        return known
    try:
        plain = refuse_eaten(desk, await ask(desk, teacher))
    except RowError as error:
        if error.reason == "unanswered":
            raise WorkbenchError(
                f"the teacher does not answer: {error}", where="teacher", remedy="is it up? check teacher.base_url"
            ) from error
        raise RequestError(
            f"the teacher does not take a plain question: {error}",
            where="teacher",
            remedy="its words say what it does not take: often teacher.temperature=null or another teacher.limit_key",
        ) from error
    abilities: dict[str, Any] = {
        "model": plain.model,
        "logprobs": 0,
        "json_schema": False,
        "seed": False,
        "echo": False,
    }
    abilities["json_schema"] = await works(
        lambda: ask(desk, teacher, schema=SCHEMA), lambda reply: '"word"' in refuse_eaten(desk, reply).text
    )
    if wire_of(teacher) == "openai":
        abilities["seed"] = await works(lambda: ask(desk, teacher, seed=1), lambda reply: True)
        for wanted in (20, 5):
            if await works(lambda wanted=wanted: ask(desk, teacher, logprobs=wanted), lambda r: r.logprobs is not None):  # type: ignore[misc]
                abilities["logprobs"] = wanted
                break
        abilities["echo"] = await echoes(desk, teacher)
    desk.ledger.keep_probe(name, abilities)
    return abilities


async def ask(
    desk: Desk, teacher: Teacher, *, schema: dict[str, Any] | None = None, logprobs: int = 0, seed: int | None = None
) -> Reply:
    """One small question, paid for and logged like any other."""
    # The time makes the request new: an answer from the ledger would say nothing of the endpoint today.
    request = make_request(
        teacher, f"{desk.client.identity} probe {time.time_ns()}", "probe", QUESTION, 0,
        schema=schema, logprobs=logprobs, seed=seed,
    )  # fmt: skip
    return await buy(desk, request, Sending("probe", NO_ROW), lambda reply: "ok", kind="probe")


def refuse_eaten(desk: Desk, reply: Reply) -> Reply:
    """The reply; RequestError where its whole length went into thoughts, which tells nothing of what it can do."""
    thought = bool(reply.reasoning or reply.usage.reasoning)
    if thought and reply.finish == "length" and not reply.text.strip():
        raise RequestError(
            f"asked for one word, {desk.teacher.model or 'the teacher'} thinks until it is cut at "
            f"{desk.teacher.max_new_tokens:,} tokens, and says nothing",
            where="teacher.max_new_tokens",
            remedy="raise it well above what the teacher thinks: its thoughts are paid for, and count",
        )
    return reply


async def works(question: Callable[[], Awaitable[Reply]], shown: Callable[[Reply], bool]) -> bool:
    """Whether the endpoint takes the question and its answer shows what was asked for."""
    try:
        return shown(await question())
    except RowError as error:
        if error.reason == "unanswered":
            raise RequestError(
                str(error), where="teacher", remedy="the endpoint fails before the work starts"
            ) from error
        return False


async def echoes(desk: Desk, teacher: Teacher) -> bool:
    """Whether the endpoint scores a given text (`/completions` with `echo`): most do not."""
    body = {"model": teacher.model, "prompt": "yes", "max_tokens": 1, "echo": True, "logprobs": 1}
    api = desk.client.api
    if api is None or desk.teacher.api not in ("openai", "local_gguf"):
        return False

    async def post(_: Any) -> Any:
        completion = (await api.call("POST", "/completions", json=body)).json()
        choice = completion["choices"][0]
        scored = (choice.get("logprobs") or {}).get("token_logprobs") or []
        completion["choices"] = [{"message": {"content": choice["text"]}, "finish_reason": "stop"}]
        completion["model"] = "echo" if len(scored) > 1 and choice["text"].startswith("yes") else "no echo"
        return completion

    # On a copy of the desk: a refusal that closes it does not end the run.
    asking = replace(desk, client=replace(desk.client, post=post), under_way={})
    request = Request("probe", body, digest({"echo": desk.client.identity, "at": time.time_ns()}, 40), 64, 16)
    try:
        reply = await buy(asking, request, Sending("probe", NO_ROW), lambda reply: "ok", kind="probe")
    except Exception:  # no such path, or none that answers so: it does not echo, whatever the reason
        return False
    return reply.model == "echo"


def refuse_unable(teacher: Teacher, abilities: dict[str, Any]) -> list[str]:
    """What a user should hear of the endpoint's gaps; RequestError for what the recipe cannot do without."""
    if teacher.logprobs > abilities["logprobs"]:
        most = f"at most {abilities['logprobs']}" if abilities["logprobs"] else "none"
        raise RequestError(
            f"{teacher.model} gives {most} alternatives a token", where="teacher.logprobs",
            remedy=f"teacher.logprobs={abilities['logprobs']}, or another teacher",
        )  # fmt: skip
    lines = [f"{abilities['model'] or teacher.model}: {', '.join(able(abilities))}"]
    if not abilities["json_schema"] and (teacher.fields or teacher.labels or teacher.rationale):
        lines.append("the endpoint takes no JSON schema: the shape is asked for in words and checked all the same")
    if teacher.samples > 1 and not abilities["seed"]:
        lines.append("the endpoint takes no seed: samples differ from run to run until they are in the ledger")
    return lines


def able(abilities: dict[str, Any]) -> list[str]:
    """Capabilities in words."""
    return [
        f"logprobs {abilities['logprobs']}" if abilities["logprobs"] else "no logprobs",
        "JSON schema" if abilities["json_schema"] else "no JSON schema",
        "seed" if abilities["seed"] else "no seed",
        "echo scoring" if abilities["echo"] else "no echo scoring",
    ]
