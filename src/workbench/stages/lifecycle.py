"""The whole life: stages in order, from the first that is not done; then the table and what to type next."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from workbench import errors, extras
from workbench.command import SWEEP, command, next_command, typed_value
from workbench.errors import GateError, RequestError, WorkbenchError, nearest
from workbench.files import disk_error
from workbench.formats import format_named
from workbench.recipe import Recipe, has_teacher, sources_of, to_dict, weights_of
from workbench.runs import Run, hold_contents, open_run, other_contents, run_digest
from workbench.sources import content_digests, is_missing
from workbench.stages.common import SCREEN, has_rows, refuse_other_bytes, say, tracking_egress

if TYPE_CHECKING:
    from rich.console import Console

    from workbench.stages.feeding import Feed

ORDER = ("label", "train", "merge", "quantize", "evaluate", "bundle", "register")


def run(recipe: Recipe, only: str | None = None) -> int:
    """Run the recipe to its end (or to `until`), or `only` one stage; returns the exit code."""
    if recipe.until is not None and recipe.until not in ORDER:
        raise RequestError(f"no such stage {recipe.until!r}", where="until", remedy=nearest(recipe.until, ORDER))
    extras.require(only or "train", extras_for(only or "train", recipe))
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
    run_id, contents = run_of(recipe, experiments)
    with open_run(experiments, recipe.name, run_id, to_dict(recipe), fresh=recipe.fresh) as run:
        SCREEN.print(f"[bold]{recipe.name}[/bold] {run.folder}", soft_wrap=True)
        tell_other_contents(run, contents)
        tell_to_prolong(recipe, run, contents)
        hold_contents(run, contents)
        if SWEEP.get():
            run.event("sweep", name=SWEEP.get())
        refuse_other_bytes(run)
        tell_missing(recipe, run)
        recipe = of_its_day(recipe, run)
        from workbench.stages.disk_space import refuse_full_disk  # late: it loads what a refused word must not wait for

        worked = []
        with fed_tracking(recipe, run) as end_feed:
            for name in stages:
                refuse_changed(recipe, run, contents)
                refuse_full_disk(recipe, run, name)
                started = time.monotonic()
                SCREEN.print(f"[bold cyan]{name}[/bold cyan]")
                if name == "register":  # it feeds the store itself
                    end_feed()
                with not_stopped_by_a_server(run, name, only):
                    if stage_function(name)(recipe, run):
                        SCREEN.print(f"  {name} took {time.monotonic() - started:.0f} s")
                        worked.append(name)
                    elif name == "quantize" and not recipe.quantize:
                        SCREEN.print("  no format is wanted")
                    elif name != "bundle" or bundles(run):  # where nothing may ship, the stage has said so itself
                        SCREEN.print("  done already")
            if not worked:
                SCREEN.print("nothing left to do" + (f" until {recipe.until}" if recipe.until else ""))
            elif run.done("evaluate") is not None:
                run.event("next", commands=next_commands(recipe, run))
        if "register" in worked:
            feed_the_end(recipe, run)
        if "bundle" in worked:
            stage_module("route").tell_bundle(run)
        if only == "route":
            return stage_module("route").finish(recipe, run)
        return finish(recipe, run, judged="evaluate" in stages)


def run_of(recipe: Recipe, experiments: Path) -> tuple[str, dict[str, str]]:
    """The digest of the recipe's run, and of the local sources it covers, by name.

    Where a local source is not here any more, it is the one run of this recipe that has its rows, was made by the same
    values, and of the same bytes as those sources that are still here. RequestError, naming the source, where no run or
    several are so.
    """
    sources, weights = sources_of(recipe), weights_of(recipe)
    here = {key: source for key, source in sources.items() if source and not is_missing(source)}
    if len(here) < sum(source is not None for source in sources.values()) and not recipe.fresh:
        digests, runs = content_digests(here), []
        for path in sorted((experiments / recipe.name).glob("*/run.json")):
            run = Run(path.parent, recipe.name, path.parent.name)
            with suppress(OSError, ValueError, AttributeError):  # a damaged manifest is no such run's
                contents = run.manifest().get("contents", {})
                same = digests.items() <= contents.items() and run_digest(weights, contents) == run.digest
                if same and has_rows(run):
                    runs.append((run.digest, contents))
        if len(runs) == 1:
            return runs[0]
    contents = content_digests(sources)
    return run_digest(weights, contents), contents


def of_its_day(recipe: Recipe, run: Run) -> Recipe:
    """The recipe whose chat template writes the day on which the run began, whenever it is gone on with."""
    day = recipe.model.date or str(run.manifest()["created"])[:10]
    return replace(recipe, model=replace(recipe.model, date=day))


def tell_missing(recipe: Recipe, run: Run) -> None:
    """Say which sources are not here any more, and that the run goes on without them."""
    for key, source in sources_of(recipe).items():
        if source and is_missing(source):
            say(run, "run", f"{key}={source} is not here any more: the run goes on with what it has of it")


def tell_other_contents(run: Run, contents: Mapping[str, str]) -> None:
    """Say, of a new run, which of its sources are not what they were in earlier ones."""
    if "contents" not in run.manifest():
        for source, runs in other_contents(run, contents).items():
            say(run, "run", f"{source} holds other bytes than in the run {', '.join(runs)}: this is another run")


LENGTH = {"method.max_steps", "method.epochs"}


def tell_to_prolong(recipe: Recipe, run: Run, contents: Mapping[str, str]) -> None:
    """Say, of a new run, which trained ones are the same but for their length, and how to go on from the last of them.

    More steps are another course of the learning rate from the first step on, so they begin anew.
    """
    if "contents" in run.manifest():
        return
    wanted, shorter = flat(to_dict(recipe)), dict[str, Run]()
    for path in sorted(run.folder.parent.glob("*/run.json"), key=lambda path: path.stat().st_mtime):
        other = Run(path.parent, run.recipe_name, path.parent.name)
        with suppress(OSError, ValueError):
            values = flat(yaml.safe_load((other.folder / "recipe.yaml").read_text(encoding="utf-8")))
            made = {key for key in flat(weights_of(recipe)) if wanted.get(key) != values.get(key)}
            if made and made <= LENGTH and other.done("train") and other.manifest().get("contents") == dict(contents):
                shorter[other.digest] = other
    for other in list(shorter.values())[-1:]:
        steps = (other.done("train") or {}).get("facts", {}).get("steps", 0)
        folder = f"dir:{shown(other.folder)}"
        words = [f"model.adapter={folder}"]
        if recipe.method.kind == "full":
            words = [f"model.source={folder}/train/model", "model.sha256=null"]
        if recipe.method.max_steps and recipe.method.max_steps > steps:
            words.append(f"method.max_steps={recipe.method.max_steps - steps}")
        say(
            run, "run", f"the run {other.digest} is the same but for its length ({steps} steps): this one begins anew, "
            "for the learning rate takes another course. To go on from its weights instead:",
        )  # fmt: skip
        say(run, "run", next_command("train", recipe.name, *words))


def flat(values: Mapping[str, Any], inside: str = "") -> dict[str, str]:
    """Every value by its key path, as text."""
    texts: dict[str, str] = {}
    for key, value in values.items():
        within = isinstance(value, Mapping)
        texts |= flat(value, f"{inside}{key}.") if within else {inside + key: json.dumps(value, default=list)}
    return texts


def refuse_changed(recipe: Recipe, run: Run, contents: Mapping[str, str]) -> None:
    """The files that the run's digest covers must stay as they were when the command began.

    One that has gone is missed no more once the run has its rows; a stage that needs its weights says so itself.
    """
    sources = sources_of(recipe)
    if has_rows(run):
        sources = {key: source for key, source in sources.items() if source and not is_missing(source)}
    for name, sha256 in content_digests(sources).items():
        if contents.get(name) != sha256:
            raise WorkbenchError(
                "it has changed since this command began",
                where=name,
                remedy="what is done is kept; run the command again, and it is another run",
            )


def extras_for(verb: str, recipe: Recipe) -> list[str]:
    """What a stage, or for `train` the whole life until `until`, cannot do without on this recipe."""
    stages: tuple[str, ...] = ("label", "train", "merge", "quantize", "evaluate", "bundle")
    if verb != "train":
        stages = (verb,)
    elif recipe.until in stages:
        stages = stages[: stages.index(recipe.until) + 1]
    teachers = {recipe.teacher.api, recipe.route.teacher.api} - {"none"}
    local_teacher = "local_gguf" in teachers and {"label", "evaluate", "route"} & set(stages)
    engines = {format_named(q.format).served_by for q in recipe.quantize.values()}
    served = "llamacpp" in engines and {"evaluate", "bundle", "route"} & set(stages)
    wanted = {
        "train": bool({"train", "merge", "quantize", "evaluate", "bundle", "route"} & set(stages)),
        "quantize": "quantize" in stages and bool(recipe.quantize),
        "teacher": bool(teachers and {"label", "evaluate", "route"} & set(stages)),
        "llamacpp": bool(local_teacher or served),
    }
    return [extra for extra, needed in wanted.items() if needed]


def stage_function(name: str) -> Callable[[Recipe, Run], bool]:
    """The stage's function, imported when its turn comes."""
    return stage_module(name).run


