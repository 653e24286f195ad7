"""What was answered where what was wanted: counts for each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.scorers import INVALID

MOST, OTHER, NONE = 15, "other", "(none)"


def confusion(labels: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
    """`{"labels", "arms": {arm: counts, wanted by row, answered by column}}` from (wanted, answered) labels by arm.

    The labels are the most often wanted 15; `other` gathers the rest, and answers that nobody wants; `(none)` is an
    answer without a label. Those two are there only where they are needed.
    """
    wanted = next(iter(labels.values()))[0]
    kept = [label for label, _ in sorted(Counter(wanted).items(), key=lambda item: (-item[1], item[0]))[:MOST]]
    shown = set(kept)

    def called(label: str) -> str:
        return label if label in shown else NONE if label == INVALID else OTHER

    pairs = {
        arm: Counter((called(w), called(a)) for w, a in zip(ours, theirs)) for arm, (ours, theirs) in labels.items()
    }
    used = {name for counts in pairs.values() for pair in counts for name in pair}
    names = kept + [name for name in (OTHER, NONE) if name in used and name not in kept]
    return {
        "labels": names,
        "arms": {arm: [[counts[row, column] for column in names] for row in names] for arm, counts in pairs.items()},
    }
