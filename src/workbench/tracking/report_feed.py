"""An evaluation in MLflow: a few figures as metrics, all as tables, its pictures, the gate's word, a description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.files import file_sha256, read_json
from workbench.tracking import content, run_record
from workbench.tracking.content import Fed
from workbench.tracking.outbound import Outbound
from workbench.tracking.run_record import Line, interval_text, metric_name, number, value_of
from workbench.tracking.store import Store

ASIDE = (("general", "accuracy"), ("refusals", "refusals"))  # sections of the report that hold arms of their own
CELL = ("value", "ci_low", "ci_high")
DIFFERENCE = ("delta", "ci_low", "ci_high", "p_value", "p_holm")


def report_metrics(report: Mapping[str, Any], room: int) -> dict[str, float]:
    """The figures that people look for first, at most `room` of them: `<arm>/<metric>`, and of each comparison
    `<candidate>_vs_<baseline>/<metric>_delta`.

    First what decides, for each arm and comparison, and what shows a distillation's worth; then the student's other
    figures; then the other arms'. All of them stand in the tables, with their intervals.
    """
    arms = report.get("arms", {})
    primary = report.get("primary") or next((metric for row in arms.values() for metric in row), "")
    flat: list[tuple[int, str, float | None]] = []
    for arm, metric, cell in cells(report):
        flat.append(
            (
                0 if metric in (primary, "kept_share") else 2 if arm == "student" else 4,
                f"{arm}/{metric}",
                value_of(cell),
            )
        )
    for row in comparisons(report):
        name = f"{row['candidate']}_vs_{row['baseline']}/{row['metric']}_delta"
        flat.append((1 if row["metric"] == primary else 3, name, number(row.get("delta"))))
    flat += [(1, name, value) for name, value in distilled(report.get("distillation") or {}).items()]
    known = {metric_name(name): value for _, name, value in sorted(flat, key=lambda x: x[0]) if value is not None}
    return dict(list(known.items())[:room])


def comparisons(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every comparison of a report, those of its side checks under the names of these."""
    yield from report.get("comparisons", ())
    for section, _ in ASIDE:
        for row in (report.get(section) or {}).get("comparisons", ()):
            yield {**row, "metric": f"{section}_{row['metric']}"}


def distilled(distillation: Mapping[str, Any]) -> dict[str, float | None]:
    """Of a distillation: the teacher's own gain, what a doubling of the labels bought, and a smaller student's size."""
    flat: dict[str, float | None] = {}
    gain, doubling = distillation.get("teacher_gain"), distillation.get("curve", {}).get("doubling")
    if gain:
        name = f"teacher_vs_{distillation.get('baseline')}/{distillation.get('metric')}_delta"
        flat[name] = value_of(gain)
    if doubling:
        flat["curve/doubling"] = value_of(doubling)
    smaller = distillation.get("smaller", {})
    for arm in ("base", "student"):
        flat |= {f"{arm}/{name}": number(value) for name, value in smaller.get(arm, {}).items()}
    for row in smaller.get("faster", ()):
        start = f"{row['candidate']}_vs_{row['baseline']}"
        flat |= {f"{start}/{name}": value_of(row[name]) for name in ("times", "times_a_token")}
    return flat


