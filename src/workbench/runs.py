"""A run on disk: its folder, its lock, its events, and stages that are either whole or did not happen.

`stage()` hands out a staging folder beside the final one; only when the work is done are its files
flushed, hashed and renamed into place, and only then is the stage written into `run.json`. A process
killed at any point leaves the previous state or the next one, never a mixture.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.file_systems import refuse_local_locks
from workbench.files import (
    artefact,
    check_inside,
    close_to_others,
    disk_error,
    disk_errors,
    flush_tree,
    named_when_full,
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

SEALED = ".sealed.json"
RESUMED = ("label", "train", "evaluate", "route")  # stages that go on from what a stop has left in their staging folder
APPENDING = threading.Lock()  # threads of one process write a run's events; other processes are kept out by its lock


@dataclass(frozen=True)
class Run:
    """One run's folder. Everything it knows is on disk, so a second process sees the same."""

    folder: Path
    recipe_name: str
    digest: str

    def event(self, kind: str, *, stage: str | None = None, **fields: object) -> None:
        """Append one line to `events.jsonl`, the local truth that MLflow is fed from."""
        line = masked_values({"at": now(), "stage": stage, "kind": kind, **fields})
        append_line(
            self.folder / "events.jsonl",
            json.dumps(line, ensure_ascii=False, default=lambda value: masked(str(value))),
        )

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


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all: what a full disk has cut short is taken back."""
    data = memoryview(f"{line}\n".encode())
    with APPENDING, named_when_full(path), path.open("ab", buffering=0) as stream:
        before = os.fstat(stream.fileno()).st_size
        try:
            while data:
                data = data[stream.write(data) :]
        except OSError:
            os.ftruncate(stream.fileno(), before)
            raise


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of `events.jsonl`, and how many are torn: a kill or a full disk has cut them."""
    events, torn = [], 0
    for line in path.read_bytes().split(b"\n"):  # by no other sign: a text may hold what else ends a line
        try:
            event = json.loads(line) if line else None
        except ValueError:
            event, torn = None, torn + 1
        if isinstance(event, dict):
            events.append(event)
    return events, torn


def cut_torn_line(path: Path) -> int:
    """Cut off what follows a file's last newline, a line that a kill or a power cut has torn; gives its bytes."""
    if not path.is_file():
        return 0
    with path.open("r+b") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            stream.truncate(end)
    return len(content) - end


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
    with disk_errors(folder), locked(folder):
        if fresh:
            clear(folder)
        run = Run(folder, name, run_id)
        if not (folder / "run.json").exists():
            manifest = {"recipe": name, "digest": run_id, "created": now(), "stages": {}} | provenance()
            write_whole(folder / "run.json", json.dumps(manifest, indent=1))
            run.event("run", recipe=dict(recipe), recipe_name=name, digest=run_id)
        mend(run)
        write_whole(
            folder / "recipe.yaml", yaml.safe_dump(masked_values(dict(recipe)), sort_keys=False, allow_unicode=True)
        )
        yield run


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold its lock, which lies in it and survives `fresh`.

    The system frees the lock when its holder dies. Raises WorkbenchError when another process holds it, and
    RequestError where another machine would not see it.
    """
    refuse_local_locks(folder)
    folder.mkdir(parents=True, exist_ok=True)
    close_to_others(folder, folder.parent)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkbenchError(
            "another process is at work on this run", where=str(folder), remedy="wait for it, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Empty a run's folder; seals and `run.json` go first, so that a half-cleared run is a new one."""
    for seal in seals_in(folder):
        remove(seal, folder)
    (folder / "run.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != ".lock":
            remove(path, folder)


def provenance() -> dict[str, Any]:
    """Library versions and the git revision the run was made with."""
    return {"versions": dict(versions()), "git": revision()}


@functools.cache
def versions() -> dict[str, str]:
    """The version of each library that is here; what is imported does not change while the process lives."""
    there = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            there[library] = metadata.version(library)
    return there


def staging_folder(run: Run, stage: str) -> Path:
    """Where a stage works before it is whole: beside its final folder."""
    final = run.folder / stage
    return final.with_name(f".{final.name}.staging")


@contextlib.contextmanager
def stage(run: Run, name: str, fingerprint: str, *, resume: bool = False) -> Iterator[Staging]:
    """Do one stage's work in a staging folder and, if it ends well, make it part of the run.

    `resume` keeps what a killed attempt left in the staging folder; without it that goes when the work fails. Names
    listed in `Staging.scratch` are no part of the result: they go last, for an attempt that is killed before its end is
    made again from them.
    `Staging.artefacts` names what the manifest hashes (paths inside the folder); empty means the folder as a whole.
    Once the work is whole, a seal beside the folder says so: from then on it is finished by whoever opens the run.
    Raises WorkbenchError naming the folder when the disk is full, or fails otherwise.
    """
    for part in name.split("/"):
        check_name(part, f"stage {name}")
    final, folder = run.folder / name, staging_folder(run, name)
    for place in (final, folder):
        check_inside(place, run.folder)
    remove(seal_path(run, name), run.folder)
    if not resume:
        remove(folder, run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Staging(folder, final)
    started = time.monotonic()
    run.event("stage_started", stage=name, fingerprint=fingerprint)
    try:
        yield staging
        complete(run, seal(run, name, fingerprint, staging, started))
    except BaseException as error:
        refusal = disk_error(error, run.folder) if isinstance(error, Exception) else None
        shown = refusal or error
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(shown).__name__}: {shown}"
        if not resume and not seal_path(run, name).exists():  # on a full disk it would only be in the way
            with contextlib.suppress(OSError):
                remove(folder, run.folder)
        with contextlib.suppress(OSError):  # a disk that is full has no room for this either
            run.event("stage_failed", stage=name, why=why)
        if refusal is not None and refusal is not error:
            raise refusal from error
        raise


# The end of a stage. Every step leaves a state from which `mend` goes on: sealed in staging, sealed in its place,
# sealed and in the manifest. The checkpoints and other scratch are there until the manifest is.


def seal_path(run: Run, name: str) -> Path:
    """Where the seal of a stage that is whole lies until the stage's end is done."""
    final = run.folder / name
    return final.with_name(f".{final.name}{SEALED}")


def seals_in(folder: Path) -> list[Path]:
    """Every seal in a run's folder."""
    return sorted([*folder.glob(f".*{SEALED}"), *folder.glob(f"*/.*{SEALED}")])


def seal(run: Run, name: str, fingerprint: str, staging: Staging, started: float) -> dict[str, Any]:
    """Flush and hash a stage's folder, and write its entry of the manifest beside it: the work is whole."""
    flush_tree(staging.folder)
    parts = [staging.folder / part for part in staging.artefacts] or [staging.folder]
    made = [artefact(part, staging.folder, leave_out=staging.scratch) for part in parts]
    entry = {
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - started, 1),
        "finished": now(),
        "artefacts": [asdict(moved(a, name)) for a in made],
        "facts": staging.facts,
    }
    values = {"stage": name, "run": run.manifest()["created"], "entry": entry, "scratch": list(staging.scratch)}
    values = json.loads(json.dumps(values))  # as it will be read, tuples and numbers as keys too
    write_whole(seal_path(run, name), json.dumps({**values, "sha256": digest(values)}, ensure_ascii=False))
    return values


