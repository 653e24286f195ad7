"""Label: a teacher answers the prompts, within its terms, a budget and the rows' privacy; or nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from workbench.data.split import overlap_finder
from workbench.errors import GateError, RequestError
from workbench.evaluation.behaviours import refuses
from workbench.privacy.redact import leaks
from workbench.progress_bar import progress
from workbench.recipe import Recipe, Teacher
from workbench.records import Label, other_id
from workbench.runs import Run, Staging, hold_source, stage
from workbench.sources import content_sha256, is_moving, pinned_commit, resolve
from workbench.stages.common import is_done, log_datasets, refuse_base, say
from workbench.stages.prompts import Asked, prompt_of, put_back, scorer
from workbench.stages.reviewed import FILE as REVIEW
from workbench.stages.reviewed import Review, reviews_of, signers, write_line
from workbench.stages.rows import asked_rows, keep_prepared
from workbench.teacher.batch import collect_unfinished, fill
from workbench.teacher.calls import Desk, Pace
from workbench.teacher.client import at_once, gguf_of, key_of, local_server, open_client
from workbench.teacher.document_rows import REPEATS, asking, passages_of, prompts_of, written_rows
from workbench.teacher.egress import NO_ROW, ChokePoint, EgressLog, Sending, rule_for
from workbench.teacher.labeller import Prompt, Rejected, Rules, label_all, opening, outcome_of, request_of
from workbench.teacher.ledger import LEASE_S, NANO, Outcome, open_ledger
from workbench.teacher.prices import pricing_of
from workbench.teacher.probe import probe, refuse_unable
from workbench.teacher.reach import base_url_of, require_way
from workbench.teacher.wire import Reply, parquet_writer, size_of
from workbench.terms import policy as terms
from workbench.terms.policy import name_ok, read_duties, write_duties

LEDGER, EGRESS = "ledger.db", "egress.jsonl"
# The seed of a sample is its number, counted from here, whatever the recipe's own is: a run that differs from another
# in how it trains has the same questions, and does not pay for them again.
DRAWS = 17
SUSPICIOUS = 10  # answers to different prompts that are all the same are worth a line


def run(recipe: Recipe, run: Run) -> bool:
    """Label unless it is done. An answer that was ever paid for is not bought again."""
    teacher = recipe.teacher
    terms.require(teacher)
    if is_done(run, "label", run.digest):
        return False
    refuse_base(recipe)
    rule = rule_for(teacher, recipe.data.privacy)
    owed = inherited(teacher)
    verdict = terms.require(teacher, owed)
    duties = terms.joined(verdict.duties, owed)
    refuse_name(recipe, duties)
    pricing = pricing_of(teacher)
    warnings = require_way(teacher, recipe.data.privacy)
    key_of(teacher)  # only that it is set
    if teacher.api == "local_gguf" and teacher.source and not is_moving(teacher.source):
        held = content_sha256(resolve(teacher.source, key="teacher.source"))
        hold_source(run, "teacher.source", teacher.source, held, pinned_commit(teacher.source))
    with stage(run, "label", run.digest, resume=True) as staging:
        to_ask = None if teacher.documents else rows_to_ask(recipe, run)
        for line in [*(to_ask.notes if to_ask else ()), *warnings]:
            say(run, "label", line)
        say(run, "label", f"terms: {verdict.verdict}, {verdict.why}")
        way = "stay within your walls" if teacher.inside else f"leave {rule}"
        say(run, "label", f"price: {pricing.source}; rows are {recipe.data.privacy} and {way}")
        write_duties(staging.folder, duties)
        if to_ask is None:
            summary = asyncio.run(from_documents(recipe, run, staging, rule))
        else:
            summary = asyncio.run(work(recipe, run, to_ask, staging, rule))
        summary |= {
            "teacher": teacher.source or teacher.model, "terms": verdict.verdict, "terms_rule": verdict.rule,
            "terms_acknowledged": teacher.terms_acknowledged, "price": pricing.source, "privacy": recipe.data.privacy,
        }  # fmt: skip
        (staging.folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))
        record(run, summary)
        refuse_few(summary, teacher, staging)
        nested = ("this_time", "in_all", "able", "rejected")  # they are metrics already, or in summary.json
        staging.facts = {k: v for k, v in summary.items() if k not in nested} | {"usd": summary["in_all"]["usd"]}
    return True


def rows_to_ask(recipe: Recipe, run: Run) -> Asked:
    """The rows whose prompts are asked.

    Rows that are not public are written by `train`, whose files hold them anyway: a run that is only labelled holds
    none of what is redacted before it leaves.
    """
    to_ask = (keep_prepared if recipe.data.privacy == "public" else asked_rows)(recipe, run)
    log_datasets(run, "label", to_ask.datasets, ("prompts",))
    return to_ask


def refuse_name(recipe: Recipe, duties: tuple[terms.Duty, ...]) -> None:
    """A student that goes out must bear the name its teacher's licence asks for: said before a cent is spent."""
    name = recipe.tracking.registered_model or recipe.name
    complaint = name_ok(name, duties) if recipe.teacher.distribution == "public" else None
    if complaint:
        raise RequestError(
            complaint, where="tracking.registered_model", remedy="choose a name that fits, or keep it internal"
        )


