"""Route: a threshold that keeps its promise, chosen on validation rows, told once on the test, or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from workbench import errors
from workbench.bundles.manifest import MANIFEST, hash_files, sign
from workbench.bundles.prove import HERE, verified_in
from workbench.command import next_command
from workbench.deciding.before import before_scores
from workbench.deciding.curve import curve
from workbench.deciding.identity import voided
from workbench.deciding.promise import rows_for
from workbench.deciding.scores import MEANING, auroc
from workbench.errors import GateError, RequestError, WorkbenchError
from workbench.evaluation.answers import Prediction, ask_arm, question_key, read_predictions
from workbench.evaluation.report import settings_of
from workbench.evaluation.scorers import find, opened
from workbench.evaluation.statistics import Floats
from workbench.files import file_sha256, read_json, write_whole
from workbench.pages.route_page import write_route_page
from workbench.recipe import Recipe, Teacher, asking_route, routed_to
from workbench.records import Example, digest
from workbench.runs import Run, stage
from workbench.signing_keys import signing_key
from workbench.sources import content_sha256, resolve
from workbench.stages.bundle import made_by
from workbench.stages.common import hold_made, is_done, need, say
from workbench.stages.evaluate.arms import Arm, arms_of, teacher_arm
from workbench.stages.evaluate.evaluate import answerable
from workbench.stages.evaluate.evaluate import opened as opened_arm
from workbench.stages.evaluate.one_asker import measured_waits
from workbench.stages.route.choosing import (
    BEFORE,
    CASCADE,
    Candidate,
    Pairs,
    Prices,
    best,
    candidates,
    cascade_scores,
    compared,
    described,
    more_rows,
    paired,
    trade,
)
from workbench.stages.route.fresh_rows import fresh_rows
from workbench.stages.route.looks import level_of, look
from workbench.stages.route.telling import refusals, tell
from workbench.stages.rows import descriptions, part, rows
from workbench.teacher.client import gguf_of

ROUTE, TEACHER = "route.yaml", "teacher"
STAGE = "route"


def run(recipe: Recipe, run: Run) -> bool:
    """Choose, fix, tell, unless this very route stands already. A refusal is kept too, and is no route: no manifest."""
    if recipe.route.kind == "none":
        recipe = replace(recipe, route=replace(recipe.route, kind=CASCADE))
        say(run, STAGE, "route.kind is none: a cascade is looked at")
    teacher = routed_to(recipe)
    if teacher is None:
        raise RequestError(
            "nobody is named who answers what the student does not keep",
            where="route.teacher.api",
            remedy="route.teacher.api=openai route.teacher.model=… and the other keys of a teacher, "
            "or a recipe with a teacher of its own",
        )
    if find(recipe.evaluate.scorer).judged(recipe.evaluate):
        raise RequestError("a judge compares answers, and says of none that it is right", where="evaluate.scorer")
    need(run, "evaluate", STAGE)
    report = read_json(run.folder / "evaluate" / "report.json")
    arm = served_arm(recipe, run, report)
    need(run, f"bundle/{arm.name}", STAGE)
    identity = identity_of(recipe, run, arm, teacher)
    tell_void(run, identity)
    fingerprint = fingerprint_of(recipe, run, identity)
    if is_done(run, STAGE, fingerprint):
        return False
    hold_made(run, made_by(arm.name), f"bundle/{arm.name}")
    with stage(run, STAGE, fingerprint, resume=True) as staging:
        for name in (ROUTE, "before.json", "report.json", "report.html", MANIFEST, "signature.json"):
            (staging.folder / name).unlink(missing_ok=True)
        outcome = decided(recipe, run, report, arm, identity, staging.folder)
        write_whole(staging.folder / "report.json", json.dumps(outcome, indent=1, ensure_ascii=False))
        write_route_page(outcome, staging.folder / "report.html")
        if outcome["passed"]:
            seal_route(staging.folder, outcome)
        staging.facts = facts_of(outcome)
        log_route(run, outcome)
        tag_version(recipe, run, outcome)
    return True


def served_arm(recipe: Recipe, run: Run, report: Mapping[str, Any]) -> Arm:
    """The arm whose requests are routed: the one named, else the best that ships, those that a server loads first."""
    shipped = list(report["gate"].get("shipped", []))
    name = recipe.route.arm
    if name is None:
        if not shipped:
            raise GateError(
                "the gate lets nothing ship, so there is nothing to route to", where="gate", remedy="see its lines"
            )
        engines = report.get("engines", {})

        def rank(arm: str) -> tuple[bool, float]:
            return engines.get(arm) != HERE, float(report["arms"][arm][report["primary"]]["value"] or 0.0)

        name = max(shipped, key=rank)
        say(
            run,
            STAGE,
            f"{name} is what is served: the best that ships" + ("" if rank(name)[0] else " (in transformers)"),
        )
    arms = {arm.name: arm for arm in arms_of(recipe, run)}
    if name not in shipped or name not in arms:
        raise RequestError(
            f"{name!r} is not what may ship", where="route.arm", remedy=f"one of {', '.join(shipped) or 'none'}"
        )
    return arms[name]


def identity_of(recipe: Recipe, run: Run, arm: Arm, teacher: Teacher) -> dict[str, str]:
    """What the route is proven for, part by part."""
    bundle = run.folder / "bundle" / arm.name
    weights = file_sha256(gguf_of(teacher)) if teacher.api == "local_gguf" else ""
    rendering = {
        "template": read_json(bundle / MANIFEST)["template_sha256"], "system": recipe.data.system,
        "instruction": recipe.data.instruction, "date": recipe.model.date,
    }  # fmt: skip
    how = {
        "fields": teacher.fields, "labels": teacher.labels, "rationale": teacher.rationale,
        "temperature": teacher.temperature, "longest": [teacher.max_new_tokens, recipe.evaluate.max_new_tokens],
    }  # fmt: skip
    engine = verified_in(arm.served_by)
    return {
        "bundle": file_sha256(bundle / MANIFEST),
        "teacher": weights or f"{teacher.api}:{teacher.model}",
        "template": digest(rendering, 64),
        "engine": f"{engine.engine} {engine.version}".strip(),
        "asked": digest(how, 64),
    }


def tell_void(run: Run, identity: Mapping[str, str]) -> list[str]:
    """Say what makes the route that is there void, part by part; empty where there is none, or it stands."""
    before = (run.done(STAGE) or {}).get("facts", {}).get("identity")
    reasons = voided(before, identity) if before else []
    for reason in reasons:
        say(run, STAGE, f"the route that was here is void: {reason}")
    return reasons


def tell_bundle(run: Run) -> None:
    """Say that the run's route is void where the bundle that it was proven for is another one now, or gone."""
    facts = (run.done(STAGE) or {}).get("facts", {})
    if not facts.get("identity"):
        return
    manifest = run.folder / "bundle" / facts["arm"] / MANIFEST
    if not manifest.is_file() or file_sha256(manifest) != facts["identity"]["bundle"]:
        say(run, STAGE, "this run's route is void: the bundle's files changed; `route` proves another one")


