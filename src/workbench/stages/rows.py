"""The rows of a run: prepared once, written into its `data/`, and read from there by every later stage.

`data/prepared/` holds what the sources gave: the splits, the prompts that a teacher is asked, what was set aside and
why. `data/learned/` holds what training has learned from, where that is not the same: a teacher's answers as rows, or
without the rows that are too long. `data/questions/` holds the questions that an evaluation asks beside the test.
Rows are JSON lines, so that a file larger than memory can be read row by row.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.data import prepare
from workbench.data.load import BadRow, write_quarantine
from workbench.data.prepare import Asked, Splits
from workbench.errors import WorkbenchError
from workbench.recipe import Evaluate, Recipe, has_teacher, judged_by, makes_rows, sources_of
from workbench.recipe.methods import material_of
from workbench.records import Example, digest
from workbench.runs import Run, hold_source, keep_data, kept_data
from workbench.sources import (
    content_sha256,
    is_here,
    is_local,
    is_missing,
    is_moving,
    pinned_commit,
    resolve,
)
from workbench.stages.common import PREPARED, has_rows, hold_made, log_datasets, need, say
from workbench.stages.prompts import Lessons, labelled
from workbench.stored_rows import HELD, StoredRows, example_of, line_of, rows_in, write_lines
from workbench.teacher.document_rows import ROWS, data_of

# The keys of sources that hold rows, or what rows are made from.
SOURCES = (
    "data.train", "data.validation", "data.test", "data.documents",
    "teacher.prompts", "teacher.documents", "teacher.review",
)  # fmt: skip
LEARNED, QUESTIONS, DOCUMENTS = "learned", "questions", "documents"  # further folders of the run's `data/`
FACTS, QUARANTINE = "facts.json", "quarantine.jsonl"
PARTS = ("train", "validation", "test")
SHARDS = ".shards"  # beside those folders while many rows are prepared: what a stopped command goes on from


def labels_rows(recipe: Recipe) -> bool:
    """Whether a teacher answers rows that there are already."""
    return has_teacher(recipe) and not makes_rows(recipe)


def rows(recipe: Recipe, run: Run) -> Splits:
    """The recipe's rows, those too long to learn from among them; with a teacher the training rows are its labels.

    What an evaluation shows and looks for must not depend on `method.too_long`: a baseline shown other examples is
    another baseline.
    """
    if labels_rows(recipe):
        need(run, "label", "evaluate")
        hold_made(run, "label")
        return labelled(recipe, run, asked_rows(recipe, run)).splits
    return asked_rows(recipe, run).splits


def lessons(recipe: Recipe, run: Run) -> Lessons:
    """What training learns from: as it was written, else from the prepared rows and the labels."""
    if kept_data(run, LEARNED) is not None:
        return read_learned(recipe, run)
    if labels_rows(recipe):
        need(run, "label", "train")
        hold_made(run, "label")
        return labelled(recipe, run, asked_rows(recipe, run))
    return Lessons(asked_rows(recipe, run).splits, {}, {}, [])


def keep_prepared(recipe: Recipe, run: Run) -> Asked:
    """The prepared rows; the first who wants them kept reads the sources and writes `data/prepared/`."""
    if has_rows(run) or taken_over(recipe, run):
        return read_prepared(recipe, run)
    to_ask = from_sources(recipe, run, run.folder / "data" / SHARDS)
    with keep_data(run, PREPARED) as folder:
        for part in PARTS:
            write_lines(folder / f"{part}.jsonl", lines_of(getattr(to_ask.splits, part)))
        if labels_rows(recipe):
            write_lines(folder / "prompts.jsonl", lines_of(to_ask.examples))
        if to_ask.splits.bad:
            write_quarantine(to_ask.splits.bad, folder / QUARANTINE)
        facts = {"said": to_ask.splits.notes, "datasets": to_ask.splits.datasets}
        if labels_rows(recipe):
            facts |= {"prompts": {"said": to_ask.notes, "datasets": to_ask.datasets, "judging": sorted(to_ask.judging)}}
        if isinstance(to_ask.splits.train, StoredRows) and not has_teacher(recipe):
            facts["made_of"] = made_of(recipe, run)
        write_facts(folder, facts)
    shutil.rmtree(run.folder / "data" / SHARDS, ignore_errors=True)
    return to_ask if isinstance(to_ask.splits.train, list) else read_prepared(recipe, run)


def made_of(recipe: Recipe, run: Run) -> str:
    """Digest of all that prepared rows depend on, where no teacher answers or makes them."""
    data, learns = asdict(recipe.data), sorted(material_of(recipe))
    return digest([data, recipe.seed, learns, sorted(judged_by(recipe)), row_contents(recipe, run)], 32)


def taken_over(recipe: Recipe, run: Run) -> bool:
    """Copy many rows from another run of this recipe that has prepared the same; says so. False where there is none."""
    if has_teacher(recipe):
        return False
    for path in sorted(run.folder.parent.glob(f"*/data/{PREPARED}/{FACTS}")):
        other = Run(path.parents[2], run.recipe_name, path.parents[2].name)
        with suppress(WorkbenchError, OSError, ValueError, KeyError):
            wanted = read_facts(other, PREPARED).get("made_of")
            if wanted and wanted == made_of(recipe, run):
                files = [checked_file(other, PREPARED, file) for file in kept_data(other, PREPARED) or {}]
                with keep_data(run, PREPARED) as folder:
                    for file in files:
                        shutil.copyfile(file, folder / file.name)
                say(run, "train", f"the rows are those that the run {other.digest} has prepared")
                return True
    return False


def many_rows(run: Run) -> StoredRows | None:
    """The prepared training rows, where they are too many to hold."""
    stored = rows_in(checked_file(run, PREPARED, "train.jsonl"))
    return stored if len(stored) > HELD else None


def lines_of(rows: Sequence[Example]) -> Iterable[str]:
    """The rows as they are written."""
    return rows.written() if isinstance(rows, StoredRows) else map(line_of, rows)


def asked_rows(recipe: Recipe, run: Run) -> Asked:
    """The prepared rows as they were written; from the sources, and kept nowhere, in a run that has none yet.

    Without a teacher nothing is asked: `splits` is then all that there is.
    """
    return read_prepared(recipe, run) if has_rows(run) else from_sources(recipe, run)


def from_sources(recipe: Recipe, run: Run, work: Path | None = None) -> Asked:
    """The rows that the recipe names, of the bytes that this run is for; many are read into `work`, see `data.load`."""
    teacher, method, contents = recipe.teacher, recipe.method, row_contents(recipe, run)
    judging = judged_by(recipe)
    if labels_rows(recipe):
        asks = method.validation_asked
        return prepare.gather(
            recipe.data, teacher.prompts, teacher.limit, recipe.seed, asks, contents, work, judged_by=judging
        )
    data = recipe.data
    if makes_rows(recipe):
        need(run, "label", "train")
        hold_made(run, "label")
        data = data_of(data, run.folder / "label" / ROWS)
    learns = material_of(recipe)
    splits = prepare.prepare(data, recipe.seed, contents=contents, learns=learns, work=work, judged_by=judging)
    return Asked([], splits, splits.notes, [])


def row_contents(recipe: Recipe, run: Run) -> dict[str, str]:
    """The digests that the sources of rows must have as they are read, by source.

    Of local files that is what the run's digest covers; of fetched ones, what the run found at their first use.
    """
    contents: dict[str, str] = dict(run.manifest().get("contents", {}))
    for key, source in sources_of(recipe).items():
        if source and not is_local(source) and not is_moving(source) and key.partition("[")[0] in SOURCES:
            digest = content_sha256(resolve(source, key=key))
            hold_source(run, key, source, digest, pinned_commit(source))
            contents[source] = digest
    return contents


def keep_learned(run: Run, material: Lessons) -> None:
    """Write `data/learned/`: the rows with their weights and reasons, and who said what to the development rows."""
    splits = material.splits
    with keep_data(run, LEARNED) as folder:
        write_lines(
            folder / "train.jsonl",
            (
                line_of(row, weight=material.weights.get(row.id), reason=material.reasons.get(row.id))
                for row in splits.train
            ),
        )
        write_lines(folder / "validation.jsonl", map(line_of, splits.validation))
        write_lines(folder / "development.jsonl", (line_of(row, said=answer) for row, answer in material.development))
        write_facts(folder, {"said": splits.notes, "datasets": splits.datasets})


def read_learned(recipe: Recipe, run: Run) -> Lessons:
    """What training has learned from; the test rows are the prepared ones."""
    weights: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for line in read_lines(run, LEARNED, "train.jsonl"):
        if "weight" in line:
            weights[line["id"]] = line["weight"]
        if "reason" in line:
            reasons[line["id"]] = line["reason"]
    facts = read_facts(run, LEARNED)
    splits = Splits(
        train=read_rows(run, LEARNED, "train.jsonl"),
        validation=read_rows(run, LEARNED, "validation.jsonl"),
        test=read_rows(run, PREPARED, "test.jsonl"),
        bad=quarantine(run),
        notes=facts["said"],
        datasets=named(facts["datasets"], recipe),
    )
    development = [(example_of(line), line["said"]) for line in read_lines(run, LEARNED, "development.jsonl")]
    return Lessons(splits, weights, reasons, development)


def read_prepared(recipe: Recipe, run: Run) -> Asked:
    """The prepared rows of a run that has them."""
    facts, parts = read_facts(run, PREPARED), {part: read_rows(run, PREPARED, f"{part}.jsonl") for part in PARTS}
    splits = Splits(**parts, bad=quarantine(run), notes=facts["said"], datasets=named(facts["datasets"], recipe))
    prompts = facts.get("prompts")
    if prompts is None:
        return Asked([], splits, splits.notes, [])
    examples = read_rows(run, PREPARED, "prompts.jsonl")
    return Asked(examples, splits, prompts["said"], named(prompts["datasets"], recipe), frozenset(prompts["judging"]))


def documents(recipe: Recipe, run: Run) -> tuple[Sequence[Example], Sequence[Example]]:
    """The documents that are learned, and those held out; the first who wants them writes `data/documents/`."""
    parts = ("train.jsonl", "validation.jsonl")
    if kept_data(run, DOCUMENTS) is None:
        tests = rows(recipe, run).test
        split = prepare.documents(recipe.data, recipe.seed, tests, row_contents(recipe, run))
        with keep_data(run, DOCUMENTS) as folder:
            for file, examples in zip(parts, (split.train, split.validation), strict=True):
                write_lines(folder / file, map(line_of, examples))
        for line in split.notes:
            say(run, "train", line)
        log_datasets(run, "train", split.datasets, ("training", "validation"))
    learned, held = (read_rows(run, DOCUMENTS, file) for file in parts)
    return learned, held


def part(recipe: Recipe, run: Run, name: str) -> Sequence[Example]:
    """One part of `rows`; the others are not read for it where they were written."""
    home = home_of(recipe, run, f"{name}.jsonl")
    return getattr(rows(recipe, run), name) if home is None else read_rows(run, home, f"{name}.jsonl")


def descriptions(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """The descriptions of the rows that were used, by part, as `data.prepare.describe` gives them."""
    home = home_of(recipe, run, FACTS)
    return rows(recipe, run).datasets if home is None else named(read_facts(run, home)["datasets"], recipe)


def named(datasets: list[dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """The descriptions by the name that the data have now: another name makes no other rows."""
    return [about | {"name": recipe.data.name or Path(about["source"]).stem} for about in datasets]


def home_of(recipe: Recipe, run: Run, file: str) -> str | None:
    """The folder of `data/` that has this file as it was learned; None where nobody has written it."""
    homes = [LEARNED] if labels_rows(recipe) and file != "test.jsonl" else [LEARNED, PREPARED]
    return next((home for home in homes if file in (kept_data(run, home) or {})), None)


def quarantine(run: Run) -> list[BadRow]:
    """The rows that could not be read."""
    if QUARANTINE not in (kept_data(run, PREPARED) or {}):
        return []
    return [BadRow(**line) for line in read_lines(run, PREPARED, QUARANTINE)]


def quarantine_file(run: Run) -> Path:
    """Where they are listed."""
    return run.folder / "data" / PREPARED / QUARANTINE


# The files: one row a line (`stored_rows`), each held against the SHA-256 that was noted when it was written.


def read_rows(run: Run, name: str, file: str) -> Sequence[Example]:
    """The rows of a file of `data/NAME`; of more than are held, a sequence that reads each as it is asked for."""
    stored = rows_in(checked_file(run, name, file))
    return stored if len(stored) > HELD else list(stored)


def read_lines(run: Run, name: str, file: str) -> Iterator[dict[str, Any]]:
    """Each line of a file of `data/NAME`, in order, once the file is known to be as it was written.

    Raises WorkbenchError when it is not.
    """
    path = checked_file(run, name, file)
    with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)


def checked_file(run: Run, name: str, file: str) -> Path:
    """A file of `data/NAME`, held against the SHA-256 that was noted when it was written. WorkbenchError otherwise."""
    path, wanted = run.folder / "data" / name / file, (kept_data(run, name) or {}).get(file)
    digest = content_sha256(path) if path.is_file() else None
    if digest is None or digest != wanted:
        raise WorkbenchError(
            "it is gone" if digest is None else f"it has changed: sha256 is {digest}, and was {wanted} when written",
            where=str(path),
            remedy="put the file back that this run has written, or begin the run again: fresh=true",
        )
    return path


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what is known of the rows beside them, on one line as they are."""
    write_lines(folder / FACTS, [json.dumps(facts, ensure_ascii=False)])


