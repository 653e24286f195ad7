"""What goes into MLflow's runs: metrics, data sets, samples, the recipe, files, each only when new."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.files import file_sha256, read_json, write_whole
from workbench.privacy.secrets import masked
from workbench.recipe import Recipe
from workbench.records import digest
from workbench.tracking import outbound as leaving
from workbench.tracking import run_record
from workbench.tracking.outbound import Outbound
from workbench.tracking.run_record import Line
from workbench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

METRICS_A_BATCH, PARAMS_A_BATCH, TAGS_A_BATCH = 1000, 100, 100
DATASET_DIGEST, DATASET_SOURCE = 36, 2000
TABLES_TAG = "mlflow.loggedArtifacts"
MOST_METRICS = 40  # of a run: more of them, and nobody finds the curve
INTERVAL_ENDS = ("_ci_low", "_ci_high")
REPORT = "evaluate/report.html"
# Parameters of every run, set or not: a column of which half is empty cannot be compared.
ALWAYS = ("model.name", "model.source", "data.train", "seed", "method.kind", "method.rank", "method.alpha",
          "method.learning_rate", "method.batch_size", "method.epochs", "method.max_steps",
          "method.max_length")  # fmt: skip
FACTS = ("model.notes", "model.licence_url", "model.layers", "model.hidden_size", "model.intermediate_size",
        "model.vocabulary", "output", "debug")  # facts of a noun, and how a command speaks: in recipe.yaml  # fmt: skip
TEXTS = (".yaml", ".json", ".jsonl", ".html", ".svg", ".txt", ".md", ".csv")


def find_parent(store: Store, fed: Fed) -> str | None:
    """The id of the parent run, if there is one."""
    return search(store, f"tags.run = '{fed.run}' AND tags.stage = 'all'").get("all")


def search(store: Store, query: str) -> dict[str, str]:
    """Stage → run id of the runs a filter finds; the oldest where a kill left two."""
    runs = store.client.search_runs([store.experiment_id], query, max_results=1000, order_by=["attributes.start_time"])
    return {run.data.tags.get("stage", ""): run.info.run_id for run in reversed(runs)}


def home_of(fed: Fed, stage: str | None) -> str:
    """The MLflow run that shows what a stage tells: the parent for training, whose curves are looked at first."""
    return fed.parent if stage == "train" else fed.stages.get(stage or "", fed.parent)


def feed_metrics(store: Store, fed: Fed, events: Sequence[Line]) -> int:
    """Log the metric events after those that were fed, with their step and time. Gives how many they are.

    At most MOST_METRICS names a run. Ends of intervals are no metrics: they stand in the report's tables.
    """
    from mlflow.entities import Metric

    names: dict[str, set[str]] = {}
    runs: dict[str, list[Metric]] = {}
    for line, value in run_record.points(events):
        run_id, name = home_of(fed, line.stage), run_record.metric_name(str(line.body["name"]))
        known = names.setdefault(run_id, set())
        if name.endswith(INTERVAL_ENDS) or (name not in known and len(known) >= MOST_METRICS):
            continue
        known.add(name)
        if line.end > fed.offset:
            point = Metric(name, value, line.at_ms, int(line.body.get("step") or 0))
            runs.setdefault(run_id, []).append(point)
    for run_id, metrics in runs.items():
        log_metrics(store, run_id, metrics)
    return sum(map(len, runs.values()))


def room_on_parent(events: Sequence[Line]) -> int:
    """How many metrics the parent run can still hold beside those that the events give it."""
    names = {str(line.body["name"]) for line, _ in run_record.points(events) if line.stage in ("train", None)}
    return max(0, MOST_METRICS - len(names))


def log_metrics(store: Store, run_id: str, metrics: Sequence[Any]) -> None:
    """Log metrics, as many at once as MLflow takes."""
    for start in range(0, len(metrics), METRICS_A_BATCH):
        store.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])


def log_tags(store: Store, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags, as many at once as MLflow takes; None is left out."""
    from mlflow.entities import RunTag

    # Masked before they are cut: half a secret would not be known for one.
    known = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for k, v in tags.items()}
    texts = {masked(k): masked(v) for k, v in known.items() if tags[k] is not None}
    kept = [RunTag(run_record.metric_name(k), run_record.text_of(v, run_record.MAX_TAG)) for k, v in texts.items()]
    for start in range(0, len(kept), TAGS_A_BATCH):
        store.client.log_batch(run_id, tags=kept[start : start + TAGS_A_BATCH])


