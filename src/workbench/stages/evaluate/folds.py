"""Folds (`evaluate.folds`): every row judges, asked of a sibling of the student that was trained on the others.

Where the test rows are too few for a verdict, the recipe's own training is done again, K times, each time without a
Kth of the rows. What the siblings say to the rows that they have not seen is one set of answers (Stone 1974,
doi:10.1111/j.2517-6161.1974.tb00994.x), and its intervals are about these K siblings (Bayle et al. 2020, arXiv
2007.12671). The student that ships is none of them: it is that of the recipe's own training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workbench.data.chat import recipe_tokenizer
from workbench.data.prepare import Splits, refuse_folds
from workbench.data.split import joined, overlaps, tied
from workbench.engines import Ask
from workbench.errors import RequestError
from workbench.evaluation.answers import Prediction, ask_arm
from workbench.evaluation.metrics import STUDENT, measure
from workbench.evaluation.report import arm_metrics, settings_of
from workbench.evaluation.scorers import score
from workbench.recipe import Recipe
from workbench.records import Answer, Example, Message, Tools, digest
from workbench.runs import Run
from workbench.stages.common import merged_model, say
from workbench.stages.evaluate.arms import Arm, Incumbent, arms_of, few_shot_prompt, transformers_of, weights_bytes
from workbench.stages.train.task import Start, Task, is_trained, jobs, keep_trained, rendered, start_model
from workbench.stages.train.train import trainer
from workbench.stored_rows import HELD
from workbench.training.adapter import start_adapter

FOLDER = "folds"  # of the siblings, in the stage's folder for as long as it works
OWN = "student.own"  # what the student itself says to the test rows, which it has not learned either


@dataclass(frozen=True)
class Folds:
    """All rows, near copies and groups tied, and the numbers of those that judge in parts that tear none of these.

    `looks` are the numbers of the validation rows: a training looks at them, and never learns them.
    """

    rows: list[Example]
    looks: frozenset[int]
    parts: list[list[int]]
    words: int  # that a row learned may not share with one that judges

    @property
    def items(self) -> list[Example]:
        """Every row that judges, in the order of the data."""
        return [self.rows[number] for number in sorted(n for part in self.parts for n in part)]

    def others(self, fold: int) -> tuple[list[Example], list[Example]]:
        """(what a sibling may learn, what its training looks at): no row of its part, none that repeats one of them.

        Of repeats see `data.split.overlaps`: the recipe's own split drops them likewise.
        """
        own = set(self.parts[fold])
        rest = [number for number in range(len(self.rows)) if number not in own]
        repeats = overlaps([self.rows[n] for n in rest], [self.rows[n] for n in self.parts[fold]], self.words)
        kept = [number for at, number in enumerate(rest) if at not in repeats]
        learned = [self.rows[number] for number in kept if number not in self.looks]
        looked_at = [self.rows[number] for number in kept if number in self.looks]
        return learned, looked_at or [learned.pop()]


def cut(splits: Splits, shots: Sequence[Example], recipe: Recipe) -> Folds:
    """The rows in `evaluate.folds` parts of about one size, drawn by the seed.

    The rows that the few-shot baseline is shown judge nobody, nor do their near copies and what repeats them.
    RequestError when the rows make fewer groups than parts, or are too many to be trained on K times over.
    """
    wanted = recipe.evaluate.folds or 1
    refuse_folds(recipe.data, splits)
    counts = [len(part) for part in (splits.train, splits.validation, splits.test)]
    if sum(counts) > HELD:
        remedy = "evaluate.folds=null: so many rows have test rows enough"
        raise RequestError(f"{sum(counts):,} rows are no few", where="evaluate.folds", remedy=remedy)
    rows = tied([*splits.train, *splits.validation, *splits.test])
    shown = {e.id for e in shots}
    out = overlaps(rows, shots, recipe.data.overlap_words).keys() | {n for n, e in enumerate(rows) if e.id in shown}
    groups = [g for g in joined(rows).values() if not out & set(g) and all(rows[n].prompt for n in g)]
    if len(groups) < wanted:
        few = f"{len(rows):,} rows make {len(groups)} groups of near copies"
        raise RequestError(few, where="evaluate.folds", remedy="name fewer, or add rows that differ")
    random.Random(recipe.seed).shuffle(groups)
    parts: list[list[int]] = [[] for _ in range(wanted)]
    for group in sorted(groups, key=len, reverse=True):
        min(parts, key=len).extend(group)
    judging = [sorted(n for n in part if rows[n].good is not False) for part in parts]
    looks = frozenset(range(counts[0], counts[0] + counts[1]))
    return Folds(rows, looks, judging, recipe.data.overlap_words)


def contenders_of_folds(recipe: Recipe, run: Run, folds: Folds, folder: Path) -> list[Arm]:
    """The base, with and without examples, and the siblings as the student's arm."""
    seconds = (run.done("train") or {}).get("seconds", 0.0)
    sizes = ", ".join(f"{len(part):,}" for part in folds.parts)
    say(run, "evaluate", f"folds: {len(folds.parts)} siblings of the student will be trained, about {seconds / 60:.1f} "
        f"minutes each, and asked the {sizes} rows that they have not seen")  # fmt: skip
    base = [arm for arm in arms_of(recipe, run) if arm.name in ("base", "base_few_shot")]
    key = key_of(run, folds)
    engine = partial(siblings, recipe, run, folds, folder / FOLDER / key)
    return [*base, Arm(STUDENT, key, weights_bytes(merged_model(run)), "transformers", engine)]


