"""The contenders of an evaluation: what answers (the teacher too), in which engine, and what it is shown first."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from workbench.bundles.prove import HERE, choose_engine
from workbench.data.chat import few_shot, recipe_tokenizer
from workbench.data.prepare import Splits
from workbench.engines import Ask, transformers_engine
from workbench.engines.served import served_engine
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation import scorers
from workbench.files import artefact, file_sha256, read_json
from workbench.plain_yaml import read_yaml_file
from workbench.recipe import Recipe, has_open_teacher, serves_alone, test_teacher
from workbench.records import Answer, Example, Message, Tools, calls_text, canonical, digest
from workbench.runs import Run
from workbench.sources import resolve
from workbench.stages.common import base_model, merged_model, need, say
from workbench.stages.label import inherited, open_desk
from workbench.stages.prompts import prompt_of, put_back
from workbench.stages.rows import question_contents
from workbench.stages.train.guards import weights_of
from workbench.stages.train.task import start_model
from workbench.teacher.calls import Desk, RowError
from workbench.teacher.client import gguf_of, key_of
from workbench.teacher.egress import rule_for
from workbench.teacher.labeller import Prompt, Rules, one_answer
from workbench.teacher.probe import probe
from workbench.teacher.reach import require_way
from workbench.terms import policy
from workbench.tracking.versions import Champion, fetch_champion, find_champion, version_named

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Arm:
    """One contender: what answers, and whether it is shown examples first. `bytes` is 0 where nobody knows them."""

    name: str
    digest: str
    bytes: int
    served_by: str
    engine: Callable[[], AbstractContextManager[Ask]]
    few_shot: bool = False


def arms_of(recipe: Recipe, run: Run) -> list[Arm]:
    """Base with and without examples, the unmerged adapter, the student, and each format in the engine that serves it.

    Of a smaller student `base` stays the whole model, and the adapter sits on the cut one that it was trained on.
    Where vLLM cannot be started here, a compressed-tensors format is answered for by transformers.
    """
    launch, evaluate = recipe.launch, recipe.evaluate
    plain = transformers_of(recipe)
    served = partial(served_engine, parallel=evaluate.parallel, threads=launch.threads)
    base, merged = base_model(recipe, run), merged_model(run)
    # The base model is asked by the very template that the student was trained with, or the comparison is unfair.
    template = recipe_tokenizer(base, recipe.model, recipe.method).chat_template
    shown = template if isinstance(template, str) else None
    of_base = partial(plain, base, chat_template=shown)
    base_digest = digest({"source": recipe.model.source, "sha256": recipe.model.sha256, "template": template}, 16)
    arms = [Arm("base", base_digest, weights_bytes(base), "transformers", of_base)]
    if evaluate.few_shot:
        arms.append(Arm("base_few_shot", base_digest, weights_bytes(base), "transformers", of_base, few_shot=True))
    adapter = run.folder / "train" / "adapter"
    if evaluate.adapter and recipe.method.kind == "lora":
        start = start_model(recipe, run)
        size = weights_bytes(start) + weights_bytes(adapter)
        unmerged = partial(plain, start, chat_template=shown, adapter_dir=adapter)
        arms.append(Arm("adapter", run.output_digest("train"), size, "transformers", unmerged))
    arms.append(
        Arm("student", run.output_digest("merge"), weights_bytes(merged), "transformers", partial(plain, merged))
    )
    for name in recipe.quantize:
        folder = run.folder / "quantize" / name
        need(run, f"quantize/{name}", "evaluate")
        engine = choose_engine(folder, recipe.quantize[name].format)
        ask = partial(plain, folder) if engine == "transformers" else partial(served, folder, engine)
        # One set of weights in two engines is two arms: answers of the one are not taken for the other's.
        key = run.output_digest(f"quantize/{name}") + ("" if engine != "vllm" else "-vllm")
        arms.append(Arm(name, key, weights_bytes(folder), engine, ask))
    return arms


def teacher_arm(recipe: Recipe, run: Run, items: Sequence[Example]) -> Arm:
    """The teacher, asked the test rows through its own room."""
    teacher = recipe.teacher
    local = teacher.api == "local_gguf"
    size = gguf_of(teacher).stat().st_size if local else 0
    engine = partial(teacher_engine, recipe, run, items)
    return Arm("teacher", teacher_digest(recipe), size, "llamacpp" if local else teacher.api, engine)


def open_teacher_arm(recipe: Recipe, run: Run) -> Arm:
    """The teacher whose weights are here, asked the test rows in its own chat template."""
    weights = weights_of(recipe, run)
    ask = partial(transformers_of(recipe), weights)
    return Arm("teacher", weights_digest(weights), weights_bytes(weights), "transformers", ask)


def champion_arm(recipe: Recipe, folder: Path, sha256: str) -> Arm:
    """A registered model's folder, in the engine that takes it: the student's own where it can be the same."""
    gguf = any(folder.glob("*.gguf"))
    served = partial(
        served_engine, folder, "llamacpp", parallel=recipe.evaluate.parallel, threads=recipe.launch.threads
    )
    ask = served if gguf else partial(transformers_of(recipe), folder)
    return Arm("champion", sha256[:16], weights_bytes(folder), "llamacpp" if gguf else "transformers", ask)


def transformers_of(recipe: Recipe) -> Callable[..., AbstractContextManager[Ask]]:
    """The transformers engine with this recipe's device, threads and batches."""
    launch = recipe.launch
    return partial(
        transformers_engine, device=launch.device, batch_tokens=recipe.evaluate.batch_tokens, threads=launch.threads
    )


