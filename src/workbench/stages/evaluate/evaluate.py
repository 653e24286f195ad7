"""Evaluate: every arm answers the same test rows in its own engine; the report and the gate's verdict."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from workbench.data.prepare import Splits
from workbench.data.split import tied
from workbench.deciding.ways import SECONDS as MONTH_S
from workbench.deciding.ways import serving_of
from workbench.engines.ask import Ask
from workbench.engines.served import computed_on, served_engine
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation import behaviours
from workbench.evaluation.answers import Prediction, ask_arm, broken, schema_of, shown, write_predictions
from workbench.evaluation.attribution import joints
from workbench.evaluation.behaviours import ANSWER_TOKENS, load_general, load_harmful
from workbench.evaluation.gate import check_override, judge
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.report import build_report
from workbench.evaluation.resources import facts_of, metered, read_spent
from workbench.evaluation.scorers import find, primary_metric
from workbench.evaluation.scorers.judge import PREFERENCE
from workbench.files import file_sha256, read_json, remove, write_whole
from workbench.pages import pictures
from workbench.pages.report_page import write_page
from workbench.recipe import Recipe, has_open_teacher, has_teacher
from workbench.records import Answer, Example, Message, Tools, answer_text, canonical
from workbench.runs import Run, Staging, read_events, stage
from workbench.stages.common import hold_made, is_done, log_datasets, merged_model, need, say
from workbench.stages.evaluate import folds
from workbench.stages.evaluate.arms import (
    FETCHED,
    GOLD,
    Arm,
    Gold,
    choose_shots,
    contenders,
    few_shot_prompt,
    fingerprint_of,
    gold_of,
    incumbent_of,
    last_report,
)
from workbench.stages.evaluate.at_home import at_home
from workbench.stages.evaluate.evidence import duties_of, evidence, hand_over
from workbench.stages.evaluate.judge_answers import judged
from workbench.stages.evaluate.one_asker import is_served, waits_of
from workbench.stages.review_rows import write_answers
from workbench.stages.rows import keep_questions, question_contents, question_file, rows

# One that cannot be asked is left out aloud: the run's own verdict stands without.
OPTIONAL = ("teacher", GOLD, "champion")
AT_SATURATION = "usd_per_1000"
FIGURES, PROMPTS = "figures", "prompts.json"
# Metrics as training tells them, and as they are drawn.
CURVE = {"train/loss": "loss", "validation/loss": "eval_loss"}
CURVE |= {f"train/{name}": name for name in ("learning_rate", "grad_norm", "memory_gb", "tokens_per_second")}


def run(recipe: Recipe, run: Run) -> bool:
    """Evaluate unless it is done. Answers already given by the same arm to the same prompt are reused."""
    check_override(recipe.gate)
    need(run, "merge", "evaluate")
    for name in recipe.quantize:
        need(run, f"quantize/{name}", "evaluate")
    keep_questions(recipe, run)
    questions = question_contents(recipe.evaluate, run)
    incumbent, gold = incumbent_of(recipe, run), gold_of(recipe, run, last_report(run))
    fingerprint = fingerprint_of(recipe, run, incumbent, gold)
    if is_done(run, "evaluate", fingerprint):
        return False
    hold_made(run, "train", "merge", *(f"quantize/{name}" for name in recipe.quantize))
    with stage(run, "evaluate", fingerprint, resume=True) as staging:
        staging.scratch = [FETCHED, folds.FOLDER]
        splits = rows(recipe, run)
        items = answerable(splits, run)[: recipe.evaluate.limit]
        log_datasets(run, "evaluate", splits.datasets, ("test",))
        shots = choose_shots(splits, recipe)
        parts = folds.cut(splits, shots, recipe) if recipe.evaluate.folds else None
        tests, items = items, parts.items[: recipe.evaluate.limit] if parts else items
        judging = "rows judge, by folds" if parts else "test rows"
        say(run, "evaluate", f"{len(items)} {judging}; base_few_shot sees {len(shots)} training rows first")
        absent: dict[str, str] = {}
        own: list[Prediction] = []
        if parts:
            arms = folds.contenders_of_folds(recipe, run, parts, staging.folder)
            own = folds.own_answers(recipe, run, tests, staging.folder / "predictions")
        else:
            arms, absent = contenders(recipe, run, items, incumbent, gold, staging.folder)
        collected = answers_of(recipe, run, arms, splits, items, shots, staging.folder, absent)
        arms = [arm for arm in arms if arm.name in collected.free]
        report = report_of(recipe, run, splits, items, collected, staging.folder, {STUDENT: own} if parts else None)
        report["engines"] = {arm.name: arm.served_by for arm in arms}
        report["devices"] = devices_of(recipe, arms)
        if not (has_teacher(recipe) or has_open_teacher(recipe)):  # a route's teacher: nothing was learned from it
            report.pop("distillation", None)
        report |= distillation_of(recipe, run, report, collected, gold)
        if parts:
            report["folds"] = folds.about(recipe, run, parts, report, collected.free, own, incumbent)
        report["chain"] = joints(report, distances(recipe, run))
        report["replaces"] = asdict(incumbent.champion) if incumbent.champion else None
        report["absent"] = absent
        report["gate"] = judge(report, recipe.gate, primary_metric(recipe.evaluate), list(recipe.quantize))
        report |= at_home(recipe, report, collected.free)
        refuse_changed(recipe, run, questions)
        written(recipe, run, report, collected, splits, items, staging)
    return True


def devices_of(recipe: Recipe, arms: Sequence[Arm]) -> dict[str, str]:
    """What each arm's engine computes on here, where it is one of this machine: it may be built without its card."""
    names = {arm.name: computed_on(arm.served_by, recipe.launch.device) for arm in arms}
    return {arm: name for arm, name in names.items() if name}


