"""Small data has a way on: what a verdict would take, and what can be had instead, said before any training."""

from __future__ import annotations

import math

from workbench.evaluation.metrics import points
from workbench.evaluation.statistics import detectable
from workbench.recipe.schema import Gate

MOST_SHARE = 0.5  # that data.test_share may be
DISCORDANT = 0.5  # of two arms' answers, those that differ: what so few rows could show is told for this share


def too_few(judging: int, every: int, gate: Gate, share: float | None) -> list[str]:
    """What is to be had where `judging` test rows are fewer than `gate.min_rows`; nothing where they are enough.

    `every` counts all rows that were split, `share` is `data.test_share`, None where the test rows are a file of
    their own. Said before training: the gate would say it only after.
    """
    least = gate.min_rows
    if judging >= least:
        return []
    lines = [f"{judging} test rows are fewer than gate.min_rows={least}: it will be trained and measured, not proven"]
    if share is None:
        lines.append(f"a verdict takes {least - judging} more rows in data.test")
    else:
        lines.append(
            f"a verdict takes about {math.ceil(least / share):,} rows at data.test_share={share:g} (now {every:,})"
        )
        wider = math.ceil(20 * least / every) / 20 if every else 1.0
        if wider <= MOST_SHARE:
            teaching = every - math.ceil(wider * every)
            lines.append(f"or data.test_share={wider:g}: {least} or more judge, and at most {teaching:,} teach")
    shown = points(detectable(judging, DISCORDANT)) if judging else ""
    weaker = f"; so few show a difference of {shown} points or more, where every other answer differs" if shown else ""
    lines.append(f"or gate.min_rows={judging or 1}, a weaker verdict{weaker}")
    return lines
