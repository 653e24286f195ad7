"""Small data has a way on: what a verdict would take, and what can be had instead, said before any training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from workbench.evaluation.metrics import amount, describe, points, title
from workbench.evaluation.statistics import detectable
from workbench.recipe.schema import Gate

SIBLINGS = 5  # that are offered
MOST_SHARE = 0.5  # that data.test_share may be
DISCORDANT = 0.5  # of two arms' answers, those that differ: what so few rows could show is told for this share
FORMATS = "quantize"  # the key that stands against folds and may be left out: formats can be made of the student later


def too_few(
    judging: int, every: int, gate: Gate, share: float | None, *, by_folds: bool = False, against: Collection[str] = ()
) -> list[str]:
    """What is to be had where `judging` test rows are fewer than `gate.min_rows`; nothing where they are enough.

    `every` counts all rows that were split, `share` is `data.test_share`, None where the test rows are a file of
    their own. `by_folds`: all of them judge already; `against` are the recipe's keys that forbid that. Said before
    training: the gate would say it only after.
    """
    least = gate.min_rows
    if judging >= least:
        return []
    if by_folds:
        return [
            f"{judging} rows judge by folds, and gate.min_rows={least}: it will be trained and measured, not proven",
            f"a verdict takes {least - judging} more rows, or gate.min_rows={max(judging, 1)}, a weaker one",
        ]
    lines = [f"{judging} test rows are fewer than gate.min_rows={least}: it will be trained and measured, not proven"]
    if share is None:
        lines.append(f"a verdict takes {least - judging} more rows in data.test")
    else:
        lines.append(
            f"a verdict takes about {math.ceil(least / share):,} rows at data.test_share={share:g} (now {every:,})"
        )
        if every >= least and not set(against) - {FORMATS}:
            without = f" without {FORMATS}" if against else ""
            lines.append(
                f"or evaluate.folds={SIBLINGS}{without}: nearly all of {every:,} rows judge, each asked of one of "
                f"{SIBLINGS} siblings of the student that has not seen it; they take {SIBLINGS} trainings more"
            )
        wider = math.ceil(20 * least / every) / 20 if every else 1.0
        if wider <= MOST_SHARE:
            teaching = every - math.ceil(wider * every)
            lines.append(f"or data.test_share={wider:g}: {least} or more judge, and at most {teaching:,} teach")
    shown = points(detectable(judging, DISCORDANT)) if judging else ""
    weaker = f"; so few show a difference of {shown} points or more, where every other answer differs" if shown else ""
    lines.append(f"or gate.min_rows={judging or 1}, a weaker verdict{weaker}")
    return lines


def rows_called(report: Mapping[str, Any]) -> str:
    """What the rows of a verdict are called."""
    return "rows by folds" if "folds" in report else "test rows"


def by_folds(report: Mapping[str, Any], baseline: str) -> list[str]:
    """Whom a verdict by folds is about, how far its siblings are apart, and how the student that ships did alone."""
    folds = report.get("folds")
    if folds is None:
        return []
    kind, primary = describe(report["primary"])["kind"], report["primary"]
    line = (
        f"judged by folds: each of {folds['rows']:,} rows was asked of one of {folds['k']} siblings of the student, "
        f"which had learned at least {folds['learned']:,} other rows and no near copy of it"
    )
    gains = [s["value"] - s["baseline"] for s in folds["siblings"] if None not in (s["value"], s["baseline"])]
    if gains:
        line += f"; sibling by sibling {points(min(gains), sign=True)} to {points(max(gains), sign=True)} points "
        line += f"over {baseline}"
    own = folds["own"]
    line += (
        f". What ships is none of them but the student of the recipe's own training ({folds['student_learned']:,} rows)"
    )
    if own is None:
        return [line]
    ends = f" ({amount(kind, own['ci_low'])} to {amount(kind, own['ci_high'])})" if own["ci_low"] is not None else ""
    alone = f"{amount(kind, own['value'])} {title(primary)}{ends}"
    return [f"{line}: on its own {folds['own_n']:,} test rows alone it had {alone}"]
