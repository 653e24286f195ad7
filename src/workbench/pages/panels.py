"""What report.json holds, laid out for the page: each panel a plain mapping of drawings and of places to quote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from workbench.evaluation import metrics
from workbench.evaluation.metrics import BASELINES, STUDENT
from workbench.pages import charts
from workbench.pages.charts import Spot, reliability, scatter

RESOURCES = (
    "seconds_per_answer", "latency_p50", "latency_p95", "first_token_p50", "batch_seconds_p50",
    "batch_seconds_p95", "batch_first_token_p50", "answers_per_second", "tokens_in_per_answer", "tokens_per_answer",
    "bytes", "peak_memory_bytes", "kwh_per_1000", "usd_per_1000", "usd_per_1000_at_volume",
)  # fmt: skip
COSTS = ("seconds_per_answer", "bytes", "usd_per_1000")  # what quality is drawn against
MOST_CHECKS = 8  # in one list
HOT = 0.55  # from this share of its row on, a count is written light on dark
HALF = charts.Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def role(arm: str) -> str:
    """The CSS class that colours an arm: baseline, student or format."""
    return "baseline" if arm in BASELINES else "student" if arm == STUDENT else "format"


def qualities(report: Mapping[str, Any]) -> list[str]:
    """The metrics of the answers themselves, the deciding one first: not what they cost, not the constrained ones."""
    out = (*RESOURCES, "cut_short")
    names = [n for n in report["metrics"] if n not in out and not n.startswith(metrics.CONSTRAINED)]
    measured = [n for n in names if any(n in cells for cells in report["arms"].values())]
    return sorted(measured, key=lambda name: name != report["primary"])


def resources(report: Mapping[str, Any]) -> list[str]:
    """The metrics of what an answer costs that any arm has."""
    return [n for n in RESOURCES if any(n in cells for cells in report["arms"].values())]


def constrained(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(free metric, its constrained twin), the deciding one first."""
    twins = [(n.removeprefix(metrics.CONSTRAINED), n) for n in report["metrics"] if n.startswith(metrics.CONSTRAINED)]
    return sorted(twins, key=lambda pair: pair[0] != report["primary"])


