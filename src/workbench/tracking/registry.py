"""Register a run's models: logged, linked adapter → merged → quantized, proven; then aliases move, or go back.

What the gate refused is told, not offered: a refused format becomes a LoggedModel without weights (its run
folder keeps them), tagged `gate=refused`, and gets no version. Everything is found again by digest and sha256,
so a registration that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.command import next_command
from workbench.errors import RequestError, WorkbenchError
from workbench.files import artefact, read_json
from workbench.names import check_arm
from workbench.privacy.secrets import masked_values
from workbench.recipe import Tracking
from workbench.records import digest
from workbench.runs import hold_artefacts
from workbench.tracking import content, run_record
from workbench.tracking import versions as stored
from workbench.tracking.bounds import AwayError
from workbench.tracking.feed import catch_up
from workbench.tracking.outbound import Egress, Outbound, outbound, strings
from workbench.tracking.run_record import Line, interval_text
from workbench.tracking.store import Store, is_here, open_store, plain_name
from workbench.tracking.versions import check_signed, check_trusted
from workbench.tracking.vouching import note_champion, vouch

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

BESIDE = ("recipe.yaml", "report.json")  # files of a bundle that hold texts of the recipe and of rows
Download = Callable[[str, str, Path], Path]
Verify = Callable[[Path], None]


def register(
    folder: Path,
    tracking: Tracking,
    experiments: Path,
    *,
    passed: bool,
    shipped: Sequence[str],
    verify: Verify | None = None,
    download: Download = stored.download,
    egress: Egress | None = None,
) -> dict[str, Any]:
    """Register a run's student, and each format in `shipped`, and move the aliases; repeat it as often as you like.

    The aliases move to a version only after its files were downloaded again, had the hashes of `run.json` and stood
    `verify(folder)`, which raises WorkbenchError (left out: a trusted key must have signed them), and only when the
    gate has `passed`; they are taken from a version that the gate now refuses. An alias of a version
    whose proof fails goes back to the last earlier one that stands, or to none. Returns `{"models": {label: id},
    "versions": {name: version}, "aliases": {name: […]}, "refused": [label], "said": […]}`.
    `download(uri, location, into)` fetches what is proven.
    Raises WorkbenchError when the store is away or gives back other bytes.
    """
    fed = catch_up(folder, tracking, experiments, egress)
    manifest, events = read_json(folder / "run.json"), run_record.read_events(folder / "events.jsonl")
    recipe, report = run_record.recipe_of(folder, events), read_json(folder / "evaluate" / "report.json")
    name = plain_name(tracking.registered_model or manifest["recipe"])
    parts = find_parts(folder, manifest, name, passed=passed, shipped=shipped)
    finished = run_record.millis(manifest["stages"]["evaluate"]["finished"])
    ids: dict[str, str] = {}
    versions: dict[str, str] = {}
    given: dict[str, list[str]] = {}
    notes: list[str] = []
    with open_store(tracking, experiments, manifest["recipe"]) as store:
        out = outbound(store.uri, store.artefacts, recipe, f"{name}/{folder.name}", egress)
        for known in {p.registered or f"{name}-{p.label}" for p in parts if p.kind != "adapter"}:
            notes += repair(store, known, intact_check(store, experiments, download))
        for part in parts:
            run_id, parent = fed["stages"][part.stage], ids.get(part.parent or "")
            tags = model_tags(part, recipe, manifest)
            model = logged_model(store, part, run_id, parent, leaving_tags(tags, out), out)
            ids[part.label] = model.model_id
            link(store, run_id, model.model_id, parent)
            link(store, fed["run_id"], model.model_id, None)
            log_figures(store, run_id, model.model_id, figures_of(part, report), finished)
            if part.registered is None or out.rule == "withheld":
                if part.kind == "quantized":
                    notes += withdraw(store, f"{name}-{part.label}", part, manifest["digest"], ALIASES)
                continue
            tags = version_tags(part, model.model_id, recipe, manifest, report, events)
            version = registered_version(store, part, model, leaving_tags(tags, out))
            check_version(store, version, part, experiments, download, verify)
            vouch(folder, part.registered, part.sha256)
            shipping = passed and part.passed
            if shipping:
                notes += move_aliases(store, version)
            else:
                notes += withdraw(store, part.registered, part, manifest["digest"], ALIASES)
                notes.append(f"{part.registered} version {version.version} has no alias: the gate refuses it")
            versions[part.registered] = str(version.version)
            given[part.registered] = list(ALIASES if shipping else ())
    if out.rule == "withheld":
        notes.append(
            f"rows are {out.privacy}, and {out.to} is another machine: it gets figures and digests, and no model, for "
            "one can repeat its rows; a store on this machine (tracking.uri=null) registers it"
        )
    refused = [part.label for part in parts if part.kind != "adapter" and not part.passed]
    return {"models": ids, "versions": versions, "aliases": given, "refused": refused, "said": notes}


def leaving_tags(tags: Mapping[str, str], out: Outbound) -> dict[str, str]:
    """A model's tags as they may leave: of restricted rows those that no person wrote."""
    if out.rule == "withheld":
        return {name: value for name, value in tags.items() if name in PLAIN_TAGS}
    return masked_values(dict(tags)) if out.whole else dict(out.tree("model's tags", tags))


