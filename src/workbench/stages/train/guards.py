"""Guards of a distillation: a teacher that does not beat the base is refused before hours are spent on its answers.

Teacher and student are held against gold rows of the validation part, which nothing is trained on. The second guard,
against a student that falls while its loss falls, is `training/development.py`; this file hands it the scorer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.chat import load_tokenizer
from workbench.data.prepare import Splits
from workbench.engines import transformers_engine
from workbench.errors import GateError
from workbench.evaluation.answers import wanted_of
from workbench.evaluation.scorers import deciding_score
from workbench.files import file_sha256, read_sealed, write_sealed
from workbench.recipe import Evaluate, Recipe
from workbench.records import Example, digest, message_dicts
from workbench.runs import Run, hold_source
from workbench.sources import Weights, is_moving, model_weights, pinned_commit
from workbench.stages.common import say
from workbench.stages.label import refuse_name
from workbench.stages.train.intervals import compared
from workbench.terms import policy
from workbench.terms.policy import read_duties, write_duties

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
    key = digest(
        [
            base_key(recipe),
            [[message_dicts(e.messages), answer, *([e.tools] if e.tools else [])] for e, answer in development],
        ],
        32,
    )
    kept = read_sealed(folder / FILE) or {}
    if kept.get("key") != key:
        teacher = scores_of(recipe.evaluate, items, answers)
        own = scores_of(recipe.evaluate, items, base_answers(recipe, base, items))
        groups = [e.group for e in items]
        kept = {"key": key, "groups": groups} | compared(teacher, own, groups, recipe)
        write_sealed(folder / FILE, kept)
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
        tools = [e.tools for e in items]
        for number, answer in ask([e.prompt for e in items], recipe.evaluate.max_new_tokens, tools=tools):
            answers[number] = answer.text
    return answers


def scores_of(evaluate: Evaluate, items: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Each answer by the recipe's scorer."""
    wanted = [wanted_of(item, evaluate.acceptable) for item in items]
    return [deciding_score(evaluate, *pair) for pair in zip(wanted, answers, strict=True)]


# A teacher whose weights are here: its terms, its folder, and what it says to the gold rows it is held against.

ANSWERS = "teacher_answers.json"


def permit(recipe: Recipe) -> None:
    """Whether these weights may teach this student, by the terms table: before anything is fetched. Raises as label."""
    policy.require(policy.of_weights(recipe.teacher))


def opened(recipe: Recipe, run: Run, folder: Path) -> dict[str, Any]:
    """Fetch the teacher, judge it with the duties that lie beside its weights, and keep those in `folder`.

    Gives the facts that a labelling tells of its teacher.
    """
    weights = weights_of(recipe, run)
    inherited = read_duties(weights)
    verdict = policy.require(policy.of_weights(recipe.teacher), inherited)
    duties = policy.joined(verdict.duties, inherited)
    refuse_name(recipe, duties)
    write_duties(folder, duties)
    say(run, "train", f"terms of the teacher's weights: {verdict.verdict}, {verdict.why}")
    return {
        "teacher": recipe.teacher.weights,
        "terms": verdict.verdict,
        "terms_rule": verdict.rule,
        "terms_acknowledged": recipe.teacher.terms_acknowledged,
    }


def weights_of(recipe: Recipe, run: Run) -> Path:
    """The teacher's folder; an alias is followed once a run, so that what it names does not change under way."""
    source = recipe.teacher.weights or ""
    weights = opened_once(run.folder, source, recipe.teacher.weights_sha256)
    if not is_moving(source):
        hold_source(run, "teacher.weights", source, weights.sha256, pinned_commit(source))
    return weights.folder


@functools.lru_cache(maxsize=8)
def opened_once(run_folder: Path, source: str, sha256: str | None) -> Weights:
    """`model_weights`, remembered for a run."""
    return model_weights(source, sha256)


def answers(recipe: Recipe, run: Run, splits: Splits, folder: Path) -> list[tuple[Example, str]]:
    """The gold validation rows that teacher and student are held against, with what the teacher's weights say to them.

    Kept in `folder/teacher_answers.json`, so that a resumed run asks them no second time.
    """
    items = [e for e in splits.validation[: recipe.method.teach.development_rows] if e.answer]
    if not items:
        return []
    weights = weights_of(recipe, run)
    prompts = [[message_dicts(e.prompt), *([e.tools] if e.tools else [])] for e in items]
    key = digest([digest_of(weights), recipe.evaluate.max_new_tokens, prompts], 32)
    kept = read_sealed(folder / ANSWERS) or {}
    if kept.get("key") != key:
        say(run, "train", f"the teacher is asked {len(items)} gold development rows")
        own_template = replace(recipe, model=replace(recipe.model, chat_template=None))
        kept = {"key": key, "answers": base_answers(own_template, weights, items)}
        write_sealed(folder / ANSWERS, kept)
    return list(zip(items, kept["answers"], strict=True))


def digest_of(weights: Path) -> str:
    """Digest of a folder's weights alone."""
    return digest([file_sha256(path) for path in sorted(weights.glob("*.safetensors"))], 32)