def cells(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every (arm, metric, cell) of a report, those of its side checks and of the calibration too."""
    for arm, metrics in report.get("arms", {}).items():
        for metric, cell in metrics.items():
            yield arm, metric, cell
    for section, metric in ASIDE:
        for arm, metrics in (report.get(section) or {}).get("arms", {}).items():
            yield arm, f"{section}_{metric}", metrics[metric]
    for arm, figures in (report.get("calibration") or {}).items():
        yield from ((arm, metric, figures[metric]) for metric in ("ece", "brier"))
    for arm, cell in (report.get("memorised") or {}).items():
        yield arm, "memorised", cell
    for arm, cell in (report.get("distillation") or {}).get("kept", {}).items():
        yield arm, "kept_share", cell


def report_tables(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """File name → table in the layout of MLflow's tables (pandas' `split`), each that the report has rows for."""
    tables = {
        "evaluate/arms.json": table(("arm", "metric", *CELL), ([arm, m, *ends(c)] for arm, m, c in cells(report))),
        "evaluate/comparisons.json": table(
            ("candidate", "baseline", "metric", *DIFFERENCE, "n", "mde"),
            ([row.get(name) for name in ("candidate", "baseline", "metric", *DIFFERENCE, "n", "mde")]
             for row in comparisons(report)),
        ),
        "evaluate/slices.json": table(
            ("field", "slice", "n", "arm", *CELL),
            ([part["field"], str(part["value"]), part["n"], arm, *ends(cell)]
             for part in report.get("slices") or () for arm, cell in part["arms"].items()),
        ),
        "evaluate/slice_differences.json": table(
            ("field", "slice", "n", "candidate", "baseline", *DIFFERENCE),
            ([part["field"], str(part["value"]), part["n"], row["candidate"], row["baseline"],
              *(row.get(name) for name in DIFFERENCE)]
             for part in report.get("slices") or () for row in part.get("comparisons", ())),
        ),
        "evaluate/gate.json": table(
            ("check", "arm", "passed", "value", "limit", "why"),
            ([check.get(key) for key in ("name", "arm", "passed", "value", "limit", "why")]
             for check in report.get("gate", {}).get("checks", ())),
        ),
    }  # fmt: skip
    for metric, counts in (report.get("confusion") or {}).items():
        tables[f"evaluate/confusion_{metric_name(metric).replace('/', '_')}.json"] = table(
            ("arm", "wanted", "answered", "count"),
            ([arm, wanted, answered, n] for arm, rows in counts["arms"].items()
             for wanted, row in zip(counts["labels"], rows) for answered, n in zip(counts["labels"], row) if n),
        )  # fmt: skip
    return {name: content for name, content in tables.items() if content["data"]}


def table(columns: tuple[str, ...], rows: Iterator[list[Any]]) -> dict[str, Any]:
    """Columns and rows as MLflow's tables are written."""
    return {"columns": list(columns), "data": list(rows)}


def ends(cell: object) -> list[float | None]:
    """A cell's value and its interval."""
    return [number(cell.get(name)) for name in CELL] if isinstance(cell, Mapping) else [number(cell), None, None]


