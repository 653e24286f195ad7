"""Evaluate: every arm answers the same test rows in its own engine; the report and the gate's verdict."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.data.chat import few_shot
from workbench.evaluation.answers import Prediction, ask_arm
from workbench.evaluation.chain import joints
from workbench.evaluation.gate import judge
from workbench.evaluation.page import write_page
from workbench.evaluation.report import build_report
from workbench.evaluation.scorers import primary_metric
from workbench.recipe import Recipe
from workbench.records import Example, Message, digest
from workbench.runs import Run, read_json, stage, write_whole
from workbench.serving.prove import HERE, choose_engine
from workbench.stages.arms import Arm, arms_of, choose_shots
from workbench.stages.common import is_done, log_datasets, need, rows, say


def run(recipe: Recipe, run: Run) -> bool:
    """Evaluate unless it is done. Answers already given by the same arm to the same prompt are reused."""
    need(run, "merge", "evaluate")
    for name in recipe.quantize:
        need(run, f"quantize/{name}", "evaluate")
    fingerprint = fingerprint_of(recipe, run)
    if is_done(run, "evaluate", fingerprint):
        return False
    with stage(run, "evaluate", fingerprint, resume=True) as staging:
        splits = rows(recipe, run)
        items = splits.test[: recipe.evaluate.limit]
        log_datasets(run, "evaluate", splits.datasets, ("test",))
        shots = choose_shots(splits, recipe)
        say(run, "evaluate", f"{len(items)} test rows; base_few_shot sees {len(shots)} training rows first")
        arms = arms_of(recipe, run)
        predictions = {arm.name: answers_of(recipe, run, arm, items, shots, staging.folder) for arm in arms}
        facts = {arm.name: {"bytes": float(arm.bytes)} for arm in arms}
        report = build_report(recipe.data.name or recipe.name, recipe.evaluate, predictions, facts, recipe.seed)
        report["formats"] = list(recipe.quantize)
        report["engines"] = {arm.name: arm.served_by for arm in arms}
        report["chain"] = joints(report, distances(recipe, run))
        report["gate"] = judge(report, recipe.gate, primary_metric(recipe.evaluate), list(recipe.quantize))
        write_whole(staging.folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
        manifest = run.manifest()
        context = {"recipe": asdict(recipe), "manifest": manifest, "datasets": splits.datasets}
        context["prompts"] = {e.id: e.text for e in items}
        write_page(report, predictions, staging.folder / "report.html", title=run.recipe_name, context=context)
        drop_stale(staging.folder / "predictions", list(predictions))
        staging.facts = {"n": report["n"], "passed": report["gate"]["passed"], "refused": report["gate"]["refused"]}
        log_scores(run, report)
    return True


def fingerprint_of(recipe: Recipe, run: Run) -> str:
    """What the verdict rests on: the arms' bytes, the questions, and the limits."""
    return digest(
        {
            "merge": run.output_digest("merge"),
            "formats": {name: run.output_digest(f"quantize/{name}") for name in recipe.quantize},
            "engines": engines_of(recipe, run),
            "evaluate": asdict(recipe.evaluate),
            "gate": asdict(recipe.gate),
        },
        16,
    )


def engines_of(recipe: Recipe, run: Run) -> dict[str, str]:
    """Which engine answers for each format; a verdict reached in vLLM stands where vLLM is not here now."""
    path = run.folder / "evaluate" / "report.json"
    before = read_json(path).get("engines", {}) if path.is_file() else {}
    now = {
        name: choose_engine(run.folder / "quantize" / name, wanted.format) for name, wanted in recipe.quantize.items()
    }
    return {name: "vllm" if engine == HERE and before.get(name) == "vllm" else engine for name, engine in now.items()}


def answers_of(
    recipe: Recipe, run: Run, arm: Arm, items: Sequence[Example], shots: Sequence[Example], folder: Path
) -> list[Prediction]:
    """All answers of one arm; the engine is only started when an answer is missing."""
    shown = shots if arm.few_shot else []
    prompts: list[tuple[Message, ...]] = [few_shot(e.prompt, shown) for e in items]
    out = folder / "predictions" / f"{arm.name}.jsonl"
    earlier = run.folder / "evaluate" / "predictions" / out.name
    with contextlib.ExitStack() as stack:

        def ask(asked: Sequence[Sequence[Message]], max_new_tokens: int) -> Iterator[Any]:
            return stack.enter_context(arm.engine())(asked, max_new_tokens)

        return ask_arm(
            arm.name,
            arm.digest,
            ask,
            items,
            prompts,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            out=out,
            cached=earlier if earlier.exists() else None,
        )


def distances(recipe: Recipe, run: Run) -> dict[str, dict[str, Any]]:
    """How far each arm's token probabilities are from its parent's, as merging and quantizing have measured it."""
    stages = {"student": "merge", **{name: f"quantize/{name}" for name in recipe.quantize}}
    return {arm: need(run, stage, "evaluate")["facts"] for arm, stage in stages.items()}


def drop_stale(folder: Path, arms: list[str]) -> None:
    """Predictions of arms that an interrupted, differently set attempt left behind."""
    for path in folder.iterdir():
        if path.stem not in arms:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def log_scores(run: Run, report: dict[str, Any]) -> None:
    """Every arm's figures as events, and the report's files for MLflow."""
    for arm, metrics in report["arms"].items():
        for name, figure in metrics.items():
            for suffix, part in (("", "value"), ("_ci_low", "ci_low"), ("_ci_high", "ci_high")):
                if figure.get(part) is not None:
                    run.event("metric", stage="evaluate", name=f"{arm}/{name}{suffix}", value=figure[part], step=None)
    run.event("file", stage="evaluate", path="evaluate/report.html", title="report")
    run.event("file", stage="evaluate", path="evaluate/report.json", title="report")


def read_report(run: Run) -> dict[str, Any]:
    """The finished evaluation's report."""
    return read_json(run.folder / "evaluate" / "report.json")
