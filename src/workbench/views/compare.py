"""Runs side by side, paired item by item on the test rows they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.errors import RequestError, nearest
from workbench.evaluation.pairing import compare_gathered, gather
from workbench.files import read_json
from workbench.pages.comparison_page import write_comparison
from workbench.pages.terminal import arms_table, compare_table
from workbench.records import digest
from workbench.runs import Run
from workbench.screen import SafeConsole, json_line


def run(runs: str, metric: str, experiments: str, output: str, out: str = "") -> int:
    """Compare two or more runs given as NAME/DIGEST (or NAME, when it has one evaluated run), and write the page.

    `out` is the page's path; without it, a name made of the runs' in `<experiments>/.compare`.
    """
    names = [name for name in runs.split(",") if name]
    if len(names) < 2:
        raise RequestError("two runs or more are compared", where="runs", remedy="runs=legal_lora/1a2b3c4d,legal_full")
    root = Path(experiments)
    compared = [find(root, name) for name in names]
    gathered = gather([run.folder for run in compared])
    result = compare_gathered(gathered, metric or None)
    page = Path(out) if out else root / ".compare" / f"{digest([*gathered.names, metric], 8)}.html"
    write_comparison(result, gathered.contenders, page, prompts=prompts_of(compared))
    if output == "json":
        print(json_line(result | {"page": str(page)}, indent=1))
        return 0
    console = SafeConsole(highlight=False)
    console.print(arms_table(result))
    console.print(compare_table(result["comparisons"], result["confidence"]))
    for line in result["said"]:
        console.print(line, markup=False)
    console.print(f"page: {page}", markup=False, soft_wrap=True)
    return 0


def prompts_of(runs: Sequence[Run]) -> dict[str, str]:
    """Item id → the user's text, as the runs' own evaluations kept it; of a run that kept none, nothing."""
    prompts: dict[str, str] = {}
    for run in runs:
        path = run.folder / "evaluate" / "prompts.json"
        prompts |= read_json(path) if path.is_file() else {}
    return prompts


def find(root: Path, name: str) -> Run:
    """An evaluated run by its name and digest."""
    known = {f"{p.parent.parent.name}/{p.parent.name}": p.parent for p in root.glob("*/*/run.json") if is_evaluated(p)}
    matching = [key for key in known if key == name or key.startswith(f"{name}/") or key.endswith(f"/{name}")]
    if len(matching) != 1:
        what = f"{name!r} is {len(matching)} evaluated runs" if matching else f"no evaluated run {name!r}"
        remedy = "choose one of " + ", ".join(sorted(matching)) if matching else nearest(name, known)
        raise RequestError(what, where="runs", remedy=remedy)
    folder = known[matching[0]]
    return Run(folder, folder.parent.name, folder.name)


def is_evaluated(manifest: Path) -> bool:
    """Whether a run's manifest says so; a damaged one keeps nobody from comparing the others."""
    try:
        return "evaluate" in read_json(manifest)["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
