"""The chain of attribution: each joint from the teacher to what is served, so that a lost point has one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.figures import interval_in_points, percent, points
from workbench.evaluation.report import STUDENT

ADAPTER, TEACHER = "adapter", "teacher"


def joints(report: Mapping[str, Any], distances: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every joint between two arms that answered the same rows, in the order in which a model passes them.

    `distances` maps an arm to how far its token probabilities are from those of the arm before it
    (`kl` in nats, `top_token_agreement`). Each joint: `{"joint", "before", "after", "metric", "delta", "ci_low",
    "ci_high", "kl", "top_token_agreement", "lost"}`; `lost` when the whole interval lies below zero. Of an adapter
    that was not asked only the distances are told.
    """
    arms = report["arms"]
    formats = [name for name in report.get("formats", ()) if name in arms]
    wanted = [("training", TEACHER, ADAPTER if ADAPTER in arms else STUDENT), ("merging", ADAPTER, STUDENT)]
    wanted += [("quantizing", STUDENT, name) for name in formats]
    found = []
    for joint, before, after in wanted:
        row, far = paired(report, after, before), distances.get(after, {})
        if row is None:
            if before != ADAPTER or far.get("kl") is None:
                continue
            row = dict.fromkeys(("delta", "ci_low", "ci_high"))  # the adapter was not asked, its distance is known
        found.append(
            {"joint": joint, "before": before, "after": after, "metric": report["primary"]}
            | {key: row[key] for key in ("delta", "ci_low", "ci_high")}
            | {key: far.get(key) for key in ("kl", "top_token_agreement")}
            | {"lost": row["ci_high"] is not None and row["ci_high"] < 0}
        )
    return found


def paired(report: Mapping[str, Any], after: str, before: str) -> Mapping[str, Any] | None:
    """The report's paired row of the deciding metric for two arms, if it has one."""
    wanted = (after, before, report["primary"])
    rows = (row for row in report["comparisons"] if (row["candidate"], row["baseline"], row["metric"]) == wanted)
    return next(rows, None)


def chain_lines(chain: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """One line a joint, for the screen."""
    lines = []
    for joint in chain:
        near = "" if joint["kl"] is None else f", KL {joint['kl']:.2g}, same first choice "
        near += "" if joint["top_token_agreement"] is None else percent(joint["top_token_agreement"])
        way = f"{joint['before']} → {joint['after']} ({joint['joint']})"
        if joint["delta"] is None:
            lines.append(f"{way}: not asked{near}")
            continue
        ends = interval_in_points(joint["ci_low"], joint["ci_high"], confidence)
        word = "lost here" if joint["lost"] else "no certain loss"
        lines.append(f"{way}: {points(joint['delta'], sign=True)} points ({ends}){near}: {word}")
    return lines