def inherited(teacher: Teacher) -> tuple[Any, ...]:
    """The duties that lie beside a local teacher's weights: a student of a student keeps them."""
    return read_duties(gguf_of(teacher).parent) if teacher.api == "local_gguf" else ()


@contextlib.contextmanager
def address(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(base URL, identity) of the teacher; a local one runs for as long as this is open."""
    teacher = recipe.teacher
    if teacher.api == "local_gguf":
        with local_server(teacher, recipe.launch.threads) as served:
            yield served
        return
    base = base_url_of(teacher)
    if not base:
        raise RequestError("no address is given", where="teacher.base_url", remedy="https://…/v1")
    yield base, f"{teacher.api}:{base.rstrip('/')}"


@contextlib.asynccontextmanager
async def open_desk(recipe: Recipe, run: Run, rule: str, scope: str = "") -> AsyncIterator[Desk]:
    """Everything that a request passes, open. `scope` keeps a budget of its own within the run's."""
    teacher = replace(recipe.teacher, concurrency=at_once(recipe.teacher))
    experiments = Path(recipe.launch.experiments).resolve()
    scan = leaks if rule == "redacted" else (lambda text: {})
    # The probe's own question and a look at a batch hold nothing of a row; the rows go by their rule.
    policy: Callable[[str], str] = lambda privacy: "raw" if privacy == NO_ROW else rule  # noqa: E731
    with contextlib.ExitStack() as stack:
        base, identity = stack.enter_context(address(recipe))
        log = stack.enter_context(contextlib.closing(EgressLog(experiments / EGRESS)))
        ledger = stack.enter_context(open_ledger(experiments / LEDGER, f"{recipe.name}/{run.digest}{scope}"))
        choke = ChokePoint(base, log, policy, scan, teacher.concurrency, inside=teacher.inside)
        pace = Pace(teacher.concurrency, teacher.requests_per_minute, teacher.tokens_per_minute)
        async with open_client(teacher, identity, base, choke) as client:
            hear = partial(say, run, "evaluate" if scope else "label")
            yield Desk(teacher, client, ledger, pricing_of(teacher), pace, hear=hear)


async def work(recipe: Recipe, run: Run, to_ask: Asked, staging: Staging, rule: str) -> dict[str, Any]:
    """Ask, and write `labels.jsonl`, `rejected.jsonl` and the log-probabilities; gives the summary."""

    def hear(text: str) -> None:
        say(run, "label", text)

    async with open_desk(recipe, run, rule) as desk:
        first = desk.ledger.last_attempt()
        able = await ready(desk)
        rules = Rules(
            able,
            put_back,
            scorer(recipe),
            overlap_finder([*to_ask.splits.test, *to_ask.splits.validation], recipe.data.overlap_words),
            DRAWS,
            recipe.method.teach.answers if recipe.method.distil else 1,
            refuses,
        )

        def prompts() -> Iterator[Prompt]:
            return (prompt_of(e, recipe.data.privacy, rule, to_ask.judging) for e in to_ask.examples)

        reviews = reviews_of(recipe, {example.id for example in to_ask.examples})
        if reviews:
            hear(f"{len(reviews):,} rows have a person's word ({signers(reviews.values())}), and are not asked again")
        await by_batches(desk, (p for p in prompts() if p.id not in reviews), rules, hear)
        total = len(to_ask.examples)
        kept, reasons, size, others = await written(desk, prompts(), total, rules, staging.folder, reviews)
        total = kept + sum(reasons.values())
        hear(f"kept {kept:,} of {total:,} ({kept / max(total, 1):.1%})" + "".join(
            f"; {n:,} {reason}" for reason, n in reasons.most_common())
            + (f"; {others:,} further answers to the same prompts" if rules.answers > 1 else ""))  # fmt: skip
        return {
            "rows": total, "kept": kept, "kept_share": kept / max(total, 1), "rejected": dict(reasons),
            "further_answers": others, "reviewed": len(reviews),
            "from_ledger": desk.from_ledger, "this_time": desk.ledger.summary(first), "in_all": desk.ledger.summary(),
            "able": able, "logprobs": size,
        }  # fmt: skip


async def from_documents(recipe: Recipe, run: Run, staging: Staging, rule: str) -> dict[str, Any]:
    """Ask about the passages of documents, and write `rows.jsonl` and `rejected.jsonl`; gives the summary."""
    hear = partial(say, run, "label")
    passages, notes = passages_of(recipe.teacher, recipe.seed)
    prompts, grounds = prompts_of(recipe.teacher, passages, recipe.data.privacy, rule)
    for line in notes:
        hear(line)
    hear(f"{len(prompts):,} questions are asked for")
    teacher = asking(recipe.teacher)
    async with open_desk(replace(recipe, teacher=teacher), run, rule) as desk:
        first = desk.ledger.last_attempt()
        able = await ready(desk)
        rules = Rules(able, put_back, seed=DRAWS, fault=grounds.fault)
        await by_batches(desk, prompts, rules, hear)
        with labelling(desk, len(prompts)) as count:
            outcomes = label_all(desk, prompts, rules)
            whole = recipe.teacher.with_passage
            kept, reasons = await written_rows(outcomes, prompts, grounds, staging.folder, whole, count)
        total = kept + sum(reasons.values())
        quoted = kept + reasons[REPEATS]
        hear(f"{kept:,} rows of {total:,} questions, {quoted / max(total, 1):.1%} with a quote that stands there"
             + "".join(f"; {n:,} {reason}" for reason, n in reasons.most_common()))  # fmt: skip
        return {
            "rows": total, "kept": kept, "kept_share": kept / max(total, 1), "rejected": dict(reasons),
            "quoted_share": quoted / max(total, 1), "passages": len(passages), "from_ledger": desk.from_ledger,
            "this_time": desk.ledger.summary(first), "in_all": desk.ledger.summary(), "able": able,
        }  # fmt: skip


async def ready(desk: Desk) -> dict[str, Any]:
    """What the teacher can do, once what dead processes have left is settled."""
    abandoned = desk.ledger.settle_abandoned()
    if abandoned:
        desk.hear(f"{abandoned} calls were under way when an earlier attempt ended: counted at their worst price")
    if desk.ledger.waits_for_others():
        desk.hear(
            f"calls of a process on another machine may be under way: {LEASE_S:.0f} s after its last sign of life "
            "they are counted at their worst price"
        )
    able = await probe(desk)
    for line in refuse_unable(desk.teacher, able):
        desk.hear(line)
    return able


async def by_batches(desk: Desk, prompts: Iterable[Prompt], rules: Rules, hear: Callable[[str], None]) -> None:
    """Collect batches that are under way, and with `teacher.batch` have what is open answered by new ones."""

    def classed(reply: Reply) -> Outcome:
        return outcome_of(desk, reply, rules, Prompt("", ()))  # whose row it answers is looked at when it is labelled

    await collect_unfinished(desk, classed, hear)
    if not desk.teacher.batch:
        return
    if desk.teacher.api not in ("openai", "anthropic"):
        raise RequestError("this teacher has no batch API", where="teacher.batch", remedy="teacher.batch=false")
    requests = []
    for prompt in prompts:
        sending = Sending(prompt.id, prompt.privacy, prompt.redacted)
        for sample in range(desk.teacher.samples):
            requests.append((request_of(desk, prompt, opening(desk, prompt, rules), sample, rules), sending))
    await fill(desk, requests, classed, hear)


async def written(
    desk: Desk, prompts: Iterator[Prompt], total: int, rules: Rules, folder: Path, reviews: Mapping[str, Review]
) -> tuple[int, Counter[str], dict[str, float], int]:
    """Write every outcome as it comes; (labels kept, rejections by reason, log-probabilities' size, other answers)."""
    kept, others, reasons, wants = 0, 0, Counter[str](), desk.teacher.logprobs > 0
    first, alike = "", 0
    known: dict[str, Prompt] = {}  # of the rows under way

    def noted() -> Iterator[Prompt]:
        for prompt in prompts:
            known[prompt.id] = prompt
            yield prompt

    with contextlib.ExitStack() as stack:
        labels = stack.enter_context((folder / "labels.jsonl").open("w", encoding="utf-8"))
        rejected = stack.enter_context((folder / "rejected.jsonl").open("w", encoding="utf-8"))
        read_by = stack.enter_context((folder / REVIEW).open("w", encoding="utf-8"))
        keep = stack.enter_context(parquet_writer(folder / "logprobs.parquet")) if wants else None
        count = stack.enter_context(labelling(desk, total))
        async for outcome in outcomes_of(desk, noted(), rules, reviews):
            count(outcome)
            write_line(read_by, known.pop(outcome.id), outcome, reviews.get(outcome.id))
            if isinstance(outcome, Rejected):
                reasons[outcome.reason] += 1
                rejected.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
                continue
            kept += 1
            first = first or outcome.answer
            alike += outcome.answer == first
            others += len(outcome.others)
            labels.write(label_line(outcome))
            for number, packed in enumerate([outcome.logprobs, *(other.logprobs for other in outcome.others)]):
                if keep is not None and packed:
                    keep(other_id(outcome.id, number), packed)
    if kept >= SUSPICIOUS and alike == kept:
        desk.hear(f"all {kept:,} answers are the same: {first[:80]!r}")
    return kept, reasons, size_of(folder / "logprobs.parquet") if wants else {}, others


async def outcomes_of(
    desk: Desk, prompts: Iterator[Prompt], rules: Rules, reviews: Mapping[str, Review]
) -> AsyncIterator[Label | Rejected]:
    """What comes of every prompt: a person's word where there is one, else the teacher's."""
    signed: list[Review] = []

    def unsigned() -> Iterator[Prompt]:
        for prompt in prompts:
            if prompt.id in reviews:
                signed.append(reviews[prompt.id])
            else:
                yield prompt

    async for outcome in label_all(desk, unsigned(), rules):
        yield outcome
    for review in signed:
        yield review.outcome()


def label_line(label: Label) -> str:
    """A label as a line of JSON; its log-probabilities lie beside it."""
    others = tuple(replace(other, logprobs=None) for other in label.others)
    return json.dumps(asdict(replace(label, logprobs=None, others=others)), ensure_ascii=False) + "\n"


def record(run: Run, summary: dict[str, Any]) -> None:
    """The ledger's figures as metrics, the files for MLflow."""
    figures = {k: v for k, v in summary["in_all"].items() if isinstance(v, int | float)}
    figures |= {k: summary[k] for k in ("rows", "kept", "kept_share", "from_ledger")}
    for name, value in figures.items():
        run.event("metric", stage="label", name=f"label/{name}", value=value, step=None)
    run.event("file", stage="label", path="label/summary.json", title="ledger")


def refuse_few(summary: dict[str, Any], teacher: Teacher, staging: Staging) -> None:
    """Too few answers that are worth training on end the run: what was bought stays in the ledger."""
    if summary["kept_share"] < teacher.min_kept_share or not summary["kept"]:
        raise GateError(
            f"only {summary['kept_share']:.1%} of the answers were kept; {teacher.min_kept_share:.0%} are wanted",
            where="teacher.min_kept_share",
            remedy=f"read {staging.folder / 'rejected.jsonl'}; nothing is bought again by the next attempt",
        )


# What the labelling says of itself while it runs: kept, rejected by reason, speed, tokens, money.


@contextmanager
def labelling(desk: Desk, total: int) -> Iterator[Callable[[Label | Rejected], None]]:
    """Gives the function that takes every row's outcome and moves the bar."""
    kept, rejected = 0, Counter[str]()
    started, sent_before = time.monotonic(), desk.sent

    def state() -> str:
        spent, reserved = desk.ledger.spending()
        speed = (desk.sent - sent_before) / max(time.monotonic() - started, 1e-9)
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rejected.most_common(3))
        wall = f" of {desk.teacher.budget_usd:g}" if desk.teacher.budget_usd is not None else ""
        money = f"{spent / NANO:.4f}{wall} USD spent, {reserved / NANO:.4f} reserved"
        rows = f"{kept:,} kept, {rejected.total():,} rejected{f' ({reasons})' if reasons else ''}"
        return (
            f"{rows} · {speed:.0f} requests/s, {desk.from_ledger:,} from the ledger · {desk.tokens:,} tokens · {money}"
        )

    with progress("label", total, facts=state) as move:

        def count(outcome: Label | Rejected) -> None:
            nonlocal kept
            if isinstance(outcome, Label):
                kept += 1
            else:
                rejected[outcome.reason] += 1
            move(kept + rejected.total())

        yield count
