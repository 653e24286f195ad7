"""What a kind of training is, and where one is found by its name: shipped, or in an installed package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from workbench.errors import RequestError, nearest
from workbench.extras import entry_points, loaded
from workbench.recipe.schema import Method

PLAIN = "sft"  # the rows' own answers: what is trained where no kind is named
SHIPPED = "workbench.stages.train.kinds"  # by name, as a package's entry point is: its files lie floors above


@dataclass(frozen=True)
class Kind:
    """One kind of training: how its job is made, and what it cannot do without.

    `job(task, start, out)` takes a `stages.train.task.Task` and `Start` and gives a `training.job.Job`. `answers`,
    `reasons` and `logprobs` are what a teacher must have been asked for, `weights` a teacher whose weights are here.
    With `samples` the student itself is sampled, and with `replaces` it is trained on what it says in its rows' place.
    """

    name: str
    job: Callable[..., Any]
    answers: bool = True
    reasons: bool = False
    logprobs: bool = False
    weights: bool = False
    samples: bool = False
    replaces: bool = False


def learned_by(method: Method) -> frozenset[str]:
    """What this method can learn of a row: its answers, pairs, judged answers or text, as `data.layouts` names them."""
    return frozenset({"answers"})


def kind_named(name: str) -> Kind:
    """The kind, shipped or from the entry points `workbench.methods`. RequestError for a name that nobody has."""
    shipped: dict[str, Kind] = import_module(SHIPPED).KINDS
    if name in shipped:
        return shipped[name]
    offered = {point.name: point for point in entry_points(group="workbench.methods")}
    if name in offered:
        return loaded(offered[name], Kind, "method.distil")
    names = [*(known for known in shipped if known != PLAIN), *offered]
    raise RequestError(f"{name!r} is no kind of distillation", where="method.distil", remedy=nearest(name, names))


def distilled(names: Sequence[str]) -> list[Kind]:
    """The kinds that `method.distil` names, in order. RequestError for one that nobody has, or that needs no name."""
    if PLAIN in names:
        raise RequestError(
            f"{PLAIN!r} is what is trained where nothing is distilled", where="method.distil", remedy="method.distil=[]"
        )
    return [kind_named(name) for name in names]
