"""Re-check: what is in production answers fresh rows, and is held against the score that it was registered with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from workbench import errors
from workbench.bundles.prove import stand, trusted_key
from workbench.data.load import write_quarantine
from workbench.data.prepare import describe
from workbench.errors import GateError, RequestError, WorkbenchError
from workbench.evaluation.answers import Prediction, ask_arm
from workbench.evaluation.drift import DRIFTED, drift, drift_table
from workbench.evaluation.report import build_report
from workbench.recipe import Evaluate
from workbench.runs import now, write_whole
from workbench.stages.bundle import bundle_checks
from workbench.stages.production import (
    Production,
    engine_of,
    fresh_rows,
    known_lines,
    known_rows,
    late,
    read_production,
)
from workbench.tracking import resolve_source
from workbench.tracking.versions import Version, tag, version_named, version_of

SCREEN = Console(stderr=True, highlight=False)
MODELS = ("models:/", "mlflow:models:/")
RECHECKS = Path("experiments") / "rechecks"


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
    with bundle_at(source, words["key"]) as (folder, version):
        stand(bundle_checks(folder, words["key"]), source)
        found = read_production(folder, words["function"])
        version = version or registered_as(found)
        told = recheck(found, version, source, rows, words["engine"])
    if version is not None:
        write_tags(version, told)
    if words["output"] == "json":
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        heading = f"{source}: {told['n']:,} fresh rows of {rows}, {100 * told['confidence']:.3g} % intervals"
        Console(highlight=False).print(drift_table(told, heading, told["confidence"]))
    SCREEN.print(told["sentence"], markup=False, soft_wrap=True)
    SCREEN.print(f"kept in {told['folder']}", markup=False, soft_wrap=True)
    if told["verdict"] == DRIFTED:
        raise GateError(f"{source} has drifted: {told['sentence']}", where=rows, remedy=what_to_do(told, found))
    return errors.OK


@contextmanager
def bundle_at(source: str, key: str) -> Iterator[tuple[Path, Version | None]]:
    """The bundle's folder, and the version that its name in the registry stands for at this moment."""
    if not source.startswith(MODELS):
        yield Path(source).expanduser(), None
        return
    version = version_named(source)
    with tempfile.TemporaryDirectory(prefix="workbench-recheck-") as temporary:
        yield resolve_source(version.source, Path(temporary) / "bundle", trusted_key(key)), version


def registered_as(found: Production) -> Version | None:
    """The version that a folder was registered as; a store that cannot be asked is said."""
    try:
        version = version_of(found.folder, found.manifest["name"])
    except WorkbenchError as error:
        say(f"the registry cannot be asked: {error}")
        return None
    if version is None:
        say("this folder is no version of the registry here: nothing is tagged")
    return version


def recheck(found: Production, version: Version | None, source: str, rows: str, wanted: str) -> dict[str, Any]:
    """Ask, score, compare and keep. Answers that were given before are not asked again."""
    loaded = fresh_rows(rows, found.data)
    examples, known = loaded.examples, known_rows(loaded.examples, found)
    said = [*loaded.said, *found.said, *known_lines(known)]
    about = describe(examples, "fresh", rows, found.data)
    mark = f"v{version.number}" if version else found.manifest["digest"]
    folder = RECHECKS / f"{found.manifest['name']}-{mark}" / about["digest"][:12]
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        engine, key, start = engine_of(found, wanted)
        before = found.report.get("engines", {}).get(found.arm, engine)
        if before != engine:
            said.append(f"{engine} answers here; the registered score was taken in {before}")
        if loaded.bad:
            write_quarantine(loaded.bad, folder / "quarantine.jsonl")
        for line in said:
            say(line)
        predictions = ask_arm(
            found.arm, key, late(start), examples, [e.prompt for e in examples],
            max_new_tokens=found.evaluate.max_new_tokens, out=folder / "predictions.jsonl",
        )  # fmt: skip
        told = verdict(found, predictions, said)
        told |= {
            "model": source, "name": found.manifest["name"], "version": version.number if version else None,
            "run": found.manifest["run"], "arm": found.arm, "engine": engine, "registered_engine": before,
            "data": about, "known": known, "folder": str(folder), "at": now(), "said": said,
        }  # fmt: skip
        write_whole(folder / "report.json", json.dumps(told, indent=1, ensure_ascii=False))
    return told


def verdict(found: Production, predictions: Sequence[Prediction], said: list[str]) -> dict[str, Any]:
    """The fresh rows' metrics, and whether they are certainly lower than the registered ones."""
    evaluate = with_new_labels(found.evaluate, [p.expected for p in predictions], said)
    evaluate = replace(evaluate, primary=found.primary)
    fresh = build_report("fresh rows", evaluate, {found.arm: predictions}, {}, found.report["seed"])
    told = drift(
        found.registered,
        fresh["arms"][found.arm],
        found.primary,
        registered_n=found.report["n"],
        n=fresh["n"],
        confidence=evaluate.confidence,
    )
    return told | {
        "n": fresh["n"], "clusters": fresh["clusters"], "registered_n": found.report["n"],
        "confidence": evaluate.confidence, "metrics": fresh["metrics"], "fresh": fresh["arms"][found.arm],
    }  # fmt: skip


def with_new_labels(evaluate: Evaluate, wanted: Sequence[str], said: list[str]) -> Evaluate:
    """The set of labels with those that only the fresh rows want: a class that is new there is part of what drifted."""
    if evaluate.scorer != "label" or not evaluate.labels:
        return evaluate
    new = sorted({text.strip() for text in wanted} - {label.strip() for label in evaluate.labels})
    if new:
        shown = ", ".join(map(repr, new[:5])) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        said.append(f"labels that were not there when it was registered: {shown}")
        say(said[-1])
    return replace(evaluate, labels=[*evaluate.labels, *new])


def write_tags(version: Version, told: Mapping[str, Any]) -> None:
    """The verdict on the version in the registry; a store that is away is said."""
    first = next((row for row in told["differences"] if row["metric"] == told["primary"]), None)
    tags = {
        "recheck": told["verdict"],
        "recheck.at": told["at"],
        "recheck.data": f"{told['data']['digest']} ({told['n']} rows)",
        "recheck.sentence": told["sentence"],
    }
    if first:
        tags["recheck.metric"] = told["primary"]
        tags["recheck.delta"] = f"{first['delta']:+.4f} [{first['ci_low']:+.4f}, {first['ci_high']:+.4f}]"
    try:
        tag(version, tags)
        say(f"version {version.number} of {version.name} is tagged recheck={told['verdict']}")
    except WorkbenchError as error:
        say(f"the version is not tagged: {error}")


def what_to_do(told: Mapping[str, Any], found: Production) -> str:
    """The next step after a drift."""
    return (
        f"look at {told['folder']}/predictions.jsonl for what is answered wrongly; add such rows, with right answers, "
        f"to data.train and data.test, then: python -m workbench train recipe={found.manifest['recipe']}; until that "
        "ships, an earlier version may do better: `python -m workbench ui` shows them"
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
