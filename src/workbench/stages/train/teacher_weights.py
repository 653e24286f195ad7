"""A teacher whose weights are here: its terms, its folder, and what it says to the gold rows it is held against."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.prepare import Splits
from workbench.files import file_sha256
from workbench.recipe import Recipe
from workbench.records import Example, digest, message_dicts
from workbench.runs import Run, hold_source
from workbench.sources import Weights, is_moving, model_weights, pinned_commit
from workbench.stages.common import say
from workbench.stages.label import refuse_name
from workbench.stages.train.guards import base_answers
from workbench.terms import policy
from workbench.terms.duties import read_duties, write_duties
from workbench.training.sealed import read_sealed, write_sealed

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
    prompts = [message_dicts(e.prompt) for e in items]
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