def fingerprint_of(recipe: Recipe, run: Run, identity: Mapping[str, str]) -> str:
    """What the route rests on: its keys, what it was proven for, the rows and the verdict."""
    keys = {name: value for name, value in asdict(recipe.route).items() if name not in ("name", "teacher")}
    return digest(
        {
            "route": keys, "identity": dict(identity), "evaluate": run.output_digest("evaluate"), "seed": recipe.seed,
            "rows": content_sha256(resolve(recipe.route.rows, key="route.rows")) if recipe.route.rows
            else descriptions(recipe, run), "error": usd_per_error(recipe),
        },
        16,
    )  # fmt: skip


def usd_per_error(recipe: Recipe) -> float:
    """Dollars of a wrong answer, 0 where nobody has said."""
    return recipe.cost.usd_per_error or 0.0


def decided(
    recipe: Recipe, run: Run, report: Mapping[str, Any], arm: Arm, identity: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """The report: chosen on fresh rows, fixed in route.yaml, then told on the test from the answers that are there."""
    route = recipe.route
    fresh = fresh_rows(recipe, run)
    notes = list(fresh.notes)
    for line in fresh.notes:
        say(run, STAGE, line)
    asking = asking_route(recipe)
    away_arm = teacher_arm(asking, run, fresh.rows)
    check_test_answers(recipe, run, (arm, away_arm), route.scores if route.kind != BEFORE else ())
    home = answers(recipe, arm, fresh.rows, folder, run)
    away = answers(asking, away_arm, fresh.rows, folder, run)
    settings = opened(settings_of(report), [p.expected for p in home])
    texts = [e.text for e in fresh.rows]
    pairs = paired(recipe, settings, home, away, texts)
    prices = prices_of(recipe, report, arm, away)
    made = candidates(route, pairs, recipe.seed, notes)
    chosen = best(made, prices)
    outcome: dict[str, Any] = {
        "recipe": run.recipe_name, "run": run.digest, "task": report["task"], "metric": settings.primary,
        "arm": arm.name, "engine": arm.served_by, "teacher": routed_name(recipe), "kind": route.kind,
        "against": route.against, "confidence": recipe.evaluate.confidence, "identity": dict(identity),
        "promise": {"kind": route.promise, "most_harm": route.most_harm, "certainty": route.certainty,
                    "sentence": promise_of(recipe)},
        "usd": {"home": prices.home, "away": prices.away, "per_error": prices.error},
        "validation": {
            "n": len(fresh.rows), "student": share_of(pairs.home_right), "teacher": share_of(pairs.away_right),
            "harmful": sum(pairs.harmful), "unscored": sum(p.logprob is None for p in home),
        },
        "candidates": [described(c) for c in made], "chosen": None, "compared": compared(made, prices),
        "more_rows": more_rows(route, (chosen or made[0])) if made else [],
        "trade": trade(route, (chosen or made[0])) if made else [], "test": None, "look": None,
        "refused": [], "passed": False, "said": notes,
    }  # fmt: skip
    if chosen is None:
        outcome["refused"] = [unreachable(recipe, pairs, made, notes)]
        return outcome
    outcome["chosen"] = described(chosen) | {"meaning": MEANING.get(chosen.score, "what the prompt's letters tell")}
    fixed = fix(recipe, run, arm, chosen, identity, fresh.rows, folder)
    return outcome | told_on_test(recipe, run, report, arm, chosen, fixed, prices)


def share_of(right: Floats) -> float:
    """How often it was right."""
    return round(float(right.mean()), 6)


def routed_name(recipe: Recipe) -> str:
    """Who answers what leaves."""
    teacher = routed_to(recipe)
    return (teacher.model or teacher.name or teacher.source or teacher.api) if teacher else ""


def answers(recipe: Recipe, arm: Arm, rows: Sequence[Example], folder: Path, run: Run) -> list[Prediction]:
    """What an arm says to the fresh rows, each asked once and kept at once."""
    out = folder / "validation" / f"{arm.name}.jsonl"
    earlier = run.folder / STAGE / "validation" / f"{arm.name}.jsonl"
    with opened_arm(arm) as ask:
        return ask_arm(
            arm.name, arm.digest, ask, rows, [e.prompt for e in rows], max_new_tokens=recipe.evaluate.max_new_tokens,
            out=out, cached=earlier if earlier.is_file() else None, seed=recipe.seed,
            acceptable=recipe.evaluate.acceptable,
        )  # fmt: skip


def check_test_answers(recipe: Recipe, run: Run, arms: Sequence[Arm], scores: Sequence[str]) -> None:
    """The answers to the test must be there, of these very arms, with the scores that are wanted: none is asked here.

    Said before a row is asked or a look is taken. `scores` are those of the first arm's answers.
    """
    longest = recipe.evaluate.max_new_tokens
    items = answerable(rows(recipe, run), run)[: recipe.evaluate.limit]
    for place, arm in enumerate(arms):
        path = predictions_file(run, arm.name)
        kept = read_predictions(path)
        keys = {question_key(arm.digest, item.prompt, longest, None, item.tools) for item in items}
        unscored = place == 0 and scores and not any(p.is_scored and p.logprob is not None for p in kept)
        if not kept or not keys <= {p.key for p in kept} or unscored:
            why = "another's, or to other rows" if kept and not unscored else "without a score" if kept else "not there"
            raise WorkbenchError(
                f"{arm.name}'s answers to the test are {why}, and `route` asks no test row",
                where=str(path),
                remedy=next_command("evaluate", run.recipe_name) + "   # asks them",
            )


def predictions_file(run: Run, arm: str) -> Path:
    """Where an arm's answers to the test are."""
    return run.folder / "evaluate" / "predictions" / f"{arm}.jsonl"


def prices_of(recipe: Recipe, report: Mapping[str, Any], arm: Arm, away: Sequence[Prediction]) -> Prices:
    """Dollars of one answer: the student's by the machine's price where it is known, the teacher's as billed."""
    local = report["arms"].get(arm.name, {}).get("usd_per_1000", {}).get("value")
    billed = sum(p.usd for p in away) / len(away) if away else 0.0
    return Prices(None if local is None else local / 1000, billed or None, usd_per_error(recipe))


def unreachable(recipe: Recipe, pairs: Pairs, made: Sequence[Candidate], notes: Sequence[str]) -> dict[str, str]:
    """Why no threshold keeps the promise, and how many rows it would take."""
    route, n = recipe.route, len(pairs.home)
    if not made:
        return {"name": "no_way_is_left", "why": "; ".join(notes), "remedy": "more rows, or route.kind=cascade"}
    first = made[0]
    least = rows_for(0.0, route.most_harm, route.promise, first.certainty)
    points = 100 * route.most_harm
    if first.choice.allowed < 0:
        more = f"{least - first.choice.n} more rows (route.rows=FILE), " if least else ""
        return {
            "name": "promise_out_of_reach",
            "why": f"{first.choice.n} rows cannot prove {points:g} points, even with none harmful at home: that takes "
            f"{least} rows",
            "remedy": f"{more}a larger route.most_harm, or route.promise=on_average, which promises less",
        }
    lines = [line for line in more_rows(route, first) if line["rows"]]
    takes = "more harm than that was seen at every share: no number of rows would do"
    if lines:
        takes = f"to keep {100 * lines[0]['share']:.0f} % at home would take about {lines[0]['rows']:,} rows"
    return {
        "name": "promise_out_of_reach",
        "why": f"of {n} rows at most {first.choice.allowed} may be harmful at home, and the answers of the highest "
        f"score hold more: nothing can be kept. By what was seen here, {takes}",
        "remedy": "a larger route.most_harm, more rows (route.rows=FILE), another score (route.scores), or a better "
        "student",
    }


def fix(
    recipe: Recipe, run: Run, arm: Arm, chosen: Candidate, identity: Mapping[str, str], rows: Sequence[Example],
    folder: Path,
) -> str:  # fmt: skip
    """Write the route; gives its SHA-256. From here on nothing about it may change."""
    route = recipe.route
    if chosen.model is not None:
        write_whole(folder / "before.json", json.dumps(chosen.model, ensure_ascii=False))
    content = {
        "recipe": run.recipe_name, "run": run.digest, "arm": arm.name, "kind": chosen.kind, "score": chosen.score,
        "threshold": chosen.choice.threshold, "against": route.against, "most_harm": route.most_harm,
        "promise": route.promise, "certainty": route.certainty, "teacher": routed_name(recipe),
        "proven_for": dict(identity), "rows": digest([[e.id, e.text, e.answer] for e in rows], 64),
        **({"before": file_sha256(folder / "before.json")} if chosen.model is not None else {}),
    }  # fmt: skip
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_whole(folder / ROUTE, text)
    return hashlib.sha256(text.encode()).hexdigest()


def told_on_test(
    recipe: Recipe, run: Run, report: Mapping[str, Any], arm: Arm, chosen: Candidate, fixed: str, prices: Prices
) -> dict[str, Any]:
    """The look at the test, and what it says; the files it read are unchanged afterwards."""
    files = {name: predictions_file(run, name) for name in (arm.name, TEACHER)}
    before = {name: file_sha256(path) for name, path in files.items()}
    test = next(about["digest"] for about in descriptions(recipe, run) if about["role"] == "test")
    experiments = Path(recipe.launch.experiments).resolve()
    number = look(experiments, test, fixed, f"{run.recipe_name}/{run.digest}")
    level = level_of(recipe.evaluate.confidence, number)
    if number > 1:
        say(run, STAGE, f"look {number} at this test: its intervals are widened to {100 * level:.4g} %")
    home, away = (read_predictions(path) for path in files.values())
    if [p.id for p in home] != [p.id for p in away]:
        raise WorkbenchError(
            f"{arm.name} and the teacher did not answer the same test rows",
            where=str(files[TEACHER]), remedy=next_command("evaluate", run.recipe_name),
        )  # fmt: skip
    wording = {e.id: e.text for e in part(recipe, run, "test")}
    pairs = paired(recipe, settings_of(report), home, away, [wording.get(p.id, "") for p in home])
    if chosen.kind == BEFORE:
        scores = before_scores(chosen.model or {}, pairs.texts)
    else:
        scores = cascade_scores(pairs, chosen.score)
    threshold = chosen.choice.threshold
    kept = [threshold is not None and score >= threshold for score in scores]
    figures = tell(
        pairs, kept, chosen.kind, level, recipe.evaluate.resamples, recipe.seed, report.get("slices") or (),
        (prices.home, prices.away), measured_waits(files[arm.name].parent, arm.name),
    )  # fmt: skip
    apart = auroc(scores, [bool(right) for right in pairs.home_right])
    figures |= {
        "auroc": None if apart is None else round(apart, 4), "predictions": before, "digest": test,
        "curve": curve(scores, pairs.home_right.tolist(), pairs.away_right.tolist()),
    }  # fmt: skip
    refused = refusals(figures, level)
    if {name: file_sha256(path) for name, path in files.items()} != before:
        raise WorkbenchError("the answers to the test changed while they were read", where=str(files[arm.name]))
    return {
        "test": figures, "look": {"number": number, "level": round(level, 6), "route": fixed},
        "refused": refused, "passed": not refused,
    }  # fmt: skip


def seal_route(folder: Path, outcome: Mapping[str, Any]) -> None:
    """MANIFEST.json over every file, naming what the route was proven for, and the signature: only of a proven one."""
    hashed = hash_files(folder)
    content = {
        "schema": 1, "kind": "route", "name": f"{outcome['recipe']}-route", "recipe": outcome["recipe"],
        "digest": outcome["run"], "route_sha256": outcome["look"]["route"], "proven_for": outcome["identity"],
        "files": {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in sorted(hashed.items())},
    }  # fmt: skip
    write_whole(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sign(folder, signing_key(), hashed)


def facts_of(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest and MLflow keep of it."""
    facts: dict[str, Any] = {
        "passed": outcome["passed"], "arm": outcome["arm"], "teacher": outcome["teacher"],
        "promise": outcome["promise"]["sentence"], "refused": [each["name"] for each in outcome["refused"]],
        "identity": outcome["identity"],
    }  # fmt: skip
    if outcome["chosen"]:
        facts |= {name: outcome["chosen"][name] for name in ("kind", "score", "threshold")}
    if outcome["test"]:
        facts |= {
            "kept_at_home": round(1 - outcome["test"]["escalated"]["value"], 6),
            "harm": outcome["test"]["harm"]["value"], "look": outcome["look"]["number"],
        }  # fmt: skip
    return facts


def promise_of(recipe: Recipe) -> str:
    """The promise in one sentence."""
    route = recipe.route
    how = (
        f"with {100 * route.certainty:.4g} % certainty"
        if route.promise == "sure"
        else "on average over draws of the rows, not for this one route"
    )
    what = "differ from the teacher's" if route.against == "teacher" else "are wrong at home where the teacher is right"
    return f"{how}, at most {100 * route.most_harm:g} of 100 requests {what}"


def log_route(run: Run, outcome: Mapping[str, Any]) -> None:
    """Its figures as events, and its files for MLflow."""
    if outcome["test"]:
        figures = {"escalated": outcome["test"]["escalated"], "harm": outcome["test"]["harm"]}
        figures |= {f"{arm}_right": figure for arm, figure in outcome["test"]["arms"].items()}
        for name, figure in figures.items():
            run.event("metric", stage=STAGE, name=f"route/{name}", value=figure["value"], step=None)
    for name in ("report.html", "report.json"):
        run.event("file", stage=STAGE, path=f"{STAGE}/{name}", title="route")


def tag_version(recipe: Recipe, run: Run, outcome: Mapping[str, Any]) -> None:
    """Tag the version that the routed bundle was registered as, champion or not; a store that is away is said."""
    if run.done("register") is None:
        return
    from workbench.tracking.versions import tag, version_of

    bundle = run.folder / "bundle" / outcome["arm"]
    store = (Path(recipe.launch.experiments).resolve(), recipe.tracking.uri or "")
    tags = {
        "route": "stands" if outcome["passed"] else "refused",
        "route.promise": outcome["promise"]["sentence"],
        "route.sha256": (outcome["look"] or {}).get("route", ""),
    }
    try:
        version = version_of(bundle, read_json(bundle / MANIFEST)["name"], *store)
        if version is not None:
            tag(version, tags, *store)
            say(run, STAGE, f"version {version.number} of {version.name} is tagged route={tags['route']}")
    except WorkbenchError as error:
        say(run, STAGE, f"the version is not tagged: {error}")


def finish(recipe: Recipe, run: Run) -> int:
    """The lines of the route on standard output; GateError, exit code 3, where it was refused."""
    from workbench.pages.route_page import route_lines
    from workbench.pages.terminal import print_json, results

    outcome = read_json(run.folder / STAGE / "report.json")
    if recipe.output == "json":
        print_json({name: value for name, value in outcome.items() if name != "said"})
    else:
        screen = results()
        for line in [*route_lines(outcome), "", f"report: {run.folder / STAGE / 'report.html'}"]:
            screen.print(line, markup=False, soft_wrap=True)
    if not outcome["passed"]:
        raise GateError(
            "; ".join(each["why"] for each in outcome["refused"]),
            where=f"route: {', '.join(each['name'] for each in outcome['refused'])}",
            remedy=outcome["refused"][0]["remedy"],
        )
    return errors.OK
