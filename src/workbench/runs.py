"""A run on disk: its folder, its lock, its events, and stages that are either whole or did not happen.

`stage()` hands out a staging folder beside the final one; only when the work is done are its files
flushed, hashed and renamed into place, and only then is the stage written into `run.json`. A process
killed at any point leaves the previous state or the next one, never a mixture.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.files import (
    artefact,
    check_inside,
    close_to_others,
    flush_tree,
    read_json,
    remove,
    replace_folder,
    sync_folder,
    write_whole,
)
from workbench.names import check_name
from workbench.privacy.secrets import masked, masked_values
from workbench.records import Artefact, digest
from workbench.revision import revision

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "mlflow-skinny",
    "hydra-core", "llmcompressor", "auto-round", "xllamacpp",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run's folder. Everything it knows is on disk, so a second process sees the same."""

    folder: Path
    recipe_name: str
    digest: str

    def event(self, kind: str, *, stage: str | None = None, **fields: object) -> None:
        """Append one line to `events.jsonl`, the local truth that MLflow is fed from."""
        line = masked_values({"at": now(), "stage": stage, "kind": kind, **fields})
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False, default=lambda value: masked(str(value))) + "\n")

    def manifest(self) -> dict[str, Any]:
        """`run.json` as it stands."""
        return read_json(self.folder / "run.json")

    def done(self, stage: str) -> dict[str, Any] | None:
        """The manifest's entry of a stage that is whole, or None."""
        return self.manifest()["stages"].get(stage)

    def output_digest(self, stage: str) -> str:
        """What a later stage depends on: the digest over a finished stage's artefacts."""
        entry = self.done(stage)
        if entry is None:
            raise WorkbenchError(f"stage {stage} is not done in {self.folder}")
        return digest({a["path"]: a["sha256"] for a in entry["artefacts"]}, 16)


@dataclass
class Staging:
    """What a stage writes into: a folder, the facts for the manifest, and which parts are artefacts."""

    folder: Path
    final: Path
    facts: dict[str, Any] = field(default_factory=dict)
    artefacts: list[str] = field(default_factory=list)
    scratch: list[str] = field(default_factory=list)


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_digest(weights: Mapping[str, Any], data_digests: Mapping[str, str]) -> str:
    """The run's 8 hex digits: all that makes its weights, the data's content included."""
    return digest({"weights": weights, "data": dict(data_digests)}, 8)


def hold_source(run: Run, key: str, source: str, sha256: str, commit: str | None = None) -> None:
    """Note at its first use what a source of this run held, and refuse it when it holds other bytes later.

    `commit` is a hub's, for people; the digest decides. The note stands in `run.json` under `sources`, by the key.
    """
    manifest = run.manifest()
    held = manifest.get("sources", {}).get(key)
    if held is None:
        facts = {"source": source, "sha256": sha256} | ({"commit": commit} if commit else {})
        manifest.setdefault("sources", {})[key] = facts
        write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        run.event("source", key=key, **facts)
    elif held["sha256"] != sha256:
        raise WorkbenchError(
            f"its bytes are not those that this run began with: sha256 is {sha256}, and was {held['sha256']}",
            where=f"{key}={source}",
            remedy="put the earlier ones back, or begin again with these: fresh=true",
        )


def hold_contents(run: Run, contents: Mapping[str, str]) -> None:
    """Note the digests of the local sources that the run's digest covers, in `run.json` under `contents`."""
    manifest = run.manifest()
    if manifest.get("contents") != dict(contents):
        manifest["contents"] = dict(contents)
        write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))


def other_contents(run: Run, contents: Mapping[str, str]) -> dict[str, list[str]]:
    """The sources that other runs of this recipe have read with other content: the runs' digests by source."""
    others: dict[str, list[str]] = {}
    for path in sorted(run.folder.parent.glob("*/run.json")):
        if path.parent == run.folder:
            continue
        with contextlib.suppress(OSError, ValueError):
            for name, sha256 in read_json(path).get("contents", {}).items():
                if contents.get(name, sha256) != sha256:
                    others.setdefault(name, []).append(path.parent.name)
    return others


def find_run(experiments: Path, name: str, run_id: str) -> Run | None:
    """The run if it exists already; reads only."""
    folder = experiments / name / run_id
    return Run(folder, name, run_id) if (folder / "run.json").is_file() else None