def stage_module(name: str) -> ModuleType:
    """The stage's file."""
    from workbench.stages import bundle, label, merge, quantize, register, train
    from workbench.stages.evaluate import evaluate
    from workbench.stages.route import route

    stages = {
        "label": label,
        "train": train,
        "merge": merge,
        "quantize": quantize,
        "evaluate": evaluate,
        "bundle": bundle,
        "register": register,
        "route": route,
    }
    return stages[name]


@contextmanager
def fed_tracking(recipe: Recipe, run: Run) -> Iterator[Callable[[], None]]:
    """Have MLflow fed while the run is at work, by a process of its own; gives the function that ends that.

    It ends here at the latest. When a stage is stopped by Ctrl-C or SIGTERM, MLflow says KILLED, not RUNNING for ever:
    the command waits a little for it. Whoever cannot wait stops once more.
    """
    feed = feed_tracking(recipe, run)
    end = feed.end if feed else lambda: None
    try:
        yield end
    except KeyboardInterrupt:
        if feed:
            feed.leave()
        raise
    finally:
        end()


def feed_tracking(recipe: Recipe, run: Run) -> Feed | None:
    """Start the process that feeds MLflow."""
    from workbench.stages.feeding import start_feeding

    return start_feeding(recipe, run)


def feed_the_end(recipe: Recipe, run: Run) -> None:
    """Feed how a run ended, in this process, which has just spoken to the store; what fails is said, and no failure."""
    from workbench.tracking import catch_up

    experiments = Path(recipe.launch.experiments).resolve()
    try:
        fed = catch_up(run.folder, recipe.tracking, experiments, tracking_egress(experiments), live=False)
        for line in fed["said"]:
            SCREEN.print(f"  {line}", markup=False, soft_wrap=True)
    except (OSError, WorkbenchError) as error:
        say(run, "register", str(disk_error(error, run.folder) or error))