def answerable(splits: Splits, run: Run) -> list[Example]:
    """The test rows that an arm can be right about: without those whose answer a person has called bad, aloud.

    Near copies are right or wrong together, as rows of one group are: they get one, and count as one in intervals.
    RequestError where they are raw text, or none is left.
    """
    items = [item for item in splits.test if item.good is not False]
    raw = next((item for item in items if not item.prompt), None)
    if raw or not items:
        raise RequestError(
            "the test rows are raw text, which asks nothing" if raw else "every test row's answer is called bad",
            where=(raw.where or raw.id) if raw else "data.test",
            remedy="name rows of the task with right answers (data.test=FILE), or end before: until=merge",
        )
    if len(items) < len(splits.test):
        say(run, "evaluate", f"{len(splits.test) - len(items):,} test rows are not asked: their answer is called bad")
    return tied(items)


def refuse_changed(recipe: Recipe, run: Run, questions: Mapping[str, str]) -> None:
    """The files of questions must be the ones that the verdict's fingerprint covers."""
    now = question_contents(recipe.evaluate, run)
    changed = [source for source, sha256 in questions.items() if now.get(source) != sha256]
    if changed:
        raise WorkbenchError(
            "it changed while the arms were asked", where=changed[0], remedy="run it again: answers given are kept"
        )


def answers_of(
    recipe: Recipe,
    run: Run,
    arms: Sequence[Arm],
    splits: Splits,
    items: Sequence[Example],
    shots: Sequence[Example],
    folder: Path,
    absent: dict[str, str],
) -> Collected:
    """What every arm says to every question; `absent` gets the optional ones that could not be asked."""
    questions, collected = questions_of(recipe, run, splits.train, items, shots), Collected()
    if questions.schema:
        say(run, "evaluate", f"answers are also asked for within the schema {shown(questions.schema)}")
    for arm in arms:
        try:
            ask_all(recipe, run, arm, questions, folder / "predictions", collected)
        except WorkbenchError as error:
            if arm.name not in OPTIONAL:
                raise
            absent[arm.name] = error.what
            collected.free.pop(arm.name, None)
            say(run, "evaluate", f"{arm.name} is left out: {error}")
    if (served := as_vllm_serves(recipe, run)) is not None:
        with opened(served) as ask:
            tell_waits(recipe, run, served, ask, items, folder / "predictions", False, collected)
    for arm in arms:
        if arm.name in collected.facts and arm.name not in FREE_ONLY:
            collected.facts[arm.name] |= at_volume(recipe, collected.facts[arm.name])
    return collected


def at_volume(recipe: Recipe, figures: Mapping[str, float]) -> dict[str, float]:
    """An arm's dollars at your volume, where that, the machine's price and what it answers a second are known."""
    hour, requests, rate = recipe.launch.usd_per_hour, recipe.cost.requests_a_month, figures.get("answers_per_second")
    if hour is None or requests is None or rate is None or AT_SATURATION not in figures:
        return {}
    machines = max(1.0, math.ceil(requests / (rate * MONTH_S)))
    return {"usd_per_1000_at_volume": serving_of(hour, rate, requests, machines).usd_per_1000_at_your_volume}


