"""Who is held against whom: the recipe's own arms, the teacher and the champion, and what a verdict rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation import scorers
from workbench.recipe import Evaluate, Recipe, has_open_teacher, has_teacher
from workbench.records import Example, digest
from workbench.runs import Run, read_json
from workbench.serving.prove import HERE, choose_engine
from workbench.sources import content_digests
from workbench.stages.arms import Arm, arms_of, champion_arm, open_teacher_arm, teacher_arm, weights_digest
from workbench.stages.common import merged_model, say
from workbench.stages.gold_student import GOLD, Gold, gold_arm
from workbench.teacher.client import key_of
from workbench.teacher.local import gguf_of
from workbench.tracking.champion import Champion, fetch_champion, find_champion

CHAMPION = "champion"
FETCHED = ".champion"  # inside the stage's folder, for as long as it works
# Keys that change how long it takes, or what is said of it, but no answer, score or limit.
BESIDE = ("name", "energy", "parallel", "batch_tokens")


@dataclass(frozen=True)
class Incumbent:
    """The registered model that the student is held against, or why there is none to ask."""

    found: Champion | None
    absent: str = ""


def incumbent_of(recipe: Recipe, run: Run) -> Incumbent:
    """What the registry calls champion; once that is this run's own student, the one that it was held against before.

    So a run that has just become champion is not judged anew. A registry that cannot be reached is no error here.
    """
    if not recipe.evaluate.champion:
        return Incumbent(None)
    try:
        found = find_champion(recipe.tracking, Path(recipe.launch.experiments).resolve(), recipe.name)
    except WorkbenchError as error:
        return Incumbent(None, f"the registry could not be asked: {error.what}")
    if found is None or found.run != run.digest:
        return Incumbent(found)
    before = last_report(run).get("replaces")
    return Incumbent(Champion(**before) if before else None)


def fingerprint_of(recipe: Recipe, run: Run, incumbent: Incumbent, gold: Gold | None = None) -> str:
    """What the verdict rests on: the arms' bytes, the questions, the scoring, and the limits."""
    evaluate = recipe.evaluate
    asked = {name: value for name, value in asdict(evaluate).items() if name not in BESIDE}
    return digest(
        {
            "merge": run.output_digest("merge"),
            "formats": {name: run.output_digest(f"quantize/{name}") for name in recipe.quantize},
            "engines": engines_of(recipe, run),
            "champion": incumbent.found.sha256 if incumbent.found else None,
            "teacher": wanted_teacher(recipe, run),
            "gold_student": gold.identity if gold else None,
            "privacy": recipe.data.privacy,
            "evaluate": asked,
            "questions": question_contents(evaluate),
            "scorer": scorers.version(evaluate),
            "usd_per_hour": recipe.launch.usd_per_hour,
            "gate": asdict(recipe.gate),
        },
        16,
    )


def question_contents(evaluate: Evaluate) -> dict[str, str]:
    """The digests of the files of questions, beside the recipe's rows, that are read for the verdict."""
    named = {"general": evaluate.general, "harmful": evaluate.harmful, "judge.human": evaluate.judge.human}
    return content_digests({f"evaluate.{key}": source for key, source in named.items()})


def engines_of(recipe: Recipe, run: Run) -> dict[str, str]:
    """Which engine answers for each format; a verdict reached in vLLM stands where vLLM is not here now."""
    before = last_report(run).get("engines", {})
    now = {
        name: choose_engine(run.folder / "quantize" / name, wanted.format) for name, wanted in recipe.quantize.items()
    }
    return {name: "vllm" if engine == HERE and before.get(name) == "vllm" else engine for name, engine in now.items()}


def wanted_teacher(recipe: Recipe, run: Run) -> dict[str, Any] | None:
    """What decides whether the teacher can be asked; one that has answered needs its key no more."""
    if not has_teacher(recipe) or not recipe.evaluate.teacher:
        return {"weights": recipe.teacher.weights} if has_open_teacher(recipe) and recipe.evaluate.teacher else None
    try:
        key_of(recipe.teacher)
        key = True
    except RequestError:
        key = "teacher" in last_report(run).get("arms", {})
    return {"budget": recipe.teacher.budget_usd, "key": key}


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
    if has_teacher(recipe) and recipe.evaluate.teacher:
        try:
            extra.append(teacher_arm(recipe, run, items))
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
    if incumbent.found is not None:
        try:
            extra.append(asked_champion(recipe, run, incumbent.found, folder))
        except WorkbenchError as error:
            absent[CHAMPION] = str(error.what)
    elif incumbent.absent:
        absent[CHAMPION] = incumbent.absent
    for name, why in absent.items():
        say(run, "evaluate", f"{name} is not asked: {why}")
    place = next(at for at, arm in enumerate(arms) if arm.name in ("adapter", "student"))
    return [*arms[:place], *extra, *arms[place:]], absent


def asked_champion(recipe: Recipe, run: Run, found: Champion, folder: Path) -> Arm:
    """The champion's arm. WorkbenchError when its files cannot be had, or are weights that another arm answers for."""
    into = fetch_champion(recipe.tracking, Path(recipe.launch.experiments).resolve(), found, folder / FETCHED)
    own = weights_digest(into)
    others = {"student": merged_model(run), **{name: run.folder / "quantize" / name for name in recipe.quantize}}
    if recipe.teacher.api == "local_gguf" and recipe.evaluate.teacher:
        others["teacher"] = gguf_of(recipe.teacher)
    for name, path in others.items():
        if weights_digest(path) == own:
            raise RequestError(f"{found.name} version {found.number} has the very weights of {name}")
    say(run, "evaluate", f"champion is {found.name} version {found.number}, of run {found.run}")
    return replace(champion_arm(recipe, into, found.sha256), name=CHAMPION)
