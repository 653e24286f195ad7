"""Bundle: what may ship, with all that serving needs, kept only when a real engine has loaded it and agreed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from workbench.bundles.bom import write_bom
from workbench.bundles.card import write_card, write_notices
from workbench.bundles.checks import Check, static_checks
from workbench.bundles.facts import About, Base, DataSet, Step, Teacher, Verified, obligations_of, scores_of
from workbench.bundles.launch import write_launch
from workbench.bundles.manifest import hash_files, sign, template_digest, write_manifest
from workbench.bundles.parity import Reference, write_parity
from workbench.bundles.prove import (
    HERE,
    Limits,
    ask_engine,
    choose_engine,
    figures,
    refuse_failed,
    trusted_key,
    verified_in,
)
from workbench.compress.format_check import really_quantized
from workbench.data.chat import load_tokenizer
from workbench.dialects import CALL_PARSERS, THOUGHT_PARSERS, Parsers, parsers_of
from workbench.engines.ask import stop_ids
from workbench.errors import RequestError
from workbench.evaluation.answers import read_predictions
from workbench.evaluation.few_rows import by_folds
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.scorers import deciding_score
from workbench.files import read_json, remove
from workbench.recipe import Method, Model, Recipe
from workbench.records import digest
from workbench.runs import Run, forget, now, stage
from workbench.signing_keys import fingerprint, public_key_of, signing_key
from workbench.stages.common import base_model, hold_made, is_done, merged_model, need, say, verdict
from workbench.stages.held_out import references, scoring_of
from workbench.stages.rows import descriptions
from workbench.stages.train.task import start_model
from workbench.terms.policy import name_ok, read_duties

ADAPTER = "adapter"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def run(recipe: Recipe, run: Run) -> bool:
    """Bundle everything that the gate lets ship and that is not bundled yet; take back what it no longer lets."""
    need(run, "evaluate", "bundle")
    wanted = bundles_of(recipe, run)
    worked = take_back(run, wanted)
    if not wanted:
        say(run, "bundle", "the gate lets nothing ship, so nothing is bundled")
        return worked
    refuse_name(recipe, run)
    rows: list[Reference] = []
    for name in wanted:
        folder, format, base = source_of(recipe, run, name)
        engine = choose_engine(folder, format)
        if is_bundled(recipe, run, name, engine):
            continue
        if engine == HERE and not recipe.bundle.fallback:
            choose_engine(folder, format, "vllm")  # raises, saying why it cannot be started
        hold_made(run, "merge", made_by(name))
        rows = rows or references(recipe, run)
        worked = True
        with stage(run, f"bundle/{name}", fingerprint_of(recipe, run, name, engine)) as staging:
            staging.facts = assemble(recipe, run, name, staging.folder, engine, rows, base)
            for check in staging.facts["checks"]:
                say(run, f"bundle/{name}", f"{'✓' if check['passed'] else '✗'} {check['name']}: {check['why']}")
    return worked


def bundles_of(recipe: Recipe, run: Run) -> list[str]:
    """The names of what the gate lets ship, and the adapter when the recipe wants it too."""
    shipped = list(verdict(run).get("shipped", []))
    return shipped + [ADAPTER] * (recipe.bundle.adapter and recipe.method.kind != "full" and STUDENT in shipped)


def take_back(run: Run, wanted: Sequence[str]) -> bool:
    """Delete bundles that may no longer ship; whether there were any."""
    stale = [s for s in run.manifest()["stages"] if s.startswith("bundle/") and s.removeprefix("bundle/") not in wanted]
    for name in stale:
        forget(run, name)
        remove(run.folder / name, run.folder)
        say(run, name, f"{name} was taken back: the gate no longer lets it ship")
    return bool(stale)


def refuse_name(recipe: Recipe, run: Run) -> None:
    """A licence may want its own name at the front of every model's that comes from it."""
    problem = name_ok(recipe.tracking.registered_model or recipe.name, read_duties(merged_model(run)))
    if problem:
        raise RequestError(problem, where="tracking.registered_model", remedy="give it that name, then run this again")


