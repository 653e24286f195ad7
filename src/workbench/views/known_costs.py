"""What is known of a recipe's costs: measured by its run, read from the dated price table, or the machine's price."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.command import next_command
from workbench.deciding.inputs import RENTED, Kind, Known, exactly
from workbench.errors import RequestError
from workbench.evaluation.metrics import STUDENT, describe
from workbench.files import read_json
from workbench.recipe import Recipe, Teacher, routed_to, sources_of, weights_of
from workbench.recipe.costs import Cost
from workbench.runs import Run, find_run, run_digest
from workbench.sources import content_digests, is_missing

LOAD = Path("decide") / "load.json"
PRICED = ("input_mtok", "cached_mtok", "output_mtok")
# On which day a release of the price table came out.
RELEASED = {"0.2.3": "2026-11-10"}
STANDS_FOR = "gpt-5.4-mini"  # whose price is taken where the recipe has no teacher that charges one


def run_of(recipe: Recipe) -> Run | None:
    """The recipe's run, if there is one; sources are hashed where they lie here, nothing is fetched."""
    sources = sources_of(recipe)
    if any(source and is_missing(source) for source in sources.values()):
        return None
    digest = run_digest(weights_of(recipe), content_digests(sources))
    return find_run(Path(recipe.launch.experiments).resolve(), recipe.name, digest)


def known_costs(recipe: Recipe, run: Run | None) -> dict[str, Known]:
    """Input → what is known of it without the recipe's own `cost` section."""
    known = api_price(recipe) | {"usd_per_hour": RENTED[recipe.cost.device]}
    if recipe.launch.usd_per_hour is not None:
        known["usd_per_hour"] = exactly(recipe.launch.usd_per_hour, "launch.usd_per_hour", kind="yours")
    api = api_of(recipe)
    if api is not None:
        known["batch_discount"] = exactly(api.batch_discount, "the teacher's batch_discount", kind="yours")
    if api is not None and api is recipe.teacher:
        budget = api.budget_usd or 0.0
        known["labels_usd"] = Known(
            budget / 2, 0.0, budget, "half of teacher.budget_usd; `plan` estimates, the run measures"
        )
    if run is None:
        return known
    hour = known["usd_per_hour"].value if recipe.cost.usd_per_hour is None else recipe.cost.usd_per_hour
    measured = of_stages(run, hour) | of_labels(run) | of_report(recipe, run) | of_load(recipe.cost, run)
    return known | measured | of_route(recipe.cost, run)


def api_of(recipe: Recipe) -> Teacher | None:
    """The teacher that is paid by the token: the route's, else the one that is learned from; None: there is none."""
    teacher = routed_to(recipe)
    return None if teacher is None or teacher.api == "local_gguf" or teacher.inside else teacher


# The API's price: the recipe's own, else the table's.


def api_price(recipe: Recipe) -> dict[str, Known]:
    """Prices a million tokens of input, cached input and output; RequestError naming a model that nobody knows."""
    cost, teacher = recipe.cost, api_of(recipe)
    given = {name for name in PRICED if getattr(cost, name) is not None}
    if {"input_mtok", "output_mtok"} <= given:
        return {} if "cached_mtok" in given else {"cached_mtok": exactly(cost.input_mtok or 0.0, "as cost.input_mtok")}
    if cost.api is not None or teacher is None:
        return table_price(cost.api or STANDS_FOR, None, assumed=cost.api is None)
    price = teacher.price
    if price.input_mtok is None or price.output_mtok is None:
        return table_price(teacher.model, teacher.price_provider, assumed=False)
    cached = price.input_mtok if price.cached_mtok is None else price.cached_mtok
    kind: Kind = "table" if price.as_of else "yours"
    return {
        name: exactly(value, f"the price of {teacher.model} in the recipe", price.as_of, kind)
        for name, value in zip(PRICED, (price.input_mtok, cached, price.output_mtok))
    }


