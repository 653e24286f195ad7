"""The report's pictures as PNG files, for MLflow and for slides: the page's figures, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.evaluation.metrics import STUDENT, amount, describe, title
from workbench.pages import panels
from workbench.pages.charts import Box, Spot, is_far, needs_log, pareto_front, places

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, RULE, GOOD = "#1b1d22", "#565b66", "#e4e4df", "#17744a"
HUES = {"baseline": "#858b97", "student": "#2f4fd0", "format": "#b06a00"}
DOTS_PER_INCH = 130
MOST_SLICES = 16  # of the worst
STYLE: Any = {  # matplotlib types its keys one by one
    "font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": RULE, "axes.labelcolor": SOFT, "text.color": INK,
    "xtick.color": SOFT, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titlesize": 11.5, "axes.titleweight": "bold", "figure.facecolor": "white", "svg.hashsalt": "workbench",
}  # fmt: skip


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every picture that the report has figures for; equal input gives equal bytes. Returns their paths.

    forest, differences, pareto, slices, calibration, confusion: each `<name>.png`, white whatever the reader likes.
    """
    import matplotlib

    makers: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "forest": forest, "differences": differences, "pareto": pareto,
        "slices": slices, "calibration": calibration, "confusion": confusion,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, make in makers.items():
            figure = make(report)
            if figure is not None:
                path = folder / f"{name}.png"
                # Without its version, since it would change the bytes of an unchanged picture.
                figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
                written.append(path)
    return written


def canvas(wide: float, high: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of so many inches with its axes in one list; no window and no global state of pyplot's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def bars(axes: Any, cells: Sequence[tuple[str, str, Mapping[str, Any], str]], scale: float = 100.0) -> None:
    """Intervals one below another: (name, role, cell with value or delta and its ends, words on the right)."""
    for y, (_, role, cell, _) in enumerate(cells):
        value = cell["value"] if "value" in cell else cell["delta"]
        if cell["ci_low"] is not None and cell["ci_high"] is not None:
            axes.plot([scale * cell["ci_low"], scale * cell["ci_high"]], [y, y], color=HUES[role], linewidth=2,
                      marker="|", markersize=8)  # fmt: skip
        axes.plot([scale * value], [y], "o", color=HUES[role], markersize=7, markeredgecolor="white")
    axes.set_yticks(range(len(cells)), [name for name, *_ in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.grid(axis="y", visible=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(cells)), [words for *_, words in cells])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    for label, (name, *_) in zip(axes.get_yticklabels(), cells):
        label.set_fontweight("bold" if name == STUDENT else "normal")


def forest(report: Mapping[str, Any]) -> Figure | None:
    """Every arm's primary metric with its interval."""
    name = report["primary"]
    kind = describe(name)["kind"]
    found = {arm: cells[name] for arm, cells in report["arms"].items() if cells.get(name, {}).get("value") is not None}
    if not found:
        return None
    scale = 100.0 if kind == "share" else 1.0
    figure, (axes,) = canvas(8, 1.2 + 0.36 * len(found))
    bars(axes, [(arm, panels.role(arm), cell, amount(kind, cell["value"])) for arm, cell in found.items()], scale)
    if kind == "share":
        axes.set_xlim(0, 100)
    axes.set_title(f"{capital(title(name))}, {level(report)} intervals, n = {report['n']}")
    return figure


def differences(report: Mapping[str, Any]) -> Figure | None:
    """Paired differences of the primary metric in points."""
    rows = [row for row in report["comparisons"] if row["metric"] == report["primary"]]
    if not rows or describe(report["primary"])["kind"] != "share":
        return None
    figure, (axes,) = canvas(8, 1.2 + 0.36 * len(rows))
    told = [(f"{row['candidate']} − {row['baseline']}", panels.role(row["candidate"]), row,
             f"{100 * row['delta']:+.1f}".replace("-", "−")) for row in rows]  # fmt: skip
    bars(axes, told)
    axes.axvline(0, color=SOFT, linewidth=1.2)
    axes.set_title(f"Paired differences of {title(report['primary'])}, points")
    return figure


def pareto(report: Mapping[str, Any]) -> Figure | None:
    """The primary metric against each cost that two arms or more tell, with the front."""
    primary = report["primary"]
    found: dict[str, list[Spot]] = {}
    for cost in panels.COSTS:
        told = [
            (arm, cells[primary], cells[cost]["value"])
            for arm, cells in report["arms"].items()
            if cells.get(primary, {}).get("value") is not None and cells.get(cost, {}).get("value") is not None
        ]
        spots = [Spot(a, panels.role(a), x, c["value"], c["ci_low"], c["ci_high"]) for a, c, x in told]
        if len(spots) > 1 and any(s.x for s in spots):
            found[cost] = spots
    if not found or describe(primary)["kind"] != "share":
        return None
    figure, all_axes = canvas(4.6 * len(found), 4.2, columns=len(found))
    for axes, (cost, spots) in zip(all_axes, found.items()):
        front = pareto_front(spots)
        axes.step([s.x for s in front], [100 * s.y for s in front], where="post", color=GOOD, linestyle="--", alpha=0.7)
        for s in spots:
            if s.low is not None and s.high is not None:
                axes.plot([s.x, s.x], [100 * s.low, 100 * s.high], color=HUES[s.role], alpha=0.5)
            axes.plot([s.x], [100 * s.y], "o", color=HUES[s.role], markersize=8, markeredgecolor="white", label=s.arm)
        if needs_log(spots):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.3 * max(s.x for s in spots))
        kind = describe(cost)["kind"]
        axes.xaxis.set_major_formatter(lambda x, _, kind=kind: amount(kind, x) if x else "0")
        axes.locator_params(axis="x", nbins=4) if not needs_log(spots) else None
        axes.set_title(capital(title(cost)))
    all_axes[0].set_ylabel(f"{title(primary)}, %")
    figure.draw_without_rendering()  # only now is it known where a dot lies
    for axes, spots in zip(all_axes, found.values()):
        name_dots(axes, spots)
    return figure


def name_dots(axes: Any, spots: Sequence[Spot]) -> None:
    """Write each arm's name where it covers the least."""
    at = axes.transData.transform([(s.x, 100 * s.y) for s in spots])
    ends = [axes.transData.transform([(s.x, 100 * (s.low or s.y)), (s.x, 100 * (s.high or s.y))]) for s in spots]
    lines = [Box(x - 1, low, x + 1, high) for (x, low), (_, high) in ends]
    frame = axes.get_window_extent()
    boxes = places([(s.arm, x, y) for s, (x, y) in zip(spots, at)], lines, Box(frame.x0, frame.y0, frame.x1, frame.y1))
    for s, (x, y), box in zip(spots, at, boxes):
        left, middle = box.x1 < x, (box.y0 + box.y1) / 2
        place = axes.transData.inverted().transform((box.x1 if left else box.x0, middle))
        arrow = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6} if is_far(box, x, y) else None
        axes.annotate(s.arm, (s.x, 100 * s.y), place, fontsize=8.5, va="center", ha="right" if left else "left",
                      arrowprops=arrow, fontweight="bold" if s.arm == STUDENT else "normal")  # fmt: skip