@contextmanager
def not_stopped_by_a_server(run: Run, name: str, only: str | None) -> Iterator[None]:
    """Let a life that has come to `register` end without it where MLflow does not answer: all else is done.

    No alias has moved, which is said; the same command, or `register` alone, goes on from there. Who asks for
    `register` alone has a failure.
    """
    from workbench.tracking import AwayError

    try:
        yield
    except AwayError as error:
        if name != "register" or only == "register":
            raise
        say(run, "register", f"not registered, no alias has moved: {error}")
        say(run, "register", f"python -m workbench register recipe={run.recipe_name} goes on with it")


def finish(recipe: Recipe, run: Run, *, judged: bool) -> int:
    """What came of it on standard output: the arms, the verdict, the exact next commands; 3 when the gate said no."""
    from workbench.pages.terminal import arms_table, gate_lines, print_json, results

    if run.done("evaluate") is None:
        if recipe.output == "json":
            print_json(outcome(recipe, run, None))
            return errors.OK
        screen = results()
        for line in ["next:", *(f"  {line}" for line in coming_commands(recipe, run))]:
            screen.print(line, markup=False, soft_wrap=True)
        return errors.OK
    from workbench.evaluation.attribution import chain_lines, kept_lines
    from workbench.stages.evaluate.evaluate import read_report

    report = read_report(run)
    passed = report["gate"]["passed"]
    if recipe.output == "json":
        print_json(outcome(recipe, run, report))
    else:
        screen = results()
        screen.print(arms_table(report, screen.width))
        for verdict in gate_lines(report):
            screen.print(verdict)
        for line in [*kept_lines(report), *chain_lines(report.get("chain", []), report["confidence"])]:
            screen.print(line, markup=False)
        if not passed:
            print_answers(recipe, run, screen)
        report_page = shown(run.folder) / "evaluate" / "report.html"
        for line in [
            "",
            f"report: {report_page}",
            "next:",
            *(f"  {line}" for line in next_commands(recipe, run)),
        ]:
            screen.print(line, markup=False, soft_wrap=True)
    if judged and not passed:
        missed = dict.fromkeys(check["name"] for check in report["gate"]["checks"] if not check["passed"])
        raise GateError(
            f"the gate said no ({', '.join(missed)}): nothing was promoted",
            where="gate",
            remedy="the run is kept; the lines marked ✗ say what was missing",
        )
    return errors.OK


