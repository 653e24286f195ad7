"""What `train` would do: rows, tokens, steps, memory, disk, formats and licences. Fetches no weights and runs nothing.

Of a model without sizes that is not here, the hub is asked for its config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.compress.preflight import Verdict, preflight
from workbench.data.chat import recipe_tokenizer, refuse_marked, render_all, rendering_notes
from workbench.data.prepare import Asked, Splits, gather, judges_by_given, prepare, refuse_folds
from workbench.engines.served import available
from workbench.errors import RequestError
from workbench.files import free_bytes
from workbench.formats import format_named
from workbench.pages.terminal import show
from workbench.recipe import (
    Model,
    Recipe,
    Teach,
    Teacher,
    has_open_teacher,
    has_teacher,
    judged_by,
    makes_rows,
    routed_to,
    sources_of,
    weights_of,
)
from workbench.recipe.methods import against_folds, distilled, guard_of, learned, material_of
from workbench.records import Example, Message
from workbench.runs import find_run, run_digest
from workbench.sources import (
    content_digests,
    hub_model,
    is_here,
    is_pinned,
    left_unread,
    model_folder,
    model_is_here,
    pinned_commit,
    quantized_by_name,
    refuse_broken_source,
    refuse_rows_beyond,
    refuse_untrainable,
    unused_tokens,
)
from workbench.stored_rows import HELD, changed
from workbench.teacher.document_rows import asking, passages_of, prompts_of
from workbench.teacher.egress import rule_for
from workbench.teacher.prices import Estimate, estimate, pricing_of
from workbench.teacher.reach import require_way
from workbench.terms import policy
from workbench.training.adapter import start_adapter
from workbench.training.memory import shape_of
from workbench.training.model import check_targets, refuse_dtype
from workbench.training.shrink import counted, student_size
from workbench.views.foreseen import Ahead, about_disk, about_forecast, disk_bytes, foreseen, steps_of
from workbench.views.promises import about_route

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# English text with a vocabulary of 50,000 tokens; only said where the tokenizer cannot be read here.
CHARACTERS_A_TOKEN = 4.0


def run(recipe: Recipe) -> int:
    """Print the plan; an impossible format or a missing file is an error here, before any hour is spent."""
    teacher = recipe.teacher
    if makes_rows(recipe):
        return plan_documents(recipe)
    judging, asks = judged_by(recipe), recipe.method.validation_asked
    questions = (
        gather(recipe.data, teacher.prompts, teacher.limit, recipe.seed, asks, judged_by=judging)
        if teacher.api != "none"
        else None
    )
    learns = material_of(recipe)
    splits = questions.splits if questions else prepare(recipe.data, recipe.seed, learns=learns, judged_by=judging)
    refuse_dtype(recipe.model.dtype)
    base = base_here(recipe.model)
    recipe, of_hub = with_sizes(recipe, base)
    verdicts = format_verdicts(recipe, base)
    lessons = changed(questions.examples, blank_filled) if questions else conversations(recipe, splits)
    counted = tokens, _ = count_tokens(recipe, lessons, base, splits.notes)
    if base is not None:
        judges = chain(splits.validation, splits.test)
        refuse_rows_beyond(base, judges, [], f"model.source={recipe.model.source}")
        check_targets(base, recipe.method)
    tokenizer = tokenizer_here(recipe, base)
    if tokenizer is not None:
        refuse_marked(splits.test, tokenizer)
    if recipe.model.adapter and is_here(recipe.model.adapter):
        start_adapter(recipe.model, recipe.method)
    dropped = len(lessons) - len(tokens)
    learned_rows = round(rows_learned(recipe, splits, questions) * len(tokens) / len(lessons))
    ahead = foreseen(recipe, tokens, learned_rows, base)
    cost = cost_of(recipe, questions) if questions else None
    sections: dict[str, Any] = {
        "run": about_run(recipe),
        "model": about_model(recipe.model, base) | of_hub,
        **unpinned(recipe),
        "data": about_data(recipe, splits, *counted, dropped),
        "training": about_training(recipe, learned_rows, *counted, ahead),
        **({"distillation": about_distillation(recipe, splits, questions)} if recipe.method.distil else {}),
        **({"learning": about_learning(recipe, splits)} if recipe.method.learn else {}),
        "formats": {v.format: f"{'yes' if v.ok else 'NO'}: {v.why}" for v in verdicts} or {"formats": "none wanted"},
        "evaluation": about_evaluation(recipe, splits),
        "bundles": about_bundles(recipe),
        **({"route": about_route(recipe, splits)} if routed_to(recipe) else {}),
        "disk": about_disk(recipe, base),
        "teacher": about_teacher(recipe, questions, cost)
        if questions and cost
        else {"calls": 0, "cost": "0 USD: no teacher is asked"},
        **({"open teacher": about_weights(teacher)} if teacher.weights else {}),
    }
    if recipe.output == "json":
        sections = {
            "recipe": recipe.name,
            "numbers": numbers(recipe, splits, cost, learned_rows, tokens, base, ahead),
        } | sections
    show(f"plan of {recipe.name}", sections, recipe.output)
    for verdict in verdicts:
        if not verdict.ok:
            raise RequestError(f"{verdict.format}: {verdict.why}", where="quantize", remedy=verdict.remedy)
    return 0


def numbers(
    recipe: Recipe,
    splits: Splits,
    cost: Estimate | None,
    rows: int,
    tokens: Sequence[int],
    base: Path | None,
    ahead: Ahead | None,
) -> dict[str, int | float | None]:
    """The plan's figures for a program: each key ends in its unit, null is what is not known before."""
    method = recipe.method
    return {
        "train_rows": len(splits.train),
        "validation_rows": len(splits.validation),
        "test_rows": len(splits.test),
        "learned_rows": rows,
        "train_tokens": sum(tokens),
        "longest_row_tokens": max(tokens),
        "steps": steps_of(method, rows),
        "memory_bytes": ahead.estimate.memory_bytes if ahead else None,
        "forecast_memory_bytes": ahead.seen.memory_bytes if ahead else None,
        "forecast_training_seconds": ahead.seen.seconds if ahead else None,
        "disk_bytes": disk_bytes(recipe, base) or None,
        "free_disk_bytes": free_bytes(Path(recipe.launch.experiments)),
        "teacher_calls": cost.calls if cost else 0,
        "teacher_likely_usd": cost.likely if cost else 0.0,
        "teacher_most_usd": cost.high if cost else 0.0,
    }