def key_of(run: Run, folds: Folds) -> str:
    """What the siblings' answers depend on: the recipe's training, and who has learned what."""
    return digest({"run": run.digest, "parts": [[folds.rows[n].id for n in part] for part in folds.parts]}, 16)


@contextmanager
def siblings(recipe: Recipe, run: Run, folds: Folds, folder: Path) -> Iterator[Ask]:
    """Asks each prompt of the sibling that has not learned it, and one that is of no part of the student itself."""
    # As the arm is asked: a row that was not known again would be asked of the student that has learned it.
    place = {few_shot_prompt(folds.rows[n], []): fold for fold, part in enumerate(folds.parts) for n in part}

    def ask(
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        whose = [place.get(tuple(prompt)) for prompt in prompts]
        start = start_model(recipe, run)
        opened: dict[int | None, Callable[[], AbstractContextManager[Ask]]] = {}
        for fold in dict.fromkeys(whose):  # trained before anything is asked: it is no part of an answer's time
            opened[fold] = engine_of(recipe, run, start, folds, fold, folder)
        return answered(opened, whose, prompts, max_new_tokens, schema, tools)

    yield ask


def answered(
    opened: Mapping[int | None, Callable[[], AbstractContextManager[Ask]]],
    whose: Sequence[int | None],
    prompts: Sequence[Sequence[Message]],
    longest: int,
    schema: Mapping[str, Any] | None,
    tools: Sequence[Tools] | None,
) -> Iterator[tuple[int, Answer]]:
    """Every answer with its place, one sibling after the other."""
    for fold, engine in opened.items():
        mine = [at for at, owner in enumerate(whose) if owner == fold]
        own_tools = None if tools is None else [tools[at] for at in mine]
        with engine() as ask:
            for position, answer in ask([prompts[at] for at in mine], longest, schema, own_tools):
                yield mine[position], answer


def engine_of(
    recipe: Recipe, run: Run, start: Path, folds: Folds, fold: int | None, folder: Path
) -> Callable[[], AbstractContextManager[Ask]]:
    """What starts a sibling, which is trained now unless it was; for None, the student itself."""
    plain = transformers_of(recipe)
    if fold is None:
        return partial(plain, merged_model(run))
    out = folder / str(fold)
    if not is_trained(out, f"sibling {fold + 1}", partial(tell_said, run)):
        train_sibling(recipe, run, start, folds, fold, out)
    if recipe.method.kind == "full":
        return partial(plain, out / "model")
    template = recipe_tokenizer(start, recipe.model, recipe.method).chat_template
    shown = template if isinstance(template, str) else None
    return partial(plain, start, chat_template=shown, adapter_dir=out / "adapter")


def train_sibling(recipe: Recipe, run: Run, start: Path, folds: Folds, fold: int, out: Path) -> None:
    """The recipe's own training, without one part of the rows; a killed one is gone on from."""
    learned, looked_at = folds.others(fold)
    say(run, "evaluate", f"folds: sibling {fold + 1} of {len(folds.parts)} learns {len(learned):,} rows, to be asked "
        f"{len(folds.parts[fold]):,} others")  # fmt: skip
    most, train = recipe.method.validation_rows, trainer(recipe.launch)
    looks = rendered(recipe, start, looked_at)[:most]
    task = Task(recipe, run, start, learned, {}, {}, looks, None, partial(tell_said, run), looked_at[:most])
    adapter = start_adapter(recipe.model, recipe.method)
    for job in jobs(task, Start(start, adapter, given=adapter is not None), out):
        train(job)
    keep_trained(out)


def tell_said(run: Run, kind: str, **fields: object) -> None:
    """What a sibling's training says; its metrics and samples are none of the run's own training."""
    if kind == "said":
        say(run, "evaluate", str(fields["text"]))


def own_answers(recipe: Recipe, run: Run, tests: Sequence[Example], folder: Path) -> list[Prediction]:
    """What the student that ships says to the test rows, which it has not learned; those of before are taken again."""
    with transformers_of(recipe)(merged_model(run)) as ask:
        return ask_arm(
            OWN, run.output_digest("merge"), ask, tests, [e.prompt for e in tests],
            max_new_tokens=recipe.evaluate.max_new_tokens, out=folder / f"{OWN}.jsonl",
            cached=run.folder / "evaluate" / "predictions" / f"{OWN}.jsonl", seed=recipe.seed,
            acceptable=recipe.evaluate.acceptable,
        )  # fmt: skip


def about(
    recipe: Recipe,
    run: Run,
    folds: Folds,
    report: Mapping[str, Any],
    collected: Mapping[str, Sequence[Prediction]],
    own: Sequence[Prediction],
    incumbent: Incumbent,
) -> dict[str, Any]:
    """The report's `folds`: whom the verdict is about, sibling by sibling, and how the student itself did.

    `{"k", "rows", "learned", "student_learned", "siblings": [{"n", "value", "baseline"}], "own_n", "own",
    "champion"}`: `learned` the rows that the sibling with the fewest has learned, `siblings` mean scores by the metric
    that decides (None where it is no single answer's), of the sibling and of the gate's baseline on its part; `own` the
    figure of the student that ships on the test rows, with its interval, None where one student's answers give none;
    `champion` who is not held against them, since it may have learned the rows that judge.
    """
    evaluate, baseline, primary = settings_of(report), recipe.gate.baseline, report["primary"]
    by_sibling = []
    for part in folds.parts:
        ids = {folds.rows[number].id for number in part}
        figures: dict[str, Any] = {"n": sum(p.id in ids for p in collected[STUDENT])}
        for name, arm in (("value", STUDENT), ("baseline", baseline)):
            asked_of = [p for p in collected.get(arm, ()) if p.id in ids]
            figures[name] = mean([score(evaluate, p.expected, p.answer).get(primary) for p in asked_of])
        by_sibling.append(figures)
    cells = arm_metrics(STUDENT, own, measure(evaluate, {STUDENT: own}, recipe.seed), evaluate.confidence)
    champion, start = incumbent.champion, start_model(recipe, run)
    return {
        "k": len(folds.parts),
        "rows": len(folds.items),
        "learned": min(len(rendered(recipe, start, folds.others(fold)[0])) for fold in range(len(folds.parts))),
        "student_learned": (run.done("train") or {})["facts"]["rows"],
        "siblings": by_sibling,
        "own_n": len(own),
        "own": cells.get(primary),
        "champion": f"{champion.name} version {champion.number}" if champion else None,
    }


def mean(scores: Sequence[float | None]) -> float | None:
    """The mean; None of nothing, and where a single answer has no such score."""
    values = [value for value in scores if value is not None]
    return round(sum(values) / len(values), 6) if values and len(values) == len(scores) else None
