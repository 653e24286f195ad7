"""Register a run's models: logged, linked adapter → merged → quantized, proven by download, then given their aliases.

What the gate refused is told, not offered: a refused format becomes a LoggedModel without weights (its run
folder keeps them), tagged `gate=refused`, and gets no version. Everything is found again by digest and sha256,
so a registration that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.errors import WorkbenchError
from workbench.recipe import Tracking
from workbench.runs import read_json
from workbench.tracking import aliases, content, lineage, run_record, trust
from workbench.tracking import versions as stored
from workbench.tracking.feed import catch_up
from workbench.tracking.lineage import Part
from workbench.tracking.outbound import Egress, Outbound, outbound, strings
from workbench.tracking.store import Store, open_store, plain_name

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

    `challenger` moves to a version only after its files were downloaded again, had the hashes of `run.json` and
    stood `verify(folder)`, which raises WorkbenchError (left out: a trusted key must have signed them); `champion` only
    when the gate has `passed` as well, and it is taken from a version that the gate now refuses. An alias of a version
    whose proof fails goes back to the last earlier one that stands, or to none. Returns `{"models": {label: id},
    "versions": {name: version}, "aliases": {name: […]}, "refused": [label], "said": […]}`.
    `download(uri, location, into)` fetches what is proven.
    Raises WorkbenchError when the store is away or gives back other bytes.
    """
    fed = catch_up(folder, tracking, experiments, egress)
    manifest, events = read_json(folder / "run.json"), run_record.read_events(folder / "events.jsonl")
    recipe, report = run_record.recipe_of(folder, events), read_json(folder / "evaluate" / "report.json")
    name = plain_name(tracking.registered_model or manifest["recipe"])
    parts = lineage.find_parts(folder, manifest, name, passed=passed, shipped=shipped)
    finished = run_record.millis(manifest["stages"]["evaluate"]["finished"])
    ids: dict[str, str] = {}
    versions: dict[str, str] = {}
    given: dict[str, list[str]] = {}
    said: list[str] = []
    with open_store(tracking, experiments, manifest["recipe"]) as store:
        out = outbound(store.uri, store.artefacts, recipe, f"{name}/{folder.name}", egress)
        for known in {p.registered or f"{name}-{p.label}" for p in parts if p.kind != "adapter"}:
            said += aliases.repair(store, known, stands_again(store, experiments, download))
        for part in parts:
            run_id, parent = fed["stages"][part.stage], ids.get(part.parent or "")
            tags = lineage.model_tags(part, recipe, manifest)
            model = logged_model(store, part, run_id, parent, leaving_tags(tags, out), out)
            ids[part.label] = model.model_id
            link(store, run_id, model.model_id, parent)
            link(store, fed["run_id"], model.model_id, None)
            log_figures(store, run_id, model.model_id, lineage.figures_of(part, report), finished)
            if part.registered is None or out.rule == "withheld":
                if part.kind == "quantized":
                    said += aliases.withdraw(store, f"{name}-{part.label}", part, manifest["digest"], aliases.ALIASES)
                continue
            tags = lineage.version_tags(part, model.model_id, recipe, manifest, report, events)
            version = registered_version(store, part, model, leaving_tags(tags, out))
            prove(store, version, part, experiments, download, verify)
            champion = passed and part.passed
            if not champion:
                said += aliases.withdraw(store, part.registered, part, manifest["digest"], ("champion",))
            said += aliases.move_aliases(store, version, champion=champion)
            versions[part.registered] = str(version.version)
            given[part.registered] = list(aliases.ALIASES if champion else aliases.ALIASES[:1])
    if out.rule == "withheld":
        said.append(
            f"rows are {out.privacy}, and {out.to} is another machine: it gets figures and digests, and no model, for "
            "one can repeat its rows; a store on this machine (tracking.uri=null) registers it"
        )
    refused = [part.label for part in parts if part.kind != "adapter" and not part.passed]
    return {"models": ids, "versions": versions, "aliases": given, "refused": refused, "said": said}


def leaving_tags(tags: Mapping[str, str], out: Outbound) -> dict[str, str]:
    """A model's tags as they may leave: of restricted rows those that no person wrote."""
    if out.rule == "withheld":
        return {name: value for name, value in tags.items() if name in lineage.PLAIN_TAGS}
    return dict(tags) if out.whole else dict(out.tree("model's tags", tags))


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
    found = store.client.search_logged_models([store.experiment_id], query)
    return next((model for model in found if model.tags.get("verified") != "false"), None)


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


def prove(
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
                trust.check_signed(into, name)
            elif part.passed and verify is not None:
                verify(into)
    except WorkbenchError as error:
        # The aliases first: a kill between the two steps leaves none on bytes that are known to be wrong.
        moved = aliases.take_back(store, name, number, stands_again(store, experiments, download))
        client.set_model_version_tag(name, number, "verified", "false")
        client.set_logged_model_tags(version.tags["model_id"], {"verified": "false"})
        if not moved:
            raise
        raise type(error)("; ".join([error.what, *moved]), where=error.where, remedy=error.remedy) from error
    client.set_model_version_tag(name, number, "verified", "true")


def stands_again(store: Store, experiments: Path, download: Download) -> aliases.Stands:
    """Whether a version that was proven once still is: its bytes are fetched anew and held against what vouches."""

    def stands(version: ModelVersion) -> bool:
        where = f"models:/{version.name}/{version.version}"
        try:
            with downloaded(store, version, experiments, download) as into:
                stored.check(into, version.tags.get("sha256", ""), where)
                trust.check_trusted(into, version.name, where, experiments)
        except WorkbenchError:
            return False
        return True

    return stands


@contextlib.contextmanager
def downloaded(store: Store, version: ModelVersion, experiments: Path, download: Download) -> Iterator[Path]:
    """A version's files as the store gives them now, in a folder that is gone afterwards."""
    into = experiments / ".verify"
    shutil.rmtree(into, ignore_errors=True)  # a killed attempt's leavings; the store's lock is ours
    try:
        yield download(store.uri, store.client.get_model_version_download_uri(version.name, version.version), into)
    finally:
        shutil.rmtree(into, ignore_errors=True)