def forests(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each share with an interval, the primary one first: every arm on one axis from 0 to 100 %."""
    drawn = []
    for name in qualities(report):
        if report["metrics"][name]["kind"] != "share":
            continue
        rows = []
        for arm, cells in report["arms"].items():
            cell = cells.get(name)
            if cell is not None and cell["value"] is not None:
                label = f"{arm}: {metrics.percent(cell['value'])}, interval {metrics.span('share', cell)}"
                svg = charts.interval_row(HALF, cell["value"], cell["ci_low"], cell["ci_high"], role(arm), label)
                rows.append({"arm": arm, "svg": svg, "place": ("arms", arm, name)})
        if rows:
            meaning = report["metrics"][name]["meaning"]
            drawn.append({"metric": name, "meaning": meaning, "rows": rows, "axis": charts.axis_row(HALF, " %")})
    return drawn


def differences(report: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """Paired differences on the primary metric: student against baselines, formats against the student."""
    rows = [(i, r) for i, r in enumerate(report["comparisons"]) if r["metric"] == report["primary"]]
    limits = {(c["arm"], c["name"]): c["limit"] for c in report.get("gate", {}).get("checks", ())}
    against = {baseline: limits.get((STUDENT, "better_than_baseline"))}
    against["champion"] = limits.get((STUDENT, "not_worse_than_champion"))
    own = [(i, r, r["baseline"], against.get(r["baseline"])) for i, r in rows if r["candidate"] == STUDENT]
    formats = [
        (i, r, r["candidate"], limits.get((r["candidate"], "not_worse_than_student")))
        for i, r in rows
        if r["baseline"] == STUDENT
    ]
    panels = [
        difference_panel("Student against what there was", own, "against "),
        difference_panel("Formats against the student", formats, ""),
    ]
    return [panel for panel in panels if panel["rows"]]


def difference_panel(
    heading: str, rows: Sequence[tuple[int, Mapping[str, Any], str, float | None]], before: str, hue: str | None = None
) -> dict[str, Any]:
    """Rows of (position in the report's comparisons, the row, the arm it is told by, the gate's limit) on one axis.

    `before` goes in front of the arm's name; `hue` is the role that colours them, null for each row's own.
    """
    bounds = [v for _, r, _, limit in rows for v in (r["delta"], r["ci_low"], r["ci_high"], limit) if v is not None]
    axis = charts.axis_of(bounds, at_least=(-0.01, 0.01))
    drawn = []
    for i, row, arm, limit in rows:
        ends = f"{metrics.points(row['delta'], sign=True)} points"
        if row["ci_low"] is not None:
            ends += f", {metrics.points(row['ci_low'], sign=True)} to {metrics.points(row['ci_high'], sign=True)}"
        label = f"{row['candidate']} − {row['baseline']}: {ends}"
        values = (row["delta"], row["ci_low"], row["ci_high"])
        svg = charts.difference_row(axis, *values, hue or role(arm if before == "" else STUDENT), label, limit)
        drawn.append({"svg": svg, "arm": arm, "before": before, "hue": hue, "place": ("comparisons", i)})
    limited = any(limit is not None for *_, limit in rows)
    axis_row = charts.axis_row(axis, " points", signed=True)
    return {"heading": heading, "rows": drawn, "limited": limited, "axis": axis_row}


def gate_groups(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gate's checks an arm: those that did not hold first; of a format the rest is folded away.

    So is of the student what is told without a limit, where the list is long.
    """
    checks = report.get("gate", {}).get("checks", ())
    groups = []
    for arm in dict.fromkeys(check["arm"] for check in checks):
        own = sorted(((i, c) for i, c in enumerate(checks) if c["arm"] == arm), key=lambda pair: pair[1]["passed"])
        failed = [pair for pair in own if not pair[1]["passed"]]
        long = len(own) > MOST_CHECKS
        limited = [pair for pair in own if not (pair[1]["passed"] and long and pair[1]["limit"] is None)]
        shown = limited if arm == STUDENT else failed
        quiet = [pair for pair in own if pair not in shown]
        groups.append({"arm": arm, "shown": shown, "quiet": quiet, "held": len(own) - len(failed), "all": len(own)})
    return groups


def tradeoffs(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The primary metric against what an answer costs: one drawing a cost that two arms or more tell."""
    primary, drawn = report["primary"], []
    for cost in COSTS:
        spots = []
        for arm, cells in report["arms"].items():
            here, price = cells.get(primary), cells.get(cost)
            if here and price and here["value"] is not None and price["value"] is not None:
                place = (price["value"], here["value"], here["ci_low"], here["ci_high"])
                spots.append(Spot(arm, role(arm), *place))
        if len(spots) < 2 or not any(s.x for s in spots) or report["metrics"][primary]["kind"] != "share":
            continue
        kind = report["metrics"][cost]["kind"]
        label = f"{metrics.title(primary)} against {metrics.title(cost)}, {len(spots)} arms"
        drawn.append({"cost": cost, "svg": scatter(spots, kind, label), "meaning": report["metrics"][cost]["meaning"]})
    return drawn


def chain(report: Mapping[str, Any]) -> dict[str, Any]:
    """The way of a model as `{"trunk": [joint], "fan": [joint]}`: one after another to the student, then the formats.

    Each joint holds its place in the report, its two arms, and which of them the page can quote a figure of.
    """
    joints = [
        {"place": ("chain", i), "row": row, "asked": {a: a in report["arms"] for a in (row["before"], row["after"])}}
        for i, row in enumerate(report.get("chain") or ())
    ]
    return {
        "trunk": [j for j in joints if j["row"]["before"] != STUDENT],
        "fan": [j for j in joints if j["row"]["before"] == STUDENT],
    }


def slices(report: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """Each slice with the student's interval drawn, worst first as the report has them, and its paired difference."""
    drawn = []
    for i, part in enumerate(report.get("slices") or ()):
        cell = part["arms"].get(STUDENT) or next(iter(part["arms"].values()))
        arm = STUDENT if STUDENT in part["arms"] else next(iter(part["arms"]))
        label = f"{part['field']} {part['value']}: {metrics.percent(cell['value'])} of {part['n']}"
        svg = charts.interval_row(HALF, cell["value"], cell["ci_low"], cell["ci_high"], role(arm), label)
        pairs = [(("slices", i, "comparisons", k), row) for k, row in enumerate(part.get("comparisons", ()))]
        main = next((place for place, row in pairs if (row["candidate"], row["baseline"]) == (STUDENT, baseline)), None)
        drawn.append(
            {"i": i, "part": part, "arm": arm, "svg": svg, "place": ("slices", i), "main": main, "pairs": pairs}
        )
    return drawn


def calibrations(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One reliability diagram an arm: the student's, the formats', the baselines'."""
    arms = sorted(report.get("calibration") or {}, key=lambda arm: ("student", "format", "baseline").index(role(arm)))
    return [
        {
            "arm": arm,
            "place": ("calibration", arm),
            "svg": reliability(report["calibration"][arm]["bins"], role(arm), f"{arm}: how often right, by how sure"),
        }
        for arm in arms
    ]


def confusions(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """For each labelled metric: its labels and, an arm, rows of `(count, warmth from 0 to 1, place)`."""
    for metric, table in (report.get("confusion") or {}).items():
        arms = {}
        for arm, rows in table["arms"].items():
            arms[arm] = [
                [(n, warmth(n, row), ("confusion", metric, "arms", arm, i, k)) for k, n in enumerate(row)]
                for i, row in enumerate(rows)
            ]
        yield {"metric": metric, "labels": table["labels"], "arms": arms}


def warmth(count: float, row: Sequence[float]) -> float:
    """A cell's share of what was wanted in its row."""
    whole = sum(row)
    return round(count / whole, 3) if whole else 0.0


def side_checks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Forgetting and refusals: for each, its arms and its paired differences on one axis from 0 to 100 %."""
    about = (
        ("general", "accuracy", "General questions", "Did tuning break what the base model knew?"),
        ("refusals", "refusals", "Refusals", "Harmful prompts that are still refused."),
    )
    drawn = []
    for section, metric, heading, meaning in about:
        part = report.get(section)
        if not part:
            continue
        rows = []
        for arm, cells in part["arms"].items():
            cell = cells[metric]
            label = f"{arm}: {metrics.percent(cell['value'])}"
            svg: Markup = charts.interval_row(HALF, cell["value"], cell["ci_low"], cell["ci_high"], role(arm), label)
            rows.append({"arm": arm, "svg": svg, "place": (section, "arms", arm, metric)})
        pairs = [(section, "comparisons", i) for i in range(len(part.get("comparisons", ())))]
        drawn.append(
            {
                "section": section,
                "heading": heading,
                "meaning": meaning,
                "rows": rows,
                "pairs": pairs,
                "axis": charts.axis_row(HALF, " %"),
            }
        )
    return drawn
