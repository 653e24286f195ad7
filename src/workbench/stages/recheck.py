"""Re-check: what is in production answers fresh rows, and is held against the score that it was registered with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from workbench import errors
from workbench.bundles.manifest import read_manifest
from workbench.bundles.parity import read_parity
from workbench.bundles.prove import HERE, choose_engine, limits_of, refuse_failed, trusted_key
from workbench.data.load import Loaded, load, write_quarantine
from workbench.data.prepare import describe, most_bad, named_sources
from workbench.data.split import normalised, tied
from workbench.engines import Ask, transformers_engine
from workbench.engines.served import served_engine
from workbench.errors import GateError, RequestError, WorkbenchError
from workbench.evaluation.answers import Prediction, ask_arm
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.pairing import DRIFTED, drift, drift_table
from workbench.evaluation.report import build_report, settings_of
from workbench.evaluation.scorers import find, metric_names, opened, portable
from workbench.files import read_json, temporary_folder, write_whole
from workbench.plain_yaml import read_yaml_file
from workbench.recipe import Columns, Data, Evaluate, row_sources
from workbench.records import Example, Message, Tools, digest
from workbench.runs import now
from workbench.screen import SafeConsole, json_line
from workbench.sources import cache_folder, is_here, resolve, resolve_all
from workbench.stages.bundle import bundle_checks, parity_beside
from workbench.tracking import resolve_source
from workbench.tracking.versions import Version, tag, version_named, version_of
from workbench.training.shrink import model_under

SCREEN = SafeConsole(stderr=True, highlight=False)
MODELS = ("models:/", "mlflow:models:/")
RECHECKS = "rechecks"
Place = tuple[Path, str]  # the experiments folder and the URI of the store that the version lies in, empty for its own


def run(words: Mapping[str, Any]) -> int:
    """Ask the model that `model` names the rows of `data`; exit code 3 when it has drifted."""
    source, rows = words["model"], words["data"]
    if not source or not rows:
        raise RequestError(
            "which model is re-checked, and on which fresh rows?" if not source else "on which fresh rows?",
            where="data" if source else "model",
            remedy="python -m workbench evaluate model=models:/NAME@champion data=NEW.jsonl "
            "(a recipe's own stage is: evaluate recipe=NAME)",
        )
    store = (Path(words["experiments"]), words["uri"])
    with bundle_at(source, words["key"], store) as (folder, version):
        refuse_failed(bundle_checks(folder, words["key"]), source)
        production = read_production(folder, words["function"])
        version = version or registered_as(production, store)
        outcome = recheck(production, version, source, rows, words["engine"], store[0])
    if version is not None:
        write_tags(version, outcome, store)
    if words["output"] == "json":
        print(json_line(outcome, indent=1))
    else:
        heading = f"{source}: {outcome['n']:,} fresh rows of {rows}, {100 * outcome['confidence']:.3g} % intervals"
        SafeConsole(highlight=False).print(drift_table(outcome, heading, outcome["confidence"]))
    SCREEN.print(outcome["sentence"], markup=False, soft_wrap=True)
    SCREEN.print(f"kept in {outcome['folder']}", markup=False, soft_wrap=True)
    if outcome["verdict"] == DRIFTED:
        raise GateError(
            f"{source} has drifted: {outcome['sentence']}", where=rows, remedy=what_to_do(outcome, production)
        )
    return errors.OK


@contextmanager
def bundle_at(source: str, key: str, store: Place) -> Iterator[tuple[Path, Version | None]]:
    """The bundle's folder, and the version that its name in the registry stands for at this moment."""
    if not source.startswith(MODELS):
        yield Path(source).expanduser(), None
        return
    version = version_named(source, *store)
    with temporary_folder(cache_folder() / "fetched") as temporary:
        yield resolve_source(version.source, temporary / "bundle", trusted_key(key), *store), version


def registered_as(production: Production, store: Place) -> Version | None:
    """The version that a folder was registered as; a store that cannot be asked is said."""
    try:
        version = version_of(production.folder, production.manifest["name"], *store)
    except WorkbenchError as error:
        say(f"the registry cannot be asked: {error}")
        return None
    if version is None:
        say("this folder is no version of the registry here: nothing is tagged")
    return version