def cost_of(recipe: Recipe, questions: Asked) -> Estimate:
    """What the teacher's answers would cost."""
    return estimate(
        recipe.teacher,
        [e.prompt for e in questions.examples],
        [e.answer for e in questions.examples],
        Path(recipe.launch.experiments) / "ledger.db",
        [e.tools for e in questions.examples],
    )


def plan_documents(recipe: Recipe) -> int:
    """The plan of rows that a teacher has yet to make from documents: what would be asked, and what it costs."""
    passages, notes = passages_of(recipe.teacher, recipe.seed)
    prompts, _ = prompts_of(recipe.teacher, passages, recipe.data.privacy, "raw")
    examples = [Example(p.id, (*p.messages, Message("assistant", ""))) for p in prompts]
    with_fields = replace(recipe, teacher=asking(recipe.teacher))
    base = base_here(recipe.model)
    recipe, of_hub = with_sizes(recipe, base)
    wanted = Asked(examples, Splits([], [], [], [], [], []), [], [])
    sections = {
        "run": about_run(recipe),
        "model": about_model(recipe.model, base) | of_hub,
        **unpinned(recipe),
        "documents": {"documents": recipe.teacher.documents, "passages": "; ".join(notes),
                      "rows": f"at most {len(prompts):,}, parted by document; known once the teacher has made them"},
        "bundles": about_bundles(recipe),
        "teacher": about_teacher(with_fields, wanted, cost_of(with_fields, wanted)),
    }  # fmt: skip
    show(f"plan of {recipe.name}", sections, recipe.output)
    return 0