def weights_bytes(folder: Path) -> int:
    """Size of the weights in a model folder."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in WEIGHTS)


def weights_digest(path: Path) -> str:
    """Digest of a model's weights alone, whatever card or licence lies beside them; `path` may be the file itself."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in WEIGHTS)
    return digest([file_sha256(p) for p in files], 32)


def choose_shots(splits: Splits, recipe: Recipe) -> list[Example]:
    """Training rows for the few-shot baseline: short ones, each with another answer where there are enough."""
    known = [e for e in splits.train if e.prompt and e.good is not False]  # no raw text, and no answer called bad
    pool = sorted(known, key=shown_length)[: max(50, len(known) // 3)]
    random.Random(recipe.seed).shuffle(pool)
    first_of_answer = {e.answer: e for e in reversed(pool)}
    chosen = sorted(first_of_answer.values(), key=pool.index) + pool
    return list({e.id: e for e in chosen}.values())[: recipe.evaluate.few_shot]


def shown_length(example: Example) -> int:
    """Characters of a row's own text and of its functions."""
    return len(example.text) + (len(json.dumps(list(example.tools))) if example.tools else 0)


def few_shot_prompt(item: Example, shots: Sequence[Example]) -> tuple[Message, ...]:
    """The item's prompt after these examples.

    A template shows one set of functions, the item's own. Where an example had others, every request comes with the
    functions that were offered to it, the item's too: an example whose functions nobody sees would mislead.
    """
    if all(tuple(shot.tools) == tuple(item.tools) for shot in shots):
        return few_shot(item.prompt, shots)
    return few_shot(with_functions(item).prompt, [with_functions(shot) for shot in shots])


def with_functions(example: Example) -> Example:
    """The row with its functions written before its last request."""
    last = max((at for at, m in enumerate(example.prompt) if m.role == "user"), default=None)
    if last is None:
        return example
    functions = json.dumps([tool.get("function", tool) for tool in example.tools], ensure_ascii=False)
    request = replace(example.messages[last], content=f"Functions: {functions}\n\n{example.messages[last].content}")
    return replace(example, messages=(*example.messages[:last], request, *example.messages[last + 1 :]))


# Who is held against whom: the recipe's own arms, the teacher and the champion, and what a verdict rests on.

CHAMPION = "champion"
FETCHED = ".champion"  # inside the stage's folder, for as long as it works
# Keys that change how long it takes, or what is said of it, but no answer, score or limit.
BESIDE = ("name", "energy", "parallel", "batch_tokens")


@dataclass(frozen=True)
class Incumbent:
    """The registered model that the student is held against, or why there is none to ask."""

    champion: Champion | None
    absent: str = ""


def incumbent_of(recipe: Recipe, run: Run) -> Incumbent:
    """What the registry calls champion; once that is this run's own student, the one that it was held against before.

    So a run that has just become champion is not judged anew. A registry that cannot be reached is no error here.
    """
    if not recipe.evaluate.champion:
        return Incumbent(None)
    try:
        champion = find_champion(recipe.tracking, Path(recipe.launch.experiments).resolve(), recipe.name)
    except WorkbenchError as error:
        return Incumbent(None, f"the registry could not be asked: {error.what}")
    if champion is None or champion.run != run.digest:
        return Incumbent(champion)
    before = last_report(run).get("replaces")
    return Incumbent(Champion(**before) if before else None)


def fingerprint_of(recipe: Recipe, run: Run, incumbent: Incumbent, gold: Gold | None = None) -> str:
    """What the verdict rests on: the arms' bytes, the questions, the scoring, and the limits."""
    evaluate = recipe.evaluate
    questions = {name: value for name, value in asdict(evaluate).items() if name not in BESIDE}
    return digest(
        {
            "merge": run.output_digest("merge"),
            "formats": {name: run.output_digest(f"quantize/{name}") for name in recipe.quantize},
            "engines": engines_of(recipe, run),
            "champion": incumbent.champion.sha256 if incumbent.champion else None,
            "teacher": wanted_teacher(recipe, run),
            "gold_student": gold.identity if gold else None,
            "privacy": recipe.data.privacy,
            "evaluate": questions,
            "questions": question_contents(evaluate, run),
            "scorer": scorers.version(evaluate),
            "usd_per_hour": recipe.launch.usd_per_hour,
            "gate": asdict(recipe.gate),
        }
        | ({} if recipe.cost.requests_a_month is None else {"volume": recipe.cost.requests_a_month}),
        16,
    )


def engines_of(recipe: Recipe, run: Run) -> dict[str, str]:
    """Which engine answers for each format; a verdict reached in vLLM stands where vLLM is not here now."""
    before = last_report(run).get("engines", {})
    now = {
        name: choose_engine(run.folder / "quantize" / name, wanted.format) for name, wanted in recipe.quantize.items()
    }
    return {name: "vllm" if engine == HERE and before.get(name) == "vllm" else engine for name, engine in now.items()}


def wanted_teacher(recipe: Recipe, run: Run) -> dict[str, Any] | None:
    """What decides whether the teacher can be asked; one that has answered needs its key no more."""
    asking = test_teacher(recipe)
    if asking is None:
        return {"weights": recipe.teacher.weights} if has_open_teacher(recipe) and recipe.evaluate.teacher else None
    try:
        key_of(asking.teacher)
        key = True
    except RequestError:
        key = "teacher" in last_report(run).get("arms", {})
    served = {"serves": teacher_digest(asking)} if serves_alone(asking) else {}
    return {"budget": asking.teacher.budget_usd, "key": key} | served


def last_report(run: Run) -> dict[str, Any]:
    """The report of the last whole evaluation, empty when there was none."""
    path = run.folder / "evaluate" / "report.json"
    return read_json(path) if path.is_file() else {}


def contenders(
    recipe: Recipe, run: Run, items: Sequence[Example], incumbent: Incumbent, gold: Gold | None, folder: Path
) -> tuple[list[Arm], dict[str, str]]:
    """The arms in the report's order, and by name why one that was wanted is not among them."""
    arms = arms_of(recipe, run)
    absent: dict[str, str] = {}
    extra: list[Arm] = []
    if (asking := test_teacher(recipe)) is not None:
        try:
            extra.append(teacher_arm(asking, run, items))
        except WorkbenchError as error:
            absent["teacher"] = str(error.what)
    elif has_open_teacher(recipe) and recipe.evaluate.teacher:
        extra.append(open_teacher_arm(recipe, run))
    if gold is not None:
        try:
            extra.append(gold_arm(recipe, run, gold))
        except RequestError:  # a run that was named and is not what it should be is a wrong recipe
            raise
        except WorkbenchError as error:
            absent[GOLD] = str(error.what)
    if incumbent.champion is not None:
        try:
            extra.append(asked_champion(recipe, run, incumbent.champion, folder))
        except WorkbenchError as error:
            absent[CHAMPION] = str(error.what)
    elif incumbent.absent:
        absent[CHAMPION] = incumbent.absent
    for name, why in absent.items():
        say(run, "evaluate", f"{name} is not asked: {why}")
    place = next(at for at, arm in enumerate(arms) if arm.name in ("adapter", "student"))
    return [*arms[:place], *extra, *arms[place:]], absent


def asked_champion(recipe: Recipe, run: Run, champion: Champion, folder: Path) -> Arm:
    """The champion's arm. WorkbenchError when its files cannot be had, or are weights that another arm answers for."""
    into = fetch_champion(recipe.tracking, Path(recipe.launch.experiments).resolve(), champion, folder / FETCHED)
    own = weights_digest(into)
    others = {"student": merged_model(run), **{name: run.folder / "quantize" / name for name in recipe.quantize}}
    if recipe.teacher.api == "local_gguf" and recipe.evaluate.teacher:
        others["teacher"] = gguf_of(recipe.teacher)
    for name, path in others.items():
        if weights_digest(path) == own:
            raise RequestError(f"{champion.name} version {champion.number} has the very weights of {name}")
    say(run, "evaluate", f"champion is {champion.name} version {champion.number}, of run {champion.run}")
    return replace(champion_arm(recipe, into, champion.sha256), name=CHAMPION)


# The gold-only student as an arm: another finished run of the same base, trained on the rows' own answers.
#
# What labels of a teacher are worth shows beside a student of gold rows. It is told and not judged.

GOLD = "gold_student"
WHERE = f"evaluate.{GOLD}"
MODELS = ("models:/", "mlflow:models:/")


@dataclass(frozen=True)
class Gold:
    """The run that `evaluate.gold_student` names: its pinned source, which it is now, or why it cannot be asked."""

    named: str
    source: str
    identity: str
    absent: str = ""


def gold_of(recipe: Recipe, run: Run, before: Mapping[str, Any]) -> Gold | None:
    """Who is asked as gold-only student; None when nobody is named. `before` is the last whole evaluation's report.

    A registry that cannot be reached is no error: what it named then stands. Raises RequestError for a source that
    names no finished run.
    """
    named = recipe.evaluate.gold_student
    if not named:
        return None
    if named.startswith(MODELS):
        try:
            version = version_named(named)
        except RequestError as error:
            raise RequestError(error.what, where=WHERE, remedy=error.remedy) from None
        except WorkbenchError as error:
            known = before.get("distillation", {}).get(GOLD, {})
            if known.get("named") == named:
                return Gold(**known)
            return Gold(named, "", "", f"the registry could not be asked: {error.what}")
        return Gold(named, version.source, f"{version.name}/{version.number}")
    path = resolve(named)
    if path.resolve() == run.folder.resolve():
        raise RequestError("this is the very run that is judged", where=WHERE, remedy="name another run of this base")
    if not (path / "run.json").is_file():
        return Gold(named, str(path), weights_digest(path))
    merged = read_json(path / "run.json")["stages"].get("merge")
    if merged is None:
        raise RequestError(f"{path} has no merged model yet", where=WHERE, remedy="train that recipe to its end first")
    return Gold(named, str(path), digest([made["sha256"] for made in merged["artefacts"]], 32))


def gold_arm(recipe: Recipe, run: Run, gold: Gold) -> Arm:
    """Its arm, in the engine that takes its files. WorkbenchError when it cannot be had, or is no gold-only student."""
    if gold.absent:
        raise WorkbenchError(gold.absent, where=WHERE)
    home = resolve(gold.source)
    check_kin(recipe, run, home)
    folder = home / "merge" / "model" if (home / "run.json").is_file() else home
    say(run, "evaluate", f"{GOLD} is {gold.identity if gold.named.startswith(MODELS) else gold.named}")
    return replace(champion_arm(recipe, folder, artefact(folder, folder).sha256), name=GOLD)


def check_kin(recipe: Recipe, run: Run, home: Path) -> None:
    """Hold its own recipe against this one: the same base, and no teacher. Other rows are said."""
    if not (home / "recipe.yaml").is_file():
        say(run, "evaluate", f"{GOLD} has no recipe.yaml: of what base and on which rows it was trained is not known")
        return
    theirs = read_yaml_file(home / "recipe.yaml")
    base = theirs["model"]["source"]
    if base != recipe.model.source:
        raise RequestError(
            f"it was tuned from {base}, and this recipe's base is {recipe.model.source}",
            where=WHERE,
            remedy="name a run of the same base",
        )
    held = [
        read_json(folder / "run.json").get("sources", {}).get("model.source", {}).get("sha256")
        for folder in (home, run.folder)
        if (folder / "run.json").is_file()
    ]
    if len(held) == 2 and None not in held and held[0] != held[1]:
        raise RequestError(
            f"it was tuned from other weights of {base} than this run",
            where=WHERE,
            remedy="name a run of the same base",
        )
    if theirs["teacher"]["api"] != "none" or theirs["teacher"].get("weights"):
        raise RequestError(
            "it learned from a teacher, and a gold-only student learned its rows' own answers",
            where=WHERE,
            remedy="name a run without a teacher",
        )
    parts = {name: theirs["data"].get(name) for name in ("train", "test")}
    if parts != {name: getattr(recipe.data, name) for name in parts}:
        rows = f"trained on {parts['train']}" + (f" and judged on {parts['test']}" if parts["test"] else "")
        say(run, "evaluate", f"{GOLD} was {rows}: whether it has seen rows of this test is not known")


# The teacher as an arm: it is asked the test rows as it was asked for labels, by the same terms, wall and ledger.

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

    Terms are judged where it is learned from, a row leaves only as its privacy lets it, and an answer that was ever
    paid for comes from the ledger. None of the filters of labelling is applied: a refusal is a wrong answer here, not
    a row to leave out.
    """
    if not serves_alone(recipe):
        policy.require(recipe.teacher, inherited(recipe.teacher))
    rule = rule_for(recipe.teacher, recipe.data.privacy)
    for line in require_way(recipe.teacher, recipe.data.privacy):
        say(run, "evaluate", line)
    key_of(recipe.teacher)  # only that it is set
    rows = {(tuple(e.prompt), canonical(e.tools)): e for e in items}

    def ask(
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        asked_with = tools or [()] * len(prompts)
        examples = [rows[tuple(p), canonical(tuple(t))] for p, t in zip(prompts, asked_with, strict=True)]
        redacted = [prompt_of(example, recipe.data.privacy, rule) for example in examples]
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
    calls = [replace(c, arguments=rules.restore(c.arguments, prompt.originals)) for c in bought.answer.tool_calls]
    asked_now = all(reply.attempt > newest for reply in bought.replies)
    return place, Answer(
        text="\n".join(filter(None, [text, calls_text(calls)])),
        finish="stop",
        tokens_in=sum(reply.usage.tokens_in for reply in bought.replies),
        tokens_out=sum(reply.usage.out for reply in bought.replies),
        tokens_thought=sum(reply.usage.reasoning for reply in bought.replies),
        seconds=seconds / desk.teacher.concurrency,
        latency=seconds if asked_now and seconds else None,
        usd=sum(reply.cost for reply in bought.replies) / 1e9,
    )