def refuse_personal(part: Part, out: Outbound) -> None:
    """WorkbenchError when the recipe or the report inside a signed bundle would take personal data along.

    They cannot be changed here: the bundle is signed whole.
    """
    for name in BESIDE if not out.whole else ():
        path = part.folder / name
        if path.is_file():
            before = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
            texts = list(strings(before))
            if out.texts(f"{part.label}/{name}", texts) != texts:
                raise WorkbenchError(
                    f"personal data stands in it, rows are {out.privacy}, and {out.to} is another machine",
                    where=str(path),
                    remedy="take it out of the recipe (or of the labels and slices) and bundle again, or use a store "
                    "on this machine (tracking.uri=null)",
                )


def logged_model(
    store: Store, part: Part, run_id: str, parent: str | None, tags: Mapping[str, str], out: Outbound
) -> LoggedModel:
    """The LoggedModel of these very bytes, found again or made; a kill in the middle is gone on from.

    A model of restricted rows is not stored on another machine.
    """
    client = store.client
    stored = (part.registered is not None or part.kind == "adapter") and out.rule != "withheld"
    wanted = {
        **tags,
        "weights": "stored" if stored else "in the run folder",
        **({"parent_model_id": parent} if parent else {}),
    }
    model = find_model(store, wanted)
    if model is None:
        params = {"format": part.format, "sha256": part.sha256, "recipe_digest": tags["digest"]}
        params |= {"parent_model_id": parent} if parent else {}
        name = plain_name(f"{tags['recipe']}-{part.label}")
        model = client.create_logged_model(store.experiment_id, name, run_id, wanted, params, model_type=part.kind)
    else:
        client.set_logged_model_tags(model.model_id, wanted)
    if str(model.status) == "READY" or not stored:
        # A model without weights must not look usable: MLflow's word for that is FAILED.
        return model if stored else client.finalize_logged_model(model.model_id, "FAILED")
    refuse_personal(part, out)
    out.file(f"model {part.label}", part.sha256, sum(p.stat().st_size for p in part.folder.rglob("*") if p.is_file()))
    client.log_model_artifacts(model.model_id, str(part.folder))
    return client.finalize_logged_model(model.model_id, "READY")


def find_model(store: Store, tags: Mapping[str, str]) -> LoggedModel | None:
    """The model with this run's digest and these bytes, unless its stored copy was found damaged."""
    keys = ("digest", "label", "sha256", "weights")
    query = " AND ".join(f"tags.{key} = '{tags[key]}'" for key in keys)
    models = store.client.search_logged_models([store.experiment_id], query)
    return next((model for model in models if model.tags.get("verified") != "false"), None)