def base_here(model: Model) -> Path | None:
    """The base's folder where it is here already; refused when it could not be tuned."""
    refuse_broken_source(model.source)
    if not model_is_here(model.source):
        return None
    base = model_folder(model.source, model.sha256, key="model.source")
    refuse_untrainable(base, f"model.source={model.source}")
    return base


def with_sizes(recipe: Recipe, base: Path | None) -> tuple[Recipe, dict[str, str]]:
    """The recipe with the sizes of a model that gives none, and lines on where they come from: folder or hub."""
    model = recipe.model
    if model.parameters and model.layers:
        return recipe, {}
    if base is not None:
        shape = shape_of(base)
        sizes: dict[str, Any] = {"parameters": counted(base)[0], "layers": shape.layers, "hidden_size": shape.hidden,
                 "intermediate_size": shape.mlp, "vocabulary": shape.vocabulary}  # fmt: skip
        return replace(recipe, model=replace(model, **sizes)), {"sizes": "as its config.json says"}
    there = hub_model(model.source)
    if isinstance(there, str):
        return recipe, {"sizes": f"unknown: {there}"} if there else {}
    lines = {"sizes": f"as its config.json on the hub says, at {there.commit}"}
    if not model.licence and there.licence:
        lines["licence"] = f"UNKNOWN: the card says {there.licence}; read it, then set model.licence and model.family"
    if there.gated:
        lines["here"] = "no, it would be fetched (HF_TOKEN needed)"
    return replace(recipe, model=replace(model, **there.sizes())), lines


def blank_filled(example: Example) -> Example:
    """A row whose answer a teacher will give, with a stand-in as long as answers often are."""
    answer = example.answer or "x" * 60
    return replace(example, messages=(*example.prompt, Message("assistant", answer)))


def about_teacher(recipe: Recipe, questions: Asked, cost: Estimate) -> dict[str, Any]:
    """Calls, dollars, terms and privacy; a refusal here is the refusal that `label` would give."""
    teacher = recipe.teacher
    verdict = policy.judge(teacher)
    way = require_way(teacher, recipe.data.privacy, look_up=False)
    wall = "none" if teacher.budget_usd is None else f"{teacher.budget_usd:g} USD"
    return {
        "asks": f"{teacher.model or teacher.name}, {cost.calls:,} calls for {len(questions.examples):,} prompts",
        "cost": f"low {cost.low:.4f}, likely {cost.likely:.4f}, at most {cost.high:.4f} USD ({cost.why})",
        "budget": wall,
        "price": pricing_of(teacher, to_spend=False).source,
        "terms": f"{verdict.verdict}: {verdict.why}",
        "privacy": f"rows are {recipe.data.privacy}: they leave {rule_for(teacher, recipe.data.privacy)}"
        if not teacher.inside
        else "the teacher is within your walls",
        **({"way": "; ".join(way)} if way else {}),
    }


def about_weights(teacher: Teacher) -> dict[str, Any]:
    """The weights that score the student's own answers, and whether they may: a refusal here is training's."""
    verdict = policy.judge(policy.of_weights(teacher))
    return {
        "weights": teacher.weights,
        "here": "yes" if is_here(teacher.weights or "") else "no, they would be fetched",
        "terms": f"{verdict.verdict}: {verdict.why}",
    }


def about_run(recipe: Recipe) -> dict[str, Any]:
    """Where the run would lie, and what of it is there already."""
    run_id = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    known = find_run(Path(recipe.launch.experiments), recipe.name, run_id)
    done = list(known.manifest()["stages"]) if known else []
    return {"folder": f"{recipe.launch.experiments}/{recipe.name}/{run_id}", "done": ", ".join(done) or "nothing yet"}


