"""What a bundle in production says of itself: how its rows were read, its answers scored, and what it scored then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from workbench.bundles.manifest import read_manifest
from workbench.bundles.parity import read_parity
from workbench.bundles.prove import HERE, choose_engine, limits_of
from workbench.data.load import Loaded, load
from workbench.data.split import joined, normalised
from workbench.engines import Ask, transformers_engine
from workbench.engines.served import served_engine
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.report import settings_of
from workbench.evaluation.scorers import metric_names, portable
from workbench.recipe import Columns, Data, Evaluate
from workbench.records import Example, Message, digest
from workbench.runs import read_json
from workbench.sources import is_here, resolve
from workbench.stages.bundle import parity_beside
from workbench.training.shrink import model_under


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
    said: tuple[str, ...]

    @property
    def registered(self) -> Mapping[str, Any]:
        """The metrics it was registered with."""
        return dict(self.report["arms"][self.arm])


def read_production(folder: Path, function: str = "") -> Production:
    """Read a bundle that stands its checks.

    `function` is the scoring function, named by who asks: a bundle's own word never makes code run. RequestError when
    a recipe or a report of another version cannot be read.
    """
    manifest, said = read_manifest(folder), []
    report, recipe = read_json(folder / "report.json"), recipe_of(folder)
    arm = arm_of(manifest, report)
    if arm not in report["arms"]:
        said.append(f"{arm} was not asked in its evaluation: it is held against {STUDENT}, which it was merged into")
        arm = STUDENT
    evaluate = replace(
        settings_of(report),
        max_new_tokens=limits_of(manifest).max_new_tokens,
        batch_tokens=recipe["evaluate"].get("batch_tokens", Evaluate().batch_tokens),
        parallel=recipe["evaluate"].get("parallel", Evaluate().parallel),
        limit=recipe["evaluate"].get("limit"),
    )
    evaluate, primary = scored_here(evaluate, function, said)
    return Production(folder, manifest, report, arm, data_of(recipe), evaluate, primary, tuple(said))


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe that the bundle was made by, as plain values."""
    try:
        found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        return {"data": dict(found["data"]), "evaluate": dict(found["evaluate"])}
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


def scored_here(evaluate: Evaluate, function: str, said: list[str]) -> tuple[Evaluate, str]:
    """How answers are scored, and the metric that decides, which must be one that a single model's answers give."""
    if evaluate.scorer == "python":
        if not function:
            raise RequestError(
                f"this model was scored by a function, {evaluate.function}, which does not travel with it",
                where="function",
                remedy=f"name it yourself, as you trust it: function={evaluate.function}",
            )
        return replace(evaluate, function=function), str(evaluate.primary)
    plain, why = portable(evaluate)
    if why:
        said.append(why)
        return plain, metric_names(plain)[0]
    return plain, str(evaluate.primary)


def engine_of(found: Production, wanted: str) -> tuple[str, str, Callable[[], AbstractContextManager[Ask]]]:
    """(engine, digest of what answers, a function that starts it): the engine that serves the bundle, else ours.

    An unmerged adapter is asked on its base in transformers, whatever serves it.
    """
    base = found.manifest.get("base")
    engine = HERE if base and wanted == "auto" else choose_engine(found.folder, found.manifest["format"], wanted)
    if base and engine != HERE:
        raise RequestError("an unmerged adapter is re-checked in transformers", where="engine", remedy="engine=auto")
    files = {name: facts["sha256"] for name, facts in found.manifest["files"].items() if name != "recipe.yaml"}
    key = digest({"files": files, "engine": engine}, 16)
    if engine != HERE:
        context = limits_of(found.manifest).context
        return (
            engine,
            key,
            partial(served_engine, found.folder, engine, context=context, parallel=found.evaluate.parallel),
        )
    plain = partial(transformers_engine, batch_tokens=found.evaluate.batch_tokens)
    if not base:
        return engine, key, partial(plain, found.folder)
    under = model_under(base)
    template = (found.folder / "chat_template.jinja").read_text(encoding="utf-8")
    return engine, key, partial(plain, under, adapter_dir=found.folder, chat_template=template)


def late(start: Callable[[], AbstractContextManager[Ask]]) -> Ask:
    """An engine that is started when it is first asked, and stopped when it has answered."""

    def ask(
        prompts: Sequence[Sequence[Message]], max_new_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        with start() as engine:
            yield from engine(prompts, max_new_tokens)

    return ask


# Fresh rows for a model that is in production: read as its recipe read its own, and held against what it has seen.

AS_THE_RECIPE = "lay the rows out as those of the model's recipe (its recipe.yaml, under data), right answers included"


def fresh_rows(source: str, data: Data) -> Loaded:
    """The rows of a file, by the recipe's own settings; too many bad ones are refused as in training.

    The columns for id and group may be missing. Rows that are near copies get one group, as a split would tie them:
    they are right or wrong together.
    """
    path, columns, said = resolve(source), data.columns, list[str]()
    while True:
        try:
            found = load(path, replace(data, columns=columns), part="test")
            break
        except RequestError as error:
            column = error.where.removeprefix("data.columns.")
            if column not in ("id", "group"):
                raise RequestError(error.what, where=f"data={source}", remedy=AS_THE_RECIPE) from None
            said.append(f"there is no column {getattr(columns, column)!r} for the {column}")
            columns = replace(columns, **{column: None})
    total = len(found.examples) + len(found.bad)
    if found.bad and len(found.bad) / total > data.max_bad_share:
        reasons = "".join(f"\n    {bad.where}: {bad.reason}" for bad in found.bad[:3])
        raise RequestError(
            f"{len(found.bad):,} of {total:,} rows cannot be read, and the model's recipe allows "
            f"{data.max_bad_share:.1%}; the first:{reasons}",
            where=f"data={source}",
            remedy=AS_THE_RECIPE,
        )
    if not found.examples:
        raise RequestError("there are no rows", where=f"data={source}", remedy="give it rows")
    return replace(found, examples=tied(found.examples), said=[*found.said, *said])


def tied(examples: Sequence[Example]) -> list[Example]:
    """The rows, with one group for those that share theirs or are near copies of each other."""
    rows = list(examples)
    for number, members in enumerate(joined(rows).values()):
        if len(members) > 1:
            for at in members:
                rows[at] = replace(rows[at], group=f"near-{number}")
    return rows


def known_rows(examples: Sequence[Example], found: Production) -> dict[str, list[str]]:
    """Ids of the rows whose text the model was trained on, or judged on, as far as those rows can be read here."""
    held_out = [*read_parity(found.folder), *read_parity(found.folder.parent, parity_beside(found.folder).name)]
    judged = rows_of(found.data.test, found.data)[: found.evaluate.limit]
    seen = {
        "trained on": texts_of(rows_of(found.data.train, found.data)),
        "judged on": texts_of(judged) | {asked(row.messages) for row in held_out},
    }
    return {part: [e.id for e in examples if texts_of([e]) & texts] for part, texts in seen.items()}


def texts_of(examples: Sequence[Example]) -> set[str]:
    """The rows' own text, and the user's turns as the model sees them, the recipe's instruction included."""
    return {normalised(e.text) for e in examples} | {asked(e.prompt) for e in examples}


def asked(messages: Sequence[Message]) -> str:
    """The user's turns, for exact comparison."""
    return normalised("\n".join(m.content for m in messages if m.role == "user"))


def rows_of(source: str | None, data: Data) -> list[Example]:
    """The rows of one of the recipe's own sources, when it is at hand."""
    try:
        return load(resolve(source), data, unanswered=True).examples if source and is_here(source) else []
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