def recheck(
    production: Production, version: Version | None, source: str, rows: str, wanted: str, experiments: Path
) -> dict[str, Any]:
    """Ask, score, compare and keep. Answers that were given before are not asked again."""
    loaded = fresh_rows(rows, production.data)
    examples, known = loaded.examples, known_rows(loaded.examples, production)
    notes = [*loaded.notes, *production.notes, *known_lines(known)]
    about = describe(examples, "fresh", rows, production.data)
    mark = f"v{version.number}" if version else production.manifest["digest"]
    folder = experiments / RECHECKS / f"{production.manifest['name']}-{mark}" / about["digest"][:12]
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        engine, key, start = engine_of(production, wanted)
        before = production.report.get("engines", {}).get(production.arm, engine)
        if before != engine:
            notes.append(f"{engine} answers here; the registered score was taken in {before}")
        if loaded.bad:
            write_quarantine(loaded.bad, folder / "quarantine.jsonl")
        for line in notes:
            say(line)
        predictions = ask_arm(
            production.arm, key, late(start), examples, [e.prompt for e in examples],
            max_new_tokens=production.evaluate.max_new_tokens, out=folder / "predictions.jsonl",
            acceptable=production.evaluate.acceptable,
        )  # fmt: skip
        outcome = verdict(production, predictions, notes)
        outcome |= {
            "model": source, "name": production.manifest["name"], "version": version.number if version else None,
            "run": production.manifest["run"], "arm": production.arm, "engine": engine, "registered_engine": before,
            "data": about, "known": known, "folder": str(folder), "at": now(), "said": notes,
        }  # fmt: skip
        write_whole(folder / "report.json", json.dumps(outcome, indent=1, ensure_ascii=False))
    return outcome


def verdict(production: Production, predictions: Sequence[Prediction], notes: list[str]) -> dict[str, Any]:
    """The fresh rows' metrics, and whether they are certainly lower than the registered ones."""
    evaluate = with_new_labels(production.evaluate, [p.expected for p in predictions], notes)
    evaluate = replace(evaluate, primary=production.primary)
    fresh = build_report("fresh rows", evaluate, {production.arm: predictions}, {}, production.report["seed"])
    outcome = drift(
        production.registered,
        fresh["arms"][production.arm],
        production.primary,
        registered_n=production.report["n"],
        n=fresh["n"],
        confidence=evaluate.confidence,
    )
    return outcome | {
        "n": fresh["n"], "clusters": fresh["clusters"], "registered_n": production.report["n"],
        "confidence": evaluate.confidence, "metrics": fresh["metrics"], "fresh": fresh["arms"][production.arm],
    }  # fmt: skip


def with_new_labels(evaluate: Evaluate, wanted: Sequence[str], notes: list[str]) -> Evaluate:
    """The set of labels with those that only the fresh rows want: a class that is new there is part of what drifted."""
    wider = opened(evaluate, wanted)
    new = wider.labels[len(evaluate.labels) :]
    if new:
        shown = ", ".join(map(repr, new[:5])) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        notes.append(f"labels that were not there when it was registered: {shown}")
        say(notes[-1])
    return wider


def write_tags(version: Version, outcome: Mapping[str, Any], store: Place) -> None:
    """The verdict on the version in the registry; a store that is away is said."""
    first = next((row for row in outcome["differences"] if row["metric"] == outcome["primary"]), None)
    tags = {
        "recheck": outcome["verdict"],
        "recheck.at": outcome["at"],
        "recheck.data": f"{outcome['data']['digest']} ({outcome['n']} rows)",
        "recheck.sentence": outcome["sentence"],
    }
    if first:
        tags["recheck.metric"] = outcome["primary"]
        tags["recheck.delta"] = f"{first['delta']:+.4f} [{first['ci_low']:+.4f}, {first['ci_high']:+.4f}]"
    try:
        tag(version, tags, *store)
        say(f"version {version.number} of {version.name} is tagged recheck={outcome['verdict']}")
    except WorkbenchError as error:
        say(f"the version is not tagged: {error}")