def report_of(
    recipe: Recipe,
    run: Run,
    splits: Splits,
    items: Sequence[Example],
    collected: Collected,
    folder: Path,
    shipping: Mapping[str, Sequence[Prediction]] | None = None,
) -> dict[str, Any]:
    """The report's figures, before the gate has spoken.

    `shipping` are answers to test rows of the arms that would ship, where those that judge were given by others.
    """
    evaluate, seed = recipe.evaluate, recipe.seed
    texts = {e.id: e.text for e in items}
    is_judged = bool(find(evaluate.scorer).judged(evaluate))
    verdicts, about = judged(recipe, run, collected.free, texts, folder) if is_judged else ({}, {})
    report = build_report(
        recipe.data.name or recipe.name,
        evaluate,
        collected.free,
        collected.facts,
        seed,
        constrained={arm: collected.constrained[arm] for arm in collected.free if arm in collected.constrained},
        judged={PREFERENCE: verdicts} if verdicts else {},
        meta={e.id: e.meta for e in items},
        lengths={e.id: len(text) for e, text in zip(items, texts.values(), strict=True)},
        baseline=recipe.gate.baseline,
    )
    if collected.general:
        report["general"] = behaviours.general_report(evaluate, collected.general, seed)
    if collected.harmful:
        report["refusals"] = behaviours.refusals_report(evaluate, collected.harmful, seed)
    own = {arm: answers for arm, answers in (shipping or collected.free).items() if arm in (STUDENT, *recipe.quantize)}
    # An answer may repeat what it was given, and that is the functions that it calls, too.
    asked_of = [*items, *splits.test] if shipping else items
    prompts = {e.id: "\n".join([*(answer_text(m) for m in e.prompt), canonical(e.tools)]) for e in asked_of}
    public = recipe.data.privacy == "public"
    learned = [(e.id, text) for e in splits.train for text in (e.text, e.answer)]
    report["memorised"] = behaviours.memorised(own, prompts, learned, quote=public, confidence=evaluate.confidence)
    if about:
        report["judge"] = about
    report["duties"] = duties_of(recipe, run)
    report["formats"] = list(recipe.quantize)
    return report


def distillation_of(
    recipe: Recipe, run: Run, report: Mapping[str, Any], collected: Collected, gold: Gold | None
) -> dict[str, Any]:
    """`{"distillation": …}` with all that is known of it; nothing where no teacher, cut or gold student has a part."""
    parts = dict(report.get("distillation", {})) | evidence(recipe, run, collected.free, report["engines"])
    if gold is not None and GOLD in collected.free:
        parts[GOLD] = asdict(gold)
    return {"distillation": parts} if parts else {}