def log_tables(store: Store, run_id: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Tables in MLflow's layout as artefacts, added to those that the run's page offers for comparison."""
    for path, table in tables.items():
        store.client.log_text(run_id, json.dumps(table, ensure_ascii=False), path)
    known = json.loads(store.client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
    paths = dict.fromkeys([*(entry["path"] for entry in known), *tables])
    log_tags(store, run_id, {TABLES_TAG: json.dumps([{"path": path, "type": "table"} for path in paths])})


def feed_datasets(store: Store, fed: Fed, events: Sequence[Line], out: Outbound) -> None:
    """Data sets as inputs, with digest and role, of the parent run and of the stage that read them."""
    known = [line for line in events if line.kind == "dataset"]
    if not fed.is_new("datasets", [line.body for line in known]):
        return
    for line in known:
        name, source = out.texts("data set", [str(line.body.get(key, "")) for key in ("name", "source")]) or ("", "")
        body = {**line.body, "name": name or str(line.body.get("role", "rows")), "source": source}
        for run_id in {fed.parent, fed.stages.get(line.stage or "", fed.parent)}:
            store.client.log_inputs(run_id, datasets=[dataset_input(body)])


def dataset_input(body: Mapping[str, Any]) -> DatasetInput:
    """One `dataset` event as MLflow's data-set input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": str(body.get("source", ""))[:DATASET_SOURCE]})
    profile = json.dumps({"num_rows": body.get("rows")})
    kept = str(body.get("digest", ""))[:DATASET_DIGEST]
    data = Dataset(str(body.get("name", "rows"))[:500], kept, "local", source, profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", str(body.get("role", "")))])


def feed_texts(store: Store, fed: Fed, events: Sequence[Line], out: Outbound) -> None:
    """Sample answers as a table of their stage, and what was said as a text; both rewritten whole, so never doubled.

    Neither leaves where rows are restricted.
    """
    if out.rule == "withheld":
        return
    for run_id in {*fed.stages.values(), fed.parent}:
        here = [line for line in events if home_of(fed, line.stage) == run_id]
        samples = [line for line in here if line.kind == "sample"]
        if samples and fed.is_new(f"samples of {run_id}", [line.end for line in samples]):
            # Swapped before they are cut: half an address would not be known for one.
            bodies = out.tree("samples.json", [dict(line.body) for line in samples])
            log_tables(store, run_id, {"samples.json": run_record.sample_table(bodies)})
    lines = [line for line in events if line.kind == "said"]
    if lines and fed.is_new("said", [line.end for line in lines]):
        texts = [f"{line.body['at']}  {line.stage or '-'}  {line.body.get('text', '')}" for line in lines]
        text = "\n".join(out.texts("said.txt", texts))
        store.client.log_text(fed.parent, text + "\n", "said.txt")


def feed_parent(
    store: Store, fed: Fed, folder: Path, manifest: Mapping[str, Any], recipe: Mapping[str, Any], out: Outbound
) -> list[str]:
    """What the recipe has set as params, and where the run came from as tags. Returns what changed since, aloud.

    Every other value stands in recipe.yaml among the artefacts.
    """
    from mlflow.entities import Param

    flat = dict(run_record.flatten(recipe))
    if not fed.is_new("parent", [flat, manifest.get("git"), manifest.get("versions")]):
        return []
    there = store.client.get_run(fed.parent).data.params
    kept = compared(recipe) | there  # of those that were there before a change is said
    flat = {key: value for key, value in flat.items() if key in kept}
    wanted = {k: run_record.text_of(v, run_record.MAX_PARAM) for k, v in leaving.settings(flat, out).items()}
    new = [Param(key, value) for key, value in wanted.items() if key not in there]
    for start in range(0, len(new), PARAMS_A_BATCH):
        store.client.log_batch(fed.parent, params=new[start : start + PARAMS_A_BATCH])
    changed = {key: value for key, value in wanted.items() if there.get(key, value) != value}
    log_tags(store, fed.parent, {
        "recipe": folder.parent.name, "digest": folder.name, "git": manifest.get("git"),
        "mlflow.source.git.commit": manifest.get("git"), "mlflow.source.name": f"recipes/{folder.parent.name}",
        **{f"versions.{k}": v for k, v in (manifest.get("versions") or {}).items()},
        **{f"changed.{k}": v for k, v in changed.items()},
    })  # fmt: skip
    return [f"{key} is now {value}; the param keeps the first value" for key, value in changed.items()]


def compared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that a person compares runs by: what it or its words have set, and `ALWAYS`."""
    defaults = dict(run_record.flatten(asdict(Recipe())))
    flat = run_record.flatten(recipe)
    return {key: v for key, v in flat if key.startswith(ALWAYS) or (key not in FACTS and defaults.get(key, FACTS) != v)}


def is_in_the_making(events: Sequence[Line], name: str) -> bool:
    """Whether the stage that names a file is still at work: it lies in the staging folder until the stage is done."""
    at = max(i for i, line in enumerate(events) if line.kind == "file" and str(line.body.get("path")) == name)
    ends = ("stage_done", "stage_failed")
    return not any(line.kind in ends and line.stage == events[at].stage for line in events[at:])


def feed_files(store: Store, fed: Fed, folder: Path, events: Sequence[Line], out: Outbound) -> list[str]:
    """Files that events name, and the recipe, as artefacts of the parent run; a changed file replaces the old one.

    The report's page stands on top, in no folder.
    Of internal rows only JSON and the recipe leave for another machine: in a page, which marks texts up word by word,
    nobody could find what is personal. Of restricted rows none does.
    """
    notes, stay = [], []
    named = dict.fromkeys(["recipe.yaml", *(str(line.body.get("path")) for line in events if line.kind == "file")])
    for name in named:
        path, shown_as = folder / name, "report.html" if name == REPORT else name
        if not path.resolve().is_relative_to(folder.resolve()):
            notes.append(f"{name} lies outside the run's folder and was not logged")
        elif path.is_file():
            if not fed.is_new(f"file {name}", file_sha256(path)):
                continue
            if out.rule == "withheld" or (not out.whole and path.suffix not in (".json", ".yaml")):
                stay.append(name)
            elif out.whole:
                out.file(name, file_sha256(path), path.stat().st_size)
                log_whole(store, fed.parent, path, shown_as)
            else:
                store.client.log_text(fed.parent, redacted_file(path, name, out), masked(name))
        elif name != "recipe.yaml" and not is_in_the_making(events, name):
            notes.append(f"{name} is not there and was not logged")
    if stay:
        notes.append(f"rows are {out.privacy}, and {out.to} is another machine: {', '.join(stay)} stay here")
    return notes


def log_whole(store: Store, run_id: str, path: Path, name: str) -> None:
    """A file as it stands, but for a secret in its text or in its name."""
    name = masked(name)
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.suffix in TEXTS else ""
    clean = masked(text)
    if clean != text:
        store.client.log_text(run_id, clean, name)
    elif Path(name).name != path.name:
        store.client.log_text(run_id, path.read_text(encoding="utf-8", errors="replace"), name)
    else:
        store.client.log_artifact(run_id, str(path), Path(name).parent.as_posix().strip("."))


def redacted_file(path: Path, name: str, out: Outbound) -> str:
    """A JSON or YAML file's text with each text in it as it may leave."""
    if path.suffix == ".yaml":
        return yaml.safe_dump(out.tree(name, yaml.safe_load(path.read_text(encoding="utf-8"))), allow_unicode=True)
    return json.dumps(out.tree(name, json.loads(path.read_text(encoding="utf-8"))), indent=1, ensure_ascii=False)


# What a run folder remembers of being fed: a shortcut, never the truth, and blank whenever it does not fit.


@dataclass
class Fed:
    """What `tracking.json` remembers: which run of which store, and how far it was fed."""

    store: str = ""
    run: str = ""
    parent: str = ""
    stages: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    once: dict[str, str] = field(default_factory=dict)
    rule: str = "raw"
    at_rest: bool = False  # nobody was at work on the run when it was fed last

    def is_new(self, what: str, content: object) -> bool:
        """Whether `content` differs from what was fed under this name; remembers it as fed from now on."""
        mark = digest(content, 16)
        changed = self.once.get(what) != mark
        self.once[what] = mark
        return changed


def under(fed: Fed, rule: str) -> Fed:
    """The memory under a rule of what may leave; under another than before, texts and files count as new."""
    if fed.rule != rule:
        fed.rule, fed.once = rule, {}
    return fed


def remembered(folder: Path, store_uri: str, run: str) -> Fed:
    """What was fed before, or a blank memory when the store or the run is another."""
    blank = Fed(store=digest(store_uri, 16), run=run)
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        fed = Fed(**read_json(folder / "tracking.json"))
        return fed if (fed.store, fed.run) == (blank.store, blank.run) else blank
    return blank


def save(folder: Path, fed: Fed) -> None:
    """Write `tracking.json`, whole or not at all."""
    write_whole(folder / "tracking.json", json.dumps(asdict(fed), indent=1))