def link(store: Store, run_id: str, model_id: str, parent: str | None) -> None:
    """Show the model as what its stage's run made, and the parent as what that run read."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    run = store.client.get_run(run_id)
    outputs = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
    inputs = {source.model_id for source in (run.inputs.model_inputs or [])} if run.inputs else set()
    if model_id not in outputs:
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    if parent and parent not in inputs:
        store.client.log_inputs(run_id, models=[LoggedModelInput(parent)])


def log_figures(store: Store, run_id: str, model_id: str, figures: Mapping[str, float], at_ms: int) -> None:
    """The evaluation's figures on the model and its stage's run, so that MLflow can compare models."""
    from mlflow.entities import Metric

    points = [Metric(name, value, at_ms, 0, model_id=model_id) for name, value in figures.items()]
    content.log_metrics(store, run_id, points)


def registered_version(store: Store, part: Part, model: LoggedModel, tags: Mapping[str, str]) -> ModelVersion:
    """The version of this LoggedModel, found again or made, its tags brought up to date."""
    from mlflow.exceptions import MlflowException

    assert part.registered
    client, name = store.client, part.registered
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    there = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in there if v.tags.get("model_id") == model.model_id), None)
    if version is None:
        # The model's own location as source: `models:/<id>` would be looked up in the process-wide store.
        version = client.create_model_version(
            name, model.artifact_location, model.source_run_id, dict(tags), model_id=model.model_id
        )
    else:
        for key, value in tags.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(name, version.version, key, value)
    known = [{"name": name, "version": int(version.version)}]
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps(known)})
    return version


def check_version(
    store: Store, version: ModelVersion, part: Part, experiments: Path, download: Download, verify: Verify | None
) -> None:
    """Download the version again and prove it.

    One that fails loses its aliases, aloud, and is marked, so that the next attempt stores it anew.
    """
    client, name, number = store.client, version.name, str(version.version)
    try:
        with downloaded(store, version, experiments, download) as into:
            stored.check(into, part.sha256, f"models:/{name}/{number}")
            if part.passed and verify is None:
                check_signed(into, name)
            elif part.passed and verify is not None:
                verify(into)
    except AwayError:  # it says nothing of the bytes
        raise
    except WorkbenchError as error:
        # The aliases first: a kill between the two steps leaves none on bytes that are known to be wrong.
        moved = take_back(store, name, number, intact_check(store, experiments, download))
        client.set_model_version_tag(name, number, "verified", "false")
        client.set_logged_model_tags(version.tags["model_id"], {"verified": "false"})
        if not moved:
            raise
        raise type(error)("; ".join([error.what, *moved]), where=error.where, remedy=error.remedy) from error
    client.set_model_version_tag(name, number, "verified", "true")


def intact_check(store: Store, experiments: Path, download: Download) -> IsIntact:
    """Whether a version that was proven once still is: its bytes are fetched anew and held against what vouches."""

    def is_intact(version: ModelVersion) -> bool:
        where = f"models:/{version.name}/{version.version}"
        try:
            with downloaded(store, version, experiments, download) as into:
                stored.check(into, version.tags.get("sha256", ""), where)
                check_trusted(into, version.name, where, experiments)
        except AwayError:
            raise
        except WorkbenchError:
            return False
        return True

    return is_intact


@contextlib.contextmanager
def downloaded(store: Store, version: ModelVersion, experiments: Path, download: Download) -> Iterator[Path]:
    """A version's files as the store gives them now, in a folder that is gone afterwards."""
    into = experiments / (".verify" if is_here(store.uri) else f".verify-{digest(store.uri, 8)}")
    shutil.rmtree(into, ignore_errors=True)  # a killed attempt's leavings; the store's lock is ours
    try:
        yield download(store.uri, store.client.get_model_version_download_uri(version.name, version.version), into)
    finally:
        shutil.rmtree(into, ignore_errors=True)


# Which version the aliases name: moved to what is proven, taken from what is not, always aloud. `champion` is what is
# in production, and `challenger` the newest that the gate let ship: they part where a person sets the champion back.

ALIASES = ("challenger", "champion")
IsIntact = Callable[["ModelVersion"], bool]


def holders(store: Store, name: str) -> dict[str, str]:
    """Alias → version of a registered model, empty when there is none."""
    models = store.client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for model in models for alias, version in (model.aliases or {}).items()}


def versions_of(store: Store, name: str) -> dict[str, ModelVersion]:
    """Number → version of a registered model; deleted ones are not among them."""
    return {str(version.version): version for version in store.client.search_model_versions(f"name = '{name}'")}


