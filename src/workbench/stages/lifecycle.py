"""The whole life: stages in order, from the first that is not done; then the table and what to type next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from workbench import errors
from workbench.errors import GateError, RequestError, WorkbenchError, nearest
from workbench.recipe import Recipe, has_teacher, sources_of, to_dict, weights_of
from workbench.runs import Run, open_run, run_digest
from workbench.sources import content_digests
from workbench.stages.common import SCREEN, say

ORDER = ("label", "train", "merge", "quantize", "evaluate", "bundle", "register")


def run(recipe: Recipe, only: str | None = None) -> int:
    """Run the recipe to its end (or to `until`), or `only` one stage; returns the exit code."""
    if recipe.until is not None and recipe.until not in ORDER:
        raise RequestError(f"no such stage {recipe.until!r}", where="until", remedy=nearest(recipe.until, ORDER))
    from workbench.evaluation.gate import check_override

    check_override(recipe.gate)
    stages = (only,) if only else ORDER[: ORDER.index(recipe.until) + 1] if recipe.until else ORDER
    if not has_teacher(recipe):
        if "label" in (only, recipe.until):
            raise RequestError(
                "this recipe has no teacher", where="teacher", remedy="add `- teacher: local_gguf` to its defaults"
            )
        stages = tuple(name for name in stages if name != "label")
    experiments = Path(recipe.launch.experiments).resolve()
    run_id = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    with open_run(experiments, recipe.name, run_id, to_dict(recipe), fresh=recipe.fresh) as run:
        SCREEN.print(f"[bold]{recipe.name}[/bold] {run.folder}", soft_wrap=True)
        worked = []
        for name in stages:
            started = time.monotonic()
            SCREEN.print(f"[bold cyan]{name}[/bold cyan]")
            if stage_function(name)(recipe, run):
                SCREEN.print(f"  {name} took {time.monotonic() - started:.0f} s")
                worked.append(name)
            else:
                SCREEN.print("  done already")
        if not worked:
            SCREEN.print("nothing left to do" + (f" until {recipe.until}" if recipe.until else ""))
        elif "register" not in worked:
            feed_tracking(recipe, run)
        return finish(recipe, run, judged="evaluate" in stages)


def stage_function(name: str) -> Callable[[Recipe, Run], bool]:
    """The stage's function, imported when its turn comes."""
    from workbench.stages import bundle, evaluate, label, merge, quantize, register, train

    stages = {
        "label": label,
        "train": train,
        "merge": merge,
        "quantize": quantize,
        "evaluate": evaluate,
        "bundle": bundle,
        "register": register,
    }
    return stages[name].run


def feed_tracking(recipe: Recipe, run: Run) -> None:
    """Bring MLflow up to date; a store that is away is said, never a failure of the work."""
    from workbench.tracking import catch_up

    try:
        catch_up(run.folder, recipe.tracking, Path(recipe.launch.experiments).resolve())
    except WorkbenchError as error:
        say(run, "register", str(error))


def finish(recipe: Recipe, run: Run, *, judged: bool) -> int:
    """The table of the arms, the gate's verdict and the exact next commands; exit code 3 when the gate said no."""
    if run.done("evaluate") is None:
        names = ["label"] * has_teacher(recipe) + [
            "train",
            "merge",
            *(f"quantize/{name}" for name in recipe.quantize),
            "evaluate",
        ]
        coming = next(name for name in names if run.done(name) is None)
        SCREEN.print(f"next: python -m workbench train recipe={recipe.name}   (goes on with {coming})")
        return errors.OK
    from workbench.evaluation.chain import chain_lines
    from workbench.evaluation.kept import kept_lines
    from workbench.evaluation.tables import arms_table, gate_lines
    from workbench.stages.evaluate import read_report

    report = read_report(run)
    SCREEN.print(arms_table(report))
    for verdict in gate_lines(report):
        SCREEN.print(verdict)
    for told in [*kept_lines(report), *chain_lines(report.get("chain", []), report["confidence"])]:
        SCREEN.print(told, markup=False)
    for line in next_commands(recipe, run):
        SCREEN.print(line, markup=False, soft_wrap=True)
    if judged and not report["gate"]["passed"]:
        raise GateError("the gate said no: nothing was promoted", where=f"gate.{recipe.gate.name}",
                        remedy="the run is kept; the lines above say what was missing")  # fmt: skip
    return errors.OK


def next_commands(recipe: Recipe, run: Run) -> list[str]:
    """What a user types next, with real paths."""
    home = run.folder
    with suppress(ValueError):
        home = run.folder.relative_to(Path.cwd())
    lines = ["", "next:", f"  open {home / 'evaluate' / 'report.html'}", "  python -m workbench ui"]
    made = [name for name in run.manifest()["stages"] if name.startswith("bundle/")]
    lines += [f"  python -m workbench serve bundle={home / name}" for name in made]
    if run.done("register") and made:
        model = recipe.tracking.registered_model or recipe.name
        lines.append(f"  python -m workbench export from=models:/{model}@champion to=FOLDER_OR_URL")
    return lines