def written(
    recipe: Recipe,
    run: Run,
    report: dict[str, Any],
    collected: Collected,
    splits: Splits,
    items: Sequence[Example],
    staging: Staging,
) -> None:
    """Write report, page, pictures and hand-over; tell the record."""
    folder = staging.folder
    write_whole(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    if "folds" not in report:  # the task of another harness is asked of one student
        hand_over(recipe, run, items, folder)
    texts = {e.id: e.text for e in items}
    if recipe.data.privacy == "public":  # `compare` shows them on a page that may travel farther than the run
        write_whole(folder / PROMPTS, json.dumps(texts, ensure_ascii=False))
    else:
        (folder / PROMPTS).unlink(missing_ok=True)
    pictures.draw(report, folder / FIGURES)
    context = {
        "recipe": asdict(recipe),
        "manifest": run.manifest(),
        "datasets": splits.datasets,
        "prompts": texts,
        "train": training_curve(run),
        "constrained": collected.constrained,
        "teacher": (run.done("label") or {}).get("facts", {}),
    }
    write_page(report, collected.free, folder / "report.html", title=run.recipe_name, context=context)
    drop_stale(folder / "predictions", list(collected.free))
    write_answers(recipe.evaluate, items, collected.free.get(STUDENT, ()), folder)
    staging.facts = {
        "n": report["n"], "passed": report["gate"]["passed"], "refused": report["gate"]["refused"],
        "report_sha256": file_sha256(folder / "report.json"),
    }  # fmt: skip
    log_scores(run, report)


def distances(recipe: Recipe, run: Run) -> dict[str, dict[str, Any]]:
    """How far each arm's token probabilities are from its parent's, as merging and quantizing have measured it."""
    stages = {"student": "merge", **{name: f"quantize/{name}" for name in recipe.quantize}}
    return {arm: need(run, stage, "evaluate")["facts"] for arm, stage in stages.items()}


def training_curve(run: Run) -> list[dict[str, float]]:
    """The losses of training and how it went, by step, from the run's events; a step done twice counts as done last."""
    points: dict[tuple[str, int], float] = {}
    events, torn = read_events(run.folder / "events.jsonl")
    if torn:
        say(run, "evaluate", f"{torn} torn lines of events.jsonl are left out")
    for event in events:
        name = CURVE.get(event.get("name", ""))
        if name and event.get("step") is not None:
            points[name, event["step"]] = event["value"]
    return [{"step": step, name: value} for (name, step), value in sorted(points.items(), key=lambda p: p[0][1])]


def drop_stale(folder: Path, arms: Sequence[str]) -> None:
    """Files of arms that an interrupted, differently set attempt left behind: an arm's names begin with its own."""
    for path in folder.iterdir():
        if path.name.partition(".")[0] not in arms:
            remove(path, folder)


def log_scores(run: Run, report: Mapping[str, Any]) -> None:
    """Every arm's figures as events, and the report's files for MLflow, which takes the pictures from their folder."""
    sections = [("", report["arms"])]
    sections += [(f"{name}_", report[name]["arms"]) for name in ("general", "refusals") if name in report]
    for prefix, arms in sections:
        for arm, metrics in arms.items():
            for name, figure in metrics.items():
                for suffix, part in (("", "value"), ("_ci_low", "ci_low"), ("_ci_high", "ci_high")):
                    if figure.get(part) is not None:
                        metric = f"{arm}/{prefix}{name}{suffix}"
                        run.event("metric", stage="evaluate", name=metric, value=figure[part], step=None)
    for name in ("report.html", "report.json"):
        run.event("file", stage="evaluate", path=f"evaluate/{name}", title="report")


def read_report(run: Run) -> dict[str, Any]:
    """The finished evaluation's report."""
    return read_json(run.folder / "evaluate" / "report.json")


# Every question that one arm is asked, in one start of its engine: the test, the schema, what may be forgotten.
#
# The general and the harmful set are put to base and student alone, with at most 32 new tokens: what tuning broke is
# the difference of these two. A format is held against the student by its answers to the test and its distance (KL)
# instead.

FREE_ONLY = ("teacher",)  # it is asked in its own way, and paid for
BESIDE_THE_TEST = ("base", STUDENT)  # these are asked the general and the harmful set too


@dataclass(frozen=True)
class Questions:
    """What is asked: the test rows, the examples shown first, the schema of their answers, and the other sets."""

    items: Sequence[Example]
    shots: Sequence[Example]
    schema: Mapping[str, Any] | None
    general: Sequence[Example]
    harmful: Sequence[Example]


@dataclass
class Collected:
    """What all arms have told, by arm; of the general and harmful sets only base and student."""

    free: dict[str, list[Prediction]] = field(default_factory=dict)
    constrained: dict[str, list[Prediction]] = field(default_factory=dict)
    general: dict[str, list[Prediction]] = field(default_factory=dict)
    harmful: dict[str, list[Prediction]] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)


def questions_of(
    recipe: Recipe, run: Run, train: Sequence[Example], items: Sequence[Example], shots: Sequence[Example]
) -> Questions:
    """The questions of this recipe."""
    evaluate = recipe.evaluate
    return Questions(
        items,
        shots,
        schema_of(evaluate, [e.answer for e in train]),
        load_general(question_file(evaluate, run, "general")) if evaluate.general else [],
        load_harmful(question_file(evaluate, run, "harmful")) if evaluate.harmful else [],
    )


