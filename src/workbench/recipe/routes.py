"""Who answers what the student does not keep, and what a route cannot do without."""

from __future__ import annotations

from dataclasses import replace

from workbench.errors import RequestError, nearest
from workbench.recipe.schema import Recipe, Teacher

SCORES = ("logprob", "mean", "least", "margin")


def routed_to(recipe: Recipe) -> Teacher | None:
    """The teacher that requests may go to: `route.teacher`, else the one that the recipe learns from; None: nobody."""
    for teacher in (recipe.route.teacher, recipe.teacher):
        if teacher.api != "none":
            return teacher
    return None


def asking_route(recipe: Recipe) -> Recipe:
    """The recipe with the route's teacher in the place of its own, so that it is asked; nobody learns from it."""
    return replace(recipe, teacher=routed_to(recipe) or recipe.teacher)


def test_teacher(recipe: Recipe) -> Recipe | None:
    """The recipe as the teacher that answers the test rows is asked by it; None where none is an arm."""
    if recipe.teacher.api == "none" and recipe.route.teacher.api == "none":
        return None
    return asking_route(recipe) if recipe.evaluate.teacher else None


def serves_alone(recipe: Recipe) -> bool:
    """Whether the teacher of an `asking_route` only answers requests: its answers train nobody."""
    return recipe.teacher is recipe.route.teacher


def check_route(recipe: Recipe) -> None:
    """RequestError for what one key of the route cannot know of another."""
    route = recipe.route
    if route.teacher.api != "none" and (recipe.teacher.api != "none" or recipe.teacher.weights):
        raise RequestError(
            "the recipe has a teacher of its own, which is the one that is asked",
            where="route.teacher.api",
            remedy="route.teacher.api=none; a route to another one takes a recipe that learns from its rows",
        )
    if route.kind in ("before", "both") and not routed_to(recipe):
        raise RequestError("nobody answers what leaves", where="route.kind", remedy="route.teacher.api and its keys")
    for score in route.scores:
        if score not in SCORES:
            raise RequestError(f"no score is called {score!r}", where="route.scores", remedy=nearest(score, SCORES))
    if not route.scores or len(set(route.scores)) < len(route.scores):
        raise RequestError("name each score once, and one at least", where="route.scores", remedy="[logprob]")
    if route.promise == "on_average" and (len(route.scores) > 1 or route.kind == "both"):
        raise RequestError(
            "a promise on average holds for one way of choosing, and several are tried",
            where="route.promise",
            remedy="route.promise=sure, or one score and one kind",
        )
