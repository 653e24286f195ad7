"""The page of a comparison: runs side by side, paired item by item, with the answers that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.evaluation import metrics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.pairing import shared_items
from workbench.files import write_whole
from workbench.pages import charts, panels
from workbench.pages.changed_answers import STEP, Row, Scores, rows_of
from workbench.pages.report_page import render


def write_comparison(
    result: Mapping[str, Any],
    contenders: Mapping[str, Sequence[Prediction]],
    path: Path,
    *,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Write the page of what `pairing.compare_gathered` found; equal input gives equal bytes.

    `contenders` are the answers behind it, `prompts` (item id → the user's text) is shown beside them.
    """
    shared, _ = shared_items(contenders)
    groups = arms_of(result["runs"], list(contenders))
    rows, counts = changed(result, shared, groups, prompts or {})
    html = render(
        "compare.html.j2",
        result,
        groups=groups,
        headline=headline(result),
        forests=forests(result, groups),
        differences=differences(result, groups),
        answers=rows,
        counts=counts,
        baseline=result["runs"][0],
        slices=[],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)


def arms_of(runs: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Arm → the names of its contenders, `<run> <arm>`, the first run's in front."""
    contenders: dict[str, list[str]] = {}
    for name in names:
        contenders.setdefault(name.split(" ", 1)[1], []).append(name)
    return {arm: sorted(own, key=lambda n: runs.index(n.split(" ", 1)[0])) for arm, own in contenders.items()}


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """`{"word", "tone", "place"}`: the first pair's difference of the deciding metric, as certain as it is."""
    rows = [(i, row) for i, row in enumerate(result["comparisons"]) if row["metric"] == result["primary"]]
    rows = rows or list(enumerate(result["comparisons"]))[:1]
    i, row = rows[0]
    candidate = row["candidate"].split(" ", 1)[0]
    place = ("comparisons", i)
    if len(result["runs"]) > 2:
        return {"word": f"{len(result['runs'])} runs on the same rows", "tone": "plain", "place": place}
    if row["ci_low"] is not None and row["ci_low"] > 0:
        return {"word": f"{candidate} is better", "tone": "good", "place": place}
    if row["ci_high"] is not None and row["ci_high"] < 0:
        return {"word": f"{candidate} is worse", "tone": "bad", "place": place}
    return {"word": "No difference was detectable", "tone": "plain", "place": place}


def forests(result: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """For each arm, the deciding metric of every run on one axis."""
    name = result["primary"]
    if result["metrics"][name]["kind"] != "share":
        return []
    drawn = []
    for arm, contenders in groups.items():
        rows = []
        for contender in contenders:
            cell = result["arms"][contender][name]
            label = f"{contender}: {metrics.percent(cell['value'])}, interval {metrics.span('share', cell)}"
            hue = "baseline" if contender == contenders[0] else "student"
            svg = charts.interval_row(panels.HALF, cell["value"], cell["ci_low"], cell["ci_high"], hue, label)
            place = ("arms", contender, name)
            rows.append({"arm": contender.split(" ", 1)[0], "hue": hue, "svg": svg, "place": place})
        drawn.append({"metric": name, "arm": arm, "rows": rows, "axis": charts.axis_row(panels.HALF, " %")})
    return drawn


def differences(result: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """For each arm, every run's difference to the first one in the deciding metric."""
    drawn = []
    for arm, contenders in groups.items():
        rows = [
            (i, row, row["candidate"].split(" ", 1)[0], None)
            for i, row in enumerate(result["comparisons"])
            if row["metric"] == result["primary"] and row["candidate"] in contenders
        ]
        if rows:
            drawn.append(panels.difference_panel(arm, rows, "", "student"))
    return drawn


def changed(
    result: Mapping[str, Any],
    shared: Mapping[str, Sequence[Prediction]],
    groups: Mapping[str, Sequence[str]],
    prompts: Mapping[str, str],
) -> tuple[list[Row], dict[str, int]]:
    """The items that a run answers better or worse than the first one, by its student (else its first arm)."""
    arm = "student" if "student" in groups else next(iter(groups))
    first, *others = groups[arm]

    def kinds_of(scores: Scores) -> tuple[str, ...]:
        moved = [scores[name] - scores[first] for name in others]
        kinds = ["gained"] if any(step >= STEP for step in moved) else []
        return tuple(kinds + (["lost"] if any(step <= -STEP for step in moved) else []))

    rows = {name: shared[name] for name in groups[arm]}
    return rows_of(result, rows, prompts, kinds_of, others[0])