def source_of(recipe: Recipe, run: Run, name: str) -> tuple[Path, str, Path | None]:
    """A bundle's weights, their format, and for an adapter the folder of the model that it was trained on."""
    if name == STUDENT:
        return merged_model(run), recipe.model.dtype, None
    if name == ADAPTER:
        return run.folder / "train" / "adapter", recipe.model.dtype, start_model(recipe, run)
    return run.folder / "quantize" / name, recipe.quantize[name].format, None


def is_bundled(recipe: Recipe, run: Run, name: str, engine: str) -> bool:
    """Whether the bundle is whole; one that its serving engine proved stays so where that engine is not here now."""
    engines = {engine, "vllm"} if engine == HERE else {engine}
    return any(is_done(run, f"bundle/{name}", fingerprint_of(recipe, run, name, each)) for each in engines)


def made_by(name: str) -> str:
    """The stage that has made a bundle's weights."""
    return {STUDENT: "merge", ADAPTER: "train"}.get(name, f"quantize/{name}")


def fingerprint_of(recipe: Recipe, run: Run, name: str, engine: str) -> str:
    """What a bundle rests on: its weights, the verdict, its own settings, the engine, and who signs."""
    made = run.output_digest(made_by(name))
    key = fingerprint(public_key_of(signing_key()))
    settings = asdict(recipe.bundle) | {"privacy": recipe.data.privacy, "engine": engine, "key": key}
    return digest({"weights": made, "report": run.output_digest("evaluate"), "settings": settings}, 16)


def assemble(
    recipe: Recipe, run: Run, name: str, folder: Path, engine: str, rows: Sequence[Reference], base: Path | None
) -> dict[str, Any]:
    """Fill a bundle's folder, ask the engine, sign it, and check it as a stranger would; GateError when it fails."""
    source, format, _ = source_of(recipe, run, name)
    weights = copy_files(run, source, folder)
    limits = Limits(
        recipe.bundle.most_kl + cost_of(run, name),
        recipe.bundle.least_agreement,
        recipe.bundle.score_margin,
        recipe.evaluate.max_new_tokens,
        recipe.bundle.context,
    )
    scored, why = scoring_of(run)
    if why:
        say(run, f"bundle/{name}", why)
    say(run, f"bundle/{name}", f"loading {name} in {engine} …")
    tokenizer = load_tokenizer(merged_model(run), None)
    parity, engine_checks = ask_engine(
        folder, engine, rows, limits, score=partial(deciding_score, scored), threads=recipe.launch.threads,
        base=base, token_text=lambda token: tokenizer.decode([token]),
    )  # fmt: skip
    refuse_failed(engine_checks, f"bundle/{name}")
    stops = sorted(stop_ids(folder))
    about = about_of(recipe, run, name, format, weights, verified_in(engine), [tokenizer.decode([i]) for i in stops])
    write_documents(recipe, run, folder, run.folder / "bundle" / name, about, rows)
    facts = {
        "name": about.name, "kind": about.kind, "format": format, "recipe": run.recipe_name,
        "run": f"{run.recipe_name}/{run.digest}", "digest": run.digest,
        "template_sha256": template_digest((merged_model(run) / "chat_template.jinja").read_text(encoding="utf-8")),
        "stop_ids": trained_stops(rows), "stop_tokens": [tokenizer.decode([i]) for i in trained_stops(rows)],
        "weights": weights, "made": about.made, "context": recipe.bundle.context,
        "verified_in": asdict(about.verified[0]), "parity": figures(parity), "limits": asdict(limits),
        "scoring": {"scorer": scored.scorer, "fields": list(scored.fields), "labels": list(scored.labels),
                    "primary": scored.primary, **({"instead": why} if why else {})},
        **({"base": under(recipe, run)} if base else {}),
    }  # fmt: skip
    hashed = hash_files(folder)
    write_manifest(folder, facts, hashed)
    sign(folder, signing_key())
    checks = bundle_checks(folder)
    refuse_failed(checks, f"bundle/{name}")
    listed = [asdict(check) for check in (*checks, *engine_checks)]
    return {"engine": engine, "parity": figures(parity), "checks": listed, "format": format, "kind": about.kind}