def move_aliases(store: Store, version: ModelVersion) -> list[str]:
    """The aliases to this version. Returns what changed, to be said aloud."""
    name, number, before = version.name, str(version.version), holders(store, version.name)
    notes = []
    for alias in ALIASES:
        if before.get(alias) != number:
            store.client.set_registered_model_alias(name, alias, number)
            notes.append(f"{name} version {number} is now {alias}")
        if alias == "champion":
            note_champion(store.uri, name, number)
    return notes


def withdraw(store: Store, name: str, part: Part, digest: str, aliases: Sequence[str]) -> list[str]:
    """Take aliases from a version of this run that shipped once and is refused now."""
    notes, known = [], versions_of(store, name)
    for alias, number in holders(store, name).items():
        tags = known[number].tags if number in known else {}
        if alias in aliases and (tags.get("digest"), tags.get("label")) == (digest, part.label):
            store.client.set_model_version_tag(name, number, "gate", "refused")
            store.client.delete_registered_model_alias(name, alias)
            if alias == "champion":
                note_champion(store.uri, name, None)
            notes.append(f"{name} version {number} is no longer {alias}: the gate refuses it")
    return notes


def take_back(store: Store, name: str, number: str, is_intact: IsIntact) -> list[str]:
    """Give every alias of a version whose proof failed back to the last earlier one that stands, else to none."""
    notes = []
    for alias, held in holders(store, name).items():
        if held != number:
            continue
        last = last_intact(store, name, number, is_intact)
        if last is None:
            store.client.delete_registered_model_alias(name, alias)
            rest = f"no earlier version is proven, so nothing is {alias} now"
        else:
            store.client.set_registered_model_alias(name, alias, last)
            rest = f"version {last} is {alias} again"
        if alias == "champion":
            note_champion(store.uri, name, last)
        notes.append(f"{name} version {number} is no longer {alias}, for its bytes are not proven; {rest}")
    return notes


def last_intact(store: Store, name: str, number: str, is_intact: IsIntact) -> str | None:
    """The newest earlier version that the gate let ship, was proven once, and stands its proof now."""
    known = versions_of(store, name)
    for earlier in sorted((n for n in known if int(n) < int(number)), key=int, reverse=True):
        tags = known[earlier].tags
        if tags.get("verified") == "true" and tags.get("gate") == "passed" and is_intact(known[earlier]):
            return earlier
    return None


def repair(store: Store, name: str, is_intact: IsIntact) -> list[str]:
    """Take aliases from versions that are marked unproven or are gone: what a killed registration left behind."""
    notes, known = [], versions_of(store, name)
    for number in sorted(set(holders(store, name).values()), key=int):
        if number not in known or known[number].tags.get("verified") == "false":
            notes += take_back(store, name, number, is_intact)
    return notes


# What of a run is registered, and what each model says of itself: its parent, its bytes, its data, its figures.


@dataclass(frozen=True)
class Part:
    """One model of a run. `arm` is its name in the evaluation; `registered` its name in the registry, if it has one."""

    label: str
    kind: str
    stage: str
    folder: Path
    sha256: str
    format: str
    parent: str | None
    arm: str | None
    passed: bool
    registered: str | None