def print_answers(recipe: Recipe, run: Run, screen: Console) -> None:
    """What an unproven student has learned: its loss before and after, and three of its answers beside the base's."""
    from workbench.evaluation.answers import read_predictions
    from workbench.pages.terminal import answer_lines, most_telling
    from workbench.stages.rows import part

    facts = (run.done("train") or {}).get("facts", {})
    if facts.get("first_validation_loss") is not None:
        screen.print(
            f"what it learned: validation loss {facts['first_validation_loss']:.3f} at the first look, "
            f"{facts['last_validation_loss']:.3f} at the last (nats a token), in "
            f"{facts['steps']:,} steps; not proven, so nothing ships",
            markup=False,
        )
    folder = run.folder / "evaluate" / "predictions"
    student, base = (read_predictions(folder / f"{arm}.jsonl") for arm in ("student", "base"))
    rows = [e for name in ("train", "validation", "test") for e in part(recipe, run, name)]
    texts = {example.id: example.text for example in rows}
    for line in answer_lines(most_telling(student, base), texts, screen.width):
        screen.print(line)


def coming_commands(recipe: Recipe, run: Run) -> list[str]:
    """What can be typed before the verdict: the way on, and a word with the student where there is one."""
    names = ["label"] * has_teacher(recipe)
    names += ["train", "merge", *(f"quantize/{name}" for name in recipe.quantize), "evaluate"]
    coming = next(name for name in names if run.done(name) is None)
    lines = [f"{next_command('train', recipe.name)}   # goes on with {coming}"]
    if run.done("train"):
        lines.append(next_command("chat", recipe.name, "beside=base"))
    return lines