def under(recipe: Recipe, run: Run) -> dict[str, Any]:
    """What an adapter's manifest says of the model that it belongs to: whence, and how it was cut if it was."""
    model = recipe.model
    cut = {} if model.shrink.layers is None else {"shrink": asdict(model.shrink)}
    held = run.manifest()["sources"]["model.source"]
    commit = {"commit": held["commit"]} if "commit" in held else {}
    return {"source": model.source, "sha256": model.sha256, "weights_sha256": held["sha256"]} | commit | cut


def cost_of(run: Run, name: str) -> float:
    """The KL that quantizing itself cost, in nats; an adapter merged twice can move a model less than 4 bits do."""
    entry = run.done(f"quantize/{name}")
    return float(entry["facts"]["kl"]) if entry else 0.0


def copy_files(run: Run, source: Path, folder: Path) -> list[str]:
    """Weights with their configuration, and training's tokenizer, template and stop tokens; the weights' names."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("README.md", "duties.json"):
            shutil.copyfile(path, folder / path.name)
    for name in TOKENIZER:
        if (merged_model(run) / name).is_file():
            shutil.copyfile(merged_model(run) / name, folder / name)
    if (merged_model(run) / "duties.json").is_file():
        shutil.copyfile(merged_model(run) / "duties.json", folder / "duties.json")
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))


def write_documents(
    recipe: Recipe, run: Run, folder: Path, final: Path, about: About, rows: Sequence[Reference]
) -> None:
    """Card, notices, launch files, report, recipe and bill of materials; held-out rows only where data are public."""
    shutil.copyfile(run.folder / "evaluate" / "report.json", folder / "report.json")
    shutil.copyfile(run.folder / "recipe.yaml", folder / "recipe.yaml")
    parity = write_parity(folder, rows, made_by=f"transformers, {recipe.model.dtype}")
    if recipe.data.privacy != "public":
        os.replace(parity, parity_beside(final))
    write_notices(folder, about, base_model(recipe, run))
    write_card(folder, about, write_launch(folder, about))
    write_bom(folder, about)


def parity_beside(bundle: Path) -> Path:
    """Where the held-out rows of a bundle lie that may not go with it: beside it, in the run."""
    return bundle.with_name(f"{bundle.name}.parity.json")


def trained_stops(rows: Sequence[Reference]) -> list[int]:
    """The tokens that answers were trained to end with."""
    return sorted({row.answer_ids[-1] for row in rows})


def bundle_checks(folder: Path, key: str = "") -> list[Check]:
    """Every check that needs no engine, against the key named or this user's own."""
    return static_checks(folder, public_key=trusted_key(key), really_quantized=really_quantized)


def check_registered(folder: Path) -> None:
    """What `register` asks of a version it has downloaded again."""
    refuse_failed(bundle_checks(folder), str(folder))


# What is known of a model when it is bundled, gathered from the recipe, the run's manifest and its report.


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
    template = (merged_model(run) / "chat_template.jinja").read_text(encoding="utf-8")
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
        calls=parsers_of(template, CALL_PARSERS),
        thoughts=parsers_of(template, THOUGHT_PARSERS) if thinks(run) else Parsers(),
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


def thinks(run: Run) -> bool:
    """Whether the student was seen to think before it spoke: a parser of thoughts takes an answer without for one."""
    return any(p.thoughts for p in read_predictions(run.folder / "evaluate" / "predictions" / "student.jsonl"))


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
            name=facts["name"],
            role=facts["role"],
            source=facts["source"],
            rows=facts["rows"],
            digest=facts["digest"],
            licence=data.licence,
            attribution=data.attribution,
        )
        for facts in descriptions(recipe, run)
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
    changes = [step("merged into 16-bit weights", "adapter", stages["merge"]["facts"])]
    if recipe.method.kind == "full":
        changes = []
    if name != STUDENT:
        changes.append(step(f"quantized as {name}", STUDENT, stages[f"quantize/{name}"]["facts"]))
    return changes


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
    lines = [f"Judged on {report['n']} rows of one task ({report['task']}); nothing is known of other tasks."]
    lines += [f"{line[0].upper()}{line[1:]}." for line in by_folds(report, report.get("gate", {}).get("baseline", ""))]
    checks = report.get("gate", {}).get("checks", [])
    return lines + [check["why"] for check in checks if not check["passed"] and check["arm"] in (STUDENT, name)]