def unpinned(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The sources that stand for whatever is there when they are first fetched, and how each is pinned."""
    evaluate, judge = recipe.evaluate, recipe.evaluate.judge
    promises = {
        "model.source": recipe.model.sha256,
        "teacher.source": recipe.teacher.sha256,
        "teacher.weights": recipe.teacher.weights_sha256,
        "evaluate.judge.source": judge.sha256,
    }
    judged = {"judge.source": judge.source, "judge.human": judge.human, "general": evaluate.general}
    judged |= {"harmful": evaluate.harmful}
    named = sources_of(recipe) | {f"evaluate.{key}": source for key, source in judged.items()}
    lines = {}
    for key, source in named.items():
        if source and not is_pinned(source, promises.get(key)):
            commit = pinned_commit(source)
            now = f"fetched here at {commit}, and held to it" if commit else "held to what is fetched first"
            pin = f"write {source.partition('@')[0]}@COMMIT" if source.startswith("hf:") else "give its sha256"
            lines[key] = f"{source}: {now}; to have the same everywhere, {pin}"
    return {"not pinned": lines} if lines else {}


def about_model(model: Model, base: Path | None) -> dict[str, Any]:
    """What would be tuned, and under which licence."""
    return {
        "source": model.source,
        "here": "yes" if base else "no, it would be fetched" + (" (HF_TOKEN needed)" if model.gated else ""),
        **({"doubt": quantized_by_name(model.source)} if base is None and quantized_by_name(model.source) else {}),
        **(
            {"unread": f"{', '.join(left_unread(base))}: the safetensors are taken"}
            if base and left_unread(base)
            else {}
        ),
        **({"tokens": unused_tokens(base)} if base and unused_tokens(base) else {}),
        "parameters": model.parameters or None,
        **({"student": student_line(model, base)} if model.shrink.layers is not None else {}),
        "licence": model.licence or "UNKNOWN: read it before you ship",
        "notes": model.notes or None,
    }


def about_data(recipe: Recipe, splits: Splits, tokens: list[int], how: str, dropped: int) -> dict[str, Any]:
    """Rows, tokens and the data's licence; `dropped` rows are too long to be trained on."""
    limit = f"{recipe.method.max_length:,}" + (f", {how}{dropped:,} left out that are longer" if dropped else "")
    return {
        "rows": f"{len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test",
        "tokens": f"{how}{sum(tokens):,} in train, longest row {how}{max(tokens):,} of {limit}",
        "licence": recipe.data.licence or "UNKNOWN: data.licence is not set",
        "notes": splits.notes,
    }


def count_tokens(
    recipe: Recipe, examples: Sequence[Example], base: Path | None, notes: list[str]
) -> tuple[list[int], str]:
    """Tokens of each row that is trained on, exact where the tokenizer can be read here, else by characters (≈).

    What a user should hear of their rendering is added to `notes`.
    """
    tokenizer = tokenizer_here(recipe, base)
    if tokenizer is None:
        counted = [round(sum(len(m.content) for m in e.messages) / CHARACTERS_A_TOKEN) for e in examples]
        drop = recipe.method.too_long == "drop"
        tokens = [count for count in counted if not drop or count <= recipe.method.max_length]
    else:
        raw = [e for e in examples if not e.prompt]
        talks = examples if not raw else [e for e in examples if e.prompt]
        tokens = []
        for first in range(0, len(talks), HELD):
            rows = render_all(talks[first : first + HELD], tokenizer, recipe.method, none_left=True)
            if base is not None:
                refuse_rows_beyond(base, talks[first : first + HELD], rows, f"model.source={recipe.model.source}")
            tokens += [len(row.input_ids) for row in rows]
        notes += rendering_notes(talks, tokenizer, recipe.method)
        tokens += [len(tokenizer(e.answer, add_special_tokens=False)["input_ids"]) + 1 for e in raw]
    if not tokens:
        raise RequestError("every training row is longer", where="method.max_length", remedy="raise it")
    return tokens, "≈" if tokenizer is None else ""


def tokenizer_here(recipe: Recipe, base: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer, where the base is here and it can be read without what is not installed."""
    if base is not None:
        with suppress(ModuleNotFoundError):  # a tokenizer that only transformers knows to read, and it is not installed
            return recipe_tokenizer(base, recipe.model, recipe.method, light=True)
    return None


def about_training(recipe: Recipe, rows: int, tokens: list[int], how: str, ahead: Ahead | None) -> dict[str, Any]:
    """Method, steps, memory and time of a training on `rows` rows; a chain of kinds takes its steps once each."""
    method = recipe.method
    an_epoch = max(1, math.ceil(rows / method.batch_size))
    steps = steps_of(method, rows)
    a_step = sum(tokens) / len(tokens) * method.batch_size
    chain = learned(method)
    kinds = f", for each of {len(chain)} kinds" if len(chain) > 1 else ""
    return {
        "method": method.kind + (f", rank {method.rank}" if method.kind != "full" else ""),
        "steps": f"{steps:,} of {method.batch_size} rows ({steps / an_epoch:.2f} epochs, ≈{a_step:,.0f} tokens a step)"
        + kinds,
        "tokens seen": f"{how}{round(a_step * steps):,}",
        **(about_forecast(ahead) if ahead else {"memory": "unknown: the model's sizes are not given"}),
    }


def format_verdicts(recipe: Recipe, base: Path | None) -> list[Verdict]:
    """Which wanted formats the model's shapes and tokenizer allow."""
    model = recipe.model
    shape: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocabulary,
    }
    if base:
        shape = json.loads((base / "config.json").read_text())
    return preflight(shape, base / "tokenizer.json" if base else None, [q.format for q in recipe.quantize.values()])


def about_evaluation(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Who answers how many rows, and what decides."""
    from workbench.evaluation.few_rows import too_few
    from workbench.evaluation.scorers import planned_metric

    every = len(splits.train) + len(splits.validation) + len(splits.test)
    judging = every - recipe.evaluate.few_shot if recipe.evaluate.folds else len(splits.test)
    n = min(judging, recipe.evaluate.limit or judging)
    arms = ["base", *(["base_few_shot"] if recipe.evaluate.few_shot else [])]
    has_any_teacher = has_teacher(recipe) or has_open_teacher(recipe)
    arms += ["teacher"] * (has_any_teacher and recipe.evaluate.teacher)
    arms += ["gold_student"] * bool(recipe.evaluate.gold_student)
    arms += ["adapter"] * (recipe.evaluate.adapter and recipe.method.kind == "lora") + ["student", *recipe.quantize]
    decides = f"{planned_metric(recipe.evaluate)}: student against {recipe.gate.baseline}, by interval"
    share = None if judges_by_given(recipe.data, splits) else recipe.data.test_share
    folds = bool(recipe.evaluate.folds)
    short = too_few(n, every, recipe.gate, share, by_folds=folds, against=against_folds(recipe))
    few: dict[str, Any] = {"too few": short} if short else {}
    if recipe.evaluate.folds:
        refuse_folds(recipe.data, splits)
        few["folds"] = about_folds(recipe)
        arms = ["base", *(["base_few_shot"] if recipe.evaluate.few_shot else []), "student (siblings of it)"]
    return {"rows": f"{n:,}", **few, "arms": ", ".join(arms), "gate": decides}


def about_folds(recipe: Recipe) -> str:
    """What the siblings cost: trainings, and their minutes where the run's own has been measured."""
    run_id = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    known = find_run(Path(recipe.launch.experiments), recipe.name, run_id)
    seconds = (known.done("train") or {}).get("seconds") if known else None
    cost = f"{recipe.evaluate.folds} trainings more, each as long as the one above"
    return cost + (f": about {recipe.evaluate.folds * seconds / 60:.0f} minutes" if seconds else "")


def about_bundles(recipe: Recipe) -> dict[str, str]:
    """In which engine each of them would be proven, if the gate lets it ship."""
    served = {name: format_named(q.format).served_by for name, q in recipe.quantize.items()}
    of = {engine: [name for name in served if served[name] == engine] for engine in served.values()}
    missing = available("vllm")
    where = "vLLM" if missing is None else f"transformers, for vLLM cannot be started here: {missing}"
    if missing and not recipe.bundle.fallback:
        where = f"refused: vLLM cannot be started here: {missing}"
    lines = {"llama.cpp": ", ".join(of.pop("llamacpp", [])) or "none"}
    lines["safetensors"] = f"{', '.join(['student', *of.pop('vllm', [])])} in {where}"
    return lines | {engine: ", ".join(names) for engine, names in of.items()}


# What `plan` says of a distillation and of a smaller student: what is learned, on which prompts, how large it is.


def student_line(model: Model, base: Path | None) -> str:
    """The size of a student that is cut from the model's layers."""
    parameters, layers = student_size(model, base)
    whole = counted(base)[1] if base else model.layers
    size = f", {'' if base else '≈'}{parameters:,} parameters" if parameters else ""
    return f"{layers} of {whole or 'its'} layers ({model.shrink.keep}){size}"


def rows_learned(recipe: Recipe, splits: Splits, questions: Asked | None) -> int:
    """Rows that an epoch of training holds, when every prompt is answered and kept; a reason is a row of its own."""
    if questions is None:
        sampled = any(kind.replaces for kind in distilled(recipe.method.distil))
        return len(splits.train) * (recipe.method.teach.samples if sampled else 1)
    teach = recipe.method.teach if recipe.method.distil else Teach()
    rows = round((len(questions.examples) - len(questions.judging)) * teach.answers / (1 - teach.gold_share))
    return 2 * rows if any(kind.reasons for kind in distilled(recipe.method.distil)) else rows


def about_distillation(recipe: Recipe, splits: Splits, questions: Asked | None) -> dict[str, Any]:
    """What is learned of the teacher, on which prompts, from how many answers, and what guards it."""
    method, teacher = recipe.method, recipe.teacher
    teach = method.teach
    lines: dict[str, Any] = {"learns": ", then ".join(method.distil).replace("_", "-")}
    if questions is None:
        lines["prompts"] = f"{len(splits.train):,}, those of the training rows; no label is asked for"
    else:
        prompts = len(questions.examples) - len(questions.judging)
        samples = f"{teacher.samples} samples each, at most {teach.answers} of their answers kept"
        lines["prompts"] = f"{prompts:,} to train on, " + (samples if teacher.samples > 1 else "one answer each")
        lines["judged on"] = f"{len(questions.judging):,} validation rows that the teacher answers too"
    if any(kind.samples for kind in distilled(method.distil)):
        lines["own answers"] = f"{teach.samples} a prompt, of at most {teach.max_new_tokens} tokens"
    gold = sum(bool(e.answer) for e in splits.validation[: teach.development_rows])
    limit = "told, not judged" if teach.headroom is None else f"a lead above {teach.headroom:g}, lower end"
    there = questions is not None or teacher.weights is not None
    lines["headroom"] = f"on {gold:,} gold development rows: {limit}" if there and gold else "not looked at"
    if teach.curve:
        lines["learning curve"] = "trained on 25 and 50 % of the labels as well"
    return lines


def conversations(recipe: Recipe, splits: Splits) -> Sequence[Example]:
    """The rows as the last kind of the recipe reads them: of a pair both answers, of judged answers the good ones."""
    return learned(recipe.method)[-1].conversations(splits.train)


def about_learning(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """What is learned of one's own rows, one kind after the other, and what guards it."""
    method, data = recipe.method, recipe.data
    lines: dict[str, Any] = {"learns": ", then ".join(method.learn)}
    pairs, good = sum(bool(e.rejected) for e in splits.train), sum(e.good is True for e in splits.train)
    if pairs:
        lines["pairs"] = f"{pairs:,}"
    if good or any(e.good is False for e in splits.train):
        lines["judged answers"] = f"{good:,} good, {sum(e.good is False for e in splits.train):,} bad"
    if data.documents:
        lines["documents"] = f"of {data.documents}, {data.validation_share:.0%} of them held out"
    if any(kind.samples for kind in learned(method)):
        reward = method.reward
        lines["own answers"] = f"{reward.samples} a prompt, of at most {reward.max_new_tokens} tokens"
        by = guard_of(recipe)
        drop = (
            "told, not judged" if reward.guard_drop is None else f"a fall of more than {reward.guard_drop:g} stops it"
        )
        lines["guard"] = f"{by} on {reward.guard_rows:,} held-out rows: {drop}" if reward.guard_rows else "none"
    if recipe.model.adapter:
        lines["starts from"] = recipe.model.adapter
    return lines
