"""bom.cdx.json: a CycloneDX 1.6 bill of materials of the model, its base, its data and the libraries that made it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.bundles.facts import NOT_STATED, About, DataSet, Score, spdx
from workbench.bundles.manifest import FileFacts, hash_files

BOM = "bom.cdx.json"
SPEC = "1.6"  # what readers in use take; 1.7 adds nothing that is told here
MODEL, BASE = "model", "base"


def write_bom(folder: Path, about: About, hashed: Mapping[str, FileFacts] | None = None) -> None:
    """Write bom.cdx.json; the same bundle gives the same bytes. `hashed` may hold the weights' digests already."""
    known = dict(hashed or {})
    known |= hash_files(folder, [name for name in about.weights if name not in known])
    text = json.dumps(bill(about, known), indent=2, ensure_ascii=False) + "\n"
    (folder / BOM).write_text(text, encoding="utf-8")


def bill(about: About, hashed: Mapping[str, FileFacts]) -> dict[str, Any]:
    """The bill as a CycloneDX document."""
    parts = [base_model(about), *map(data_set, about.data), *(library(n, v) for n, v in sorted(about.versions.items()))]
    named = f"workbench/{about.recipe}/{about.digest}/{about.name}/{about.format}"
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, named)}",
        "version": 1,
        "metadata": {
            "timestamp": about.made,
            "tools": {"components": [{"type": "application", "name": "llm-workbench", "version": own_version()}]},
            "component": model(about, hashed),
        },
        "components": unique(parts),
        "dependencies": [{"ref": MODEL, "dependsOn": [part["bom-ref"] for part in unique(parts)]}],
    }


def own_version() -> str:
    """The workbench's version; one that is not installed has none."""
    try:
        return metadata.version("llm-workbench")
    except metadata.PackageNotFoundError:
        return NOT_STATED


def unique(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each component once, by its reference."""
    return list({part["bom-ref"]: part for part in parts}.values())


def model(about: About, hashed: Mapping[str, FileFacts]) -> dict[str, Any]:
    """The model itself: its card, what it descends from, and its weight files with their hashes."""
    weights = [
        {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": hashed[name].sha256}],
            "properties": [{"name": "bytes", "value": str(hashed[name].bytes)}],
        }
        for name in about.weights
    ]
    facts = {"format": about.format, "kind": about.kind, "recipe": about.recipe, "run": about.run}
    facts |= {"method": about.method, "git": about.git, "signed_by": about.signed_by}
    described = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": about.name,
        "version": f"{about.digest}-{about.format}",
        "licenses": licences(about.base.licence, about.base.licence_url),
        "pedigree": {"ancestors": [without(base_model(about), "bom-ref")], "notes": about.method or "fine-tuned"},
        "components": weights,
        "modelCard": card(about),
        "properties": [{"name": f"workbench:{key}", "value": value} for key, value in facts.items() if value],
    }
    return {key: value for key, value in described.items() if value}


def card(about: About) -> dict[str, Any]:
    """The model card in CycloneDX's words; data sets by reference."""
    parameters = {
        "approach": {"type": "supervised"},
        "task": about.task or "text generation",
        "architectureFamily": "transformer",
        "modelArchitecture": about.base.family or about.base.name,
        "datasets": [{"ref": reference} for reference in dict.fromkeys(map(data_reference, about.data))],
        "inputs": [{"format": "string"}],
        "outputs": [{"format": "string"}],
    }
    considered = {
        "useCases": [about.intended_use] if about.intended_use else [],
        "technicalLimitations": list(about.limits),
        "ethicalConsiderations": [
            {"name": f"{duty.kind} ({duty.origin})", "mitigationStrategy": duty.text} for duty in about.duties
        ],
    }
    facts: dict[str, Any] = {"modelParameters": {key: value for key, value in parameters.items() if value}}
    figures = [metric(score, about.confidence) for score in about.own_scores]
    facts |= {"quantitativeAnalysis": {"performanceMetrics": figures}} if figures else {}
    considered = {key: value for key, value in considered.items() if value}
    return facts | ({"considerations": considered} if considered else {})


def metric(score: Score, confidence: float) -> dict[str, Any]:
    """One figure with its interval; all values are text in CycloneDX."""
    entry: dict[str, Any] = {"type": score.metric, "value": f"{score.value:.6g}"}
    if score.ci_low is not None and score.ci_high is not None:
        ends = {"lowerBound": f"{score.ci_low:.6g}", "upperBound": f"{score.ci_high:.6g}"}
        entry |= {"confidenceInterval": ends, "slice": f"all test rows, {confidence:.0%} interval"}
    return entry


def base_model(about: About) -> dict[str, Any]:
    """The base model as a component."""
    base = about.base
    part: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": BASE,
        "name": base.name or base.source or NOT_STATED,
        "licenses": licences(base.licence, base.licence_url),
        "properties": [{"name": "workbench:source", "value": base.source}] if base.source else [],
    }
    if base.hub:
        revision = base.source.partition("@")[2] if base.source.startswith("hf:") else ""
        part["purl"] = f"pkg:huggingface/{base.hub}" + (f"@{revision}" if revision else "")
    if base.sha256:
        part["hashes"] = [{"alg": "SHA-256", "content": base.sha256}]
    return {key: value for key, value in part.items() if value}


def data_reference(data: DataSet) -> str:
    """A data set's reference in the bill: each role and digest is one."""
    return f"data:{data.role}:{data.digest[:12] or data.name}"


def data_set(data: DataSet) -> dict[str, Any]:
    """A data set as a component."""
    description = f"{data.rows} rows for {data.role}" + (f"; {data.attribution}" if data.attribution else "")
    part = {
        "type": "data",
        "bom-ref": data_reference(data),
        "name": data.name,
        "version": data.digest[:12],
        "licenses": licences(data.licence, ""),
        "data": [{"type": "dataset", "name": data.name, "description": description}],
        "properties": [{"name": "workbench:source", "value": data.source}, {"name": "rows", "value": str(data.rows)}],
    }
    return {key: value for key, value in part.items() if value}


def library(name: str, version: str) -> dict[str, Any]:
    """A Python package by its package URL; a local build's mark is escaped."""
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def licences(licence: str, url: str) -> list[dict[str, Any]]:
    """A licence by its SPDX name where it has one, else by its own; nothing when none is known."""
    if not licence:
        return []
    name = {"id": spdx(licence)} if spdx(licence) else {"name": licence}
    return [{"license": name | ({"url": url} if url else {})}]


def without(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A copy without one key; a reference may stand only once in a bill."""
    return {name: value for name, value in part.items() if name != key}
