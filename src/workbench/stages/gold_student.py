"""The gold-only student as an arm: another finished run of the same base, trained on the rows' own answers.

What labels of a teacher are worth shows beside a student of gold rows. It is told and not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Recipe
from workbench.records import artefact, digest
from workbench.runs import Run, read_json
from workbench.sources import resolve
from workbench.stages.arms import Arm, champion_arm, weights_digest
from workbench.stages.common import say
from workbench.tracking.recheck import version_named

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
    told = yaml.safe_load((home / "recipe.yaml").read_text(encoding="utf-8"))
    base = told["model"]["source"]
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
    if told["teacher"]["api"] != "none" or told["teacher"].get("weights"):
        raise RequestError(
            "it learned from a teacher, and a gold-only student learned its rows' own answers",
            where=WHERE,
            remedy="name a run without a teacher",
        )
    parts = {name: told["data"].get(name) for name in ("train", "test")}
    if parts != {name: getattr(recipe.data, name) for name in parts}:
        rows = f"trained on {parts['train']}" + (f" and judged on {parts['test']}" if parts["test"] else "")
        say(run, "evaluate", f"{GOLD} was {rows}: whether it has seen rows of this test is not known")