def read_facts(run: Run, name: str) -> dict[str, Any]:
    """What `write_facts` has written."""
    return next(read_lines(run, name, FACTS))


# What an evaluation asks beside the test is read once as well: its files may be gone when the arms are asked.


def question_sources(evaluate: Evaluate) -> dict[str, str]:
    """The files of questions, beside the recipe's rows, that are read for the verdict: the sources by their keys."""
    named = {"general": evaluate.general, "harmful": evaluate.harmful, "judge.human": evaluate.judge.human}
    return {key: source for key, source in named.items() if source}


def keep_questions(recipe: Recipe, run: Run) -> None:
    """Copy the files of questions that lie here into `data/questions/`, when they are not there as they are now."""
    kept = read_facts(run, QUESTIONS) if kept_data(run, QUESTIONS) is not None else {}
    here = {}
    for key, source in question_sources(recipe.evaluate).items():
        if not is_moving(source) and not is_missing(source) and is_here(source):
            path = resolve(source, key=f"evaluate.{key}")
            if path.is_file():
                here[key] = (path, {"source": source, "sha256": content_sha256(path), "file": f"{key}{path.suffix}"})
    wanted = kept | {key: facts for key, (_, facts) in here.items()}
    if wanted == kept:
        return
    stay = {key: checked_file(run, QUESTIONS, facts["file"]) for key, facts in kept.items() if key not in here}
    with keep_data(run, QUESTIONS) as folder:
        for key, path in (stay | {key: path for key, (path, _) in here.items()}).items():
            shutil.copyfile(path, folder / wanted[key]["file"])
        write_facts(folder, wanted)


def question_file(evaluate: Evaluate, run: Run, key: str) -> Path:
    """The file of questions that the recipe names; the run's own copy where it is not here any more."""
    source = question_sources(evaluate)[key]
    if is_missing(source) or not is_here(source):
        kept = read_facts(run, QUESTIONS).get(key, {}) if kept_data(run, QUESTIONS) is not None else {}
        if kept.get("source") == source:
            return checked_file(run, QUESTIONS, kept["file"])
    return resolve(source, key=f"evaluate.{key}")


def question_contents(evaluate: Evaluate, run: Run) -> dict[str, str]:
    """The digests of those files of questions that are local, by their sources."""
    sources = question_sources(evaluate)
    return {s: content_sha256(question_file(evaluate, run, key)) for key, s in sources.items() if is_local(s)}
