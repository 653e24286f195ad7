"""Judging: the answers of an evaluation go to a model that says which is better, by the rules a teacher is asked by.

Ledger, budget, egress log and the rows' privacy hold as they do for labels. The terms of a route do not: they rule on
answers that train a model, and a verdict trains nothing, it only decides what ships.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from workbench.data.containers import read_rows
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.answers import Prediction
from workbench.evaluation.judge import Question, verdict_in
from workbench.evaluation.judged_pairs import Bench, Heard, Human, human_pairs, judge_arms
from workbench.privacy.redact import redact
from workbench.recipe import Evaluate, Recipe, Teacher
from workbench.recipe.schema import Judge
from workbench.records import digest
from workbench.runs import Run
from workbench.stages.common import say
from workbench.stages.label import open_desk
from workbench.stages.rows import question_file
from workbench.teacher.calls import Desk, RowError, buy
from workbench.teacher.client import key_of
from workbench.teacher.egress import Sending, rule_for
from workbench.teacher.ledger import NANO, Outcome
from workbench.teacher.prices import pricing_of
from workbench.teacher.probe import probe
from workbench.teacher.reach import require_way
from workbench.teacher.wire import Reply, make_request

SCOPE = "/judge"  # whose budget is spent: the run's judge, apart from its teacher
# Reasoning models take no temperature, and another name for the longest answer.
MANNERS: tuple[dict[str, Any], ...] = ({}, {"temperature": None, "limit_key": "max_completion_tokens"})


def judged(
    recipe: Recipe,
    run: Run,
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    folder: Path,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """(each arm's verdict an item, 1 better than the gate's baseline, 0.5 alike, 0 worse; report.json's `judge`).

    `prompts` are the items' texts by id, `folder` the stage's: verdicts are kept in its `judge/`, one file an arm,
    and taken from there, from the finished evaluation's or from the ledger before anything is asked. Raises
    GateError when the budget ends, with all that was bought kept.
    """
    with in_the_judges_name():
        teacher = teacher_of(recipe.evaluate.judge)
        rule = rule_for(teacher, recipe.data.privacy)
        pricing = pricing_of(teacher)
        for line in require_way(teacher, recipe.data.privacy):
            say(run, "evaluate", line.replace("teacher.", "evaluate.judge."))
        key_of(teacher)  # only that it is set
        people = people_of(recipe.evaluate, run)
        way = "stay within your walls" if teacher.inside else f"leave {rule}"
        model = teacher.model or teacher.source
        say(run, "evaluate", f"judge: {model}; price: {pricing.source}; rows are {recipe.data.privacy} and {way}")
        if not recipe.model.family:
            say(run, "evaluate", "the model's own family is not named, so nobody can tell whether the judge is of it")
        asking = replace(recipe, teacher=teacher)

        def ask(questions: Sequence[Question], hear: Heard) -> None:
            asyncio.run(put(asking, run, questions, rule, hear))

        bench = Bench(
            recipe.evaluate, identity(teacher), recipe.seed, ask, redacted if rule == "redacted" else plain,
            folder / "judge", run.folder / "evaluate" / "judge",
        )  # fmt: skip
        verdicts, about = judge_arms(bench, predictions, prompts, recipe.gate.baseline, people)
    tell(run, about)
    return verdicts, about


def teacher_of(judge: Judge) -> Teacher:
    """The judge as the teacher's room knows one: who answers, where, at what price, within which budget."""
    shared = {spec.name for spec in fields(Teacher)} & {spec.name for spec in fields(Judge)}
    return Teacher(**{name: getattr(judge, name) for name in shared})


def identity(teacher: Teacher) -> str:
    """Whose verdict it is: another model, or another address, is asked anew."""
    named = ("api", "model", "base_url", "source", "sha256", "max_new_tokens")
    return digest({name: value for name, value in asdict(teacher).items() if name in named}, 16)


def plain(texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The texts as they stand."""
    return list(texts), {}


def redacted(texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The texts of one pair with placeholders, the same for the same value in all of them, and counts by kind."""
    new, _, counts = redact(texts)
    return new, counts


def people_of(evaluate: Evaluate, run: Run) -> list[Human]:
    """The pairs that people have judged."""
    if not evaluate.judge.human:
        return []
    rows = []
    for raw in read_rows(question_file(evaluate, run, "judge.human"), "human", []):
        if raw.row is None:
            raise RequestError(f"{raw.where}: {raw.reason}", where="evaluate.judge.human", remedy="mend the row")
        rows.append((raw.where, raw.row))
    return human_pairs(rows)


async def put(recipe: Recipe, run: Run, questions: Sequence[Question], rule: str, hear: Heard) -> None:
    """Ask every question once; `hear` is told each verdict as it comes, nothing of one that nobody gives.

    What is in flight when the budget ends is waited for, since it is paid for; the error is raised last.
    """
    async with open_desk(recipe, run, rule, SCOPE) as opened:
        abandoned = opened.ledger.settle_abandoned()
        if abandoned:
            say(run, "evaluate", f"{abandoned} verdicts were under way when an earlier attempt ended: counted in full")
        desk, able = await mannered(opened, run)
        tasks = [
            asyncio.create_task(ask_judge(desk, q, i, recipe.data.privacy, able, hear)) for i, q in enumerate(questions)
        ]
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(failed, BaseException):
                raise desk.closed or failed
        say(run, "evaluate", f"{len(questions):,} verdicts: {desk.sent:,} asked, {desk.from_ledger:,} from the ledger")


async def mannered(desk: Desk, run: Run) -> tuple[Desk, dict[str, Any]]:
    """The desk with a manner of asking that the endpoint takes, and what it can do."""
    refused: RequestError | None = None
    for manner in MANNERS if desk.teacher.api == "openai" else MANNERS[:1]:
        asking = replace(desk, teacher=replace(desk.teacher, **manner), under_way={})
        try:
            able = await probe(asking)
        except RequestError as error:
            if error.where != "teacher":  # a key, or a model that nobody knows: no manner helps
                raise
            refused = refused or error
            continue
        if refused:
            say(run, "evaluate", "the judge takes no temperature: it is asked without, with max_completion_tokens")
        return asking, able
    raise refused or AssertionError("no manner was tried")


async def ask_judge(
    desk: Desk, question: Question, place: int, privacy: str, able: Mapping[str, Any], hear: Heard
) -> None:
    """One question through the desk. A row that gets no verdict (a refusal, a filter) is left out."""
    schema = question.schema if able["json_schema"] else None
    request = make_request(desk.teacher, desk.client.identity, question.id, question.messages, 0, schema=schema)

    def classed(reply: Reply) -> Outcome:
        match reply.finish:
            case "refusal":
                return "refusal"
            case "filter":
                return "filtered"
            case "length" if verdict_in(question, reply.text) is None:
                return "truncated"
        return "ok" if verdict_in(question, reply.text) is not None else "malformed"

    try:
        reply = await buy(desk, request, Sending(question.id, privacy, question.redacted), classed)
    except RowError:
        return
    hear(place, reply.text, reply.cost / NANO)


def tell(run: Run, about: Mapping[str, Any]) -> None:
    """The judge's own figures, aloud and in the record."""
    parts = []
    if about["consistency"] is not None:
        parts.append(f"{about['consistency']:.1%} of {about['consistency_n']:,} pairs judged alike in both orders")
    if about["kappa"] is not None:
        parts.append(f"kappa {about['kappa']:.2f} with people on {about['kappa_n']:,} pairs")
    if about["unheard"]:
        parts.append(f"{about['unheard']:,} pairs without a verdict, counted as ties")
    begged = sum(about["told_the_judge"].values())
    if begged:
        parts.append(f"{begged:,} answers told the judge what to say")
    if about.get("controls") == 0:
        parts.append("it fails plain control questions, so nobody knows whether answers speak to it")
    say(run, "evaluate", "; ".join([*parts, f"{about['usd']:.4f} USD"]))
    for name in ("consistency", "kappa", "kappa_n", "unheard", "usd"):
        if about[name] is not None:
            run.event("metric", stage="evaluate", name=f"judge/{name}", value=about[name], step=None)


@contextlib.contextmanager
def in_the_judges_name() -> Iterator[None]:
    """Errors of the teacher's room, told by the judge's keys."""
    try:
        yield
    except WorkbenchError as error:
        for part in ("what", "where", "remedy"):
            text = re.sub(r"\bteacher([.=])", r"evaluate.judge\1", getattr(error, part))
            text = text.replace("evaluate.judge=", "evaluate.judge.api=")
            setattr(error, part, re.sub(r"\bteacher\b", "judge", text))
        raise