def find_parts(
    folder: Path, manifest: Mapping[str, Any], name: str, *, passed: bool, shipped: Sequence[str]
) -> list[Part]:
    """The run's models, parents first: the adapter (unless every weight was trained), the student, each format.

    What ships is registered as its bundle, which a real engine has loaded. Raises RequestError when such a bundle is
    missing, WorkbenchError when files on disk are no longer the ones the manifest proves.
    """
    done = manifest.get("stages", {})
    if "merge" not in done:
        raise RequestError("there is no merged model to register", where=str(folder), remedy="run `train` first")
    parts = []
    adapter, merged = folder / "train" / "adapter", folder / "merge" / "model"
    if adapter.is_dir() and "train" in done:
        sha = checked_digest(folder, done["train"], adapter)
        parts.append(Part("adapter", "adapter", "train", adapter, sha, "peft", None, None, passed, None))
    parent = parts[0].label if parts else None
    fits = passed and "student" in shipped
    home, entry = bundled(folder, done, "student", manifest) if fits else (merged, done["merge"])
    sha = checked_digest(folder, entry, home)
    parts.append(Part("merged", "merged", "merge", home, sha, "safetensors", parent, "student", fits, name))
    for stage, made in done.items():
        if stage.startswith("quantize/"):
            arm = stage.removeprefix("quantize/")
            check_arm(arm, f"run.json: {stage}")
            fits = arm in shipped
            home, entry = bundled(folder, done, arm, manifest) if fits else (folder / stage, made)
            sha = checked_digest(folder, entry, home)
            format = str(made.get("facts", {}).get("format") or arm)
            offered = f"{name}-{arm}" if fits else None
            parts.append(Part(arm, "quantized", stage, home, sha, format, "merged", arm, fits, offered))
    return parts


def bundled(
    folder: Path, done: Mapping[str, Any], arm: str, manifest: Mapping[str, Any]
) -> tuple[Path, Mapping[str, Any]]:
    """The folder and the manifest's entry of an arm's bundle."""
    stage = f"bundle/{arm}"
    if stage not in done:
        raise RequestError(
            f"{arm} may ship, but no engine has loaded its bundle yet",
            where=str(folder),
            remedy=next_command("bundle", manifest["recipe"]),
        )
    return folder / stage, done[stage]


def checked_digest(folder: Path, entry: Mapping[str, Any], model: Path) -> str:
    """The digest of a model's folder, after what the manifest says of its stage has been found true on disk."""
    hold_artefacts(folder, entry)
    known = {folder / made["path"]: made["sha256"] for made in entry.get("artefacts", [])}
    return known.get(model) or artefact(model, folder).sha256


# Tags that hold nothing a person wrote freely.
PLAIN_TAGS = ("recipe", "digest", "kind", "label", "sha256", "gate", "base_source", "base_licence")


def model_tags(part: Part, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, str]:
    """The tags a LoggedModel is found again by, and what it was made from."""
    base = recipe.get("model") or {}
    stages = manifest.get("stages", {})
    # Weights that teach are named among training's facts.
    labels = (stages.get("label") or stages.get("train", {})).get("facts", {})
    tags = {
        **stages.get("merge", {}).get("facts", {}).get("duties", {}),
        "teacher": labels.get("teacher"),
        "teacher_terms": labels.get("terms"),
        "teacher_terms_acknowledged": labels.get("terms_acknowledged"),
        "recipe": manifest["recipe"],
        "digest": manifest["digest"],
        "kind": part.kind,
        "label": part.label,
        "sha256": part.sha256,
        "gate": "passed" if part.passed else "refused",
        "base_source": base.get("source"),
        "base_licence": base.get("licence"),
    }
    return {name: str(value) for name, value in tags.items() if value}


def version_tags(
    part: Part,
    model_id: str,
    recipe: Mapping[str, Any],
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    events: Sequence[Line],
) -> dict[str, str]:
    """A registered version's lineage: recipe, code, base model and its licence, rows, figures, the gate's word."""
    data = recipe.get("data") or {}
    rows = {line.body.get("role") or line.body.get("name"): line.body for line in events if line.kind == "dataset"}
    figures = report.get("arms", {}).get(part.arm, {})
    tags = {
        **model_tags(part, recipe, manifest),
        "model_id": model_id,
        "git": manifest.get("git"),
        "format": part.format,
        "data_licence": data.get("licence"),
        **{f"data.{role}": f"{body.get('digest')} ({body.get('rows')} rows)" for role, body in rows.items()},
        **{f"metric.{name}": interval_text(cell) for name, cell in figures.items()},
        "test_rows": report.get("n"),
    }
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


def figures_of(part: Part, report: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of this model's own arm; their intervals are tags of its version and a table of the run."""
    cells = report.get("arms", {}).get(part.arm, {})
    values = {run_record.metric_name(metric): run_record.value_of(cell) for metric, cell in cells.items()}
    kept = {name: value for name, value in values.items() if value is not None}
    return dict(list(kept.items())[: content.MOST_METRICS])
