"""What of a run is registered, and what each model says of itself: its parent, its bytes, its data, its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RequestError, WorkbenchError
from workbench.names import check_arm
from workbench.records import artefact
from workbench.tracking.run_record import Line, interval_metrics, interval_text


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
        sha = proven(folder, done["train"], adapter)
        parts.append(Part("adapter", "adapter", "train", adapter, sha, "peft", None, None, passed, None))
    parent = parts[0].label if parts else None
    fits = passed and "student" in shipped
    home, entry = bundled(folder, done, "student", manifest) if fits else (merged, done["merge"])
    sha = proven(folder, entry, home)
    parts.append(Part("merged", "merged", "merge", home, sha, "safetensors", parent, "student", fits, name))
    for stage, made in done.items():
        if stage.startswith("quantize/"):
            arm = stage.removeprefix("quantize/")
            check_arm(arm, f"run.json: {stage}")
            fits = arm in shipped
            home, entry = bundled(folder, done, arm, manifest) if fits else (folder / stage, made)
            sha = proven(folder, entry, home)
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
            remedy=f"python -m workbench bundle recipe={manifest['recipe']}",
        )
    return folder / stage, done[stage]


def proven(folder: Path, entry: Mapping[str, Any], model: Path) -> str:
    """The digest of a model's folder, after what the manifest says of its stage has been found true on disk."""
    known = {}
    for made in entry.get("artefacts", []):
        path = folder / made["path"]
        if not path.exists() or artefact(path, folder).sha256 != made["sha256"]:
            raise WorkbenchError(
                "these files are not the ones the stage made",
                where=str(path),
                remedy="delete this stage's folder and run `train` again: it is made anew",
            )
        known[path] = made["sha256"]
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
    """The metrics of this model's own arm, with the ends of their intervals."""
    flat: dict[str, float] = {}
    for metric, cell in report.get("arms", {}).get(part.arm, {}).items():
        flat |= interval_metrics(metric, cell)
    return flat
