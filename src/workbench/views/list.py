"""What there is: recipes, models, teachers, formats and runs, each in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from workbench.evaluation.metrics import percent, title
from workbench.files import read_json
from workbench.formats import FORMATS
from workbench.pages.terminal import megabytes, print_json, results
from workbench.plain_yaml import read_yaml_file, yaml_text
from workbench.sources import shipped_folder
from workbench.views.verbs import LISTED

Row = dict[str, Any]


def run(
    what: str, recipes: Mapping[str, Path], options: Callable[[str], Sequence[str]], experiments: str, output: str
) -> int:
    """Print the chosen lists; `recipes` are their files by name, `options(group)` the nouns of a config group."""
    made: dict[str, Callable[[], list[Row]]] = {
        "recipes": lambda: [recipe_row(name, path) for name, path in recipes.items()],
        "models": lambda: [model_row(name, noun("model", name)) for name in options("model")],
        "teachers": lambda: [teacher_row(name, noun("teacher", name)) for name in options("teacher")],
        "formats": format_rows,
        "runs": lambda: list(run_rows(Path(experiments))),
    }
    chosen = {name: made[name]() for name in ([what] if what else LISTED)}
    if output == "json":
        print_json(chosen)
        return 0
    screen = results()
    for name, rows in chosen.items():
        screen.print(f"{name}:" if rows else f"{name}: none here", style="bold")
        if rows:
            screen.print(lines_of(rows))
    return 0


def lines_of(rows: Sequence[Row]) -> Table:
    """One line a row; names never break."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for place, _ in enumerate(rows[0]):
        table.add_column(no_wrap=place == 0, overflow="fold", style="" if place else "bold")
    for row in rows:
        table.add_row(*("  " * (place == 0) + shown(key, value) for place, (key, value) in enumerate(row.items())))
    return table


def shown(key: str, value: object) -> str:
    """A value with its unit, as its key names it."""
    if value is None or value == "":
        return "–"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return megabytes(value)
    if key == "parameters" and isinstance(value, int):
        return f"{value / 1e9:.1f}B" if value >= 999.5e6 else f"{value / 1e6:.0f}M"
    if key == "primary_share" and isinstance(value, float):
        return percent(value)
    if key == "source":
        return str(value).partition("@")[0]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def noun(group: str, name: str) -> dict[str, Any]:
    """A noun's YAML, the project's own before the shipped one."""
    for folder in (Path("configs"), shipped_folder() / "configs"):
        path = folder / group / f"{name}.yaml"
        if path.is_file():
            return read_yaml_file(path)
    return {}


def recipe_row(name: str, path: Path) -> Row:
    """A recipe with the first sentence of its comment, below the command."""
    try:
        lines = yaml_text(path).splitlines() if path.is_file() else []  # a pipe has no end
    except (OSError, ValueError) as error:
        return {"name": name, "says": f"cannot be read: {error}"}
    comment = [line.lstrip("# ") for line in lines[: next(i for i, s in enumerate([*lines, ""]) if s[:1] != "#")]]
    if "" in comment:  # above the blank line is the command
        comment = comment[comment.index("") + 1 :]
    return {"name": name, "says": re.split(r"(?<=\.)\s", " ".join(comment))[0]}


def model_row(name: str, content: Mapping[str, Any]) -> Row:
    """A model with its size, licence and source."""
    return {
        "name": name,
        "parameters": content.get("parameters"),
        "licence": content.get("licence"),
        "source": content.get("source"),
    }


def teacher_row(name: str, content: Mapping[str, Any]) -> Row:
    """A teacher with its wire and model."""
    return {"name": name, "api": content.get("api", "none"), "model": content.get("model") or content.get("weights")}


def format_rows() -> list[Row]:
    """Every format that comes with the workbench, with its bits and who serves it."""
    return [
        {"name": name, "bits": known.bits, "engines": [taker.engine for taker in known.takers]}
        for name, known in FORMATS.items()
    ]


def run_rows(experiments: Path) -> Iterator[Row]:
    """Every run, the newest last: how far it is, its verdict and its student's score."""
    for path in sorted(experiments.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime):
        report = path.parent / "evaluate" / "report.json"
        try:
            manifest = read_json(path)
            content = read_json(report) if "evaluate" in manifest["stages"] and report.is_file() else {}
        except (OSError, ValueError, KeyError, TypeError) as error:  # damaged: the others are told all the same
            manifest, content = {"stages": [f"cannot be read: {type(error).__name__}"]}, {}
        primary = content.get("primary", "")
        score = content.get("arms", {}).get("student", {}).get(primary, {}).get("value")
        passed = content.get("gate", {}).get("passed")
        yield {
            "name": f"{path.parent.parent.name}/{path.parent.name}",
            "done": list(manifest["stages"])[-1] if manifest["stages"] else "nothing yet",
            "verdict": "not judged" if passed is None else "ships" if passed else "refused",
            "primary": title(primary) if primary else "",
            "primary_share": score,
            "created": manifest.get("created", "")[:16],
        }