def slices(report: Mapping[str, Any]) -> Figure | None:
    """The student's worst slices."""
    parts = [part for part in report.get("slices") or () if STUDENT in part["arms"]][:MOST_SLICES]
    if not parts:
        return None
    figure, (axes,) = canvas(8, 1.2 + 0.34 * len(parts))
    cells = [part["arms"][STUDENT] for part in parts]
    names = [f"{part['field']}: {str(part['value'])[:32]}" for part in parts]
    words = [f"{amount('share', cell['value'])}  n = {part['n']}" for cell, part in zip(cells, parts)]
    bars(axes, [(name, "student", cell, told) for name, cell, told in zip(names, cells, words)])
    axes.set_xlim(0, 100)
    axes.set_title("The student's slices, the worst first")
    return figure


def calibration(report: Mapping[str, Any]) -> Figure | None:
    """A reliability diagram an arm."""
    found = panels.calibrations(report)
    if not found:
        return None
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure, all_axes = canvas(3 * columns, 3.2 * rows, columns, rows)
    for axes, drawn in zip(all_axes, found):
        told = report["calibration"][drawn["arm"]]
        full = [b for b in told["bins"] if b["n"]]
        hue = HUES[panels.role(drawn["arm"])]
        axes.plot([0, 100], [0, 100], color=SOFT, linestyle=":", linewidth=1)
        across, up = [100 * b["confidence"] for b in full], [100 * b["right"] for b in full]
        axes.plot(across, up, color=hue, linewidth=1.5)
        most = max((b["n"] for b in full), default=1)
        axes.scatter(across, up, s=[12 + 90 * b["n"] / most for b in full], color=hue, edgecolor="white", zorder=3)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_title(f"{drawn['arm']}\nECE {amount('share', told['ece']['value'])}", fontsize=10)
    for axes in all_axes[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("how sure, %", color=SOFT, fontsize=10)
    figure.supylabel("how often right, %", color=SOFT, fontsize=10)
    return figure


def confusion(report: Mapping[str, Any]) -> Figure | None:
    """What the student takes for what, a table a labelled metric."""
    found = [table for table in panels.confusions(report) if STUDENT in table["arms"]]
    if not found:
        return None
    most = max(len(table["labels"]) for table in found)
    figure, all_axes = canvas(max(5.0, 0.62 * most + 2.6) * len(found), max(3.6, 0.42 * most + 2.2), len(found))
    for axes, table in zip(all_axes, found):
        rows = table["arms"][STUDENT]
        axes.imshow([[warm for _, warm, _ in row] for row in rows], cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for i, row in enumerate(rows):
            for k, (count, warm, _) in enumerate(row):
                if count:
                    hue = "white" if warm > 0.6 else INK
                    axes.text(k, i, f"{count}", ha="center", va="center", fontsize=8.5, color=hue)
        names = [str(label)[:22] for label in table["labels"]]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_title(f"{capital(title(table['metric']))}: wanted (rows), answered")
    return figure


def capital(words: str) -> str:
    """With a capital first letter, the rest as it stands."""
    return words[:1].upper() + words[1:]


def level(report: Mapping[str, Any]) -> str:
    """`95 %`."""
    return f"{100 * report['confidence']:.3g} %"