def next_commands(recipe: Recipe, run: Run) -> list[str]:
    """What a user types next, once there is a verdict, with real paths; each line works as it stands."""
    home = shown(run.folder)
    made = bundles(run)
    lines = []
    if made and run.done("register") is None:  # `until=bundle`, or an MLflow that did not answer
        lines.append(next_command("register", recipe.name) + "   # no alias has moved yet")
    lines += verdict_by_folds(recipe, run)
    lines += [next_command("chat", recipe.name, "beside=base"), command("ui", *store_words(recipe))]
    for name in made:  # one that no server could load here can still be talked to
        verb = "chat" if verified_in(run, name) == "transformers" else "serve"
        lines.append(command(verb, f"bundle={home / name}"))
    if run.done("register") and made:
        model = recipe.tracking.registered_model or recipe.name
        lines.append(
            command("export", f"from=models:/{model}@champion", f"to=exported/{model}", *store_words(recipe))
            + "   # or to=s3://…, gs://…, az://…"
        )
    return lines


def verdict_by_folds(recipe: Recipe, run: Run) -> list[str]:
    """The command that has nearly all rows judge, with its minutes, where too few did; none where siblings cannot."""
    from workbench.data.prepare import judges_by_given
    from workbench.evaluation.few_rows import SIBLINGS
    from workbench.recipe.methods import against_folds
    from workbench.stages.evaluate.evaluate import read_report
    from workbench.stages.rows import rows

    report, evaluate = read_report(run), recipe.evaluate
    missed = {check["name"] for check in report["gate"]["checks"] if not check["passed"]}
    if "enough_rows" not in missed or evaluate.folds or against_folds(recipe):
        return []
    splits = rows(recipe, run)
    every = len(splits.train) + len(splits.validation) + len(splits.test) - evaluate.few_shot
    judging = min(every, evaluate.limit or every)
    if judging < recipe.gate.min_rows or judges_by_given(recipe.data, splits):
        return []
    training, evaluating = ((run.done(name) or {}).get("seconds", 0.0) for name in ("train", "evaluate"))
    minutes = max(1, round((SIBLINGS * training + evaluating * judging / report["n"]) / 60))
    line = next_command("train", recipe.name, f"evaluate.folds={SIBLINGS}")
    return [f"{line}   # about {judging:,} rows judge; {SIBLINGS} trainings more, about {minutes} minutes"]


def store_words(recipe: Recipe) -> list[str]:
    """The words by which a verb without a recipe finds this recipe's runs and registry, where they lie elsewhere."""
    words = []
    if recipe.launch.experiments != "experiments":
        words.append(f"experiments={typed_value('launch.experiments') or recipe.launch.experiments}")
    return words + ([f"uri={recipe.tracking.uri}"] if recipe.tracking.uri else [])


def bundles(run: Run) -> list[str]:
    """The bundles that are made, as the manifest names them."""
    return [name for name in run.manifest()["stages"] if name.startswith("bundle/")]


def verified_in(run: Run, bundle: str) -> str:
    """The engine that loaded a bundle here."""
    return str((run.done(bundle) or {}).get("facts", {}).get("engine", ""))


def shown(folder: Path) -> Path:
    """A folder as it is typed from here."""
    with suppress(ValueError):
        return folder.relative_to(Path.cwd())
    return folder


def outcome(recipe: Recipe, run: Run, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """The end of a command as one JSON object: numbers, each key with its unit."""
    from workbench.pages.terminal import figures_with_units

    stages = run.manifest()["stages"]
    facts = {
        "recipe": recipe.name,
        "run": f"{run.recipe_name}/{run.digest}",
        "folder": str(shown(run.folder)),
        "registered": run.done("register") is not None,
        "stages": {name: {"seconds": entry.get("seconds")} for name, entry in stages.items()},
    }
    if report is None:
        return facts | {"next": coming_commands(recipe, run)}
    gate = report["gate"]
    return facts | {
        "test_rows": report["n"],
        "primary": report["primary"],
        "arms": {arm: figures_with_units(cells) for arm, cells in report["arms"].items()},
        "gate": {name: gate[name] for name in ("passed", "shipped", "refused", "sentence")}
        | {"findings": gate.get("findings", [])},
        "next": next_commands(recipe, run),
    }