@contextlib.contextmanager
def open_run(experiments: Path, name: str, run_id: str, recipe: Mapping[str, Any], *, fresh: bool) -> Iterator[Run]:
    """Lock and open a run, creating it when it is new; `fresh` clears it first.

    Raises WorkbenchError when another process holds the run's lock.
    """
    check_name(name, "recipe")
    folder = experiments / name / run_id
    folder.mkdir(parents=True, exist_ok=True)
    close_to_others(folder, folder.parent)
    # The lock lies beside the folder's content and survives `fresh`; the system frees it when its holder dies.
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkbenchError(
            "another process is at work on this run", where=str(folder), remedy="wait for it, or stop it"
        ) from None
    try:
        if fresh:
            clear(folder)
        run = Run(folder, name, run_id)
        if not (folder / "run.json").exists():
            manifest = {"recipe": name, "digest": run_id, "created": now(), "stages": {}} | provenance()
            write_whole(folder / "run.json", json.dumps(manifest, indent=1))
            run.event("run", recipe=dict(recipe), recipe_name=name, digest=run_id)
        write_whole(
            folder / "recipe.yaml", yaml.safe_dump(masked_values(dict(recipe)), sort_keys=False, allow_unicode=True)
        )
        yield run
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Empty a run's folder; `run.json` goes first, so that a half-cleared run is a new one."""
    (folder / "run.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != ".lock":
            remove(path, folder)


def provenance() -> dict[str, Any]:
    """Library versions and the git revision the run was made with."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return {"versions": versions, "git": revision()}


def staging_folder(run: Run, stage: str) -> Path:
    """Where a stage works before it is whole: beside its final folder."""
    final = run.folder / stage
    return final.with_name(f".{final.name}.staging")


@contextlib.contextmanager
def stage(run: Run, name: str, fingerprint: str, *, resume: bool = False) -> Iterator[Staging]:
    """Do one stage's work in a staging folder and, if it ends well, make it part of the run.

    `resume` keeps what a killed attempt left in the staging folder. Names listed in
    `Staging.scratch` are deleted before hashing. `Staging.artefacts` names what the manifest
    hashes (paths inside the folder); empty means the folder as a whole.
    """
    for part in name.split("/"):
        check_name(part, f"stage {name}")
    final, folder = run.folder / name, staging_folder(run, name)
    for place in (final, folder):
        check_inside(place, run.folder)
    if not resume:
        remove(folder, run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Staging(folder, final)
    started = time.monotonic()
    run.event("stage_started", stage=name, fingerprint=fingerprint)
    try:
        yield staging
    except BaseException as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        run.event("stage_failed", stage=name, why=why)
        raise
    for part in staging.scratch:
        remove(folder / part, run.folder)
    flush_tree(folder)
    parts = [folder / part for part in staging.artefacts] or [folder]
    made = [artefact(part, folder) for part in parts]
    entry = {
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - started, 1),
        "finished": now(),
        "artefacts": [asdict(moved(a, name)) for a in made],
        "facts": staging.facts,
    }
    forget(run, name)
    replace_folder(folder, final)
    manifest = run.manifest()
    manifest["stages"][name] = entry
    write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    run.event("stage_done", stage=name, **{k: entry[k] for k in ("seconds", "facts", "artefacts")})


@contextlib.contextmanager
def keep_data(run: Run, name: str) -> Iterator[Path]:
    """Fill the folder `data/NAME` of a run: it is there whole, and noted in `run.json` under `data`, or not at all.

    The note has each file's SHA-256 and size, by which `kept_data` and whoever reads a file hold it.
    """
    final = run.folder / "data" / name
    folder = staging_folder(run, f"data/{name}")
    for place in (final, folder):
        check_inside(place, run.folder)
    remove(folder, run.folder)
    folder.mkdir(parents=True)
    yield folder
    flush_tree(folder)
    sync_folder(run.folder)  # `data/` itself may be new
    files = {path.name: artefact(path, folder) for path in sorted(folder.iterdir())}
    manifest = run.manifest()
    if manifest.get("data", {}).pop(name, None) is not None:  # before its folder is replaced
        write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    replace_folder(folder, final)
    noted = {file: {"sha256": made.sha256, "bytes": made.bytes} for file, made in files.items()}
    manifest.setdefault("data", {})[name] = {"finished": now(), "files": noted}
    write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))


def kept_data(run: Run, name: str) -> dict[str, str] | None:
    """The SHA-256 of each file in a run's `data/NAME`; None when it has not been written."""
    noted = run.manifest().get("data", {}).get(name)
    return None if noted is None else {file: facts["sha256"] for file, facts in noted["files"].items()}


def moved(made: Artefact, stage_name: str) -> Artefact:
    """The same artefact, its path told from the run's folder."""
    path = stage_name if made.path == "." else f"{stage_name}/{made.path}"
    return Artefact(path, made.sha256, made.bytes)


def forget(run: Run, name: str) -> None:
    """Take a stage out of the manifest, before its folder is replaced."""
    manifest = run.manifest()
    if manifest["stages"].pop(name, None) is not None:
        write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))
