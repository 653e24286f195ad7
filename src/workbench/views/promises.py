"""What `plan` says of a route: the rows that its promise needs, those that are there, and what asking would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.data.prepare import Splits
from workbench.deciding.before import LEAST_ROWS
from workbench.deciding.promise import harm_allowed, rows_for, shared
from workbench.recipe import Recipe, routed_to
from workbench.teacher.prices import estimate


def about_route(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Rows and dollars; nothing is read beside the rows that are here, and nothing is asked."""
    route, left = recipe.route, deciding_rows(recipe, splits)
    before = route.kind in ("before", "both")
    ways = (len(route.scores) if route.kind != "before" else 0) + before
    certainty = shared(route.certainty, ways)
    least = rows_for(0.0, route.most_harm, route.promise, certainty)
    allowed = harm_allowed(left, route.most_harm, route.promise, certainty)
    named = "route.rows" if route.rows else "data.validation"
    here = f"at most {left:,} of {named} can decide"
    promise = f"{100 * route.most_harm:g} points ({route.promise}, {100 * route.certainty:g} %)"
    verdict = f"so {allowed} of them may be harmful at home" if allowed >= 0 else f"{(least or 0) - left:,} too few"
    lines = {"promise": f"{promise} takes {least} rows at least; {here}: {verdict}"}
    if before:
        enough = "enough" if left >= LEAST_ROWS else "too few: it is left out"
        lines["before"] = f"a router before the student takes {LEAST_ROWS:,} rows, half of them to learn from: {enough}"
    teacher = routed_to(recipe)
    if teacher is None:
        return lines | {"buys": "nothing: no teacher is named that requests could go to (route.teacher.api)"}
    judged = splits.test[: recipe.evaluate.limit]
    rows = [e for e in [*splits.validation[len(splits.validation) - left :], *judged] if e.prompt]
    cost = estimate(
        teacher, [e.prompt for e in rows], [e.answer for e in rows], Path(recipe.launch.experiments) / "ledger.db",
        [e.tools for e in rows],
    )  # fmt: skip
    who = teacher.model or teacher.name or teacher.source
    return lines | {
        "buys": f"answers of {who} to {left:,} validation rows, and for `evaluate` to {len(judged):,} test rows: "
        f"likely {cost.likely:.4f}, at most {cost.high:.4f} USD ({cost.why}); those paid for already cost nothing"
    }


def deciding_rows(recipe: Recipe, splits: Splits) -> int:
    """At most so many validation rows are left once those are gone by which the weights are chosen."""
    method, n = recipe.method, len(splits.validation)
    steering = method.validation_rows if method.evaluations > 1 or method.patience is not None else 0
    steering = max(steering, method.teach.development_rows if method.distil else 0)
    return max(0, n - steering)
