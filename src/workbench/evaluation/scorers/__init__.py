"""Compare one answer with the wanted one: a scorer a file of this folder, and those that installed packages offer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pkgutil import iter_modules

from workbench.errors import RequestError, nearest
from workbench.evaluation.scorers import python
from workbench.evaluation.scorers.scorer import INVALID, Counts, Scorer
from workbench.extras import entry_points, loaded, package_of
from workbench.recipe.schema import Evaluate

__all__ = [
    "INVALID",
    "SCORERS",
    "Counts",
    "Scorer",
    "closed",
    "counted_names",
    "counts",
    "deciding_score",
    "find",
    "labels",
    "metric_names",
    "opened",
    "planned_metric",
    "portable",
    "primary_metric",
    "score",
    "version",
]

# A file of this folder that ends in `SCORER = Scorer(…)` is a scorer by the file's name.
MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
SCORERS: dict[str, Scorer] = {name: module.SCORER for name, module in MODULES.items() if hasattr(module, "SCORER")}


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """The scorer's metrics for one answer, each a number, 1 right and 0 wrong."""
    return dict(find(evaluate.scorer).score(evaluate, expected, answer))


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """(wanted, answered) class for each metric a macro-F1 can be taken of; an invalid answer is `INVALID`."""
    return dict(find(evaluate.scorer).labels(evaluate, expected, answer))


def counts(evaluate: Evaluate, expected: str, answer: str) -> dict[str, Counts]:
    """(hits, wanted, answered) for each metric a micro-F1 can be taken of."""
    return dict(find(evaluate.scorer).counts(evaluate, expected, answer))


def metric_names(evaluate: Evaluate) -> list[str]:
    """The item-level metrics that `score` gives, in order of weight."""
    return list(find(evaluate.scorer).metrics(evaluate))


def counted_names(evaluate: Evaluate) -> list[str]:
    """The micro-F1 metrics that `counts` gives."""
    return list(find(evaluate.scorer).counted(evaluate))


def primary_metric(evaluate: Evaluate) -> str:
    """The metric the gate decides by: `evaluate.primary`, or the scorer's first (a judge's own where there is one).

    RequestError on an unknown one.
    """
    scorer = find(evaluate.scorer)
    first = [*scorer.judged(evaluate), *scorer.metrics(evaluate)]
    if evaluate.primary is None:
        return first[0]
    possible = [*first, *scorer.classes(evaluate), *scorer.counted(evaluate)]
    if evaluate.primary not in possible:
        raise RequestError(
            f"{evaluate.scorer} does not measure {evaluate.primary!r}",
            where="evaluate.primary",
            remedy=nearest(evaluate.primary, possible),
        )
    return evaluate.primary


def planned_metric(evaluate: Evaluate) -> str:
    """`primary_metric` for who may run nothing: of a function of the user's own, what its file says."""
    if not find(evaluate.scorer).runs_function:
        return primary_metric(evaluate)
    written = python.written_metrics(evaluate.function)
    if written and evaluate.primary is not None and evaluate.primary not in written:
        raise RequestError(
            f"{evaluate.scorer} does not measure {evaluate.primary!r}",
            where="evaluate.primary",
            remedy=nearest(evaluate.primary, written),
        )
    return evaluate.primary or (written[0] if written else f"the first metric of {evaluate.function}")


def deciding_score(evaluate: Evaluate, expected: str, answer: str) -> float:
    """The metric the gate decides by, of one answer; the scorer's first where that one is no single answer's."""
    scores = score(evaluate, expected, answer)
    return scores.get(primary_metric(evaluate), next(iter(scores.values())))


def closed(evaluate: Evaluate, wanted: Iterable[str]) -> Evaluate:
    """The section with what only the wanted answers tell: the set of labels where the recipe names none."""
    return find(evaluate.scorer).closed(evaluate, list(wanted))


def opened(evaluate: Evaluate, wanted: Iterable[str]) -> Evaluate:
    """The closed section with what rows that came later want beside: labels that were not there before."""
    return find(evaluate.scorer).opened(evaluate, list(wanted))


def portable(evaluate: Evaluate) -> tuple[Evaluate, str]:
    """(how to score where neither the user's code nor a judge is at hand, why it is not as the recipe says or "")."""
    lack = find(evaluate.scorer).stays_behind(evaluate)
    if not lack:
        return evaluate, ""
    plain = replace(evaluate, scorer="exact_match", primary=None, function=None)
    return plain, f"{lack} does not travel with the model, so answers are held against the wanted ones by exact_match"


def version(evaluate: Evaluate) -> str:
    """What an answer's score depends on beside the section: a user's function, an installed package's version."""
    point = offered().get(evaluate.scorer) if evaluate.scorer not in SCORERS else None
    return find(evaluate.scorer).version(evaluate) + (package_of(point) if point else "")


def offered() -> dict[str, EntryPoint]:
    """The scorers of installed packages, by name."""
    return {point.name: point for point in entry_points(group="workbench.scorers")}


def find(name: str, where: str = "evaluate.scorer") -> Scorer:
    """The scorer of that name, ours or an installed package's. RequestError with the nearest name otherwise."""
    return SCORERS[name] if name in SCORERS else of_a_package(name, where)


@lru_cache(maxsize=8)  # every answer is scored by name, and packages are many
def of_a_package(name: str, where: str) -> Scorer:
    """The scorer that an installed package offers."""
    plugins = offered()
    if name not in plugins:
        raise RequestError(f"no scorer is called {name!r}", where=where, remedy=nearest(name, [*SCORERS, *plugins]))
    return loaded(plugins[name], Scorer, where)