def table_price(model: str, provider: str | None, assumed: bool) -> dict[str, Known]:
    """The table's prices of a model, with the table's day."""
    import genai_prices

    release = version("genai-prices")

    def of(**usage: int) -> float:
        priced = genai_prices.calc_price(genai_prices.Usage(**usage), model_ref=model, provider_id=provider)
        return float(priced.total_price)

    try:
        million = 1_000_000
        read, out = of(input_tokens=million), of(output_tokens=million)
        cached = of(input_tokens=million, cache_read_tokens=million)
    except LookupError:
        raise RequestError(
            f"no price is known for {model!r}", where="cost.api" if not assumed else "cost.input_mtok",
            remedy="cost.input_mtok=… cost.output_mtok=… (USD a million tokens), or cost.api=MODEL of genai-prices",
        ) from None  # fmt: skip
    why = f"{model}, genai-prices {release}" + ("; the recipe names no API: cost.api=MODEL" if assumed else "")
    day = table_day()
    kind: Kind = "assumed" if assumed else "table"
    return {name: exactly(value, why, day, kind) for name, value in zip(PRICED, (read, cached, out))}


def table_day() -> str:
    """The day on which the installed price table was released; empty for a release that is not known here."""
    return RELEASED.get(version("genai-prices"), "")


# What a run has measured: every figure with the file and the day that it comes from.


def of_stages(run: Run, usd_per_hour: float) -> dict[str, Known]:
    """What training and evaluating took, at the price of the serving machine's hour."""
    stages = run.manifest()["stages"]
    known = {}
    for name, parts in {"training_usd": ("train",), "evaluation_usd": ("evaluate", "bundle/")}.items():
        own = [entry for stage, entry in stages.items() if stage.startswith(parts)]
        if own:
            hours = sum(entry["seconds"] for entry in own) / 3600
            why = f"{hours:.2f} hours in run.json, at {usd_per_hour:g} USD an hour"
            known[name] = exactly(hours * usd_per_hour, why, day(own[-1]), "measured")
    return known


def of_labels(run: Run) -> dict[str, Known]:
    """What labelling has cost, how long the teacher's questions and answers were, and how many calls an answer took."""
    entry, path = run.done("label"), run.folder / "label" / "summary.json"
    if entry is None or not path.is_file():
        return {}
    summary, when = read_json(path), day(entry)
    ledger = summary["in_all"]
    known = {"labels_usd": exactly(float(ledger["usd"]), "the ledger (label/summary.json)", when, "measured")}
    good = ledger["outcomes"].get("ok", 0)
    if good:
        calls = ledger["calls"]
        known["retry_factor"] = exactly(calls / good, f"{calls:,} calls for {good:,} answers, ledger", when, "measured")
        for name, column in {
            "tokens_in": "tokens_in", "tokens_cached": "tokens_cached", "tokens_thought": "tokens_reasoning"
        }.items():  # fmt: skip
            known[name] = exactly(ledger[column] / calls, f"mean of {calls:,} calls, ledger", when, "measured")
        out = max(0, ledger["tokens_out"] - ledger["tokens_reasoning"]) / calls
        known["tokens_out"] = exactly(out, f"mean of {calls:,} calls, ledger", when, "measured")
    return known


def of_report(recipe: Recipe, run: Run) -> dict[str, Known]:
    """Tokens of a request, and the shares of wrong answers with their intervals, as the evaluation measured them."""
    entry = run.done("evaluate")
    if entry is None:
        return {}
    report, when = read_json(run.folder / "evaluate" / "report.json"), day(entry)
    arms, metric = report["arms"], report["primary"]
    served = served_arm(report)
    known = {}
    asked_arm = "teacher" if "teacher" in arms and "tokens_in_per_answer" in arms["teacher"] else served
    for name, column in {"tokens_in": "tokens_in_per_answer", "tokens_out": "tokens_per_answer",
                         "tokens_thought": "thought_tokens_per_answer"}.items():  # fmt: skip
        cell = arms.get(asked_arm, {}).get(column)
        if cell and cell["value"] is not None:
            known[name] = exactly(float(cell["value"]), f"{asked_arm} on the test rows, report.json", when, "measured")
    energy = arms.get(served, {}).get("kwh_per_1000")
    if energy and energy["value"] is not None and recipe.cost.device == "cpu":
        why = f"{served} on the test rows by codecarbon, the whole machine, report.json"
        known["kwh_per_1000_self"] = exactly(float(energy["value"]), why, when, "measured")
    for name, arm in {"error_api": "teacher", "error_self": served}.items():
        cell = arms.get(arm, {}).get(metric)
        if cell and describe(metric)["kind"] == "share":
            low, high = (cell[end] if cell[end] is not None else cell["value"] for end in ("ci_low", "ci_high"))
            why = f"one less {arm}'s {metric}, {report['n']} test rows, report.json"
            wrong = 1.0 - cell["value"]
            known[name] = Known(wrong, min(wrong, 1.0 - high), max(wrong, 1.0 - low), why, when, "measured")
    return known