def ask_all(recipe: Recipe, run: Run, arm: Arm, questions: Questions, folder: Path, collected: Collected) -> None:
    """Put all of an arm's answers into `collected`; the engine is only started when an answer is missing."""
    evaluate, name = recipe.evaluate, arm.name
    prompts = [few_shot_prompt(e, questions.shots if arm.few_shot else []) for e in questions.items]
    spent, spent_before = (place / f"{name}.resources.json" for place in (folder, kept(run)))
    with opened(arm) as ask:

        def answers(
            ask: Ask,
            rows: Sequence[Example],
            texts: Sequence[Sequence[Message]],
            longest: int,
            suffix: str,
            schema: Mapping[str, Any] | None = None,
        ) -> list[Prediction]:
            out, earlier = folder / f"{name}{suffix}.jsonl", kept(run) / f"{name}{suffix}.jsonl"
            return ask_arm(
                name + suffix, arm.digest, ask, rows, texts, max_new_tokens=longest, out=out,
                cached=earlier if earlier.exists() else None, schema=schema, seed=recipe.seed,
                acceptable=evaluate.acceptable,
            )  # fmt: skip

        timed = metered(ask, spent, spent_before, energy=evaluate.energy)
        free = answers(timed, questions.items, prompts, evaluate.max_new_tokens, "")
        collected.free[name] = free
        lost = sum(p.lost_in_thought for p in free)
        if lost:
            limit = f"evaluate.max_new_tokens={evaluate.max_new_tokens}"
            say(run, "evaluate", f"{name}: in {lost} of {len(free)} answers thoughts ate up {limit}: raise it")
        account = read_spent(spent, spent_before)
        collected.facts[name] = facts_of(arm.bytes, account, free, recipe.launch.usd_per_hour)
        if is_served(arm):
            tell_waits(recipe, run, arm, ask, questions.items, folder, spent.is_file(), collected)
        if questions.schema and name not in FREE_ONLY:
            again = broken(questions.schema, free)
            whole = list(free)
            if again:
                say(run, "evaluate", f"{name}: {len(again)} of {len(free)} answers break the schema, asked again in it")
                asked_again, texts = [questions.items[i] for i in again], [prompts[i] for i in again]
                within = answers(ask, asked_again, texts, evaluate.max_new_tokens, ".constrained", questions.schema)
                for at, prediction in zip(again, within, strict=True):
                    whole[at] = prediction
            write_predictions(whole, folder / f"{name}.constrained.jsonl")
            collected.constrained[name] = whole
        if name in BESIDE_THE_TEST:
            for rows, suffix, into in (
                (questions.general, ".general", collected.general), (questions.harmful, ".harmful", collected.harmful)
            ):  # fmt: skip
                if rows:
                    into[name] = answers(ask, rows, [e.prompt for e in rows], ANSWER_TOKENS, suffix)


def tell_waits(
    recipe: Recipe, run: Run, arm: Arm, ask: Ask, items: Sequence[Example], folder: Path, started: bool,
    collected: Collected,
) -> None:  # fmt: skip
    """What one asker waits, into the arm's figures: where the engine is `started` anyway, or a limit is set."""
    wanted = started or recipe.gate.max_seconds is not None
    waits = waits_of(arm, ask, items, recipe.evaluate.max_new_tokens, (folder, kept(run)), wanted)
    collected.facts[arm.name] |= waits
    if waits:
        p50, p95 = waits["latency_p50"], waits["latency_p95"]
        say(run, "evaluate", f"{arm.name}: one asker waits {p50:.2f} s, 95 of 100 times at most {p95:.2f} s")


def as_vllm_serves(recipe: Recipe, run: Run) -> Arm | None:
    """The student in the engine that will serve it; None where no limit wants to know what one asker waits there."""
    folder = merged_model(run)
    if recipe.gate.max_seconds is None:
        return None
    engine = partial(served_engine, folder, "vllm", parallel=1, threads=recipe.launch.threads)
    return Arm(STUDENT, run.output_digest("merge"), 0, "vllm", engine)


def kept(run: Run) -> Path:
    """The predictions of the last whole evaluation."""
    return run.folder / "evaluate" / "predictions"


@contextlib.contextmanager
def opened(arm: Arm) -> Iterator[Any]:
    """The arm's ask function; its engine starts with the first question and ends with the block."""
    with contextlib.ExitStack() as stack:
        running: list[Any] = []

        def ask(
            prompts: Sequence[Sequence[Message]],
            max_new_tokens: int,
            schema: Mapping[str, Any] | None = None,
            tools: Sequence[Tools] | None = None,
        ) -> Iterator[tuple[int, Answer]]:
            if not running:
                running.append(stack.enter_context(arm.engine()))
            return running[0](prompts, max_new_tokens, schema, tools)

        yield ask
