"""What is known of a model when it is bundled, gathered from the recipe, the run's manifest and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.bundles.facts import About, Base, DataSet, Step, Teacher, Verified, obligations_of, scores_of
from workbench.evaluation.metrics import STUDENT
from workbench.recipe import Method, Model, Recipe
from workbench.runs import Run, now, read_json
from workbench.signing_keys import fingerprint, public_key_of, signing_key
from workbench.stages.common import merged_model, rows
from workbench.terms.duties import read_duties

ADAPTER = "adapter"


def about_of(
    recipe: Recipe,
    run: Run,
    name: str,
    format: str,
    weights: Sequence[str],
    verified: Verified,
    stop_tokens: Sequence[str],
) -> About:
    """Everything that a bundle's card, notices, bill of materials and launch files say."""
    manifest = run.manifest()
    report = read_json(run.folder / "evaluate" / "report.json")
    kind = {STUDENT: "merged", ADAPTER: "adapter"}.get(name, "quantized")
    model = recipe.model
    registered = recipe.tracking.registered_model or recipe.name
    return About(
        name=registered if name == STUDENT else f"{registered}-{name}",
        kind=kind,
        format=format,
        arm=name,
        recipe=run.recipe_name,
        run=f"{run.recipe_name}/{run.digest}",
        digest=run.digest,
        made=now(),
        base=Base(
            name=model.name or model.source,
            source=pinned_source(model, manifest),
            licence=model.licence,
            licence_url=model.licence_url,
            sha256=model.sha256,
            parameters=model.parameters,
            family=model.family,
            cut=cut_of(model),
        ),
        task="text generation",
        method=method_line(recipe.method),
        context_length=recipe.bundle.context,
        weights=tuple(weights),
        stop_tokens=tuple(stop_tokens),
        data=tuple(data_sets(recipe, run)),
        teacher=teacher_of(recipe, manifest),
        primary=report["primary"],
        confidence=report["confidence"],
        n=report["n"],
        scores=scores_of(report, report.get("engines")),
        steps=tuple(steps(recipe, manifest, name)),
        intended_use=recipe.bundle.intended_use,
        limits=tuple(limits(report, name)),
        duties=obligations_of(read_duties(merged_model(run))),
        verified=(verified,),
        versions=manifest.get("versions", {}),
        git=manifest.get("git") or "",
        signed_by=fingerprint(public_key_of(signing_key())),
    )


def pinned_source(model: Model, manifest: Mapping[str, Any]) -> str:
    """The base's source, with the commit that the run has used where its recipe names none."""
    commit = manifest.get("sources", {}).get("model.source", {}).get("commit")
    return f"{model.source.partition('@')[0]}@{commit}" if commit else model.source


def method_line(method: Method) -> str:
    """How the weights were tuned, in one line."""
    how = {"lora": "LoRA", "qlora": "QLoRA (NF4 base)", "full": "full fine-tuning"}[method.kind]
    if method.kind != "full":
        how += f", rank {method.rank}, alpha {method.alpha}" + (", rsLoRA" if method.rslora else "")
        how += (", DoRA" if method.dora else "") + f", on {', '.join(method.target_modules)}"
    length = f"{method.max_steps} steps" if method.max_steps else f"{method.epochs:g} epochs"
    return f"{how}; {length} of {method.batch_size} rows, learning rate {method.learning_rate:g} ({method.schedule})"


def cut_of(model: Model) -> str:
    """Which layers of its base a smaller student began with; nothing where it was all of them."""
    shrink = model.shrink
    if shrink.layers is None:
        return ""
    which = "the first, the last and evenly between" if shrink.keep == "spread" else "the first ones"
    return f"{shrink.layers} layer{'s' if shrink.layers > 1 else ''} ({which})"


def data_sets(recipe: Recipe, run: Run) -> list[DataSet]:
    """The rows that were used, by part."""
    data = recipe.data
    return [
        DataSet(
            name=found["name"],
            role=found["role"],
            source=found["source"],
            rows=found["rows"],
            digest=found["digest"],
            licence=data.licence,
            attribution=data.attribution,
        )
        for found in rows(recipe, run).datasets
    ]


def teacher_of(recipe: Recipe, manifest: Mapping[str, Any]) -> Teacher | None:
    """Who labelled the rows, or scored the student's own answers, and what its terms say; None when nobody did."""
    stages = manifest["stages"]
    facts, training = stages.get("label", {}).get("facts"), stages.get("train", {}).get("facts", {})
    facts = facts or (training if training.get("teacher") else None)
    if not facts:
        return None
    own = recipe.teacher
    return Teacher(own.name, str(facts.get("teacher") or own.model), own.route, str(facts.get("terms") or ""))


def steps(recipe: Recipe, manifest: Mapping[str, Any], name: str) -> list[Step]:
    """The joints that this bundle's weights went through, with how far each moved them."""
    stages = manifest["stages"]
    if name == ADAPTER:
        return []
    found = [step("merged into 16-bit weights", "adapter", stages["merge"]["facts"])]
    if recipe.method.kind == "full":
        found = []
    if name != STUDENT:
        found.append(step(f"quantized as {name}", STUDENT, stages[f"quantize/{name}"]["facts"]))
    return found


def step(what: str, parent: str, facts: Mapping[str, Any]) -> Step:
    """One joint from its stage's facts."""
    agreement = facts.get("top_token_agreement")
    return Step(
        what=what,
        parent=parent,
        kl=facts.get("kl"),
        top_token_agreement=agreement,
        flip_rate=None if agreement is None else 1 - agreement,
        rows=int(facts.get("rows") or 0),
        bits_per_weight=facts.get("bits_per_weight"),
        bytes=int(facts.get("bytes") or 0),
    )


def limits(report: Mapping[str, Any], name: str) -> list[str]:
    """What a user must know: on what it was judged, and what the gate held against it."""
    told = [f"Judged on {report['n']} rows of one task ({report['task']}); nothing is known of other tasks."]
    checks = report.get("gate", {}).get("checks", [])
    return told + [check["why"] for check in checks if not check["passed"] and check["arm"] in (STUDENT, name)]