def served_arm(report: Mapping[str, Any]) -> str:
    """The arm that would serve: the first format that ships, else the student."""
    shipped = report.get("gate", {}).get("shipped", [])
    return next((arm for arm in shipped if arm != STUDENT), STUDENT)


def of_load(cost: Cost, run: Run) -> dict[str, Known]:
    """The capacity that a load test of this run's bundle found within the objective, on a machine of the same kind."""
    path = run.folder / LOAD
    load = read_json(path) if path.is_file() else None
    if load is None or load["device"] != cost.device or load["slo_seconds"] != cost.slo_seconds:
        return {}
    rate = load["answers_per_second"]
    if not rate:
        return {}
    where = f"p95 within {load['slo_seconds']:g} s, {load['bundle']} in {load['engine']}, {load['hardware']}, load.json"
    return {"answers_per_second": Known(rate, load["low"], load["high"], where, load["made"][:10], "measured")}


def of_route(cost: Cost, run: Run) -> dict[str, Known]:
    """What leaves the student, and the harm of what stays, as the run's route was told on the test.

    Nothing of a route that was refused, or that asks in another order than `cost.hybrid`.
    """
    entry = run.done("route")
    path = run.folder / "route" / "report.json"
    if entry is None or not path.is_file():
        return {}
    report = read_json(path)
    test, chosen = report["test"], report["chosen"]
    if not report["passed"] or chosen["kind"] != cost.hybrid:
        return {}
    why = f"the route ({chosen['kind']} by {chosen['score']}) on {test['n']:,} test rows, route/report.json"
    known = {}
    for name in ("escalated", "harm"):
        cell = test[name]
        low, high = (cell["value"] if cell[end] is None else cell[end] for end in ("ci_low", "ci_high"))
        known[name] = Known(cell["value"], low, high, why, day(entry), "measured")
    return known


def day(entry: Mapping[str, Any]) -> str:
    """The day on which a stage was finished."""
    return str(entry["finished"])[:10]


def refuse_without_capacity(recipe: Recipe, run: Run | None, known: Mapping[str, Known]) -> None:
    """RequestError where nobody has said or measured what the serving machine answers, with what to do.

    A figure of a processor is never carried over to an accelerator, nor one of another objective to this one.
    """
    cost = recipe.cost
    if cost.answers_per_second is not None:
        if not cost.sources.get("answers_per_second", "").strip():
            raise RequestError(
                "nobody knows where this capacity was measured", where="cost.answers_per_second",
                remedy="say it: cost.sources.answers_per_second='load test on one L4'",
            )  # fmt: skip
        return
    if "answers_per_second" in known:
        return
    path = run.folder / LOAD if run else None
    load = read_json(path) if path and path.is_file() else {}
    other = ""
    if load and load["device"] != cost.device:
        other = f"; decide/load.json was measured on {load['device']}, and says nothing of {cost.device}"
    elif load and load["slo_seconds"] != cost.slo_seconds:
        other = f"; decide/load.json was measured for {load['slo_seconds']:g} s, not for {cost.slo_seconds:g} s"
    elif load:
        other = f"; decide/load.json found no rate at which 95 of 100 wait at most {cost.slo_seconds:g} s"
    raise RequestError(
        f"nobody has measured what one machine ({cost.device}) answers within {cost.slo_seconds:g} s{other}",
        where="cost.answers_per_second",
        remedy="measure it on that machine: "
        + next_command("cost", recipe.name, "cost.load=true")
        + "; or give it with its source: cost.answers_per_second=12 "
        "cost.sources.answers_per_second='load test on one L4'; or name a machine: cost=cpu_2_cores",
    )