def complete(run: Run, sealed: dict[str, Any]) -> None:
    """Put a sealed stage in its place, then into the manifest; then tell of it, and remove scratch and seal."""
    name, entry = sealed["stage"], sealed["entry"]
    final, folder = run.folder / name, staging_folder(run, name)
    if run.done(name) != entry:
        forget(run, name)
        if folder.exists():
            replace_folder(folder, final)
        manifest = run.manifest()
        manifest["stages"][name] = entry
        write_whole(run.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    run.event("stage_done", stage=name, **{k: entry[k] for k in ("seconds", "facts", "artefacts")})
    with contextlib.suppress(OSError):  # the stage is whole and in the manifest
        for part in sealed["scratch"]:
            remove(final / part, run.folder)
        remove(seal_path(run, name), run.folder)


def mend(run: Run) -> None:
    """Finish or remove, aloud, what a process that was killed has left in the run; its lock is held."""
    torn = cut_torn_line(run.folder / "events.jsonl")
    if torn:
        tell(run, f"the last line of events.jsonl was torn: its {torn:,} bytes are cut off")
    for path in seals_in(run.folder):
        sealed = read_seal(run, path)
        name = str(path.relative_to(run.folder).with_name(path.name[1:].removesuffix(SEALED)))
        if sealed is None:
            tell(run, f"the seal of {name} is not as it was written, or another run's: the stage is done again")
            remove(path, run.folder)
            continue
        entry = sealed["entry"]
        if run.done(name) != entry:
            places = [staging_folder(run, name), run.folder / name]
            here = next((place for place in places if place.exists()), None)
            if here is None or not holds(here, name, entry, sealed["scratch"]):
                tell(run, f"{name} was whole when it was stopped, and is not any more: it is done again")
                remove(path, run.folder)
                continue
            tell(run, f"{name} was whole when it was stopped: it is taken into the run")
        complete(run, sealed)
    for path in leftovers(run):
        tell(run, f"{path.relative_to(run.folder)} was left behind by a stop: it is removed")
        remove(path, run.folder)


def read_seal(run: Run, path: Path) -> dict[str, Any] | None:
    """A seal of this run's, as it was written; None for any other."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        whole = values.pop("sha256") == digest(values) and values["run"] == run.manifest()["created"]
        return values if whole and seal_path(run, values["stage"]) == path else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def holds(folder: Path, name: str, entry: Mapping[str, Any], scratch: Sequence[str]) -> bool:
    """Whether a folder has the artefacts that a stage's entry lists, byte for byte."""
    for listed in entry["artefacts"]:
        part = folder / (listed["path"][len(name) + 1 :] or ".")
        if not part.exists() or artefact(part, folder, leave_out=scratch).sha256 != listed["sha256"]:
            return False
    return True


def hold_artefacts(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raise WorkbenchError unless all that a stage has made is in the run's folder, byte for byte as its entry says."""
    for made in entry.get("artefacts", []):
        path = folder / made["path"]
        if not path.exists() or artefact(path, folder).sha256 != made["sha256"]:
            raise WorkbenchError(
                "these files are not the ones the stage made",
                where=str(path),
                remedy="put them back, or delete all of this and run `train` again: it is made anew",
            )


def leftovers(run: Run) -> list[Path]:
    """What a killed process has left that no stage goes on from.

    What it was half through writing or removing; and the staging folders of stages that begin anew. A folder that was
    set aside counts only where another stands in its place.
    """
    folders = [run.folder, *(path for path in run.folder.iterdir() if path.is_dir() and path.name[0] != ".")]
    paths = [path for folder in folders for path in folder.glob(".*.partial")]
    for folder in folders:
        paths += [path for path in folder.glob(".*.old") if (folder / path.name[1:].removesuffix(".old")).exists()]
        paths += folder.glob(".*.staging")
    resumed = {staging_folder(run, name) for name in RESUMED}
    return sorted(path for path in paths if path not in resumed)


def tell(run: Run, text: str) -> None:
    """Say on the screen and in the events what was mended."""
    print(masked(f"  {text}"), file=sys.stderr)
    run.event("said", stage="run", text=text)


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