def gate_tags(report: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's word, what ships and what does not, and a person's override with its reason."""
    gate = report.get("gate", {})
    word = "overridden" if gate.get("overridden") else "passed" if gate.get("passed") else "refused"
    return {
        "gate": word,
        "gate.override": gate.get("override") if gate.get("overridden") else None,
        "shipped": ", ".join(gate.get("shipped", [])) or None,
        "refused": ", ".join(gate.get("refused", [])) or None,
    }


def told_metrics(report: Mapping[str, Any]) -> list[str]:
    """The shares that the description has room for, the one that decides first: a wider table pushes values away."""
    kinds = {name: about.get("kind") for name, about in report.get("metrics", {}).items()}
    measured = dict.fromkeys(metric for row in report.get("arms", {}).values() for metric in row)
    first = [report["primary"]] if report.get("primary") in measured else []
    return [*first, *(name for name in measured if kinds.get(name) == "share" and name not in first)][:MOST_COLUMNS]


def share_text(cell: object) -> str:
    """`68.5 % (64.0 to 73.0)` of a share; another figure as it stands."""
    value, low, high = ends(cell)
    if value is None or not 0 <= value <= 1:
        return interval_text(cell)
    text = f"{100 * value:.1f} %"
    return text if low is None or high is None else f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def report_note(
    report: Mapping[str, Any], name: str = "", commands: Sequence[str] = (), *, reasons: bool = True
) -> str:
    """The verdict in words, arms and metrics as a Markdown table, and what to type next: the run's description.

    Without `reasons` it says nothing but figures: a reason may quote a label or a slice.
    """
    gate, arms = report.get("gate", {}), report.get("arms", {})
    rows = ["**No verdict yet**: nothing has been evaluated."]
    if report:
        shipped = ", ".join(gate.get("shipped", ())) or "nothing"
        called = "rows by folds" if "folds" in report else "test rows"
        rows = [f"**Gate: {gate_tags(report)['gate']}**, {report.get('n', '?')} {called}. Ships: {shipped}."]
    if gate.get("overridden") and reasons:
        rows += ["", f"Overridden by a person: {gate.get('override')}"]
    failed = [f"- {c.get('name')}: {c.get('why')}" for c in gate.get("checks", []) if not c.get("passed")]
    rows += ["", *failed] if failed and reasons else []
    metrics = told_metrics(report)
    if arms:
        rows += ["", "| arm | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for arm, row in arms.items():
        cells = (share_text(row.get(metric, {})) for metric in metrics)
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    wanted = [command.strip() for command in commands if command.strip() not in ("", "next:")]
    if not wanted and name:
        wanted = [f"python -m workbench train recipe={name}"]
    # Each a line that wraps: a block is as wide as its longest line, and pushes MLflow's columns off the screen.
    return "\n".join([*rows, *(["", "Next:"] if wanted else []), *(f"\n`` {command} ``" for command in wanted)])


# The evaluation in MLflow: its figures as metrics, tables and pictures of the parent run, the gate's word as tags.

MOST_COLUMNS = 4  # of the description's table
# What shows figures of arms and nothing of a row.
PLAIN_TABLES = ("evaluate/arms.json", "evaluate/comparisons.json")
PICTURES = (".svg", ".png")  # as they are drawn, and as an earlier version drew them
PLAIN_PICTURES = ("forest", "differences", "pareto", "calibration")


def feed_report(
    store: Store, fed: Fed, folder: Path, manifest: Mapping[str, Any], events: Sequence[Line], out: Outbound
) -> None:
    """The report with its intervals as metrics and tables, its pictures, the gate as tags, a table as description.

    Labels, slices and reasons are texts that may come from rows: of restricted ones they do not leave.
    """
    from mlflow.entities import Metric

    path = folder / "evaluate" / "report.json"
    if not path.is_file():
        return
    report = read_json(path)
    finished = manifest.get("stages", {}).get("evaluate", {}).get("finished")
    at_ms = run_record.millis(finished) if finished else max(line.at_ms for line in events)
    if fed.is_new("report", report):
        figures = report_metrics(report, content.room_on_parent(events))
        content.log_metrics(store, fed.parent, [Metric(k, v, at_ms, 0) for k, v in figures.items()])
        tables, tags = report_tables(report), gate_tags(report)
        if out.rule == "withheld":
            tables = {name: table for name, table in tables.items() if name in PLAIN_TABLES}
            tags["gate.override"] = None
        else:
            tables, tags = out.tree("tables of the report", [tables, tags])
        content.log_tables(store, fed.parent, tables)
        content.log_tags(store, fed.parent, tags)
    feed_pictures(store, fed, folder / "evaluate" / "figures", out)


def feed_description(store: Store, fed: Fed, folder: Path, name: str, events: Sequence[Line], out: Outbound) -> None:
    """The run's description: the verdict, the figures behind it, and the next commands."""
    path = folder / "evaluate" / "report.json"
    report = read_json(path) if path.is_file() else {}
    commands = next((line.body["commands"] for line in reversed(events) if line.kind == "next"), ())
    if not fed.is_new("description", [report, commands]):
        return
    if out.rule == "withheld":
        note = report_note(report, name, (), reasons=False)
    else:
        (note,) = out.texts("description", [report_note(report, name, commands)])
    content.log_tags(store, fed.parent, {"mlflow.note.content": note})


def feed_pictures(store: Store, fed: Fed, folder: Path, out: Outbound) -> None:
    """Each picture as an artefact under its own name, on top: MLflow's comparison of runs offers no file in a folder.

    It shows the chosen picture of all the runs abreast. A text drawn in one cannot be swapped: those with labels or
    slices in them leave for another machine only where rows are public.
    """
    for path in sorted(path for path in folder.glob("*") if path.suffix in PICTURES):
        if not out.whole and path.stem not in PLAIN_PICTURES:
            continue
        if fed.is_new(f"picture {path.stem}", file_sha256(path)):
            if out.whole:
                out.file(path.name, file_sha256(path), path.stat().st_size)
            content.log_whole(store, fed.parent, path, path.name)
