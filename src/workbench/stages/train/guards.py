"""Guards of a distillation: a teacher that does not beat the base is refused before hours are spent on its answers.

Teacher and student are held against gold rows of the validation part, which nothing is trained on. The second guard,
against a student that falls while its loss falls, is `training/development.py`; this file hands it the scorer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.chat import load_tokenizer
from workbench.engines import transformers_engine
from workbench.errors import GateError
from workbench.evaluation.scorers import deciding_score
from workbench.evaluation.statistics import Floats, Ints, cluster_numbers, difference, item_estimate, resampled_totals
from workbench.files import read_json, write_whole
from workbench.recipe import Evaluate, Recipe
from workbench.records import Example, digest, message_dicts
from workbench.runs import Run
from workbench.stages.common import say

FILE = "headroom.json"


def headroom(
    recipe: Recipe, run: Run, base: Path, development: Sequence[tuple[Example, str]], folder: Path
) -> dict[str, Any]:
    """Scores of teacher and base on the gold development rows, the lead and its interval; {} without such rows.

    Kept in `folder/headroom.json` with the rows' groups, so that a resumed run asks the base no second time. Raises
    GateError when the lead's lower end is not above `method.teach.headroom`.
    """
    limit = recipe.method.teach.headroom
    if not development:
        say(run, "train", "there are no gold development rows: whether the teacher beats the base is not known")
        return {}
    items, answers = [item for item, _ in development], [answer for _, answer in development]
    key = digest([base_key(recipe), [[message_dicts(e.messages), answer] for e, answer in development]], 32)
    kept = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    if kept.get("key") != key:
        teacher = scores_of(recipe.evaluate, items, answers)
        own = scores_of(recipe.evaluate, items, base_answers(recipe, base, items))
        groups = [e.group for e in items]
        kept = {"key": key, "groups": groups} | compared(teacher, own, groups, recipe)
        write_whole(folder / FILE, json.dumps(kept))
    facts = {name: kept[name] for name in ("teacher_score", "base_score", "lead", "lead_low", "lead_high")}
    for name, value in facts.items():
        run.event("metric", stage="train", name=f"headroom/{name}", value=value, step=None)
    line = (
        f"the teacher scores {kept['teacher_score']:.3f}, base {kept['base_score']:.3f} on {len(items)} gold "
        f"development rows: a lead of {kept['lead']:+.3f} ({kept['lead_low']:+.3f} to {kept['lead_high']:+.3f})"
    )
    if limit is not None and kept["lead_low"] <= limit:
        raise GateError(
            f"{line}, whose lower end is not above {limit:g}: a student of this teacher has nothing to win",
            where="method.teach.headroom",
            remedy="choose a better teacher, ask it better, or give more method.teach.development_rows",
        )
    say(run, "train", line)
    return facts


def base_key(recipe: Recipe) -> dict[str, Any]:
    """What base's answers and their scores depend on, beside the rows."""
    model, evaluate = recipe.model, recipe.evaluate
    return {
        "model": [model.source, model.sha256, model.chat_template],
        "evaluate": [evaluate.scorer, evaluate.fields, evaluate.primary, evaluate.max_new_tokens],
    }


def base_answers(recipe: Recipe, base: Path, items: Sequence[Example]) -> list[str]:
    """What the model as it was downloaded says to the rows, by the template that the student is trained with."""
    template = load_tokenizer(base, recipe.model.chat_template).chat_template
    answers = [""] * len(items)
    with transformers_engine(
        base,
        device=recipe.launch.device,
        threads=recipe.launch.threads,
        batch_tokens=recipe.evaluate.batch_tokens,
        chat_template=template if isinstance(template, str) else None,
    ) as ask:
        for number, answer in ask([e.prompt for e in items], recipe.evaluate.max_new_tokens):
            answers[number] = answer.text
    return answers


def scores_of(evaluate: Evaluate, items: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Each answer by the recipe's scorer."""
    return [deciding_score(evaluate, item.answer, answer) for item, answer in zip(items, answers, strict=True)]


def compared(
    teacher: Sequence[float], base: Sequence[float], groups: Sequence[str], recipe: Recipe
) -> dict[str, float]:
    """Both means and the paired lead with its interval; near copies are resampled together."""
    ours, theirs, clusters = np.array(base), np.array(teacher), cluster_numbers(groups)
    delta = theirs - ours
    lead = difference(delta, clusters, resampled_means(delta, clusters, recipe), recipe.evaluate.confidence)
    means = {"teacher_score": float(theirs.mean()), "base_score": float(ours.mean())}
    return means | {"lead": lead.value, "lead_low": float(lead.low or 0.0), "lead_high": float(lead.high or 0.0)}


def resampled_means(values: Floats, clusters: Ints, recipe: Recipe) -> Floats:
    """The mean (B,) of the values over resamples of whole clusters."""
    columns = np.stack([values, np.ones(len(values))], 1)
    totals = resampled_totals(columns, clusters, recipe.evaluate.resamples, recipe.seed)
    return totals[:, 0] / totals[:, 1]


def interval(scores: Sequence[float], groups: Sequence[str], recipe: Recipe) -> dict[str, float]:
    """A mean score with its interval: `value`, `ci_low`, `ci_high`."""
    values, clusters = np.array(scores, dtype=float), cluster_numbers(groups)
    estimate = item_estimate(values, resampled_means(values, clusters, recipe), clusters, recipe.evaluate.confidence)
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return {"value": estimate.value, "ci_low": min(low, estimate.value), "ci_high": max(high, estimate.value)}