def what_to_do(outcome: Mapping[str, Any], production: Production) -> str:
    """The next step after a drift."""
    return (
        f"look at {outcome['folder']}/predictions.jsonl for what is answered wrongly; add such rows, with right "
        "answers, to data.train and data.test, then train the recipe "
        f"{production.manifest['recipe']} again; until that ships, an earlier version may do better: "
        "`python -m workbench ui` shows them"
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time in a re-check's folder."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkbenchError(
            "another process is at work on this re-check", where=str(folder), remedy="wait for it, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def say(line: str) -> None:
    """Tell the user, on standard error: standard output is the result's."""
    SCREEN.print(f"  {line}", markup=False, soft_wrap=True)


# What a bundle in production says of itself: how its rows were read, its answers scored, and what it scored then.


@dataclass(frozen=True)
class Production:
    """A bundle's folder, which arm of its evaluation it is, and the settings of its recipe that a re-check needs."""

    folder: Path
    manifest: Mapping[str, Any]
    report: Mapping[str, Any]
    arm: str
    data: Data
    evaluate: Evaluate
    primary: str
    notes: tuple[str, ...]

    @property
    def registered(self) -> Mapping[str, Any]:
        """The metrics it was registered with."""
        return dict(self.report["arms"][self.arm])


def read_production(folder: Path, function: str = "") -> Production:
    """Read a bundle that stands its checks.

    `function` is the scoring function, named by who asks: a bundle's own word never makes code run. RequestError when
    a recipe or a report of another version cannot be read.
    """
    manifest, notes = read_manifest(folder), []
    report, recipe = read_json(folder / "report.json"), recipe_of(folder)
    arm = arm_of(manifest, report)
    if arm not in report["arms"]:
        notes.append(f"{arm} was not asked in its evaluation: it is held against {STUDENT}, which it was merged into")
        arm = STUDENT
    evaluate = replace(
        settings_of(report),
        max_new_tokens=limits_of(manifest).max_new_tokens,
        batch_tokens=recipe["evaluate"].get("batch_tokens", Evaluate().batch_tokens),
        parallel=recipe["evaluate"].get("parallel", Evaluate().parallel),
        limit=recipe["evaluate"].get("limit"),
    )
    evaluate, primary = scored_here(evaluate, function, notes)
    return Production(folder, manifest, report, arm, data_of(recipe), evaluate, primary, tuple(notes))


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe that the bundle was made by, as plain values."""
    try:
        recipe = read_yaml_file(folder / "recipe.yaml")
        return {"data": dict(recipe["data"]), "evaluate": dict(recipe["evaluate"])}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RequestError(f"its recipe cannot be read: {type(error).__name__}: {error}", where=str(folder)) from None


def data_of(recipe: Mapping[str, Any]) -> Data:
    """The recipe's data section: how a row is laid out, and what is put before it."""
    try:
        values = dict(recipe["data"])
        return Data(**{**values, "columns": Columns(**values.get("columns", {}))})
    except TypeError as error:
        raise RequestError(
            f"its recipe was made by another version of the workbench: {error}",
            where="recipe.yaml: data",
            remedy="use that version, or train and register it again with this one",
        ) from None


def arm_of(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The bundle's own arm in its report; a format's is the end of its name."""
    if manifest["kind"] != "quantized":
        return {"merged": STUDENT, "adapter": "adapter"}[manifest["kind"]]
    fitting = [arm for arm in report["arms"] if manifest["name"].endswith(f"-{arm}")]
    if not fitting:
        raise RequestError(
            "its report has no arm of its name", where=str(manifest["name"]), remedy="train and register it again"
        )
    return str(max(fitting, key=len))


def scored_here(evaluate: Evaluate, function: str, notes: list[str]) -> tuple[Evaluate, str]:
    """How answers are scored, and the metric that decides, which must be one that a single model's answers give."""
    if find(evaluate.scorer).runs_function:
        if not function:
            raise RequestError(
                f"this model was scored by a function, {evaluate.function}, which does not travel with it",
                where="function",
                remedy=f"name it yourself, as you trust it: function={evaluate.function}",
            )
        return replace(evaluate, function=function), str(evaluate.primary)
    plain, why = portable(evaluate)
    if why:
        notes.append(why)
        return plain, metric_names(plain)[0]
    return plain, str(evaluate.primary)


def engine_of(production: Production, wanted: str) -> tuple[str, str, Callable[[], AbstractContextManager[Ask]]]:
    """(engine, digest of what answers, a function that starts it): the engine that serves the bundle, else ours.

    An unmerged adapter is asked on its base in transformers, whatever serves it.
    """
    base = production.manifest.get("base")
    engine = (
        HERE if base and wanted == "auto" else choose_engine(production.folder, production.manifest["format"], wanted)
    )
    if base and engine != HERE:
        raise RequestError("an unmerged adapter is re-checked in transformers", where="engine", remedy="engine=auto")
    files = {name: facts["sha256"] for name, facts in production.manifest["files"].items() if name != "recipe.yaml"}
    key = digest({"files": files, "engine": engine}, 16)
    if engine != HERE:
        context = limits_of(production.manifest).context
        return (
            engine,
            key,
            partial(served_engine, production.folder, engine, context=context, parallel=production.evaluate.parallel),
        )
    plain = partial(transformers_engine, batch_tokens=production.evaluate.batch_tokens)
    if not base:
        return engine, key, partial(plain, production.folder)
    under = model_under(base)
    template = (production.folder / "chat_template.jinja").read_text(encoding="utf-8")
    return engine, key, partial(plain, under, adapter_dir=production.folder, chat_template=template)


def late(start: Callable[[], AbstractContextManager[Ask]]) -> Ask:
    """An engine that is started when it is first asked, and stopped when it has answered."""

    def ask(
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> Iterator[Any]:
        with start() as engine:
            yield from engine(prompts, max_new_tokens, tools=tools)

    return ask


# Fresh rows for a model that is in production: read as its recipe read its own, and held against what it has seen.

AS_THE_RECIPE = "lay the rows out as those of the model's recipe (its recipe.yaml, under data), right answers included"


def fresh_rows(source: str, data: Data) -> Loaded:
    """The rows of a file, by the recipe's own settings; too many bad ones are refused as in training.

    The columns for id and group may be missing. Rows that are near copies get one group, as a split would tie them:
    they are right or wrong together.
    """
    path, columns, notes = resolve(source), data.columns, list[str]()
    while True:
        try:
            loaded = load(path, replace(data, columns=columns), part="test")
            break
        except RequestError as error:
            column = error.where.removeprefix("data.columns.")
            if column not in ("id", "group"):
                raise RequestError(error.what, where=f"data={source}", remedy=AS_THE_RECIPE) from None
            notes.append(f"there is no column {getattr(columns, column)!r} for the {column}")
            columns = replace(columns, **{column: None})
    total = len(loaded.examples) + len(loaded.bad)
    if len(loaded.bad) > most_bad(data.max_bad_share, total):
        reasons = "".join(f"\n    {bad.where}: {bad.reason}" for bad in loaded.bad[:3])
        raise RequestError(
            f"{len(loaded.bad):,} of {total:,} rows cannot be read, and the model's recipe allows "
            f"{data.max_bad_share:.1%}; the first:{reasons}",
            where=f"data={source}",
            remedy=AS_THE_RECIPE,
        )
    if not loaded.examples:
        raise RequestError("there are no rows", where=f"data={source}", remedy="give it rows")
    return replace(loaded, examples=tied(loaded.examples), notes=[*loaded.notes, *notes])


def known_rows(examples: Sequence[Example], production: Production) -> dict[str, list[str]]:
    """Ids of the rows whose text the model was trained on, or judged on, as far as those rows can be read here."""
    held_out = [
        *read_parity(production.folder),
        *read_parity(production.folder.parent, parity_beside(production.folder).name),
    ]
    judged = rows_of("test", production.data)[: production.evaluate.limit]
    seen = {
        "trained on": texts_of(rows_of("train", production.data)),
        "judged on": texts_of(judged) | {prompt_text(row.messages) for row in held_out},
    }
    return {part: [e.id for e in examples if texts_of([e]) & texts] for part, texts in seen.items()}


def texts_of(examples: Sequence[Example]) -> set[str]:
    """The rows' own text, and the user's turns as the model sees them, the recipe's instruction included."""
    return {normalised(e.text) for e in examples} | {prompt_text(e.prompt) for e in examples}


def prompt_text(messages: Sequence[Message]) -> str:
    """The user's turns, for exact comparison."""
    return normalised("\n".join(m.content for m in messages if m.role == "user"))


def rows_of(part: str, data: Data) -> list[Example]:
    """The rows of a part that a key of the recipe names, or the training rows' source brings along, if at hand."""
    try:
        at_hand = all(is_here(entry.source) for entry in row_sources(data.train, "data.train"))
        entries = named_sources(data)[0][part] if at_hand else row_sources(getattr(data, part), f"data.{part}")
        sources = [entry.source for entry in entries if is_here(entry.source)]
        return [e for s in sources for e in load(resolve_all(s), data, part=part, unanswered=True).examples]
    except WorkbenchError:  # moved, changed, or never on this machine: then only the bundle's own rows are known
        return []


def known_lines(known: Mapping[str, Sequence[str]]) -> list[str]:
    """What to say of rows that are not fresh."""
    return [
        f"{len(ids):,} of these rows the model was {part} already, the first {ids[0]}: they are not fresh, and the "
        "verdict leans on them"
        for part, ids in known.items()
        if ids
    ]
