"""The kind on_policy: the student's own answers, scored token by token by a teacher whose weights are here.

The rows' prompts are all that is read of them. Whether the teacher has the student's vocabulary or another decides how
the two are compared, and is said before anything is loaded.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.chat import load_tokenizer, prompt_ids, render
from workbench.data.prepare import Splits
from workbench.errors import RequestError
from workbench.recipe import Recipe
from workbench.records import Example, TokenRow, digest, file_sha256, message_dicts
from workbench.runs import Run, hold_source, read_json, write_whole
from workbench.sources import Weights, is_moving, model_weights, pinned_commit
from workbench.stages.common import say
from workbench.stages.guards import base_answers
from workbench.stages.label import refuse_name
from workbench.stages.learn import Start, Task, rendered
from workbench.teacher import terms

if TYPE_CHECKING:
    from workbench.training.gold import OtherWords

ANSWERS = "teacher_answers.json"


def permit(recipe: Recipe) -> None:
    """Whether these weights may teach this student, by the terms table: before anything is fetched. Raises as label."""
    terms.require(terms.of_weights(recipe.teacher))


def opened(recipe: Recipe, run: Run, folder: Path) -> dict[str, Any]:
    """Fetch the teacher, judge it with the duties that lie beside its weights, and keep those in `folder`.

    Gives the facts that a labelling tells of its teacher.
    """
    weights = weights_of(recipe, run)
    inherited = terms.read_duties(weights)
    verdict = terms.require(terms.of_weights(recipe.teacher), inherited)
    duties = terms.joined(verdict.duties, inherited)
    refuse_name(recipe, duties)
    terms.write_duties(folder, duties)
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
    found = found_for(run.folder, source, recipe.teacher.weights_sha256)
    if not is_moving(source):
        hold_source(run, "teacher.weights", source, found.sha256, pinned_commit(source))
    return found.folder


@functools.lru_cache(maxsize=8)
def found_for(run_folder: Path, source: str, sha256: str | None) -> Weights:
    """`model_weights`, remembered for a run."""
    return model_weights(source, sha256)


def told(recipe: Recipe, run: Run, splits: Splits, folder: Path) -> list[tuple[Example, str]]:
    """The gold validation rows that teacher and student are held against, with what the teacher's weights say to them.

    Kept in `folder/teacher_answers.json`, so that a resumed run asks them no second time.
    """
    items = [e for e in splits.validation[: recipe.method.teach.development_rows] if e.answer]
    if not items:
        return []
    weights = weights_of(recipe, run)
    asked = [message_dicts(e.prompt) for e in items]
    key = digest([digest_of(weights), recipe.evaluate.max_new_tokens, asked], 32)
    kept = read_json(folder / ANSWERS) if (folder / ANSWERS).is_file() else {}
    if kept.get("key") != key:
        say(run, "train", f"the teacher is asked {len(items)} gold development rows")
        own_template = replace(recipe, model=replace(recipe.model, chat_template=None))
        kept = {"key": key, "answers": base_answers(own_template, weights, items)}
        write_whole(folder / ANSWERS, json.dumps(kept, ensure_ascii=False))
    return list(zip(items, kept["answers"], strict=True))


def digest_of(weights: Path) -> str:
    """Digest of a folder's weights alone."""
    return digest([file_sha256(path) for path in sorted(weights.glob("*.safetensors"))], 32)


def taught(task: Task, start: Start, out: Path) -> dict[str, Any]:
    """Sample the student and train it on what the teacher says of its answers. Gives training's facts."""
    from workbench.training.on_policy import train

    recipe, launch = task.recipe, task.recipe.launch
    teach = recipe.method.teach
    weights = weights_of(recipe, task.run)
    other = other_words(task, weights)
    rows = prompts_of(rendered(recipe, task.base, task.examples))
    if not rows:
        raise RequestError("there are no training rows", where="data.train")
    task.event(
        "said",
        text=f"{len(rows):,} prompts; the student answers each {teach.samples} times an epoch, at temperature "
        f"{teach.sample_temperature:g}, in at most {teach.max_new_tokens} tokens",
    )
    return train(
        start.base,
        recipe.method,
        rows,
        task.validation,
        out,
        weights=weights,
        other_words=other,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
        device=launch.device,
        threads=launch.threads,
        event=task.event,
        development=task.development,
        start=start.adapter,
    )


def prompts_of(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows, each prompt once: a teacher that is served as well may have given several answers to it."""
    return list({row.input_ids[: row.answer_start]: row for row in reversed(rows)}.values())[::-1]


def other_words(task: Task, weights: Path) -> OtherWords | None:
    """None for a teacher with the student's vocabulary, else what GOLD needs; which of the two it is, is said."""
    from workbench.training.gold import OtherWords, beta_of, shared_words, tokenizer_of

    recipe, own = task.recipe, tokenizer_of(task.base).get_vocab()
    teach = recipe.method.teach
    if tokenizer_of(weights).get_vocab() == own:
        task.event(
            "said",
            text=f"the teacher has the student's own vocabulary ({len(own):,} tokens): {teach.divergence} at every "
            "token, through TRL's DistillationTrainer",
        )
        return None
    beta, (shared, words) = beta_of(teach), shared_words(task.base, weights)
    task.event(
        "said",
        text=f"the teacher's vocabulary is another, {shared:,} of its {words:,} tokens are the student's too: GOLD "
        f"(trl.experimental.gold, beta {beta:g}) aligns the answers by their bytes",
    )
    asked = [*task.examples, *task.judges]
    tokenizer = load_tokenizer(weights, None)
    ours = [row.input_ids[: row.answer_start] for row in rendered(recipe, task.base, asked)]
    theirs = [tuple(prompt_ids(example.prompt, tokenizer)) for example in asked]
    answered = render(asked[0], tokenizer, train_on="last_answer", max_length=sys.maxsize)
    return OtherWords(dict(zip(ours, theirs, strict=True)), answered.input_ids[-1])
