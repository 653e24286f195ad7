"""What a kind of training is, and where one is found by its name: shipped, or in an installed package."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.errors import RequestError, nearest
from workbench.extras import entry_points, loaded
from workbench.records import Example

if TYPE_CHECKING:
    from workbench.recipe.schema import Method, Recipe

ANSWERS, PAIRS, JUDGED, TEXT = "answers", "pairs", "judged answers", "text"  # what rows may be
PLAIN = "sft"  # the rows' own answers: what is trained where no kind is named
SHIPPED = "workbench.stages.train.kinds"  # by name, as a package's entry point is: its files lie floors above


@dataclass(frozen=True)
class Kind:
    """One kind of training: how its job is made, and what it cannot do without.

    `job(task, start, out)` takes a `stages.train.task.Task` and `Start` and gives a `training.job.Job`. `answers`,
    `reasons` and `logprobs` are what a teacher must have been asked for, `weights` a teacher whose weights are here.
    With `samples` the student itself is sampled, and with `replaces` it is trained on what it says in its rows' place.
    An `own` kind learns from the recipe's own rows and stands in `method.learn`, any other in `method.distil`.
    One of `documents` reads those that `data.documents` names in the rows' place, where it names some.
    `material` is what its rows may be, as `data.layouts` names them, and `conversations(rows)` what it reads of them.
    One that is `alone` trains in one process only.
    """

    name: str
    job: Callable[..., Any]
    answers: bool = True
    reasons: bool = False
    logprobs: bool = False
    weights: bool = False
    samples: bool = False
    replaces: bool = False
    own: bool = False
    documents: bool = False
    material: frozenset[str] = frozenset({ANSWERS})
    conversations: Callable[[Sequence[Example]], Sequence[Example]] = lambda rows: rows
    alone: bool = False


def kind_named(name: str, where: str = "method.distil") -> Kind:
    """The kind, shipped or from the entry points `workbench.methods`. RequestError for a name that nobody has."""
    shipped: dict[str, Kind] = import_module(SHIPPED).KINDS
    if name in shipped:
        return shipped[name]
    offered = {point.name: point for point in entry_points(group="workbench.methods")}
    if name in offered:
        return loaded(offered[name], Kind, where)
    own = where == "method.learn"
    names = [*(known for known, kind in shipped.items() if kind.own == own), *offered]
    what = "learning from one's own rows" if own else "distillation"
    raise RequestError(f"{name!r} is no kind of {what}", where=where, remedy=nearest(name, names))


def distilled(names: Sequence[str]) -> list[Kind]:
    """The kinds that `method.distil` names, in order. RequestError for one that nobody has, or without a teacher."""
    if PLAIN in names:
        raise RequestError(
            f"{PLAIN!r} is what is trained where nothing is distilled", where="method.distil", remedy="method.distil=[]"
        )
    return [of_sort(name, False) for name in names]


def learned(method: Method) -> list[Kind]:
    """All that a recipe trains, one after the other: what it distils, else what it learns of its own rows."""
    if method.distil:
        return distilled(method.distil)
    return [of_sort(name, True) for name in method.learn or [PLAIN]]


def material_of(recipe: Recipe) -> frozenset[str]:
    """What the rows of the recipe may be: what every kind that reads them can learn from."""
    if not recipe.method.learn:
        return frozenset({ANSWERS})
    kinds = [kind for kind in learned(recipe.method) if not (kind.documents and recipe.data.documents)]
    return frozenset({ANSWERS, PAIRS, JUDGED, TEXT}).intersection(*(kind.material for kind in kinds))


def guard_of(recipe: Recipe) -> str:
    """The scorer that looks at held-out answers beside the reward: the recipe's, else likeness to the wanted answer."""
    return recipe.method.reward.guard or ("exact_match" if recipe.evaluate.scorer == "generation" else "generation")


def of_sort(name: str, own: bool) -> Kind:
    """The kind of that name, if it is of the sort that its list names. RequestError otherwise."""
    where, other = ("method.learn", "method.distil")[:: 1 if own else -1]
    kind = kind_named(name, where)
    if kind.own != own:
        why = "learns from a teacher" if own else "learns from one's own rows"
        raise RequestError(f"{name} {why}", where=where, remedy=f"{other}=[{name}]")
    return kind


def against_folds(recipe: Recipe) -> dict[str, str]:
    """Key → why siblings of the student cannot be trained, or judged by, as long as it is set."""
    teachers = recipe.teacher.api != "none" or recipe.teacher.weights or recipe.route.teacher.api != "none"
    wrong = {
        "quantize": ("formats are held against the student itself, on its test rows", recipe.quantize),
        "teacher": ("a teacher's answers are bought for one student", teachers),
        "method.learn": ("siblings learn the rows' answers alone", recipe.method.learn not in ([], [PLAIN])),
        "evaluate.gold_student": ("it may have learned the rows that judge", recipe.evaluate.gold_student),
        "data.test": ("the rows that judge are named, and no student learns them", recipe.data.test),
    }
    return {where: why for where, (why, is_so) in wrong.items() if is_so}


def check_folds(recipe: Recipe) -> None:
    """What siblings of the student can be trained for, and judged by."""
    if recipe.evaluate.folds is None:
        return
    for where, why in against_folds(recipe).items():
        remedy = f"evaluate.folds=null, or no {where}"
        raise RequestError(f"evaluate.folds cannot judge here: {why}", where=where, remedy=remedy)


def check_launch(recipe: Recipe) -> None:
    """What several processes cannot train, and what they need to meet."""
    launch, method = recipe.launch, recipe.method
    if launch.rendezvous is not None and not re.fullmatch(r"[\w.-]+:\d{1,5}", launch.rendezvous):
        raise RequestError(
            f"{launch.rendezvous!r} is no HOST:PORT", where="launch.rendezvous", remedy="launch.rendezvous=node01:29500"
        )
    if launch.nodes > 1 and launch.rendezvous is None:
        raise RequestError(
            "the machines have no place to meet", where="launch.rendezvous", remedy="launch.rendezvous=node01:29500"
        )
    if launch.processes * launch.nodes == 1:
        return
    alone = [kind.name for kind in learned(method) if kind.alone]
    if alone:
        raise RequestError(
            f"{', '.join(alone)} trains in one process; several train on answers: sft, text, rationale, logprobs",
            where="launch.processes",
            remedy="launch=local",
        )
    if method.kind == "full" and method.optimizer == "adamw_8bit":
        raise RequestError(
            "moments of 8 bits cannot lie in shards", where="method.optimizer", remedy="method.optimizer=adamw"
        )
